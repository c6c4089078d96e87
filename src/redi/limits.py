"""Owns the limits that cost the fewest calls for a mean loss, fitted to measured losses; must not know promises.

Axes: ``n`` images, ``m`` value steps. Isotonic regression turns losses into rising curves of a score; prices of a loss
in calls, and a dynamic programme over images sorted by score, give the gates that no other gate beats on those curves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A loss that does not fall as a score rises: straight lines between knots, constant beyond them.

    Attributes:
        scores: (p) rising.
        losses: (p) not falling.
    """

    scores: tuple[float, ...]
    losses: tuple[float, ...]

    def __call__(self, scores: _Numbers) -> _Numbers:
        """Return the expected loss at each score (n)."""
        return np.asarray(np.interp(scores, self.scores, self.losses), np.float64)


def monotone(scores: _Numbers, losses: _Numbers) -> Curve:
    """Fit the expected loss (n) as a rising curve of a score (n): isotonic regression, joined at its blocks' centres.

    The joins (centred isotonic regression, Oron and Flournoy 2017) keep a curve from being flat over whole blocks, in
    which no image could be told from another. Blocks begin with the square root of ``n`` images each: single images
    would let the curve start at the loss of the luckiest one.
    """
    order = np.argsort(scores, kind="stable")
    pieces = max(1, round(len(order) ** 0.5))
    blocks: list[list[float]] = []  # sum of scores, sum of losses, count
    for places in np.array_split(order, pieces):
        blocks.append([float(scores[places].sum()), float(losses[places].sum()), len(places)])
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][2] >= blocks[-1][1] * blocks[-2][2]:
            last = blocks.pop()
            blocks[-1] = [one + other for one, other in zip(blocks[-1], last, strict=True)]
    centres = np.asarray(blocks)
    return Curve(tuple((centres[:, 0] / centres[:, 2]).tolist()), tuple((centres[:, 1] / centres[:, 2]).tolist()))


class Fit:
    """Curves fitted to some of the prompts, and the limits that are best on them.

    Prompts are sorted by score; the ways out are sorted from the latest value step to abstaining. A gate is a rising
    row of cuts: the first prompts take the first way, up to its cut, the next ones the second.
    """

    def __init__(
        self, scores: _Numbers, losses: Mapping[int, _Numbers], calls: Mapping[int, float], full_calls: float
    ) -> None:
        order = np.argsort(scores, kind="stable")
        self.scores = scores[order]
        self.steps = sorted(losses, reverse=True)
        fitted = [monotone(scores, losses[step])(self.scores) for step in self.steps]
        self.losses = np.stack([*fitted, np.zeros(len(scores))])  # (ways, n)
        prices = [calls[step] for step in self.steps]
        self.calls = np.repeat([[*prices, full_calls]], len(scores), axis=0).T
        self.sums = np.pad(self.losses.cumsum(1), ((0, 0), (1, 0)))
        self.hull = self._hull()
        self.hull_losses = [self._loss(cuts) for cuts in self.hull]

    def limits(self, target: float) -> dict[int, float]:
        """Return the limits with the fewest calls whose mean fitted loss is at most ``target``."""
        place = max(index for index, loss in enumerate(self.hull_losses) if loss <= target or index == 0)
        cuts = self.hull[place]
        if place + 1 < len(self.hull):  # between two corners of the hull: as far as the target allows
            further, low, high = self.hull[place + 1], 0.0, 1.0
            for _ in range(len(self.scores).bit_length()):
                middle = (low + high) / 2
                between = np.round(cuts + middle * (further - cuts)).astype(np.intp)
                low, high = (middle, high) if self._loss(between) <= target else (low, middle)
            cuts = np.round(cuts + low * (further - cuts)).astype(np.intp)
        found: dict[int, float] = {}
        before = 0
        for step, cut in zip(self.steps, cuts.tolist(), strict=True):
            limit = self._score_at(cut)
            if cut > before and (not found or limit > max(found.values())):
                found[step] = limit
            before = max(before, cut)
        return dict(sorted(found.items()))

    def _score_at(self, cut: int) -> float:
        """Return the score that lets so many prompts pass: half way to the next one; the largest seen if all do."""
        if cut >= len(self.scores):
            return float(self.scores[-1])
        return float(self.scores[cut - 1] + self.scores[cut]) / 2

    def _loss(self, cuts: NDArray[np.intp]) -> float:
        """Return the mean fitted loss of a gate."""
        ends = np.concatenate([[0], cuts, [len(self.scores)]])
        ways = np.arange(len(self.sums))
        return float((self.sums[ways, ends[1:]] - self.sums[ways, ends[:-1]]).sum() / len(self.scores))

    def _hull(self) -> list[NDArray[np.intp]]:
        """Return the cuts that are best at some price of a loss in calls, from no loss to the fewest calls."""
        scale = float(self.calls.max()) / max(float(self.losses.mean(1).max()), 1e-12)
        corners = [np.zeros(len(self.steps), np.intp)]
        for price in scale * np.geomspace(1e3, 1e-3, 121):
            cuts = self._best(self.calls + price * self.losses)
            if self._loss(cuts) > self._loss(corners[-1]):
                corners.append(cuts)
        return corners

    def _best(self, costs: _Numbers) -> NDArray[np.intp]:
        """Return the rising cuts that cost least in all; ``costs`` is (ways, n)."""
        sums = np.pad(costs.cumsum(1), ((0, 0), (1, 0)))
        best = sums[0]  # of the first i prompts, all on ways so far
        came = []
        for way in sums[1:]:
            gain = best - way
            least = np.minimum.accumulate(gain)
            came.append(np.maximum.accumulate(np.where(gain <= least, np.arange(len(gain)), 0)))
            best = way + least
        cuts, end = [], len(costs[0])
        for places in reversed(came):
            end = int(places[end])
            cuts.append(end)
        return np.asarray(cuts[::-1], np.intp)
