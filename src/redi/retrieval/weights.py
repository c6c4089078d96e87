"""Owns how neighbours become weights and a value (Algorithm 2's w*); must not know files or pipelines.

Axes: ``h`` neighbours, ``b`` images, ``...`` the shape of one latent (flattened inside, its axes have no meaning
here). Arithmetic is float64; the Gram matrix of the keys is formed where the keys live, the (h, h) systems are solved
on the CPU, where they cost microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from redi.errors import RetrievalError

RESOLUTION = 1e-6
"""Directions of the keys weaker than this, relative to the keys' size, are rounding (fp16 differences), not signal."""


_SHORT = 1 / 60
"""Range of kriging's short kernel over that of the wide one."""

JITTER = 1e-6
"""What lets identical keys share their weight."""


@dataclass(frozen=True, eq=False)
class Combination:
    """What a combiner makes of one query and its neighbours.

    Attributes:
        weights: (h) float64 on the CPU, in the order of the neighbours.
        values: (...) float32 on the device of the values: the latent to go on from, the sum of weight x value plus
            ``carried`` x what the weights leave of the query, ``q - sum w key``.
        residual: What the weights leave of the query, ``||q - sum w key|| / ||q - mean key||``: 0 is an exact
            combination, 1 is no better than the plain mean of the neighbours.
        condition_number: Largest over smallest singular value that was used in the solve (for kriging the squared
            ratio of the Cholesky factor's pivots, a lower bound of it); 1.0 where nothing was solved.
        variance: Kriging's variance as a fraction of the prior's (0 at a key, about 1 far from all keys); None for
            combiners that have none.
        carried: How much of what the weights leave of the query stays at the value step; 0.0 for combiners that drop
            it, as the paper's does.
    """

    weights: Tensor
    values: Tensor
    residual: float
    condition_number: float
    variance: float | None = None
    carried: float = 0.0

    @property
    def weight_sum(self) -> float:
        """Sum of the weights; far below 1 means that the combination shrinks towards zero."""
        return float(self.weights.sum())


@runtime_checkable
class Combiner(Protocol):
    """The rule from neighbours to weights; pass your own object with these two members wherever a name is taken."""

    @property
    def default_neighbors(self) -> int:
        """Neighbours (h) to retrieve when the caller names no number."""
        ...

    def combine(self, query: Tensor, keys: Tensor, values: Tensor) -> Combination:
        """Combine ``values`` (h, ...) by how ``keys`` (h, ...) explain ``query`` (...); nearest neighbour first.

        Raises:
            RetrievalError: Shapes disagree, h is 0, or a number is not finite.
        """
        ...


@dataclass(frozen=True)
class LeastSquares:
    """The paper's weights (Algorithm 2): ``argmin_w ||q - sum w key||``, unconstrained, least norm if not unique.

    Args:
        resolution: Singular values of the keys below ``resolution`` x the Frobenius norm of the keys count as zero,
            so that identical or nearly identical keys share a weight instead of fighting with huge ones.
    """

    resolution: float = RESOLUTION
    default_neighbors: int = 2

    def combine(self, query: Tensor, keys: Tensor, values: Tensor) -> Combination:
        """See :meth:`Combiner.combine`."""
        q, k = _flat(query, keys, values)
        weights, condition = _least_norm(k, q, self.resolution * float(k.norm()))
        return _combined(weights, q, k, values, condition)


@dataclass(frozen=True)
class Affine:
    """Least squares with weights that sum to one: the point of the keys' affine hull that is nearest to the query.

    Of several solutions it takes the one nearest to equal weights. ``resolution`` as in :class:`LeastSquares`.
    """

    resolution: float = RESOLUTION
    default_neighbors: int = 4

    def combine(self, query: Tensor, keys: Tensor, values: Tensor) -> Combination:
        """See :meth:`Combiner.combine`."""
        q, k = _flat(query, keys, values)
        mean = k.mean(0)
        shift, condition = _least_norm(k - mean, q - mean, self.resolution * float(k.norm()))
        # The least-norm shift sums to zero up to rounding, because the centred keys do; remove the rounding too.
        return _combined(1 / len(k) + shift - shift.mean(), q, k, values, condition)


