"""Claims about weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from redi.errors import RetrievalError
from redi.retrieval import (
    COMBINERS,
    Affine,
    Combination,
    Kriging,
    LeastSquares,
    Nearest,
    combiner,
)

EVERY = sorted(COMBINERS)
SUMMING_TO_ONE = [name for name in EVERY if name != "least-squares"]


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def problem(seed: int, h: int, d: int = 48, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Keys around a common point, as latents that share their noise are, and a query among them."""
    common = 10 * randn(seed, d)
    return common + spread * randn(seed + 1, d), common + spread * randn(seed + 2, h, d), randn(seed + 3, h, d)


# --- least squares: the paper's weights ---


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 40))
def test_least_squares_equals_numpy_lstsq(seed: int, h: int, d: int) -> None:
    query, keys, values = randn(seed, d), randn(seed + 1, h, d), randn(seed + 2, h, d)
    expected, *_ = np.linalg.lstsq(keys.double().numpy().T, query.double().numpy(), rcond=1e-6)
    result = LeastSquares().combine(query, keys, values)
    np.testing.assert_allclose(result.weights.numpy(), expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
        result.values.numpy(), expected @ values.double().numpy(), rtol=1e-5, atol=1e-5 * abs(expected).max()
    )


def test_least_squares_leaves_a_residual_orthogonal_to_every_key() -> None:
    query, keys, values = problem(1, h=5)
    weights = LeastSquares().combine(query, keys, values).weights
    rest = query.double() - weights @ keys.double()
    assert float((keys.double() @ rest).abs().max()) < 1e-9


def test_least_squares_of_independent_noise_shrinks_to_nothing() -> None:
    """Design fact 1: without shared noise the weights do not sum to one, and the report shows it."""
    result = LeastSquares().combine(randn(1, 16384), randn(2, 2, 16384), randn(3, 2, 16384))
    assert abs(result.weight_sum) < 0.1


def test_least_squares_survives_keys_that_differ_by_a_thousandth() -> None:
    """An early key step: differences of 1e-3 around a large common part still decide the weights."""
    common = 128 * torch.nn.functional.normalize(randn(0, 16384), dim=0)
    differences = 1e-3 * randn(1, 2, 16384)
    keys = common + differences
    query = common + 0.3 * differences[0] + 0.7 * differences[1]
    result = LeastSquares().combine(query, keys, keys)
    torch.testing.assert_close(result.weights, torch.tensor([0.3, 0.7]).double(), rtol=0, atol=1e-3)


# --- the other rules ---


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 40))
def test_affine_and_kriging_and_nearest_weights_sum_to_one(seed: int, h: int, d: int) -> None:
    query, keys, values = problem(seed, h, d)
    for name in SUMMING_TO_ONE:
        assert combiner(name).combine(query, keys, values).weight_sum == pytest.approx(1, abs=1e-9)


def test_affine_equals_the_solution_of_its_lagrangian_system() -> None:
    query, keys, values = problem(2, h=6)
    k, q = keys.double(), query.double()
    system = torch.zeros(7, 7, dtype=torch.float64)
    system[:6, :6], system[6, :6], system[:6, 6] = k @ k.T, 1, 1
    expected = torch.linalg.solve(system, torch.cat([k @ q, torch.ones(1).double()]))[:6]
    torch.testing.assert_close(Affine().combine(query, keys, values).weights, expected, rtol=1e-6, atol=1e-8)


def test_affine_and_kriging_do_not_see_a_shift_of_all_keys() -> None:
    query, keys, values = problem(3, h=8)
    shift = 5 * randn(9, 48)
    for rule in (Affine(), Kriging()):
        here, there = rule.combine(query, keys, values), rule.combine(query + shift, keys + shift, values)
        torch.testing.assert_close(here.weights, there.weights, rtol=1e-3, atol=1e-4)


def test_nearest_hands_back_the_nearest_value_unchanged() -> None:
    query, keys, values = problem(4, h=5)
    result = Nearest().combine(query, keys, values)
    assert torch.equal(result.values, values[(keys - query).norm(dim=1).argmin()])


def textbook_kriging(query: np.ndarray, keys: np.ndarray, bandwidth: float) -> tuple[np.ndarray, float]:
    """Return weights and multiplier of the bordered system; ``bandwidth`` in the units of the keys."""
    nugget, h = Kriging().nugget, len(keys)
    apart = ((keys[:, None] - keys[None]) ** 2).sum(-1)
    system = np.ones((h + 1, h + 1))
    system[:h, :h] = np.exp(-apart / (2 * bandwidth**2)) + (nugget + 1e-6) * np.eye(h)
    system[h, h] = 0
    towards = np.exp(-((keys - query) ** 2).sum(-1) / (2 * bandwidth**2))
    solution = np.linalg.solve(system, np.append(towards, 1))
    return solution[:h], 1 + nugget - solution[:h] @ towards - solution[h]


