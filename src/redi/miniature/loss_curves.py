"""Owns the plot of a training run's losses; must not know what was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from redi.miniature.training import read_losses


def loss_curves(losses: Mapping[str, Path], target: Path) -> None:
    """Plot the loss records of stages, one panel each, over steps, on logarithmic axes; nothing if there are none."""
    if not losses:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(losses), 3), layout="constrained")
    for axes, (name, path) in zip(figure.subplots(1, len(losses), squeeze=False)[0], losses.items(), strict=True):
        records = read_losses(path)
        axes.plot([record["step"] for record in records], [record["loss"] for record in records], linewidth=0.8)
        axes.set(title=name, xlabel="steps", ylabel="loss", xscale="log", yscale="log")
    figure.savefig(target, dpi=100)
