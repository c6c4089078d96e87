"""Owns how the page writes a figure, its interval and what it is of; must not know which figures it shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = {"frechet": "Frechet", "faithfulness": "faithful", "closeness": "from full", "at_value": "x_v apart"}
"""What tables call each measure."""
FORMS = {"frechet": ".2f", "faithfulness": ".1%", "closeness": ".2f", "at_value": ".2f"}
"""How each is written."""
TOLD = tuple((name, NAMES[name], FORMS[name]) for name in ("frechet", "faithfulness", "closeness"))
"""Measures that are told together, with both."""
VERDICTS = {"better": "better", "no difference": "even", "worse": "worse"}
"""How a jump is against what it is compared with, by the verdict of a claim."""


def interval(found: Mapping[str, float], form: str, *, sign: str = "") -> str:
    """Return a figure and its interval; with ``sign="+"``, of a difference, whose value shows its sign."""
    return f"{found['value']:{sign}{form}} [{found['low']:{form}}, {found['high']:{form}}]"


def banks(scale: Mapping[str, Any]) -> str:
    """Return of how many banks, noises, entries and prompts a result is."""
    form = "{replicates} banks, each of {noises} noises, {entries} entries and {prompts} held-out prompts"
    return form.format(**scale)


def twins(result: Mapping[str, Any]) -> str:
    """Return how many of the held-out prompts a base holds all the same."""
    return f"{result['twins']} of which are in a base word for word"
