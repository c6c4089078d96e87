"""Owns how sheets of pictures look that results are judged by; must not know which pictures stand on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from redi.comparison import Column, page

_SIDE, _MOST, _COLORS, _ROUNDS = 128, 256, 256, 3
"""Pixels of a picture at least and at most; colours of the file, which is a third of its size in full, and rounds of
k-means in which they come so near to the pictures' own (2 of 255 in the mean) that nobody takes red for orange."""


def sheet(columns: Sequence[Column], rows: Sequence[str], *, per_band: int, heading: str) -> Image.Image:
    """Return :func:`redi.comparison.page` at the size and in the colours of a sheet."""
    shown = [replace(each, pictures=tuple(map(_small, each.pictures))) for each in columns]
    whole = page(shown, rows, per_band=per_band, heading=heading, least_side=_SIDE)
    return whole.quantize(_COLORS, kmeans=_ROUNDS)


def _small(picture: Image.Image) -> Image.Image:
    picture = picture.copy()
    picture.thumbnail((_MOST, _MOST))
    return picture
