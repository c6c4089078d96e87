"""Owns how well one number predicts another by its order alone; must not know what is predicted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from redi.errors import InputError

_Numbers = NDArray[np.float64]


def rank_correlation(one: _Numbers, other: _Numbers) -> float:
    """Return Spearman's: the correlation of ranks, equal numbers sharing theirs; 0 where all are equal."""
    first, second = (_ranks(each) for each in (one, other))
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def area_under_roc(scores: _Numbers, harmed: NDArray[np.bool_]) -> float:
    """Return the chance that a score (n) is higher where ``harmed`` (n) is true than where it is false; a tie is half.

    Raises:
        InputError: All are harmed, or none is.
    """
    count = int(harmed.sum())
    if not 0 < count < len(harmed):
        raise InputError(f"{count} of {len(harmed)} harmed", expected="some that are and some that are not")
    above = _ranks(scores)[harmed].sum() - count * (count - 1) / 2
    return float(above / (count * (len(harmed) - count)))


def _ranks(numbers: _Numbers) -> _Numbers:
    """Return ranks from 0; equal numbers share the mean of theirs."""
    _, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[place], np.float64)
