"""Owns the section on where the best key lies, from results' JSON; must not know how they were made."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from redi.experiments.earlier_rules import earlier_rules
from redi.experiments.quality import Row
from redi.experiments.sampling import Solver
from redi.experiments.wording import TOLD, VERDICTS, banks, twins

_HEAD = (
    "Jumps of one base over as many steps, so for as many calls, that differ in their key alone. Cells: Frechet, "
    "faithful, distance from full. {none}The last columns compare on the same prompts, in these three measures: *even* "
    "is where the interval of the difference holds zero."
)
_NONE = (
    "*After 0* is no key: the prompts' embeddings find and weigh entries, and no step is run before the "
    "jump (PNDM, whose first step takes two calls, then skips one step less for as many). "
)


def keys_section(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the section, empty where nothing of its kind was measured.

    Args:
        results: By the name of their study; those that compare keys are looked at, and the estimates; sheets as the
            page links them.
    """
    measured = [each for each in results.values() if each["kind"] == "keys"]
    if not measured:
        return ""
    jumps = [row["sampling"]["jump"] for each in measured for row in each["rows"]]
    head = _HEAD.format(none=_NONE if any(jump and not jump["key_step"] for jump in jumps) else "")
    lines = ["## Where the best key lies", "", *textwrap.wrap(head, 120, break_on_hyphens=False), ""]
    for result in measured:
        told = f"{result['title']}: {banks(result['scale'])}, {twins(result)}; the run in full is {result['full']}."
        lines += [told, "", *_table(result), "", *earlier_rules(result)]
    counts = {name: _counted(measured, late=late) for late, name in ((True, "later"), (False, "first"))}
    told = f"The latest key is, against the earliest, {counts['later']}."
    if counts["first"]:
        told += f" The earliest key is, against none, {counts['first']}."
    lines += [*textwrap.wrap(told + _why(results), 120, break_on_hyphens=False), ""]
    for result in measured:
        if "sheet" in result:
            lines += [f"![{result['title']}: the first prompts]({result['sheet']})", ""]
    return "\n".join(lines)


def _table(result: Mapping[str, Any]) -> list[str]:
    found: dict[tuple[str, int], dict[int, Row]] = {}
    for row in result["rows"]:
        if jump := row["sampling"]["jump"]:
            place = (Solver(**row["sampling"]["solver"]).label, round(row["calls"]))
            found.setdefault(place, {})[jump["key_step"]] = row
    keys = sorted({key for rows in found.values() for key in rows})
    lines = [
        f"| base | calls | {' | '.join(f'after {key}' for key in keys)} | latest key against earliest | "
        "earliest against none |",
        "| --- | ---: |" + " --- |" * (len(keys) + 2),
    ]
    for (base, _), rows in found.items():
        steps = sorted(key for key in rows if key)
        verdicts = [_verdicts(result, rows[steps[-1]], rows[steps[0]])]
        verdicts.append(_verdicts(result, rows[steps[0]], rows[0]) if 0 in rows else [])
        cells = [_cell(rows[key]) if key in rows else "" for key in keys]
        cells += [", ".join(VERDICTS[each] for each in told) for told in verdicts]
        lines.append(f"| {base} | {rows[steps[0]]['calls']:.0f} | {' | '.join(cells)} |")
    return lines


def _verdicts(result: Mapping[str, Any], ours: Row, rival: Row) -> list[str]:
    told = {
        each["measure"]: each["verdict"]
        for each in result["claims"]
        if (each["ours"], each["rival"]) == (ours["label"], rival["label"])
    }
    return [told[measure] for measure, *_ in TOLD]


def _counted(results: Sequence[Mapping[str, Any]], *, late: bool) -> str:
    """Count the verdicts between keys (``late``), or between a key and none, by measure."""
    claims = [
        (claim["measure"], claim["verdict"])
        for result in results
        for claim in result["claims"]
        if _has_key(result, claim["rival"]) == late
    ]
    return "; ".join(
        f"in {name} " + ", ".join(f"{word} {claims.count((measure, verdict))}" for verdict, word in VERDICTS.items())
        for measure, name, _ in TOLD
        if claims
    )


def _has_key(result: Mapping[str, Any], label: str) -> bool:
    return any(row["label"] == label and row["sampling"]["jump"]["key_step"] > 0 for row in result["rows"])


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
        f" What a key tells, with shared noise: of x_v at {value}, the default leaves {told} (of what the noise's mean "
        "leaves). For as many calls a later key goes to a later value, and fewer steps are left to draw what the jump "
        "has lost."
    )
