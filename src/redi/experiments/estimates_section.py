"""Owns the report's section on estimators of x_v, from the result's JSON; must not know how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redi.experiments.wording import banks, interval


def estimates_section(result: Mapping[str, Any], images: Path) -> str:
    """Return the section; it has no plot."""
    default = result["default"]
    rows = {(row["estimator"], row["key_step"], row["value_step"]): row for row in result["rows"]}
    names = list(dict.fromkeys(name for name, _, _ in rows))
    places = list(dict.fromkeys((key, value) for _, key, value in rows))
    lines = [
        f"## Estimates of x_v from the same entries ({result['solver']})",
        "",
        "Distance to the x_v of the prompt's own run, as a share of what the mean of the noise's values has;",
        f"{banks(result['scale'])}. No calls are spent on any of them.",
        f"Better (+) or worse (-) than the library's *{default}* outside the interval of the paired difference.",
        "",
        "| estimator | " + " | ".join(f"key {key}, v={value}" for key, value in places) + " |",
        "| --- |" + " ---: |" * len(places),
    ]
    for name in names:
        cells = [_cell(rows.get((name, *place))) for place in places]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    better = [name for name in names if _always(rows, name, places, "high")]
    said = f"Better at every place outside the interval: {', '.join(better) or 'none'}."
    key, value = result["place"]
    lines += [
        "",
        said,
        "",
        f"Pictures from key {key} and v={value} of the default, of what needs no neighbours, and of the nearest of",
        "those that are nearer than the default at most of these places and farther at none. Distances from full are",
        f"to {result['solver']}, the base's own run. Brackets: the difference from *{default}*, on the same prompts.",
        "",
        "| estimator | Frechet | faithful | from full |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in result["pictures"]:
        cells = [_against(row, name, form) for name, form in _MEASURES]
        lines.append(f"| {row['estimator']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


_MEASURES = (("frechet", ".2f"), ("faithfulness", ".1%"), ("closeness", ".3f"))


def _against(row: Mapping[str, Any], name: str, form: str) -> str:
    return interval({**row["against_default"][name], "value": row[name]["value"]}, form)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    apart = row["against_default"]
    sign = " +" if apart["high"] < 0 else " -" if apart["low"] > 0 else ""
    return f"{row['error']['value']:.3f}{sign}"


def _always(rows: Mapping[Any, Mapping[str, Any]], name: str, places: list[tuple[int, int]], end: str) -> bool:
    found = [rows[name, *place] for place in places if (name, *place) in rows]
    return len(found) == len(places) and all(row["against_default"][end] < 0 for row in found)
