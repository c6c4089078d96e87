"""Owns how sheets of pictures look that results are judged by; must not know which pictures stand on them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from redi.comparison import Column, page

_SIDE, _COLORS, _ROUNDS = 128, 256, 3
"""Pixels of a picture at least; colours of the file, which is a third of its size in full, and rounds of k-means in
which they come so near to the pictures' own (2 of 255 in the mean) that nobody takes a red thing for an orange one."""


def sheet(columns: Sequence[Column], rows: Sequence[str], *, per_band: int, heading: str) -> Image.Image:
    """Return :func:`redi.comparison.page` at the size and in the colours of a sheet."""
    whole = page(columns, rows, per_band=per_band, heading=heading, least_side=_SIDE)
    return whole.quantize(_COLORS, kmeans=_ROUNDS)
