"""Owns the report's section on the paper's error bound, from the result's JSON; must not know how it was made."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from redi.experiments.plots import image_of, write_plots
from redi.experiments.wording import interval

BOUND = "L of each step, and mu"
"""The predictor that is the whole bound."""
_PLOTTED = ("distance at the key", "L of each step", BOUND)
_VACUOUS = 10


def bound_section(result: Mapping[str, Any], images: Path) -> str:
    """Return the section, and draw its plot."""
    image = write_plots(image_of(result, images), partial(_draw, result), size=(11, 4))
    rates, gaps, clock = result["rate"], result["gap"], result["clock"]
    lines = [
        f"## Section 5: the error bound ({result['solver']}, key after {result['key_step']})",
        "",
        f"{result['queries']} held-out prompts and the nearest entry of each, both run in full from the same noise.",
        "The Gronwall inequality (theorem A.2): distance at v <= distance at the key * e^(L S) + mu/L * (e^(L S) - 1),",
        "with S the time between in the solver's clock log(alpha / sigma). L is the largest singular value of the",
        "Jacobian of the query's drift, guidance included, measured at the latents of both trajectories (over all of",
        "space it can only be larger); mu the distance between the drifts of both prompts at the neighbour's latents,",
        f"which the paper's proof sets to 0. S from the key to the last value step is {clock[-1] - clock[0]:.2f}; the",
        f"median L goes from {rates[0]:.1f} at the key to {rates[-1]:.1f}, at most {max(rates):.1f}, the median mu",
        f"from {gaps[0]:.1f} to {gaps[-1]:.1f}.",
        "",
        "*Rank correlation* is Spearman's over queries, *gain* how much higher it is than that of the distance at the",
        "key. *Too large by* is the median of predicted over observed distance; *broken* the share of queries further",
        "apart than predicted. The last predictor of each step is no bound.",
        "",
        "| value step | predictor | rank correlation | gain | too large by | broken |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        said, gain = (interval(row[name], ".2f") for name in ("correlation", "gain"))
        cells = (row["value_step"], row["predictor"], said, gain, f"{row['ratio']:.3g}", f"{row['broken']:.0%}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", *_verdict(result["rows"])]
    return "\n".join([*lines, "", f"![Predicted and observed distance](images/{image.name})\n"])


def _verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the full bound is worth, in words that the figures choose."""
    bounds = [row for row in rows if row["predictor"] == BOUND]
    vacuous = [row["value_step"] for row in bounds if row["ratio"] > _VACUOUS]
    found = {"worse": [row["value_step"] for row in bounds if row["gain"]["high"] < 0]}
    found["better"] = [row["value_step"] for row in bounds if row["gain"]["low"] > 0]
    told = [f"{word} at v = {', '.join(map(str, steps))}" for word, steps in found.items() if steps]
    said = (
        f"With mu, the bound is more than {_VACUOUS} times too large, so says nothing, at v = "
        f"{', '.join(map(str, vacuous)) or 'none'}. Against the distance at the key, it ranks queries "
        f"{' and '.join(told) or 'no differently'} (outside the interval of the difference)."
    )
    return textwrap.wrap(said, 120, break_on_hyphens=False)


def _draw(result: Mapping[str, Any], figure: Any) -> None:
    """Draw observed over predicted distance, a panel for each predictor."""
    axes: Any = figure.subplots(1, len(_PLOTTED), sharey=True)
    for axis, name in zip(axes, _PLOTTED, strict=True):
        rows = [row for row in result["rows"] if row["predictor"] == name]
        for row in rows:
            axis.plot(row["predicted"], row["observed"], ".", label=f"v = {row['value_step']}")
        ends = [numbers(row["observed"]) for row in rows for numbers in (min, max)]
        axis.plot([min(ends), max(ends)], [min(ends), max(ends)], color="black", linewidth=1, label="equal")
        axis.set(xlabel=f"predicted: {name}", xscale="log", yscale="log")
    axes[0].set(ylabel="observed distance at v")
    axes[0].legend(fontsize=7)
