"""Claims about the paper's bound: it holds and is tight where the answer is known; L is the largest singular value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from redi.errors import InputError
from redi.theory import chained_bound, drift_of_noise, lipschitz


def test_power_iteration_finds_the_largest_singular_value_of_a_networks_jacobian() -> None:
    torch.manual_seed(0)
    network = (
        nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.SiLU(), nn.Linear(32, 12)).double().requires_grad_(False)
    )
    latents = torch.randn(3, 3, 2, 2, dtype=torch.float64)

    def drift(x: torch.Tensor) -> torch.Tensor:
        return network(x).reshape(x.shape)

    exact = [
        torch.linalg.matrix_norm(torch.autograd.functional.jacobian(drift, one[None]).reshape(12, 12), 2).item()
        for one in latents
    ]
    assert lipschitz(drift, latents, iterations=200).tolist() == pytest.approx(exact, rel=1e-6)
    assert (lipschitz(drift, latents, iterations=2) <= torch.tensor(exact) + 1e-12).all(), "approached from below"


def test_the_bound_is_met_exactly_where_drifts_grow_and_differ_in_one_direction() -> None:
    rate, gap, start, time = 1.7, 0.4, 0.3, 0.9  # x' = L x and y' = L y + mu, y ahead of x
    apart = start * np.exp(rate * time) + gap / rate * (np.exp(rate * time) - 1)
    pieces = np.array([0.2, 0.3, 0.4])
    found = chained_bound(np.array([start]), np.full((3, 1), rate), np.full((3, 1), gap), pieces)
    assert found[0] == pytest.approx(apart)
    without = chained_bound(np.array([start]), np.full((3, 1), rate), np.zeros((3, 1)), pieces)
    assert without[0] == pytest.approx(start * np.exp(rate * time))
    assert without[0] < apart, "the paper's bound, which leaves mu out, is broken by two prompts"


def test_the_bound_holds_between_two_prompts_of_linear_drifts() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        matrix, pulls = rng.normal(size=(5, 5)), rng.normal(size=(2, 5))
        x, y = rng.normal(size=(2, 5))
        start, time = np.linalg.norm(x - y), 0.5
        rate, gap = np.linalg.norm(matrix, 2), np.linalg.norm(pulls[1] - pulls[0])
        values, vectors = np.linalg.eig(matrix)
        grow = (vectors * np.exp(values * time)) @ np.linalg.inv(vectors)
        integral = (vectors * (np.expm1(values * time) / values)) @ np.linalg.inv(vectors)
        apart = np.linalg.norm(grow @ (y - x) + integral @ (pulls[1] - pulls[0]))
        assert apart <= chained_bound(np.array([start]), np.array([[rate]]), np.array([[gap]]), np.array([time]))[0]


def test_a_drift_that_does_not_stretch_adds_mu_by_the_time() -> None:
    assert chained_bound(np.array([1.0]), np.array([[0.0]]), np.array([[2.0]]), np.array([0.5]))[0] == 2.0


def test_the_drift_is_the_speed_of_gaussian_trajectories() -> None:
    spread, latents = 0.6, torch.tensor([[1.3]], dtype=torch.float64)

    def deviation(clock: float) -> tuple[float, float]:
        signal = 1 / (1 + np.exp(-2 * clock))
        return float(np.sqrt(signal * spread**2 + 1 - signal)), float(np.sqrt(1 - signal))

    (here, sigma), (after, _), (before, _) = (deviation(clock) for clock in (0.2, 0.2 + 1e-5, 0.2 - 1e-5))
    speed = drift_of_noise(latents, sigma * latents / here**2, sigma)  # x / deviation stays the same
    assert speed.item() == pytest.approx(1.3 * (after - before) / here / 2e-5, rel=1e-6)


def test_what_no_bound_can_be_computed_of_is_refused() -> None:
    with pytest.raises(InputError, match="pieces"):
        chained_bound(np.ones(2), np.ones((3, 1)), np.ones((3, 2)), np.ones(3))
    with pytest.raises(InputError, match="negative"):
        chained_bound(np.ones(1), -np.ones((1, 1)), np.ones((1, 1)), np.ones(1))
    with pytest.raises(InputError, match="at least 1"):
        lipschitz(lambda x: x, torch.ones(1, 2), iterations=0)
