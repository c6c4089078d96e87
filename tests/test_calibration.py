"""Claims about calibrating: curves that rise, limits that cost least, promises that hold on prompts never seen."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from redi.calibration import Measurements
from redi.errors import InputError, RetrievalError
from redi.limits import Fit, monotone
from redi.metrics import area_under_roc

CALLS, FULL_CALLS = {4: 8.0, 8: 4.0}, 10.0


def measured(count: int, seed: int, *, noise: float = 0.3, told: float = 1.0) -> Measurements:
    """Losses that rise with the distance and the value step; ``residual`` says nothing."""
    rng = np.random.default_rng(seed)
    distance = rng.uniform(0, 1, count)
    trouble = told * distance + (1 - told) * rng.uniform(0, 1, count)
    losses = {step: scale * trouble**2 * rng.lognormal(0, noise, count) for step, scale in ((4, 0.3), (8, 3.0))}
    return Measurements({"distance": distance, "residual": rng.uniform(0, 1, count)}, losses, CALLS, FULL_CALLS)


def test_the_curve_rises_and_keeps_the_mean() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, 300)
    losses = scores**2 + rng.normal(0, 0.1, 300)
    curve = monotone(scores, losses)
    assert all(later >= earlier for earlier, later in itertools.pairwise(curve.losses))
    at = np.linspace(0.1, 0.9, 9)
    assert np.abs(curve(at) - at**2).max() < 0.08
    assert monotone(scores, -scores)(at) == pytest.approx(-scores.mean()), "what falls is fitted by its mean"


@pytest.mark.parametrize("target", [0.1, 0.3, 0.8])
def test_no_pair_of_limits_costs_fewer_calls_on_the_fitted_curves(target: float) -> None:
    found = measured(40, 1)
    fit = Fit(found.scores["distance"], found.losses, CALLS, FULL_CALLS)
    curves = {step: monotone(found.scores["distance"], found.losses[step])(fit.scores) for step in CALLS}

    def outcome(late: int, early: int) -> tuple[float, float]:
        loss = curves[8][:late].sum() + curves[4][late:early].sum()
        return loss / 40, (4 * late + 8 * (early - late) + 10 * (40 - early)) / 40

    best = min(
        calls
        for late in range(41)
        for early in range(late, 41)
        for loss, calls in [outcome(late, early)]
        if loss <= target
    )
    limits = fit.limits(target)
    late = int((fit.scores <= limits.get(8, -1.0)).sum())
    loss, calls = outcome(late, max(late, int((fit.scores <= limits.get(4, -1.0)).sum())))
    assert loss <= target + 1e-9
    assert calls <= best + 0.25, "two pictures of forty are moved at most"


def test_near_images_jump_far_and_far_ones_less_or_not_at_all() -> None:
    choice = measured(400, 2).choose(0.3)
    assert choice.score == "distance", "the residual says nothing here"
    assert choice.limits[8] < choice.limits[4] < 1
    assert choice.steps(np.array([0.0, (choice.limits[8] + choice.limits[4]) / 2, 1.0])).tolist() == [8, 4, 0]
    assert {step: gate.max_distance for step, gate in choice.gates.items()} == dict(choice.limits)


@pytest.mark.parametrize("max_loss", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("told", [1.0, 0.0], ids=["a distance that tells", "one that tells nothing"])
def test_a_promise_holds_on_prompts_never_seen(max_loss: float, told: float) -> None:
    delivered, costs = [], []
    for seed in range(16):
        choice = measured(100, seed, noise=0.6, told=told).choose(max_loss)
        losses, calls = measured(2000, 1000 + seed, noise=0.6, told=told).outcomes(choice)
        delivered.append(losses.mean())
        costs.append((choice.calls, calls.mean()))
    assert np.mean(np.asarray(delivered) <= max_loss) >= 0.8, "promised with 95 %, of sixteen bases"
    assert np.mean(delivered) > 0.4 * max_loss, "nor is the promise kept by jumping too little"
    claimed, made = np.mean(costs, axis=0)
    assert claimed == pytest.approx(made, rel=0.03)


def test_more_loss_is_never_more_calls_and_none_is_refused() -> None:
    found = measured(200, 3)
    calls = [found.choose(loss).calls for loss in (0.05, 0.2, 0.5, 1.0, 9.0)]
    assert calls == sorted(calls, reverse=True)
    assert calls[-1] == pytest.approx(4, abs=0.1)
    with pytest.raises(RetrievalError, match="no picture that may jump"):
        found.choose(1e-6)
    for nonsense in (0, -1.0, float("nan"), True, "0.5"):
        with pytest.raises(InputError, match="max_loss"):
            found.choose(nonsense)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="score 'variance'"):
        found.choose(0.3, score="variance")


@pytest.mark.parametrize("told", [1.0, 0.5, 0.0])
def test_no_plan_for_everybody_that_keeps_the_promise_needs_fewer_calls(told: float) -> None:
    for seed in range(4):
        found = measured(80, seed, told=told)
        for loss in np.linspace(0.1, 3, 12):
            choice = found.choose(float(loss))
            resampled = np.random.default_rng(seed).integers(80, size=(2000, 80))
            for step, calls in CALLS.items():
                bound = np.quantile(found.losses[step][resampled].mean(1), 0.99)
                if bound < loss:
                    assert choice.calls <= calls
            assert choice.bound <= loss
            assert all(limit <= found.scores[choice.score].max() for limit in choice.limits.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scores": {}}, "a score"),
        ({"scores": {"age": np.zeros(30)}}, "scores age"),
        ({"calls": {4: 8.0}}, "same value steps"),
        ({"losses": dict.fromkeys(CALLS, np.zeros(9))}, "9 calibration prompts"),
        ({"losses": dict.fromkeys(CALLS, np.full(30, np.nan))}, "not finite"),
        ({"losses": dict.fromkeys(CALLS, np.full(30, -1.0))}, "below 0"),
    ],
)
def test_measurements_that_cannot_be_used_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Measurements(**{**vars(measured(30, 0)), **change})


def test_the_area_under_roc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    scores, harmed = rng.integers(0, 6, 50).astype(float), rng.random(50) < 0.4
    pairs = [(one > other) + (one == other) / 2 for one in scores[harmed] for other in scores[~harmed]]
    assert area_under_roc(scores, harmed) == pytest.approx(np.mean(pairs))
    with pytest.raises(InputError, match="0 of 50 harmed"):
        area_under_roc(scores, np.zeros(50, bool))
