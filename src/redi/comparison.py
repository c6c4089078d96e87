"""Owns the page that shows runs of the same prompts above each other; must not know how the pictures were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_MARGIN, _GAP = 16, 8
_TITLE_LINES, _TEXT = 6, 13
_INK, _SOFT, _PAPER = (24, 24, 28), (96, 96, 104), (255, 255, 255)


@dataclass(frozen=True)
class Column:
    """One prompt: what is written above it, its pictures from top to bottom, and a note below each."""

    title: str
    pictures: tuple[Image.Image, ...]
    notes: tuple[str, ...]


def page(
    columns: Sequence[Column], rows: Sequence[str], *, per_band: int = 6, heading: str = "", least_side: int = 160
) -> Image.Image:
    """Lay columns out in bands of ``per_band``, with the name of each row at the left.

    Args:
        columns: At least one; each with as many pictures as there are rows, all of one size.
        rows: Names of the rows, such as "full" and "ReDi".
        per_band: Columns side by side before the next band begins.
        heading: Written on top.
        least_side: Pictures are enlarged by a whole number to at least so many pixels.
    """
    width, height = columns[0].pictures[0].size
    zoom = max(1, -(-least_side // width))
    cell = (width * zoom, height * zoom)
    label = round(max(_font(_TEXT + 1).getlength(row) for row in rows)) + 2 * _GAP if any(rows) else 0
    head = 2 * _TEXT + _GAP if heading else 0
    titles = [_wrapped(column.title, cell[0], _TITLE_LINES) for column in columns]
    title_height = max(map(len, titles)) * (_TEXT + 3) + _GAP
    row_height = cell[1] + _TEXT + 2 * _GAP
    band_height = title_height + len(rows) * row_height + _GAP
    across = min(per_band, len(columns))
    bands = -(-len(columns) // per_band)
    sheet = Image.new(
        "RGB",
        (2 * _MARGIN + label + across * (cell[0] + _GAP) - _GAP, 2 * _MARGIN + head + bands * band_height - _GAP),
        _PAPER,
    )
    pen = ImageDraw.Draw(sheet)
    if heading:
        pen.text((_MARGIN, _MARGIN), heading, _INK, _font(_TEXT + 3))
    for band in range(bands):
        top = _MARGIN + head + band * band_height
        for row, name in enumerate(rows):
            y = top + title_height + row * row_height + cell[1] // 2 - _TEXT
            pen.text((_MARGIN, y), name, _INK, _font(_TEXT + 1))
        for place in range(band * per_band, min((band + 1) * per_band, len(columns))):
            left = _MARGIN + label + place % per_band * (cell[0] + _GAP)
            _draw_column(sheet, pen, columns[place], titles[place], (left, top), cell, title_height, row_height)
    return sheet


def first_band(sheet: Image.Image, bands: int) -> Image.Image:
    """Return the top of what :func:`page` laid out under a heading in so many bands: the heading and the first."""
    top, spare = _MARGIN + 2 * _TEXT + _GAP, _MARGIN - _GAP
    band = (sheet.height - top - spare) // bands
    alone = Image.new("RGB", (sheet.width, top + band + spare), _PAPER)
    alone.paste(sheet.crop((0, 0, sheet.width, top + band - _GAP)))
    return alone


def _draw_column(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    column: Column,
    lines: Sequence[str],
    corner: tuple[int, int],
    cell: tuple[int, int],
    title_height: int,
    row_height: int,
) -> None:
    left, top = corner
    first = top + title_height - _GAP - len(lines) * (_TEXT + 3)
    for number, line in enumerate(lines):
        pen.text((left, first + number * (_TEXT + 3)), line, _INK, _font(_TEXT))
    for row, (picture, note) in enumerate(zip(column.pictures, column.notes, strict=True)):
        y = top + title_height + row * row_height
        sheet.paste(picture.convert("RGB").resize(cell, Image.Resampling.BICUBIC), (left, y))
        pen.text((left, y + cell[1] + 3), _cut(note, cell[0]), _SOFT, _font(_TEXT - 1))


def _wrapped(text: str, width: int, most: int) -> list[str]:
    """Break a text into at most so many lines of so many pixels; what is left over becomes an ellipsis."""
    font, lines = _font(_TEXT), [""]
    words = text.split()
    for place, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) < most:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {' '.join(words[place:])}"
            break
    return [_cut(line, width, _TEXT) for line in lines if line]


def _cut(text: str, width: int, size: int = _TEXT - 1) -> str:
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)
