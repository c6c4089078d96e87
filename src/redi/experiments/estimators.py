"""Owns ways from one noise's entries to a query's x_v, the library's and others; must not know how they are compared.

``q`` is the query's key (d), ``keys`` (n, d) and ``values`` (n, e) the entries of its noise; all float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from redi.retrieval.weights import Affine, Combination, Combiner, Kriging, LeastSquares, Nearest


class Estimator(Protocol):
    """Estimates the values (m, e) of queries (m, d)."""

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Estimate from all entries of one noise."""
        ...


@dataclass(frozen=True)
class Combined:
    """A combiner over the nearest entries, as the library does it.

    Args:
        rule: The weights.
        neighbors: H.
        carried: Whether what the weights leave of a query is carried, by a rule that does so.
    """

    rule: Combiner
    neighbors: int
    carried: bool = True

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See :class:`Estimator`."""
        nearest = torch.cdist(queries, keys).argsort(dim=1)[:, : self.neighbors]
        found = []
        for q, near in zip(queries, nearest, strict=True):
            made = self.rule.combine(q, keys[near], values[near])
            found.append(made.values if self.carried else made.weights.float() @ values[near])
        return torch.stack(found)


@dataclass(frozen=True)
class Softmax:
    """Weighs neighbours by ``exp(-distance^2 / (2 s^2))``, ``s`` the distance to the nearest, to a sum of one."""

    default_neighbors: int = 16

    def combine(self, query: Tensor, keys: Tensor, values: Tensor) -> Combination:
        """See :meth:`redi.retrieval.weights.Combiner.combine`."""
        distances = (keys - query).double().flatten(1).norm(dim=1)
        weights = torch.softmax(-0.5 * (distances / distances.min().clamp_min(1e-9)).square(), dim=0)
        left, scale = (
            float((query.double() - torch.tensordot(each, keys.double(), dims=1)).norm())
            for each in (weights, torch.full_like(weights, 1 / len(keys)))
        )
        mixed = torch.tensordot(weights, values.double(), dims=1).float()
        return Combination(weights.cpu(), mixed, residual=left / scale if scale else 0.0, condition_number=1.0)


def mean_of_noise(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Estimate the same for every query: what the noise alone says. The unit that errors are told in."""
    return values.mean(0).expand(len(queries), -1)


