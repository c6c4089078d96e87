"""Owns table and plot of the best at each number of calls, from a comparison's JSON; must not know how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redi.experiments.plots import bars
from redi.experiments.quality import COMPARED_CALLS, MORE_IS_BETTER, Row, best, loss
from redi.experiments.sampling import settings_told
from redi.experiments.wording import TOLD, VERDICTS

REACHED, _GOAL = (6, 8, 10), 8
_PLOTTED = (2, 3, 4, 5, 6, 7, 8, 10, 15, 25, 50)  # 9 calls are Heun's alone
_KINDS = (
    (False, "best solver alone", "a solver alone, in one spacing", "black", "0.8"),
    (True, "best jump", "jumps of one base, from one key", "tab:red", "lightcoral"),
)
"""Whether it jumps; what the best of them and each family are called; in which colours."""


def pareto(result: Mapping[str, Any]) -> list[str]:
    """Return lines: per number of calls the best solver alone and the best jump, each measure by itself; with how many
    calls a jump reaches what the best solver alone reaches with some; and which jumps are as good as the run in full.

    Args:
        result: Of a comparison with a plot.
    """
    rows = result["rows"]
    found = {(each["calls"], each["measure"]): each["verdict"] for each in result["best"]}
    heads = " | ".join(f"{name}: solver alone | ReDi | ReDi is" for _, name, _ in TOLD)
    lines = [
        "The best at each number of calls, in each measure by itself. *Even* is where the interval of the difference, "
        "over the same prompts from the same noises, holds zero; the bars of the plot are each row's own intervals. "
        f"The best is chosen on the pictures that it is compared on, of {_few(rows, jumps=True)} jumps and of "
        f"{_few(rows, jumps=False)} solvers alone with at most {_GOAL} calls, which flatters both.",
        "",
        f"| calls | {heads} |",
        "| ---: |" + " --- | --- | --- |" * len(TOLD),
    ]
    for calls in COMPARED_CALLS:
        cells = []
        for measure, _, form in TOLD:
            verdict = found.get((calls, measure), "")
            cells += [_told(best(rows, measure, calls, jumps=jumps), measure, form) for jumps in (False, True)]
            cells.append(VERDICTS.get(verdict, verdict))
        lines.append(f"| {calls} | {' | '.join(cells)} |")
    lines += [
        "",
        "| what the best solver alone reaches with | "
        + " | ".join(f"in {name}, ReDi reaches with" for _, name, _ in TOLD)
        + " |",
        "| ---: |" + " ---: |" * len(TOLD),
    ]
    for calls in REACHED:
        lines.append(f"| {calls} calls | {' | '.join(_fewest(rows, measure, calls) for measure, _, _ in TOLD)} |")
    said = (
        f"With at most {_GOAL} calls within 3 % of the Frechet distance of {result['full']}'s pictures and within 3 "
        f"points of their faithfulness, as measured: {near_the_full(result)}."
    )
    return [*lines, "", said]


def _few(rows: Sequence[Row], *, jumps: bool) -> int:
    return sum((row["sampling"]["jump"] is not None) == jumps and round(row["calls"]) <= _GOAL for row in rows)


def _told(row: Row | None, measure: str, form: str) -> str:
    return "" if row is None else f"{row[measure]['value']:{form}} ({row['label'].removeprefix('ReDi ')})"


def _fewest(rows: Sequence[Row], measure: str, calls: int) -> str:
    if best(rows, measure, calls, jumps=False) is None:
        return ""
    fewest = fewest_calls(rows, measure, calls)
    return "none of these" if fewest is None else f"{fewest:.4g} ({fewest / calls:.2f})"


def fewest_calls(rows: Sequence[Row], measure: str, calls: int) -> float | None:
    """Return the fewest calls with which a jump is at least as good as the best solver alone with so many, if any."""
    alone = best(rows, measure, calls, jumps=False)
    jumps = [row for row in rows if row["sampling"]["jump"] is not None]
    enough = [row["calls"] for row in jumps if alone and loss(row, measure) <= loss(alone, measure)]
    return min(enough, default=None)


def as_good_as_the_full(result: Mapping[str, Any], *, jumps: bool = True) -> list[Row]:
    """Return the rows of few calls, of jumps or of solvers alone, that are within 3 % of the full run's Frechet
    distance and within 3 points of its faithfulness, those of fewest calls first."""
    rows = result["rows"]
    full = next(row for row in rows if row["label"] == result["full"])
    return [
        row
        for row in sorted(rows, key=lambda row: row["calls"])
        if (row["sampling"]["jump"] is not None) == jumps
        and row["calls"] <= _GOAL
        and row["frechet"]["value"] <= 1.03 * full["frechet"]["value"]
        and row["faithfulness"]["value"] >= full["faithfulness"]["value"] - 0.03
    ]


def near_the_full(result: Mapping[str, Any]) -> str:
    """Tell the rows of :func:`as_good_as_the_full`: the jumps, and the solver alone that needs fewest calls for it."""
    jumps, alone = (as_good_as_the_full(result, jumps=each) for each in (True, False))
    told, first = (
        [f"{row['label'].removeprefix('ReDi ')} ({row['calls']:.4g})" for row in rows] for rows in (jumps, alone)
    )
    return f"jumps {', '.join(told) or 'none'}; of solvers alone {first[0] if first else 'none'} with fewest"


def draw(result: Mapping[str, Any], figure: Any) -> None:
    """Draw each measure over calls: every family of rows pale, the best at each number thick, the full run dashed."""
    rows, full = result["rows"], next(row for row in result["rows"] if row["label"] == result["full"])
    for axis, (measure, name, _) in zip(figure.subplots(1, len(TOLD)), TOLD, strict=True):
        seen = []
        for jumps, of_best, of_family, color, pale in _KINDS:
            for place, family in enumerate(_families(rows, jumps=jumps)):
                values = [row[measure]["value"] for row in family]
                label = of_family if place == 0 else None
                axis.plot(
                    [row["calls"] for row in family],
                    values,
                    color=pale,
                    linewidth=0.8,
                    alpha=0.7,
                    zorder=1,
                    label=label,
                )
            found = [row for calls in _PLOTTED if (row := best(rows, measure, calls, jumps=jumps)) is not None]
            told = [row[measure] for row in found]
            seen += [each["value"] for each in told]
            axis.errorbar(
                [row["calls"] * 1.01**jumps for row in found],
                [each["value"] for each in told],
                yerr=bars(told),
                color=color,
                label=of_best,
                marker="o",
                capsize=2,
                elinewidth=0.8,
                zorder=3,
            )
        axis.axhline(
            full[measure]["value"], color="black", linestyle="--", linewidth=0.8, label=f"full run, {full['label']}"
        )
        better = "more" if measure in MORE_IS_BETTER else "less"
        axis.set(
            xlabel="network calls",
            ylabel=f"{name} ({better} is better)",
            xscale="log",
            xlim=(0.9 * _PLOTTED[0], 1.1 * _PLOTTED[-1]),
        )
        axis.set_xticks(_PLOTTED, labels=_PLOTTED)
        axis.minorticks_off()
        seen.append(full[measure]["value"])
        room = 0.3 * (max(seen) - min(seen))
        axis.set_ylim(max(0.0, min(seen) - room), max(seen) + room)
        if measure in MORE_IS_BETTER:
            axis.legend(fontsize=8, loc="lower right")


def _families(rows: Sequence[Row], *, jumps: bool) -> list[list[Row]]:
    """Group rows that differ in their number of calls only, in its order; those with one row are left out."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        solver, jump = row["sampling"]["solver"], row["sampling"]["jump"]
        if (jump is not None) == jumps:
            name = f"{solver['name']} {settings_told(solver['settings'])}"
            if jump:
                name += f" {solver['steps']} {jump['key_step']} {jump['weights']} {jump['neighbors']}"
            families.setdefault(name, []).append(row)
    return [sorted(found, key=lambda row: row["calls"]) for found in families.values() if len(found) > 1]
