"""Owns the pictures that show a training run to a person (loss curves, samples); must not know how they came about."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from redi.miniature.scenes import IMAGE_SIZE
from redi.miniature.training import read_losses

_ZOOM = 2
_CAPTION_HEIGHT = 44


def loss_curves(losses: Mapping[str, Path], target: Path) -> None:
    """Plot the loss records of stages, one panel each, over steps, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(losses), 3), layout="constrained")
    for axes, (name, path) in zip(figure.subplots(1, len(losses), squeeze=False)[0], losses.items(), strict=True):
        records = read_losses(path)
        axes.plot([record["step"] for record in records], [record["loss"] for record in records], linewidth=0.8)
        axes.set(title=name, xlabel="steps", ylabel="loss", xscale="log", yscale="log")
    figure.savefig(target, dpi=100)


def sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], captions: Sequence[str], target: Path | None = None
) -> Image.Image:
    """Lay pictures out in labelled rows, with one caption under each column; write a PNG if ``target`` is given."""
    side, label = IMAGE_SIZE * _ZOOM, 0 if all(not name for name, _ in rows) else 64
    columns = len(captions)
    page = Image.new("RGB", (label + columns * (side + 6), len(rows) * (side + 6) + _CAPTION_HEIGHT), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=10)
    for row, (name, images) in enumerate(rows):
        pen.text((4, row * (side + 6) + side // 2 - 6), name, fill="black", font=font)
        for column, image in enumerate(images):
            zoomed = image.resize((side, side), Image.Resampling.LANCZOS)
            page.paste(zoomed, (label + column * (side + 6), row * (side + 6)))
    for column, text in enumerate(captions):
        wrapped = "\n".join(textwrap.wrap(text, width=24)[:4])
        pen.multiline_text(
            (label + column * (side + 6) + 2, len(rows) * (side + 6)), wrapped, fill="black", font=font, spacing=1
        )
    if target is not None:
        page.save(target)
    return page