def no_neighbours(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Estimate the noise's mean value and the key's offset from its mean key, by one scale that all entries fit.

    What retrieval must beat: it needs a few entries of a noise, and no search.
    """
    center, middle = keys.mean(0), values.mean(0)
    offsets = keys - center
    scale = float((offsets * (values - middle)).sum() / offsets.square().sum().clamp_min(1e-12))
    return middle + scale * (queries - center)


def ridge_weights(queries: Tensor, keys: Tensor, values: Tensor, *, neighbors: int = 16, share: float = 0.01) -> Tensor:
    """The paper's least squares over more neighbours, kept small: a ridge of ``share`` of the keys' mean square."""
    found = []
    for q, near in zip(queries, torch.cdist(queries, keys).argsort(dim=1)[:, :neighbors], strict=True):
        center = keys[near].mean(0)
        offsets = (keys[near] - center).double()
        gram = offsets @ offsets.T
        gram += share * gram.diagonal().mean() * torch.eye(len(near), dtype=torch.float64)
        weights = torch.linalg.solve(gram, offsets @ (q - center).double()).float()
        found.append(values[near].mean(0) + weights @ (values[near] - values[near].mean(0)))
    return torch.stack(found)


def regression(queries: Tensor, keys: Tensor, values: Tensor, *, share: float = 0.01) -> Tensor:
    """One linear map from key to value for the whole noise, with a ridge of ``share`` of the keys' mean variance."""
    center, middle = keys.mean(0), values.mean(0)
    offsets = (keys - center).double()
    gram = offsets @ offsets.T  # of entries: as good as that of coordinates, and smaller where entries are few
    ridge = share * float(offsets.square().sum() / keys.shape[1]) * torch.eye(len(keys), dtype=torch.float64)
    solved = torch.linalg.solve(gram + ridge, (values - middle).double())
    estimated: Tensor = middle + (((queries - center).double() @ offsets.T) @ solved).float()
    return estimated


def regression_then(
    queries: Tensor, keys: Tensor, values: Tensor, *, rest: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """A regression, and another estimator for what it leaves."""
    left = values - regression(keys, keys, values)
    return regression(queries, keys, values) + rest(queries, keys, left)


def residual_carried(queries: Tensor, keys: Tensor, values: Tensor, *, neighbors: int = 2) -> Tensor:
    """The paper's weights, and what they leave of the query carried through the jump by a scale.

    The scale is fitted on entries, each estimated from the others: how much of a key's residual its value keeps.
    """

    def told(q: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
        weights = LeastSquares().combine(q, keys[among], values[among]).weights.float()
        return weights @ values[among], q - weights @ keys[among]

    apart = torch.cdist(keys, keys).fill_diagonal_(torch.inf)
    up, down = 0.0, 0.0
    for place in range(0, len(keys), max(1, len(keys) // 64)):
        estimate, residual = told(keys[place], apart[place].argsort()[:neighbors])
        up += float(residual @ (values[place] - estimate))
        down += float(residual @ residual)
    scale, found = up / max(down, 1e-12), []
    for q, near in zip(queries, torch.cdist(queries, keys).argsort(dim=1)[:, :neighbors], strict=True):
        estimate, residual = told(q, near)
        found.append(estimate + scale * residual)
    return torch.stack(found)


def in_norm(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    norm: Callable[[Tensor], Callable[[Tensor], Tensor]],
    then: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Another estimator with keys in another norm; ``norm`` of the keys returns the map of keys and queries."""
    mapped = norm(keys)
    return then(mapped(queries), mapped(keys), values)


def whitened(keys: Tensor) -> Callable[[Tensor], Tensor]:
    """Principal components, each divided by the fourth root of its strength (and a floor of 2 % of the largest)."""
    _, strengths, axes = torch.linalg.svd(keys - keys.mean(0), full_matrices=False)
    turned = axes.T / (strengths / strengths[0] + 0.02).sqrt().sqrt()
    return lambda latents: latents @ turned


def low_frequency(keys: Tensor, *, channels: int = 4) -> Callable[[Tensor], Tensor]:
    """Latents averaged over 2 x 2 pixels."""
    side = int((keys.shape[1] // channels) ** 0.5)

    def mapped(latents: Tensor) -> Tensor:
        square = latents.reshape(len(latents), channels, side, side)
        pooled: Tensor = torch.nn.functional.avg_pool2d(square, 2)
        return pooled.flatten(1)

    return mapped


def _library(rule: Combiner, neighbors: int | None = None) -> Estimator:
    return Combined(rule, neighbors or rule.default_neighbors)


_DEFAULT = _library(Kriging())
NO_NEIGHBOURS = "no neighbours: the mean, and the key's offset scaled"

ESTIMATORS: Mapping[str, Estimator] = {
    "mean of the noise's values": mean_of_noise,
    NO_NEIGHBOURS: no_neighbours,
    "nearest": _library(Nearest()),
    "least squares, H=1": _library(LeastSquares(), 1),
    "least squares, H=2": _library(LeastSquares(), 2),
    "least squares, H=4": _library(LeastSquares(), 4),
    "least squares, H=16": _library(LeastSquares(), 16),
    "least squares H=2, residual carried": residual_carried,
    "affine, H=4": _library(Affine(), 4),
    "softmax of distance, H=16": _library(Softmax()),
    "ridge weights, H=16": ridge_weights,
    "ridge weights, H=64": partial(ridge_weights, neighbors=64),
    "kriging, H=64": _DEFAULT,
    "kriging, H=64, nothing carried": Combined(Kriging(), 64, carried=False),
    "kriging, H=256, nugget 0.003, nothing carried": Combined(Kriging(nugget=3e-3), 256, carried=False),
    "kriging, H=4": _library(Kriging(), 4),
    "kriging, H=16": _library(Kriging(), 16),
    "kriging, H=256": _library(Kriging(), 256),
    "kriging, all entries": _library(Kriging(), 1 << 20),
    "kriging, H=64, bandwidth 1": _library(Kriging(bandwidth=1)),
    "kriging, H=64, nugget 0.003": _library(Kriging(nugget=3e-3)),
    "kriging, H=64, nugget 0.1": _library(Kriging(nugget=0.1)),
    "kriging, H=64, whitened keys": partial(in_norm, norm=whitened, then=_DEFAULT),
    "kriging, H=64, low-frequency keys": partial(in_norm, norm=low_frequency, then=_DEFAULT),
    "one regression per noise": regression,
    "one regression per noise, kriging of the rest": partial(regression_then, rest=_DEFAULT),
}
"""By the name in tables; the first is the unit."""