@dataclass(frozen=True)
class Nearest:
    """The nearest neighbour's value, unchanged (H = 1 without scaling)."""

    default_neighbors: int = 1

    def combine(self, query: Tensor, keys: Tensor, values: Tensor) -> Combination:
        """See :meth:`Combiner.combine`; the nearest key is measured, not taken to be the first."""
        q, k = _flat(query, keys, values)
        weights = torch.zeros(len(k), dtype=torch.float64)
        weights[int((k - q).norm(dim=1).argmin())] = 1.0
        return _combined(weights, q, k, values, 1.0)


@dataclass(frozen=True)
class Kriging:
    """Ordinary kriging: the Gaussian-process mean with an unknown constant trend, so the weights sum to one.

    Solves ``[K, 1; 1', 0] [w; mu] = [k; 1]`` with the nested kernel ``exp(-r^2 / (2 bandwidth^2)) + nugget
    exp(-r^2 / (2 (bandwidth / 60)^2))``: many neighbours and a kernel wider than their spread make a smooth regression
    from key to value, and its short part lets a query that the base holds have its own value, which a nugget of pure
    noise would smooth away.

    What the weights leave of the query is not thrown away: between the steps it keeps a part of itself, as the
    neighbours show when each is explained by the others: the slope of what is left of their values on what is left of
    their keys. That part is carried over the jump (values of another shape than the keys have nothing to add it to).

    Args:
        nugget: Variance of the short part, relative to the wide one's 1; also what keeps the system well conditioned.
        bandwidth: The wide kernel's bandwidth in units of the median distance from the query to its neighbours.
    """

    nugget: float = 3e-2
    bandwidth: float = 3.0
    default_neighbors: int = 64

    def __post_init__(self) -> None:
        if not (self.nugget > 0 and self.bandwidth > 0):
            raise RetrievalError(
                f"kriging with nugget={self.nugget!r}, bandwidth={self.bandwidth!r}", expected="positive numbers"
            )

    def correlated(self, squared: Tensor, scale: float) -> Tensor:
        """Return the kernel of squared distances (any shape), ``scale`` its wide part's bandwidth in their units."""
        spread = squared / (2 * scale**2)
        return torch.exp(-spread) + self.nugget * torch.exp(-spread / _SHORT**2)

    def combine(self, query: Tensor, keys: Tensor, values: Tensor) -> Combination:
        """See :meth:`Combiner.combine`."""
        q, k = _flat(query, keys, values)
        offsets = k - q
        gram = (offsets @ offsets.T).cpu()
        to_query = gram.diagonal()
        between = (to_query[:, None] + to_query[None, :] - 2 * gram).clamp_min(0).fill_diagonal_(0)
        scale = self.bandwidth * float(to_query.sqrt().median())
        if scale == 0:  # at least half of the keys are the query itself
            scale = self.bandwidth * float(to_query.sqrt().mean()) or 1.0

        kernel = self.correlated(between, scale) + JITTER * torch.eye(len(k), dtype=torch.float64)
        towards = self.correlated(to_query, scale)
        factor = torch.linalg.cholesky(kernel)
        ones = torch.ones_like(towards)
        solved = torch.cholesky_solve(torch.stack([towards, ones], 1), factor)
        trend = float((solved[:, 0].sum() - 1) / solved[:, 1].sum())
        weights = solved[:, 0] - trend * solved[:, 1]
        variance = max(0.0, 1 + self.nugget - float(weights @ towards) - trend)
        pivots = factor.diagonal()
        alone = torch.cholesky_inverse(factor) - torch.outer(solved[:, 1], solved[:, 1]) / solved[:, 1].sum()
        carried = _kept(alone, offsets, gram, values) if keys.shape == values.shape else 0.0
        return _combined(weights, q, k, values, float((pivots.max() / pivots.min()).square()), variance, carried)


COMBINERS: Mapping[str, Callable[[], Combiner]] = MappingProxyType(
    {"least-squares": LeastSquares, "affine": Affine, "nearest": Nearest, "kriging": Kriging}
)
"""The combiners that can be chosen by name; "least-squares" is the paper's."""

DEFAULT_WEIGHTS = "kriging"
"""What is used where none is named: at equal calls it was the more faithful in every comparison (docs/results.md)."""


def combiner(choice: str | Combiner) -> Combiner:
    """Return the combiner of that name, or the given object if it already is one.

    Raises:
        RetrievalError: The name is unknown, or the object has not the two members of :class:`Combiner`.
    """
    if isinstance(choice, str):
        if choice in COMBINERS:
            return COMBINERS[choice]()
        raise RetrievalError(
            f"combiner {choice!r}", expected=f"one of {', '.join(COMBINERS)}, or an object of your own"
        )
    if isinstance(choice, type) or not isinstance(choice, Combiner):
        raise RetrievalError(
            f"combiner {choice!r}",
            expected="an object with combine(query, keys, values) and default_neighbors",
            fix=f"name one of {', '.join(COMBINERS)}, or pass an instance",
        )
    return choice


