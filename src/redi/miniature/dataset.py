"""Owns the arrays that training reads (pictures, token ids), made from seeded scenes; must not know networks."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from redi.errors import InputError
from redi.miniature.drawing import draw
from redi.miniature.scenes import IMAGE_SIZE, Description, Scene, caption, captioned_scenes, descriptions
from redi.miniature.training import replace_file

_SHARD_SIZE = 4096
_MOST_SHARDS = 1_000_000
T = TypeVar("T")

WORDINGS = 4
"""Captions written for every training scene."""


@dataclass(frozen=True)
class Shard:
    """Some scenes of a data set, drawn from a seed of their own, so that shards can be made side by side."""

    count: int
    seed: int

    def scenes(self) -> list[Scene]:
        """Return the scenes, the same ones each time; none is held out."""
        return [scene for _, scene in itertools.islice(captioned_scenes(self.seed, held_out=False), self.count)]


def shards(count: int, *, seed: int) -> list[Shard]:
    """Return a data set of ``count`` scenes; a larger one of the same seed begins with the same scenes."""
    starts = range(0, count, _SHARD_SIZE)
    return [Shard(min(_SHARD_SIZE, count - start), seed * _MOST_SHARDS + index) for index, start in enumerate(starts)]


def in_processes(make: Callable[[Shard], T], parts: list[Shard], *, description: str) -> Iterator[T]:
    """Yield what the picklable ``make`` returns for each shard, in order, made by one process per core."""
    if len(parts) == 1:
        yield make(parts[0])
        return
    count = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, len(parts))
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from tqdm(pool.map(make, parts), total=len(parts), desc=description, unit="shard", mininterval=5)


def asked_for(shard: Shard) -> list[Description]:
    """Return what a shard's captions ask for."""
    return list(itertools.islice(descriptions(shard.seed, held_out=False), shard.count))


def pictures(shard: Shard) -> NDArray[np.uint8]:
    """Draw a shard's scenes into an array (n, 3, 64, 64)."""
    drawn = np.empty((shard.count, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for index, scene in enumerate(shard.scenes()):
        drawn[index] = np.asarray(draw(scene)).transpose(2, 0, 1)
    return drawn


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
