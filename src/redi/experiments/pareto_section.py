"""Owns the table of the best at each number of calls, from a comparison's JSON; must not know how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MEASURES = (
    ("frechet", "Frechet", ".2f", False),
    ("faithfulness", "faithful", ".1%", True),
    ("closeness", "from full", ".2f", False),
)
_CALLS, _REACHED = range(3, 11), (6, 8, 10)

Row = Mapping[str, Any]


def pareto(rows: Sequence[Row]) -> list[str]:
    """Return lines: per number of calls the best solver alone and the best jump, each measure by itself; and with how
    many calls a jump reaches what the best solver alone reaches with some."""
    plain = [row for row in rows if row["sampling"]["jump"] is None]
    jumps = [row for row in rows if row["sampling"]["jump"] is not None]
    heads = " | ".join(f"{name}: solver alone | ReDi | ReDi is" for _, name, _, _ in _MEASURES)
    lines = [
        "The best at each number of calls, in each measure by itself. *Even* is where the intervals overlap.",
        "",
        f"| calls | {heads} |",
        "| ---: |" + " --- | --- | --- |" * len(_MEASURES),
    ]
    for calls in _CALLS:
        cells = []
        for measure, _, form, more in _MEASURES:
            alone, ours = best(plain, measure, calls, more=more), best(jumps, measure, calls, more=more)
            cells += [
                _told(alone, measure, form),
                _told(ours, measure, form),
                _verdict(ours, alone, measure, more=more),
            ]
        lines.append(f"| {calls} | {' | '.join(cells)} |")
    lines += [
        "",
        "| what the best solver alone reaches with | "
        + " | ".join(f"in {name}, ReDi reaches with" for _, name, _, _ in _MEASURES)
        + " |",
        "| ---: |" + " ---: |" * len(_MEASURES),
    ]
    for calls in _REACHED:
        cells = [_fewest(plain, jumps, measure, calls, more=more) for measure, _, _, more in _MEASURES]
        lines.append(f"| {calls} calls | {' | '.join(cells)} |")
    return lines


def best(rows: Sequence[Row], measure: str, calls: int, *, more: bool) -> Row | None:
    """Return the row of that many calls with the best value of a measure; ``more`` is better, or less."""
    of_calls = [row for row in rows if round(row["calls"]) == calls]
    return min(of_calls, key=lambda row: _loss(row, measure, more), default=None)


def _loss(row: Row, measure: str, more: bool) -> float:
    return -row[measure]["value"] if more else float(row[measure]["value"])


def _told(row: Row | None, measure: str, form: str) -> str:
    return "" if row is None else f"{row[measure]['value']:{form}} ({row['label'].removeprefix('ReDi ')})"


def _verdict(ours: Row | None, alone: Row | None, measure: str, *, more: bool) -> str:
    if ours is None or alone is None:
        return ""
    one, other = ours[measure], alone[measure]
    if one["low"] <= other["high"] and other["low"] <= one["high"]:
        return "even"
    return "better" if (one["value"] > other["value"]) == more else "worse"


def _fewest(plain: Sequence[Row], jumps: Sequence[Row], measure: str, calls: int, *, more: bool) -> str:
    """Return the fewest calls with which a jump is at least as good as the best solver alone with so many."""
    alone = best(plain, measure, calls, more=more)
    if alone is None:
        return ""
    enough = [row["calls"] for row in jumps if _loss(row, measure, more) <= _loss(alone, measure, more)]
    return f"{min(enough):.4g} ({min(enough) / calls:.2f})" if enough else "none of these"
