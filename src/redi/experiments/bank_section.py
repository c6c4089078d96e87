"""Owns the report's section on noises and entries of a bank, from the result's JSON; must not know how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from redi.experiments.plots import bars, image_of, write_plots
from redi.experiments.wording import interval

_READABLE = 1e5
"""Entries from which a count is told by its power of ten."""


def bank_section(result: Mapping[str, Any], images: Path) -> str:
    """Return the section, and draw its plot."""
    image = write_plots(image_of(result, images), partial(_draw, result), size=(14.5, 4))
    scale, rule = result["scale"], result["fit"]
    lines = [
        f"## How many noises, how many entries ({result['jump']})",
        "",
        f"{scale['replicates']} banks of each size, {scale['entries']} entries, {scale['prompts']} held-out prompts "
        f"each; pictures of {result['queries']} prompts in all. *Loss* is the distance of the estimated x_v to that of "
        "the run in full, as a share of what the mean of the noise's values has. *Of other noises* looks at entries of "
        "every noise but the prompt's own, which is all that independent noises leave.",
        "",
        "| noises | entries of each | nearest key | loss | faithful | from full |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        cells = (
            f"{row['noises']}",
            f"{row['entries']} of other noises" if row["alien"] else f"{row['entries']}",
            interval(row["nearest"], ".1f"),
            interval(row["loss"], ".3f"),
            interval(row["faithfulness"], ".1%"),
            interval(row["closeness"], ".2f"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    needed = "; ".join(f"{loss}: {_entries(found)}" for loss, found in rule["needed"].items())
    said = (
        f"Whatever the bank, loss = {rule['a']:.2f} n^-{rule['b']['value']:.3f} "
        f"[{rule['b']['low']:.3f}, {rule['b']['high']:.3f}], n entries of each noise; no point is farther from it than "
        f"{rule['off']:.0%}. Entries of each noise for a loss of {needed}; beyond {_most(result)} that is "
        "extrapolated and tells an order of magnitude at best. A bank of M noises needs M times as many."
    )
    return "\n".join([*lines, "", said, "", f"![Loss over entries of each noise](images/{image.name})\n"])


def _most(result: Mapping[str, Any]) -> int:
    return max(int(row["entries"]) for row in result["rows"] if not row["alien"])


def _entries(found: Mapping[str, float]) -> str:
    if found["high"] < 1:
        return "fewer than one"
    return interval(found, ".0f" if found["high"] < _READABLE else ".0e")


def _draw(result: Mapping[str, Any], figure: Any) -> None:
    """Draw loss, faithfulness and coverage over entries of each noise, a line for each bank, and quality over loss."""
    rows = [row for row in result["rows"] if not row["alien"]]
    axes: Any = figure.subplots(1, 4)
    for noises in sorted({row["noises"] for row in rows}):
        own = [row for row in rows if row["noises"] == noises]
        counts = [row["entries"] for row in own]
        label = f"{noises} noise{'s' if noises > 1 else ''}"
        axes[0].plot(counts, [row["loss"]["value"] for row in own], "o-", label=label)
        for axis, measure in ((axes[1], "faithfulness"), (axes[3], "nearest")):
            told = [row[measure] for row in own]
            axis.errorbar(counts, [e["value"] for e in told], bars(told), marker="o", elinewidth=0.6, capsize=2)
    counts = sorted({row["entries"] for row in rows})
    rule = result["fit"]
    axes[0].plot(counts, [rule["a"] * count ** -rule["b"]["value"] for count in counts], "k--", label="rule")
    axes[2].plot([row["loss"]["value"] for row in rows], [row["closeness"]["value"] for row in rows], "o")
    axes[0].set(xlabel="entries of each noise", ylabel="loss at x_v", xscale="log")
    axes[1].set(xlabel="entries of each noise", ylabel="faithful", xscale="log")
    axes[2].set(xlabel="loss at x_v", ylabel="distance to the full run")
    axes[3].set(xlabel="entries of each noise", ylabel="distance to the nearest key", xscale="log")
    axes[0].legend(fontsize=7)
