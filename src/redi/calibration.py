"""Owns the way from measured losses to a gate that keeps a promise; must not know pipelines, or how losses come.

Axes: ``n`` calibration prompts, ``m`` value steps. A *score* is what a gate can look at before an image jumps, a
*loss* how far the image then ends from its run in full, 0 if it abstains.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from redi.errors import InputError, RetrievalError
from redi.limits import Fit
from redi.metrics import rank_correlation
from redi.retrieval import SCORES, Gate

CONFIDENCE = 0.95
"""How sure the promise is: the share of bases, calibrated with such prompts, whose mean loss keeps to it."""
LEAST_PROMPTS = 20
"""With fewer prompts, a mean and its bound say nothing."""

_ASKED = 0.98
"""Share of resamples that each of two rows of bounds is taken at. At 0.95, 4 to 13 % of simulated bases with skewed
losses broke their promise, not 5: percentiles of a skewed mean, and choosing a rung by them, are a little too sure."""

_FOLDS = 5
_TARGETS = 80
_RESAMPLES = 1000
_Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """A gate for one loss, and what it promises.

    Attributes:
        score: What its limits are of.
        limits: By value step, smaller for each later one; steps that are not worth their calls are left out.
        expected: Mean loss, measured on prompts that the limits were not fitted to.
        bound: What the mean loss stays below with :data:`CONFIDENCE`.
        calls: Mean network calls of a picture.
        jumping: Share of pictures that jump.
    """

    score: str
    limits: Mapping[int, float]
    expected: float
    bound: float
    calls: float
    jumping: float

    @property
    def gates(self) -> dict[int, Gate]:
        """The gate of each value step."""
        return {step: Gate(**{f"max_{self.score}": limit}) for step, limit in self.limits.items()}

    def steps(self, scores: _Numbers) -> NDArray[np.intp]:
        """Return the value step (n) that images of these scores (n) go on from; 0 where they abstain."""
        found = np.zeros(len(scores), np.intp)
        for step in sorted(self.limits):
            found[scores <= self.limits[step]] = step
        return found


@dataclass(frozen=True, eq=False)
class Measurements:
    """What happened to calibration prompts that ran in full and jumped to each value step.

    Args:
        scores: By name ("distance" and what else of :data:`redi.retrieval.SCORES` the weights tell): (n).
        losses: By value step: (n), at least 0.
        calls: By value step: network calls of a picture that jumps there.
        full_calls: Network calls of a picture that abstains.

    Raises:
        InputError: There are fewer than :data:`LEAST_PROMPTS`, names or lengths disagree, or a number is not finite.
    """

    scores: Mapping[str, _Numbers]
    losses: Mapping[int, _Numbers]
    calls: Mapping[int, float]
    full_calls: float

    def __post_init__(self) -> None:
        columns = [*self.scores.values(), *self.losses.values()]
        if not self.scores or not self.losses or self.losses.keys() != self.calls.keys():
            raise InputError(
                f"scores {sorted(self.scores)}, losses of steps {sorted(self.losses)}, calls of {sorted(self.calls)}",
                expected="a score, and losses and calls of the same value steps",
            )
        if unknown := sorted(self.scores.keys() - set(SCORES)):
            raise InputError(f"scores {', '.join(unknown)}", expected=f"some of {', '.join(SCORES)}")
        if len({len(column) for column in columns}) > 1 or len(columns[0]) < LEAST_PROMPTS:
            raise InputError(
                f"{min(map(len, columns))} calibration prompts",
                expected=f"at least {LEAST_PROMPTS}; a few hundred make the promise tight",
            )
        if not all(np.isfinite(column).all() for column in columns) or any(v.min() < 0 for v in self.losses.values()):
            raise InputError("losses or scores that are not finite, or below 0", expected="finite numbers")

    def __len__(self) -> int:
        return len(next(iter(self.losses.values())))

    @cached_property
    def best_score(self) -> str:
        """The score whose order agrees best with that of the losses, over all value steps."""
        agreement = {
            name: np.mean([rank_correlation(scores, losses) for losses in self.losses.values()])
            for name, scores in self.scores.items()
        }
        return max(agreement, key=lambda name: agreement[name])

    def choose(self, max_loss: float, *, score: str | None = None) -> Choice:
        """Return the gate with the fewest calls whose mean loss stays below ``max_loss``, with a margin.

        Limits are chosen on the fitted curves for a ladder of target losses. Each target's loss is then measured on
        folds that its limits were not fitted to, and bounded from above by resampling prompts; going up the ladder, the
        last target before the bound passes ``max_loss`` is taken (a fixed sequence of tests, Angelopoulos et al. 2021).
        A second sequence is that of the plans which send everybody to one value step, whose limit only keeps out who
        scores worse than all of these prompts: where a score says little, they need fewer calls than a gate does.

        Args:
            max_loss: Above 0, in the unit of the losses.
            score: What to decide by; by default :attr:`best_score`.

        Raises:
            InputError: ``max_loss`` is not a number above 0, or the score was not measured.
            RetrievalError: Only a gate that lets nobody jump would keep to it.
        """
        check_max_loss(max_loss)
        name = self.best_score if score is None else score
        if name not in self.scores:
            raise InputError(f"score {name!r}", expected=f"one of {', '.join(sorted(self.scores))}")
        ladder, everybody = self._ladder(name), self._everybody(name)
        failed = np.flatnonzero(ladder.bounds > max_loss)
        rung = (int(failed[0]) if len(failed) else len(ladder.bounds)) - 1
        limits = self._fit(name, np.arange(len(self))).limits(float(ladder.targets[rung]))
        kept = list(itertools.takewhile(lambda plan: plan.bound <= max_loss, everybody))
        if limits:
            jumping = Choice(name, limits, 0, 0, 0, 0).steps(self.scores[name]) > 0
            losses, calls = float(ladder.losses[:, rung].mean()), float(ladder.calls[:, rung].mean())
            kept.append(Choice(name, limits, losses, float(ladder.bounds[rung]), calls, float(jumping.mean())))
        if not kept:
            saving = ladder.calls.mean(0) < self.full_calls
            least = min([*ladder.bounds[saving], everybody[0].bound])
            raise RetrievalError(
                f"max_loss={max_loss:.4g} leaves no picture that may jump",
                expected=f"at least {least:.4g}, with these {len(self)} prompts",
                fix="ask for more loss, calibrate with more prompts, or build a larger base",
            )
        return min(kept, key=lambda plan: (plan.calls, plan.expected))

    def _everybody(self, score: str) -> list[Choice]:
        """Return the plans that send everybody to one value step, the earliest first."""
        worst = float(self.scores[score].max())
        steps = sorted(self.losses)
        losses = np.stack([self.losses[step] for step in steps], axis=1)
        bounds = self._bounds(losses)
        return [
            Choice(score, {step: worst}, float(losses[:, at].mean()), float(bounds[at]), float(self.calls[step]), 1.0)
            for at, step in enumerate(steps)
        ]

    def _bounds(self, losses: _Numbers) -> _Numbers:
        """Return what the means (t) of losses (n, t) stay below."""
        draws = np.random.default_rng(1).multinomial(len(self), np.full(len(self), 1 / len(self)), _RESAMPLES)
        return np.asarray(np.quantile(draws @ losses / len(self), _ASKED, axis=0), np.float64)

    def outcomes(self, choice: Choice) -> tuple[_Numbers, _Numbers]:
        """Return losses (n) and calls (n) of these prompts under a gate."""
        return self._outcomes(choice.steps(self.scores[choice.score]))

    def _outcomes(self, steps: NDArray[np.intp], places: NDArray[np.intp] | None = None) -> tuple[_Numbers, _Numbers]:
        rows = np.arange(len(self)) if places is None else places
        losses, calls = np.zeros(len(rows)), np.full(len(rows), float(self.full_calls))
        for step in self.losses:
            there = steps == step
            losses[there], calls[there] = self.losses[step][rows[there]], self.calls[step]
        return losses, calls

    def _fit(self, score: str, places: NDArray[np.intp]) -> Fit:
        losses = {step: column[places] for step, column in self.losses.items()}
        return Fit(self.scores[score][places], losses, self.calls, self.full_calls)

    @cached_property
    def _ladders(self) -> dict[str, _Ladder]:
        return {}

    def _ladder(self, score: str) -> _Ladder:
        """Return a rising ladder of target losses, tried on folds that the limits were not fitted to."""
        if score not in self._ladders:
            self._ladders[score] = self._try_targets(score)
        return self._ladders[score]

    def _try_targets(self, score: str) -> _Ladder:
        most = max(float(losses.mean()) for losses in self.losses.values())
        targets = most * np.linspace(0, 1, _TARGETS + 1) ** 2
        folds = np.random.default_rng(0).permutation(len(self)) % _FOLDS
        losses, calls = (np.zeros((len(self), len(targets))) for _ in range(2))
        for fold in range(_FOLDS):
            fit, held = self._fit(score, np.flatnonzero(folds != fold)), np.flatnonzero(folds == fold)
            for rung, target in enumerate(targets.tolist()):
                choice = Choice(score, fit.limits(target), 0, 0, 0, 0)
                found = self._outcomes(choice.steps(self.scores[score][held]), held)
                losses[held, rung], calls[held, rung] = found
        return _Ladder(targets, losses, calls, np.maximum(self._bounds(losses), targets))


@dataclass(frozen=True, eq=False)
class _Ladder:
    """Target losses (t), what came of each prompt (n, t) on folds not fitted to, and the bound of the mean (t)."""

    targets: _Numbers
    losses: _Numbers
    calls: _Numbers
    bounds: _Numbers


def check_max_loss(max_loss: float) -> None:
    """Refuse what no mean loss can stay below.

    Raises:
        InputError: It is not a number above 0.
    """
    if isinstance(max_loss, bool) or not isinstance(max_loss, Real) or not max_loss > 0:
        raise InputError(f"max_loss={max_loss!r}", expected="a number above 0: only full runs lose nothing")


def reachable(measured: Measurements, losses: Sequence[float]) -> list[tuple[float, Choice | None]]:
    """Return the choice for each of several losses; None where nobody could jump."""
    found: list[tuple[float, Choice | None]] = []
    for loss in losses:
        try:
            found.append((loss, measured.choose(loss)))
        except RetrievalError:
            found.append((loss, None))
    return found
