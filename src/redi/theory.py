"""Owns the paper's error bound (section 5, appendix A) as numbers; must not know pipelines, bases or experiments.

Query x and neighbour y follow ``dx/ds = h(x, s)`` and ``dy/ds = h'(y, s)``: the same network under two prompts. With h
L-Lipschitz in x and ``|h'(y, s) - h(y, s)| <= mu``, the Gronwall inequality (theorem A.2) gives after a time S

    |x - y|(S) <= |x - y|(0) e^(L S) + mu / L (e^(L S) - 1)

The paper sets mu to 0 (theorem 5.3), which holds for one prompt only. L and mu may change along the way: the inequality
is then chained over pieces, each with its own. The clock s is half the log signal-to-noise ratio, log(alpha / sigma),
in which DPM-Solver steps; L is per unit of it, mu in units of latents per unit of it, distances are L2 over a latent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import jvp, vjp

from redi.errors import InputError

Drift = Callable[[Tensor], Tensor]
"""From latents (b, ...) to their speed (b, ...), each latent by itself."""


def drift_of_noise(latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Return dx/ds, the probability flow of equation 10 in the clock log(alpha / sigma), with alpha^2 + sigma^2 = 1.

    Args:
        latents: (b, ...).
        noise: (b, ...) as the network predicts it, guidance included.
        sigma: Of the noise in ``latents``, 0 to 1.
    """
    return sigma**2 * latents - sigma * noise


def lipschitz(drift: Drift, latents: Tensor, *, iterations: int = 20, seed: int = 0) -> Tensor:
    """Return the largest singular value (b) of the drift's Jacobian at each latent, by power iteration.

    It is L at these latents, approached from below; over all of space L can only be larger.

    Args:
        drift: Differentiable forwards and backwards.
        latents: (b, ...).
        iterations: Each costs a Jacobian-vector and a vector-Jacobian product.
        seed: Of the first directions.

    Raises:
        InputError: There is no iteration to make.
    """
    if iterations < 1:
        raise InputError(f"{iterations} iterations", expected="at least 1")
    directions = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    pull = vjp(drift, latents)[1]
    for _ in range(iterations):
        directions = directions / _lengths(directions)
        pushed: Tensor = jvp(drift, (latents,), (directions,))[1]
        (directions,) = pull(pushed)
    return _lengths(pushed).flatten()


def chained_bound(
    start: NDArray[np.float64], rates: NDArray[np.float64], gaps: NDArray[np.float64], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the bound (b) on the distance after all pieces (theorem A.2, piece by piece).

    Args:
        start: (b) distances at the key.
        rates: (pieces, b) L of each piece, not negative; the paper's is the same one, the largest, in every piece.
        gaps: (pieces, b) mu of each piece, not negative; 0 is theorem 5.3.
        times: (pieces) lengths of the pieces.

    Raises:
        InputError: Shapes disagree, or a number is negative or not finite.
    """
    shape = (len(times), len(start))
    if rates.shape != shape or gaps.shape != shape:
        raise InputError(f"L {rates.shape} and mu {gaps.shape}", expected=f"(pieces, b), here {shape}")
    if not all(np.isfinite(each).all() and (each >= 0).all() for each in (start, rates, gaps, times)):
        raise InputError("negative or infinite distances, L, mu or times", expected="finite numbers of at least 0")
    bound = np.asarray(start, np.float64)
    for rate, gap, time in zip(rates, gaps, times, strict=True):
        grown = np.expm1(rate * time)
        bound = bound * (grown + 1) + gap * np.where(rate > 0, grown / np.where(rate > 0, rate, 1), time)
    return bound


def _lengths(rows: Tensor) -> Tensor:
    """Return L2 lengths that broadcast against ``rows``: (b, 1, ...)."""
    lengths: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1).clamp_min(1e-30)
    return lengths.view(-1, *[1] * (rows.dim() - 1))
