"""Owns the table of the best at each number of calls, from a comparison's JSON; must not know how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redi.experiments.quality import Row, best, loss

_MEASURES = (("frechet", "Frechet", ".2f"), ("faithfulness", "faithful", ".1%"), ("closeness", "from full", ".2f"))
_CALLS, _REACHED, _GOAL = range(3, 11), (6, 8, 10), 8
_VERDICTS = {"no difference": "even"}


def pareto(result: Mapping[str, Any]) -> list[str]:
    """Return lines: per number of calls the best solver alone and the best jump, each measure by itself; with how many
    calls a jump reaches what the best solver alone reaches with some; and which jumps are as good as the run in full.

    Args:
        result: Of a comparison with a plot.
    """
    rows = result["rows"]
    found = {(each["calls"], each["measure"]): each["verdict"] for each in result["best"]}
    heads = " | ".join(f"{name}: solver alone | ReDi | ReDi is" for _, name, _ in _MEASURES)
    lines = [
        "The best at each number of calls, in each measure by itself. *Even* is where the interval of the difference, "
        "over the same prompts from the same noises, holds zero.",
        "",
        f"| calls | {heads} |",
        "| ---: |" + " --- | --- | --- |" * len(_MEASURES),
    ]
    for calls in _CALLS:
        cells = []
        for measure, _, form in _MEASURES:
            verdict = found.get((calls, measure), "")
            cells += [_told(best(rows, measure, calls, jumps=jumps), measure, form) for jumps in (False, True)]
            cells.append(_VERDICTS.get(verdict, verdict))
        lines.append(f"| {calls} | {' | '.join(cells)} |")
    lines += [
        "",
        "| what the best solver alone reaches with | "
        + " | ".join(f"in {name}, ReDi reaches with" for _, name, _ in _MEASURES)
        + " |",
        "| ---: |" + " ---: |" * len(_MEASURES),
    ]
    for calls in _REACHED:
        lines.append(f"| {calls} calls | {' | '.join(_fewest(rows, measure, calls) for measure, _, _ in _MEASURES)} |")
    return [*lines, "", _as_good_as_the_full(result)]


def _told(row: Row | None, measure: str, form: str) -> str:
    return "" if row is None else f"{row[measure]['value']:{form}} ({row['label'].removeprefix('ReDi ')})"


def _fewest(rows: Sequence[Row], measure: str, calls: int) -> str:
    """Return the fewest calls with which a jump is at least as good as the best solver alone with so many."""
    alone = best(rows, measure, calls, jumps=False)
    if alone is None:
        return ""
    jumps = [row for row in rows if row["sampling"]["jump"] is not None]
    enough = [row["calls"] for row in jumps if loss(row, measure) <= loss(alone, measure)]
    return f"{min(enough):.4g} ({min(enough) / calls:.2f})" if enough else "none of these"


def _as_good_as_the_full(result: Mapping[str, Any]) -> str:
    """Return a sentence: which jumps of few calls are within 3 % of the full run's Frechet distance and within 3 points
    of its faithfulness."""
    rows = result["rows"]
    full = next(row for row in rows if row["label"] == result["full"])
    enough = [
        row
        for row in sorted(rows, key=lambda row: row["calls"])
        if row["sampling"]["jump"] is not None
        and row["calls"] <= _GOAL
        and row["frechet"]["value"] <= 1.03 * full["frechet"]["value"]
        and row["faithfulness"]["value"] >= full["faithfulness"]["value"] - 0.03
    ]
    told = "; ".join(f"{row['label'].removeprefix('ReDi ')} ({row['calls']:.4g} calls)" for row in enough)
    return (
        f"Jumps of at most {_GOAL} calls within 3 % of the Frechet distance of {full['label']}'s pictures and within 3 "
        f"points of their faithfulness: {told or 'none'}."
    )
