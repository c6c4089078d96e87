"""Owns how sure a figure is: bootstrap intervals over prompts; must not know what is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from redi.errors import InputError

LEVEL = 0.95
"""Share of resamples inside an interval."""


@dataclass(frozen=True)
class Interval:
    """A figure and the interval that holds it in 95 % of resamples of the prompts."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise InputError(f"an interval from {self.low} to {self.high}", expected="low <= high")

    @property
    def differs_from_zero(self) -> bool:
        """Whether a difference is one: zero is outside the interval."""
        return not self.low <= 0 <= self.high


def resampled_interval(
    statistic: Callable[[NDArray[np.intp]], float], count: int, *, resamples: int = 400, seed: int = 0
) -> Interval:
    """Return a statistic of ``count`` prompts with its bootstrap interval (percentiles, corrected for bias).

    Resampled prompts repeat, which alone raises a Frechet distance; the draws are shifted to the statistic's value. Of
    a mean, which has no such bias, :func:`mean_interval` takes the percentiles as they are: a shift by the noise of the
    draws can make a difference of one picture's.

    Args:
        statistic: Computes the figure from places of prompts, 0 to ``count - 1``, repeats included. For a paired
            difference it uses the same places on both sides.
        count: Prompts.
        resamples: How often the prompts are drawn again.
        seed: Of the draws.

    Raises:
        InputError: There are fewer than 2 prompts or resamples.
    """
    _check(count, resamples)
    rng = np.random.default_rng(seed)
    value = statistic(np.arange(count))
    drawn = np.asarray([statistic(rng.integers(count, size=count)) for _ in range(resamples)])
    return _percentiles(value, drawn - drawn.mean() + value)


def mean_interval(numbers: NDArray[np.float64], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return a mean over prompts (n) with its bootstrap interval; of a paired difference, pass the differences.

    Raises:
        InputError: There are fewer than 2 prompts or resamples.
    """
    values = np.asarray(numbers, np.float64)
    _check(len(values), resamples)
    rng = np.random.default_rng(seed)
    drawn = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    return _percentiles(float(values.mean()), np.asarray(drawn))


def _check(count: int, resamples: int) -> None:
    if count < 2 or resamples < 2:
        raise InputError(f"{count} prompts, {resamples} resamples", expected="at least 2 of each")


def _percentiles(value: float, drawn: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, min(float(low), value), max(float(high), value))
