"""Owns the report's section on styles, from the result's JSON; must not know how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redi.experiments.wording import interval

MEASURES = {"faithfulness": "content", "style_right": "style", "layout": "layout"}
"""By the name in results, what tables call it."""


def styles_section(result: Mapping[str, Any], images: Path) -> str:
    """Return the section; its sheet lies with the results."""
    lines = [
        f"## Figures 4 and 5: styles that the base does not hold ({result['solver']}, "
        f"{result['key_step']}->{result['value_step']})",
        "",
        f"{result['contents']} held-out contents in each style; {result['entries']} entries of a bank, none of them in "
        "a style. The prompt alone",
        "guides the run up to the key, prompt and style what comes after the jump. *Content*: everything that the "
        "prompt says is",
        "there, *style*: it is the one asked for, *layout*: objects seen within 6 pixels of where the run in full of "
        "the prompt alone",
        "has them, of all that are seen in either picture. The evaluator reads all three, where the paper asked "
        "people for scores of 1 to 5.",
        f"The paper's jump skips 7 of PNDM's 50 steps, this one {result['value_step'] - result['key_step']} of "
        f"{result['solver']}'s.",
        "+ and - mark what is above or below the full run outside the interval of the paired difference.",
        "",
        f"| way | style | calls | {' | '.join(MEASURES.values())} |",
        "| --- | --- |" + " ---: |" * (1 + len(MEASURES)),
    ]
    for row in result["rows"]:
        cells = (row["label"], row["style"], f"{row['calls']:.4g}", *(_cell(row, measure) for measure in MEASURES))
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        *(_verdict(row) for row in result["rows"] if row["style"] == "all" and row["label"] != result["full"]),
    ]
    return "\n".join([*lines, "", f"![Contents in styles]({result['sheet']})\n"])


def _cell(row: Mapping[str, Any], measure: str) -> str:
    return interval(row[measure], ".1%") + {-1: " -", 0: "", 1: " +"}[_sign(row, measure)]


def _sign(row: Mapping[str, Any], measure: str) -> int:
    apart = row[f"{measure}_against_full"]
    return int(apart["low"] > 0) - int(apart["high"] < 0)


def _verdict(row: Mapping[str, Any]) -> str:
    """Return how a way compares with the full run, in words that the figures choose."""
    words = {-1: "worse", 0: "no different", 1: "better"}
    said = [f"{words[_sign(row, measure)]} in {name}" for measure, name in MEASURES.items()]
    return f"- {row['label']}, against the full run: {', '.join(said)}."
