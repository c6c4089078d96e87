"""Owns distances between two sets of features; must not know what the features are of."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from redi.errors import InputError

Features = NDArray[np.float64]
_BLOCK = 1024


class Reference:
    """Features that many sets are compared with; what depends on them alone is computed once.

    Args:
        features: (m, d), finite, m of at least 2.

    Raises:
        InputError: They are not.
    """

    def __init__(self, features: Features) -> None:
        self.features, _ = _checked(features, features)

    @cached_property
    def moments(self) -> tuple[Features, Features]:
        """Their mean (d) and covariance (d, d)."""
        return self.features.mean(0), np.atleast_2d(np.cov(self.features, rowvar=False))

    @cached_property
    def kernel_within(self) -> float:
        """The mean kernel of two different ones."""
        rows, count = self.features, len(self.features)
        own = (((rows**2).sum(1) / rows.shape[1] + 1) ** 3).sum()
        return float((_kernel_means(rows, rows).sum() * count - own) / (count * (count - 1)))


def frechet_distance(features: Features, reference: Features | Reference) -> float:
    """Return ``||m1 - m2||^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` (Heusel et al., 2017, equation 6), squared units.

    Args:
        features: (n, d), n of at least 2.
        reference: (m, d), m of at least 2. The distance falls with n and m: compare only at the same sizes.

    Raises:
        InputError: Shapes disagree, there are too few rows, or a number is not finite.
    """
    known = reference if isinstance(reference, Reference) else Reference(reference)
    first, _ = _checked(features, known.features)
    mean, other = known.moments
    shift = first.mean(0) - mean
    one = np.atleast_2d(np.cov(first, rowvar=False))
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ other @ root)  # of S1^(1/2) S2 S1^(1/2): the same as of S1 S2
    distance = float(shift @ shift + np.trace(one + other) - 2 * np.sqrt(product.clip(0)).sum())
    return max(distance, 0.0)


def kernel_distance(features: Features, reference: Features | Reference) -> float:
    """Return the unbiased squared maximum mean discrepancy under ``(x.y / d + 1)^3`` (Binkowski et al., 2018).

    Arguments and errors as of :func:`frechet_distance`; without its bias in n, so it can be slightly negative.
    """
    return kernel_distance_of(features, reference)(np.arange(len(features)))


def kernel_distance_of(features: Features, reference: Features | Reference) -> Callable[[NDArray[np.intp]], float]:
    """Return what computes :func:`kernel_distance` of the rows of ``features`` at some places, repeats included."""
    known = reference if isinstance(reference, Reference) else Reference(reference)
    rows, _ = _checked(features, known.features)
    own, across = _kernel(rows, rows), _kernel_means(rows, known.features)
    return lambda at: _within(own[np.ix_(at, at)]) + known.kernel_within - 2 * float(across[at].mean())


def _kernel(x: Features, y: Features) -> Features:
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3, np.float64)


def _kernel_means(x: Features, y: Features) -> Features:
    """Return the mean kernel (n) of each row of x with all of y, never holding more than a block of it."""
    return np.concatenate([_kernel(x[start : start + _BLOCK], y).mean(1) for start in range(0, len(x), _BLOCK)])


def _within(kernel: Features) -> float:
    count = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))


def _checked(features: Features, reference: Features) -> tuple[Features, Features]:
    first, second = (np.asarray(each, np.float64) for each in (features, reference))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise InputError(f"features {first.shape} and {second.shape}", expected="(n, d) and (m, d)")
    if min(len(first), len(second)) < 2:
        raise InputError(f"{len(first)} and {len(second)} feature rows", expected="at least 2 of each")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("features that are not finite", expected="finite numbers")
    return first, second
