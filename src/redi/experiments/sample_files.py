"""Owns what a sampling made and the files that keep it, written whole or not at all; must not know how it is made."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from redi.errors import InputError
from redi.results import write_file

ATTRIBUTES = ("objects", "background", "style", "all")
SHOWN = 6
"""Pictures of a replicate that are kept as large as they are, for sheets."""

_SIDE = 64


@dataclass(frozen=True, eq=False)
class Samples:
    """What one sampling made of one replicate's prompts.

    Attributes:
        features: (n, d) of the extractor.
        faithful: For each attribute (n): 1 right, 0 wrong, nan where the prompt does not say or nobody can tell; where
            a score is all there is, "all" is the score.
        pictures: (n, h, w, 3), 0 to 255, at most 64 pixels a side.
        calls: (n) network calls of each picture.
        jumped: (n) whether it jumped.
        seconds: Of all pictures, everything but loading included.
        shown: (s, height, width, 3), 0 to 255: the first few as they were made.
    """

    features: NDArray[np.float64]
    faithful: dict[str, NDArray[np.float64]]
    pictures: NDArray[np.uint8]
    calls: NDArray[np.float64]
    jumped: NDArray[np.bool_]
    seconds: float
    shown: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.calls)

    def first(self, count: int) -> Samples:
        """Return those of the first prompts, with their share of the seconds."""
        faithful = {name: told[:count] for name, told in self.faithful.items()}
        return Samples(
            self.features[:count],
            faithful,
            self.pictures[:count],
            self.calls[:count],
            self.jumped[:count],
            self.seconds * min(count, len(self)) / len(self),
            self.shown[:count],
        )

    def write(self, path: Path) -> None:
        """Write them to a file of NumPy's."""
        told = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("faithful", "shown")}
        told |= {f"faithful_{name}": each for name, each in self.faithful.items()}
        if self.shown.shape[1:] != self.pictures.shape[1:]:
            told["shown"] = self.shown
        write_array(path, **told)


def read_samples(path: Path) -> Samples:
    """Return what :meth:`Samples.write` wrote.

    Raises:
        InputError: The file is damaged.
    """
    with reading(path) as kept:
        return Samples(
            kept["features"],
            {name: kept[f"faithful_{name}"] for name in ATTRIBUTES},
            kept["pictures"],
            kept["calls"],
            kept["jumped"],
            float(kept["seconds"]),
            kept["shown"] if "shown" in kept else kept["pictures"][:SHOWN],
        )


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures (n, height, width, 3), 0 to 255, and the network calls (n) of each."""

    pictures: NDArray[np.uint8]
    calls: NDArray[np.float64]


def read_pictures(path: Path) -> Pictures:
    """Return what :func:`write_array` wrote of a :class:`Pictures`.

    Raises:
        InputError: The file is damaged.
    """
    with reading(path) as kept:
        return Pictures(kept["pictures"], kept["calls"])


def joined(parts: Sequence[Samples]) -> Samples:
    """Return the samples of all parts, in their order."""
    return Samples(
        np.concatenate([each.features for each in parts]),
        {name: np.concatenate([each.faithful[name] for each in parts]) for name in ATTRIBUTES},
        np.concatenate([each.pictures for each in parts]),
        np.concatenate([each.calls for each in parts]),
        np.concatenate([each.jumped for each in parts]),
        sum(each.seconds for each in parts),
        parts[0].shown,
    )


def as_array(pictures: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """Return pictures of one size (n, height, width, 3), 0 to 255."""
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


def thumbnails(pictures: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """Return pictures of one size (n, h, w, 3), 0 to 255, shrunk to at most 64 pixels a side."""
    small = []
    for picture in pictures:
        copy = picture.convert("RGB")
        copy.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
        small.append(copy)
    return as_array(small)


@contextmanager
def reading(path: Path) -> Iterator[Any]:
    """Open what :func:`write_array` wrote, the array or the arrays by name, for a body that does nothing but read them.

    Raises:
        InputError: The file is damaged, or an array is missing.
    """
    try:
        found = np.load(path)
        with nullcontext(found) if isinstance(found, np.ndarray) else found as kept:
            yield kept
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} is damaged: {error}",
            expected="what redi wrote, whole",
            fix="remove it; the same command runs it again",
        ) from error


def read_array(path: Path) -> NDArray[np.float64]:
    """Return the one array that :func:`write_array` wrote.

    Raises:
        InputError: The file is damaged.
    """
    with reading(path) as kept:
        return np.asarray(kept, np.float64)


def write_array(path: Path, array: NDArray[Any] | None = None, **arrays: Any) -> None:
    """Write an array, or several by name, whole or not at all."""
    buffer = BytesIO()
    if array is not None:
        np.save(buffer, array)
    else:
        np.savez_compressed(buffer, **arrays)
    write_file(path, buffer.getvalue())
