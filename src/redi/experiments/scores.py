"""Owns files of scores, JSON lines that one rater left, and what they say together; must not know how they are asked
for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redi.errors import InputError
from redi.metrics import Interval, mean_interval

ASPECTS = ("faithfulness", "style", "layout")
MAKERS = ("redi", "full")
SCORES = frozenset(range(1, 6))
_EXPECTED = (
    '{"folder": "...", "picture": "...", "prompt": "...", "first": "redi" or "full", '
    '"scores": {"faithfulness": {"redi": 1 to 5, "full": 1 to 5}, ...}}'
)


@dataclass(frozen=True)
class Summary:
    """What raters say of one aspect, with intervals over pairs.

    Attributes:
        pairs: How many are rated.
        redi: Mean score of ReDi's pictures.
        full: Mean score of the pictures in full.
        difference: Mean of ReDi's score less that of the same pair in full.
    """

    pairs: int
    redi: Interval
    full: Interval
    difference: Interval


def summaries(lines: Sequence[Mapping[str, Any]]) -> dict[str, Summary]:
    """Return what the lines say, by aspect; a pair's scores are averaged over its raters first.

    Args:
        lines: Of all raters, as of :func:`read_scores`.

    Raises:
        InputError: Fewer than 2 pairs are rated.
    """
    found = {}
    for aspect in ASPECTS:
        by_pair: dict[str, list[list[int]]] = {}
        for line in lines:
            if aspect in line["scores"]:
                given = line["scores"][aspect]
                by_pair.setdefault(line["picture"], []).append([given[maker] for maker in MAKERS])
        if by_pair:
            found[aspect] = _summary(aspect, np.asarray([np.mean(each, axis=0) for each in by_pair.values()]))
    if not found:
        raise InputError("0 rated pairs", expected="at least 2", fix="redi experiments rate")
    return found


def read_scores(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of scores; a last one that was cut off is not there yet.

    Raises:
        InputError: It cannot be read, or a line has an unknown form.
    """
    if not path.exists():
        return []
    try:
        whole, _, _ = path.read_bytes().rpartition(b"\n")
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", expected="a file of scores", fix="--scores"
        ) from error
    return [
        _line(line, f"line {number} of {path}") for number, line in enumerate(whole.split(b"\n"), 1) if line.strip()
    ]


def append_line(path: Path, line: str) -> None:
    """Add a line, whole on the disk before it counts; what a killed writer left of a line is dropped first."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            kept, newline, _ = file.read().rpartition(b"\n")
            file.truncate(len(kept) + len(newline))
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}", expected="a file of scores", fix="--scores"
        ) from error


def _summary(aspect: str, means: Any) -> Summary:
    """Return the summary of one aspect from each pair's means (n, makers)."""
    if len(means) < 2:
        raise InputError(f"{len(means)} rated pair of {aspect}", expected="at least 2", fix="redi experiments rate")
    redi, full = means.T
    return Summary(len(means), mean_interval(redi), mean_interval(full), mean_interval(redi - full))


def _line(text: bytes, name: str) -> dict[str, Any]:
    try:
        line: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is no JSON: {error}", expected=_EXPECTED) from error
    if not isinstance(line, dict) or not _known(line):
        raise InputError(f"{name} is {text.decode(errors='replace'):.100}", expected=_EXPECTED)
    return line


def _known(line: Mapping[str, Any]) -> bool:
    """Tell whether a line has the form that a session writes."""
    if not all(isinstance(line.get(each), str) for each in ("folder", "picture", "prompt")):
        return False
    scores = line.get("scores")
    if line.get("first") not in MAKERS or not isinstance(scores, dict) or not scores or not scores.keys() <= {*ASPECTS}:
        return False
    for given in scores.values():
        if not isinstance(given, dict) or given.keys() != {*MAKERS}:
            return False
        if not all(type(score) is int and score in SCORES for score in given.values()):
            return False
    return True