def median_bandwidth(query: torch.Tensor, keys: torch.Tensor) -> float:
    return Kriging().bandwidth * float((keys - query).double().norm(dim=1).median())


def test_kriging_equals_the_textbook_system() -> None:
    query, keys, values = problem(5, h=10)
    weights, variance = textbook_kriging(query.double().numpy(), keys.double().numpy(), median_bandwidth(query, keys))
    result = Kriging().combine(query, keys, values)
    np.testing.assert_allclose(result.weights.numpy(), weights, rtol=1e-8, atol=1e-10)
    assert result.variance == pytest.approx(variance)


def test_kriging_carries_what_its_weights_leave_as_neighbours_left_out_one_by_one_say() -> None:
    query, keys, noise = problem(5, h=10)
    values = 0.7 * keys + 0.3 * noise
    k, v, bandwidth = keys.double().numpy(), values.double().numpy(), median_bandwidth(query, keys)
    of_keys, of_values = [], []
    for place in range(10):
        others = np.arange(10) != place
        weights, _ = textbook_kriging(k[place], k[others], bandwidth)
        of_keys.append(k[place] - weights @ k[others])
        of_values.append(v[place] - weights @ v[others])
    slope = np.vdot(of_keys, of_values) / np.vdot(of_keys, of_keys)
    result = Kriging().combine(query, keys, values)
    assert result.carried == pytest.approx(slope, rel=1e-5)
    weights = result.weights.numpy()
    expected = weights @ v + slope * (query.double().numpy() - weights @ k)
    np.testing.assert_allclose(result.values.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_kriging_meets_a_map_that_scales_wherever_the_query_is() -> None:
    _, keys, offset = problem(6, h=12)
    query = 3 * randn(99, *keys.shape[1:])  # far outside what the neighbours span
    result = Kriging().combine(query, keys, 2.5 * keys + offset[0])
    torch.testing.assert_close(result.values, 2.5 * query + offset[0], rtol=1e-4, atol=1e-4)
    assert result.carried == pytest.approx(2.5)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "kriging"])
def test_other_weights_carry_nothing(name: str) -> None:
    query, keys, values = problem(7, h=4)
    result = combiner(name).combine(query, keys, values)
    assert result.carried == 0
    torch.testing.assert_close(result.values, (result.weights.float() @ values), rtol=1e-5, atol=1e-5)


def test_kriging_knows_when_it_does_not_know() -> None:
    _, keys, values = problem(6, h=16)
    at_a_key = Kriging().combine(keys[3], keys, values)
    between = Kriging().combine(keys.mean(0), keys, values)
    assert at_a_key.variance is not None
    assert between.variance is not None
    assert at_a_key.variance < 0.01
    assert between.variance > at_a_key.variance
    torch.testing.assert_close(at_a_key.values, values[3], rtol=0, atol=0.02)


def test_kriging_regresses_a_smooth_map_better_than_the_nearest_neighbour() -> None:
    mixing = randn(7, 6, 12) / 2
    keys = randn(8, 300, 6)
    query = randn(9, 6) / 2
    order = (keys - query).norm(dim=1).argsort()[:64]
    truth, values = torch.tanh(query @ mixing), torch.tanh(keys[order] @ mixing)
    errors = {
        name: float((combiner(name).combine(query, keys[order], values).values - truth).norm())
        for name in ("kriging", "nearest")
    }
    assert errors["kriging"] < 0.5 * errors["nearest"]


# --- what holds for all of them ---


@pytest.mark.parametrize("name", EVERY)
def test_a_query_that_is_in_the_base_gets_its_own_value(name: str) -> None:
    _, keys, values = problem(10, h=4)
    result = combiner(name).combine(keys[2], keys, values)
    tolerance = 1e-2 if name == "kriging" else 1e-5
    torch.testing.assert_close(result.values, values[2], rtol=0, atol=tolerance)
    assert result.residual < tolerance


@pytest.mark.parametrize("name", EVERY)
def test_identical_keys_share_their_weight(name: str) -> None:
    query, keys, values = problem(11, h=1)
    result = combiner(name).combine(query, keys.expand(5, -1), values.expand(5, -1))
    scale = result.weight_sum
    assert scale == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(result.values, scale * values[0], rtol=1e-5, atol=1e-6)
    if name != "nearest":
        torch.testing.assert_close(
            result.weights, torch.full((5,), scale / 5, dtype=torch.float64), rtol=1e-9, atol=1e-12
        )
    assert math.isfinite(result.condition_number)