def _flat(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Check one query against its neighbours and return it as (d) and the keys as (h, d), both float64."""
    if keys.ndim < 1 or len(keys) == 0 or keys.shape[1:] != query.shape or len(values) != len(keys):
        raise RetrievalError(
            f"query {tuple(query.shape)}, keys {tuple(keys.shape)}, values {tuple(values.shape)}",
            expected="query (...), keys (h, ...) and values (h, ...) of at least one neighbour",
        )
    for name, tensor in (("query", query), ("keys", keys), ("values", values)):
        if not bool(torch.isfinite(tensor).all()):
            raise RetrievalError(
                f"the {name} hold NaN or infinity" if name != "query" else "the query holds NaN or infinity",
                expected="finite latents",
                fix="look for an overflow of half precision in the model, or verify the knowledge base",
            )
    device = torch.device("cpu") if keys.device.type == "mps" else keys.device  # mps has no float64
    return query.to(device).double().flatten(), keys.to(device).double().flatten(1)


def _least_norm(matrix: Tensor, target: Tensor, cutoff: float) -> tuple[Tensor, float]:
    """Return the least-norm w (h) of ``min ||target - w @ matrix||`` and the condition number of the part used.

    The Gram matrix squares the condition number, so one step of refinement on the residual follows (the corrected
    semi-normal equations), which gives back what the squaring lost.
    """
    eigenvalues, vectors = torch.linalg.eigh((matrix @ matrix.T).cpu())
    used = eigenvalues > max(cutoff**2, torch.finfo(torch.float64).tiny)
    if not bool(used.any()):
        return torch.zeros(len(matrix), dtype=torch.float64), 1.0
    strengths, basis = eigenvalues[used], vectors[:, used]

    def solve(rest: Tensor) -> Tensor:
        solved: Tensor = basis @ ((basis.T @ (matrix @ rest).cpu()) / strengths)
        return solved

    weights = solve(target)
    weights = weights + solve(target - weights.to(matrix.device) @ matrix)
    return weights, math.sqrt(float(strengths[-1] / strengths[0]))


def _kept(alone: Tensor, keys: Tensor, gram: Tensor, values: Tensor) -> float:
    """Return how much of what kriging leaves of a neighbour's key its value keeps, each explained by the others.

    Row i of ``alone`` (h, h), the inverse of kriging's system without the trend, over its diagonal is what leaving
    neighbour i out leaves of it (Dubrule, 1983), so no system is solved twice.

    Args:
        alone: float64 on the CPU; its rows sum to zero.
        keys: (h, d) float64, less any one vector.
        gram: Their Gram matrix, on the CPU.
        values: (h, ...).
    """
    left = alone / alone.diagonal()[:, None]
    # One number of h x d sums: float32 is enough, and twice as fast.
    across = keys.float() @ (values.float().flatten(1) - values.float().flatten(1).mean(0)).to(keys.device).T
    of_keys = float((left @ gram * left).sum())
    return float((left @ across.double().cpu() * left).sum()) / of_keys if of_keys > 0 else 0.0


def _combined(
    weights: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    condition: float,
    variance: float | None = None,
    carried: float = 0.0,
) -> Combination:
    """Apply weights (h) to the values, and measure and carry what they leave of the query."""
    rest = query - weights.to(keys.device) @ keys
    left = float(rest.norm())
    # Where the query is the mean itself, rounding is compared with rounding: the floor keeps 0/0 at 0.
    floor = 1e-9 * max(float(query.norm()), float(keys.norm()))
    scale = max(float((query - keys.mean(0)).norm()), floor)
    device = torch.device("cpu") if values.device.type == "mps" else values.device
    mixed = torch.tensordot(weights.to(device), values.to(device).double(), dims=1)
    if carried:
        mixed += carried * rest.to(device).reshape(mixed.shape)
    return Combination(
        weights=weights,
        values=mixed.to(values.device, torch.float32) if device == values.device else mixed.float().to(values.device),
        residual=left / scale if scale > 0 else 0.0,
        condition_number=condition,
        variance=variance,
        carried=carried,
    )
