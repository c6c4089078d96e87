"""Owns the section on where the best key lies, from other studies' JSON; must not know how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redi.experiments.pareto_section import TOLD
from redi.experiments.quality import MORE_IS_BETTER, Row
from redi.experiments.sampling import Solver
from redi.retrieval.weights import DEFAULT_WEIGHTS

_WORDS = {-1: "worse", 0: "even", 1: "better"}


def keys_section(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the section, empty where no two rows differ in their key alone.

    Args:
        results: By the name of their study; comparisons are looked at, and the estimates.
    """
    found = _by_key(row for each in results.values() if each["kind"] == "comparison" for row in each["rows"])
    if not found:
        return ""
    keys = sorted({key for rows in found.values() for key in rows})
    lines = [
        "## Where the best key lies",
        "",
        f"Jumps of one base over as many steps, so for as many calls, by the step that the key is after "
        f"({DEFAULT_WEIGHTS} weights):",
        "Frechet, faithful, distance from full. The last column compares the latest key with the earliest: *even* is",
        "where their intervals overlap.",
        "",
        f"| base | calls | {' | '.join(f'after {key}' for key in keys)} | later is |",
        "| --- | ---: |" + " --- |" * (len(keys) + 1),
    ]
    verdicts: dict[str, list[int]] = {name: [] for _, name, _ in TOLD}
    for (base, _), rows in found.items():
        first, last = rows[min(rows)], rows[max(rows)]
        told = {name: _compared(last[measure], first[measure], measure) for measure, name, _ in TOLD}
        for name, each in told.items():
            verdicts[name].append(each)
        cells = [_cell(rows[key]) if key in rows else "" for key in keys]
        said = ", ".join(_WORDS[each] for each in told.values())
        lines.append(f"| {base} | {last['calls']:.0f} | {' | '.join(cells)} | {said} |")
    counted = "; ".join(
        f"in {name} " + ", ".join(f"{_WORDS[each]} {signs.count(each)}" for each in (1, 0, -1))
        for name, signs in verdicts.items()
    )
    return "\n".join([*lines, "", f"A later key is, times of {len(found)}: {counted}.{_why(results)}", ""])


def _by_key(rows: Any) -> dict[tuple[str, int], dict[int, Row]]:
    """Return jumps that differ in their key alone, by base and steps that are skipped; where there are two or more."""
    found: dict[tuple[str, int], dict[int, Row]] = {}
    for row in rows:
        jump = row["sampling"]["jump"]
        if not jump or (jump["weights"], jump["neighbors"], jump["quantile"]) != (DEFAULT_WEIGHTS, None, None):
            continue
        if (jump["key"], jump["value"]) != ("trajectory", "trajectory") or not jump["key_step"]:
            continue
        base = Solver(**row["sampling"]["solver"])
        found.setdefault((base.label, jump["value_step"] - jump["key_step"]), {})[jump["key_step"]] = row
    return {each: dict(sorted(by.items())) for each, by in sorted(found.items()) if len(by) > 1}


def _compared(later: Mapping[str, float], earlier: Mapping[str, float], measure: str) -> int:
    """Return 1 where the later one is better, -1 where worse, 0 where their intervals overlap."""
    more = (later["low"] > earlier["high"]) - (later["high"] < earlier["low"])
    return more if measure in MORE_IS_BETTER else -more


def _cell(row: Row) -> str:
    return ", ".join(f"{row[measure]['value']:{form}}" for measure, _, form in TOLD)


def _why(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what keys know of x_v, where estimates were measured."""
    if "estimates" not in results:
        return ""
    of = {
        (row["key_step"], row["value_step"]): row["error"]["value"]
        for row in results["estimates"]["rows"]
        if row["estimator"] == results["estimates"]["default"]
    }
    value = min(step for _, step in of)
    told = ", ".join(f"{error:.3f} after {key}" for (key, step), error in sorted(of.items()) if step == value)
    return (
        f" With shared noise one call tells the prompts apart already, and each further one tells more: of x_v at "
        f"{value}, the default leaves {told} (of what the noise's mean leaves). But for as many calls a later key goes "
        "to a later value, and fewer steps are left to draw what the jump has lost."
    )
