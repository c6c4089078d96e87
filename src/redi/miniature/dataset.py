"""Owns the arrays that training reads (pictures, token ids), made from seeded scenes; must not know networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from redi.errors import InputError
from redi.miniature.drawing import draw
from redi.miniature.scenes import IMAGE_SIZE, Scene, caption, captioned_scenes
from redi.miniature.training import replace_file

WORDINGS = 4
"""Captions written for every training scene."""


def pictures(scenes: list[Scene], *, description: str = "drawing") -> NDArray[np.uint8]:
    """Draw scenes into an array (n, 3, 64, 64)."""
    drawn = np.empty((len(scenes), 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for index, scene in enumerate(
        tqdm(scenes, desc=description, unit="picture", mininterval=5, disable=len(scenes) < 5000)
    ):
        drawn[index] = np.asarray(draw(scene)).transpose(2, 0, 1)
    return drawn


def take_scenes(count: int, *, seed: int, held_out: bool) -> list[Scene]:
    """Return ``count`` scenes of one side of the split, the same ones for the same seed."""
    return [scene for _, scene in itertools.islice(captioned_scenes(seed, held_out=held_out), count)]


def wordings(scene: Scene) -> list[str]:
    """Return different ways to say what a scene's caption says."""
    rng = np.random.default_rng([scene.seed, 3])
    return [caption(scene.description, rng) for _ in range(WORDINGS)]


def cached(path: Path, count: int, make: Callable[[], NDArray[np.generic]]) -> NDArray[np.generic]:
    """Return the array of ``count`` rows in ``path``, memory-mapped, making it first when it is not there.

    Raises:
        InputError: The array there has another number of rows.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        array = make()

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.save(file, array)

        replace_file(path, write)
    array = np.asarray(np.load(path, mmap_mode="r"))
    if len(array) != count:
        raise InputError(
            f"{path} holds {len(array)} rows",
            expected=f"{count}",
            fix="train into an empty folder",
        )
    return array