@pytest.mark.parametrize("name", EVERY)
def test_nearly_identical_keys_do_not_get_huge_weights(name: str) -> None:
    query, keys, values = problem(12, h=1)
    twins = torch.cat([keys, keys * (1 + 1e-7), keys * (1 - 1e-7)])
    assert float(combiner(name).combine(query, twins, values.expand(3, -1)).weights.abs().max()) < 2


@pytest.mark.parametrize("name", EVERY)
def test_all_keys_equal_to_the_query_leave_nothing(name: str) -> None:
    query, _, values = problem(13, h=3)
    result = combiner(name).combine(query, query.expand(3, -1), values.expand(3, -1).clone())
    assert result.residual < 1e-5
    assert result.weight_sum == pytest.approx(1)


@pytest.mark.parametrize("name", EVERY)
def test_zero_query_and_zero_keys_stay_finite(name: str) -> None:
    _, keys, values = problem(14, h=3)
    for near in (keys, torch.zeros_like(keys)):
        result = combiner(name).combine(torch.zeros(48), near, values)
        assert torch.isfinite(result.weights).all()
        assert torch.isfinite(result.values).all()
        assert math.isfinite(result.residual)
        assert math.isfinite(result.condition_number)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("h", [1, 2, 64])
def test_any_number_of_neighbours_combines_also_more_than_dimensions(name: str, h: int) -> None:
    query, keys, values = problem(15, h=h, d=8)
    result = combiner(name).combine(query, keys, values)
    assert result.weights.shape == (h,)
    assert torch.isfinite(result.values).all()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("where", ["query", "keys", "values"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_refused(name: str, where: str, bad: float) -> None:
    parts = dict(zip(("query", "keys", "values"), problem(16, h=3), strict=True))
    parts[where].view(-1)[5] = bad
    with pytest.raises(RetrievalError, match=where):
        combiner(name).combine(**parts)


@pytest.mark.parametrize("name", EVERY)
def test_shapes_that_disagree_and_no_neighbours_are_refused(name: str) -> None:
    query, keys, values = problem(17, h=3)
    for wrong in ((query[:-1], keys, values), (query, keys[:0], values[:0]), (query, keys, values[:2])):
        with pytest.raises(RetrievalError, match="at least one neighbour"):
            combiner(name).combine(*wrong)


@pytest.mark.parametrize("name", EVERY)
def test_latents_keep_their_shape_and_half_precision_is_computed_in_full(name: str) -> None:
    query, keys, values = randn(18, 4, 8, 8), randn(19, 3, 4, 8, 8), randn(20, 3, 4, 8, 8)
    full = combiner(name).combine(query.half().float(), keys.half().float(), values.half().float())
    half = combiner(name).combine(query.half(), keys.half(), values.half())
    assert half.values.shape == (4, 8, 8)
    assert half.values.dtype == torch.float32
    assert half.weights.dtype == torch.float64
    assert torch.equal(full.values, half.values)


def test_residual_is_one_where_the_weights_are_no_better_than_the_mean() -> None:
    query, keys, values = problem(23, h=1)
    assert Affine().combine(query, keys, values).residual == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_least_squares_leaves_least_and_affine_no_more_than_the_mean(seed: int, h: int) -> None:
    parts = problem(seed, h, d=20)
    free, affine = LeastSquares().combine(*parts).residual, Affine().combine(*parts).residual
    assert free <= affine + 1e-6 <= 1 + 2e-6


def test_condition_number_is_that_of_the_keys() -> None:
    query, keys, values = problem(24, h=5)
    expected = np.linalg.cond(keys.double().numpy())
    assert LeastSquares().combine(query, keys, values).condition_number == pytest.approx(expected, rel=1e-6)


def test_a_users_own_object_is_a_combiner() -> None:
    class Mean:
        default_neighbors = 3

        def combine(self, query: Tensor, keys: Tensor, values: Tensor) -> Combination:
            return Combination(torch.full((len(keys),), 1 / len(keys)), values.mean(0), 1.0, 1.0)

    assert combiner(mine := Mean()) is mine


@pytest.mark.parametrize("choice", ["least_squares", 3, Kriging])
def test_an_unknown_combiner_is_refused_with_the_names(choice: object) -> None:
    with pytest.raises(RetrievalError, match="kriging"):
        combiner(choice)  # type: ignore[arg-type]


def test_kriging_refuses_a_nugget_of_zero() -> None:
    with pytest.raises(RetrievalError, match="nugget"):
        Kriging(nugget=0)


def test_kriging_is_solved_with_any_nugget_where_keys_are_identical() -> None:
    query, keys, values = problem(25, h=1)
    weights = Kriging(nugget=1e-30).combine(query, keys.expand(4, -1), values.expand(4, -1)).weights
    torch.testing.assert_close(weights, torch.full((4,), 0.25, dtype=torch.float64), rtol=1e-4, atol=0)
