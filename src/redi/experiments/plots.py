"""Owns turning a drawing into the bytes of a plot, the same for the same results; must not know what is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from redi.results import write_file


def plotted(draw: Callable[[Any], None], *, size: tuple[float, float], ending: str = "svg") -> bytes:
    """Return a plot.

    Args:
        draw: Draws on a figure of Matplotlib's.
        size: Width and height, in inches.
        ending: "svg" or "png".
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "redi", "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = BytesIO()
        figure.savefig(buffer, format=ending, metadata={"Date": None} if ending == "svg" else {"Software": None})
    return buffer.getvalue()


def image_of(result: Mapping[str, Any], images: Path) -> Path:
    """Return where a result's plot goes, so that no scale's plots replace another's; the name of small's, which the
    README shows, does not say it."""
    scale = result["scale"]["name"]
    return images / f"results-{'' if scale == 'small' else f'{scale}-'}{result['study']}.svg"


def write_plots(path: Path, draw: Callable[[Any], None], *, size: tuple[float, float]) -> Path:
    """Write a plot as SVG and as PNG beside it, and return ``path``, which is that of the SVG; as :func:`plotted`."""
    for ending in ("svg", "png"):
        write_file(path.with_suffix(f".{ending}"), plotted(draw, size=size, ending=ending))
    return path


def bars(found: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """Return how far below and above their values the intervals (n) reach, as ``errorbar`` takes them: (2, n)."""
    return [[each["value"] - each["low"] for each in found], [each["high"] - each["value"] for each in found]]
