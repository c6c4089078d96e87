"""Claims about distances between sets of features, and about intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from redi.errors import InputError
from redi.metrics import frechet_distance, kernel_distance, mean_interval, resampled_interval

RNG = np.random.default_rng(0)
ONE = RNG.normal(size=(60, 5))
OTHER = RNG.normal(size=(80, 5)) @ RNG.normal(size=(5, 5)) + 1.5


def test_the_frechet_distance_is_the_formula_with_a_matrix_root() -> None:
    root = sqrtm(np.cov(ONE, rowvar=False) @ np.cov(OTHER, rowvar=False)).real
    traces = np.trace(np.cov(ONE, rowvar=False)) + np.trace(np.cov(OTHER, rowvar=False)) - 2 * np.trace(root)
    expected = ((ONE.mean(0) - OTHER.mean(0)) ** 2).sum() + traces
    assert frechet_distance(ONE, OTHER) == pytest.approx(expected, rel=1e-9)


def test_the_frechet_distance_of_a_set_to_itself_is_zero_and_of_a_shifted_one_the_shift() -> None:
    assert frechet_distance(ONE, ONE) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(ONE + 2, ONE) == pytest.approx(5 * 4, rel=1e-9)


def test_the_frechet_distance_stands_fewer_rows_than_features() -> None:
    few = RNG.normal(size=(3, 8))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


def test_the_kernel_distance_is_the_unbiased_estimate_of_its_definition() -> None:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 5 + 1) ** 3)

    within = [np.mean([kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (ONE, OTHER)]
    across = np.mean([kernel(x, y) for x in ONE for y in OTHER])
    assert kernel_distance(ONE, OTHER) == pytest.approx(sum(within) - 2 * across, rel=1e-9)


def test_the_kernel_distance_of_equal_distributions_is_zero_on_average() -> None:
    found = [kernel_distance(RNG.normal(size=(40, 3)), RNG.normal(size=(40, 3))) for _ in range(200)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [(ONE[:, :4], r"\(60, 4\)"), (ONE[:1], "1 and 80"), (ONE * np.nan, "not finite"), (ONE[0], r"\(5,\)")],
)
def test_features_that_cannot_be_compared_are_refused(distance: object, wrong: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        distance(wrong, OTHER)  # type: ignore[operator]


def test_an_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        found = mean_interval(np.random.default_rng(seed).normal(3.0, 1.0, 50), resamples=300, seed=seed)
        held += found.low <= 3.0 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_repeated_prompts_do_not_push_a_frechet_interval_off_its_value() -> None:
    found = resampled_interval(lambda places: frechet_distance(ONE[places], OTHER), len(ONE))
    assert found.low < found.value < found.high
    assert 0.5 < (found.value - found.low) / (found.high - found.value) < 2


@pytest.mark.parametrize("seed", range(12))
def test_one_picture_of_many_makes_no_difference(seed: int) -> None:
    one = np.zeros(600)
    one[17] = 1
    for sign in (1, -1):
        assert not mean_interval(sign * one, resamples=400, seed=seed).differs_from_zero


def test_a_difference_inside_its_interval_is_none() -> None:
    noise = np.random.default_rng(1).normal(size=400)
    assert not mean_interval(noise - noise.mean()).differs_from_zero
    assert mean_interval(noise + 1).differs_from_zero


def test_a_statistic_is_resampled_by_places_the_same_for_the_same_seed() -> None:
    first, second = (resampled_interval(lambda places: float(ONE[places].sum()), 60, seed=3) for _ in range(2))
    assert first == second
    assert first.value == pytest.approx(ONE.sum())
    with pytest.raises(InputError, match="at least 2"):
        resampled_interval(lambda places: 0.0, 1)
