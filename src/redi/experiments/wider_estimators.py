"""Owns ways to x_v that look at more than keys: the step before, the prompts, places; must not know how they compare.

All are kriging over every entry of a noise, for many queries at once, with the library's kernel and what it leaves of
a query carried by a scale that is fitted to entries, each explained by the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from redi.retrieval.weights import JITTER, Kriging

_RULE = Kriging()
BANDWIDTHS = (0.75, 1.0, 1.5, 3.0)
"""In median distances between keys."""


@dataclass(frozen=True)
class Seen:
    """What is known of entries or queries of one noise.

    Attributes:
        keys: (n, d) float32, after the key step.
        before: (n, d), one step before; None at the first.
        texts: (n, e), embeddings of the prompts.
        first: (n, d), after the first step, where runs of one noise differ by a multiple of what their first calls'
            predictions differ by; None at the first.
    """

    keys: Tensor
    before: Tensor | None
    texts: Tensor
    first: Tensor | None = None


def kriging(
    entries: Seen, queries: Seen, values: Tensor, *, carried: tuple[str, ...] = ("keys",), text: float | None = None
) -> Tensor:
    """Estimate the values (m, d) of queries.

    Args:
        entries: Of the noise (n).
        queries: From the same noise (m).
        values: (n, d) float32.
        carried: What is left of these is carried, each with a scale of its own; what is not known is not.
        text: Bandwidth of a kernel over texts that the keys' kernel is multiplied by, in median distances; None: none.
    """
    between, towards = _kernels(entries.keys, queries.keys)
    if text is not None:
        squared = _squared(entries.texts, queries.texts)
        scale = text * _median(squared[1])
        alike = [torch.exp(-each / (2 * scale**2)) for each in squared]
        between, towards = between * alike[0], towards * alike[1]
    weights, left = _solved(between, towards)
    pairs = [(getattr(entries, name), getattr(queries, name)) for name in carried]
    known = [(one.double(), other.double()) for one, other in pairs if one is not None and other is not None]
    return _carried(weights, left, known, values.double())[1].float()


def carried_on(entries: Sequence[Tensor], queries: Sequence[Tensor], values: Tensor) -> Tensor:
    """Estimate the values (m, d) of queries by kriging with the bandwidth that entries are best explained with, each by
    the others.

    Args:
        entries: What is known of those of the noise, (n, d) each: the first are the keys, and what is left of all is
            carried.
        queries: (m, d) each.
        values: (n, d).
    """
    between, towards = _squared(entries[0], queries[0])
    pairs, kept = [(e.double(), q.double()) for e, q in zip(entries, queries, strict=True)], values.double()
    median, found = _median(between), []
    for bandwidth in BANDWIDTHS:
        scale = bandwidth * median
        weights, left = _solved(_RULE.correlated(between, scale), _RULE.correlated(towards, scale))
        found.append(_carried(weights, left, pairs, kept))
    return min(found, key=lambda each: each[0])[1]


def fitted(entries: Sequence[Tensor], queries: Sequence[Tensor], values: Tensor) -> Tensor:
    """Estimate the values (m, d) of queries without neighbours: the mean, and the offset of each that is known from its
    own mean, scaled as entries show. Arguments as of :func:`carried_on`."""
    weights = torch.full((len(values), len(queries[0])), 1 / len(values), dtype=torch.float64)
    left = torch.eye(len(values), dtype=torch.float64) - 1 / len(values)
    pairs = [(e.double(), q.double()) for e, q in zip(entries, queries, strict=True)]
    return _carried(weights, left, pairs, values.double())[1]


def in_blocks(
    entries: Seen, queries: Seen, values: Tensor, *, block: int = 4, spread: float = 1.0, channels: int = 4
) -> Tensor:
    """Estimate the values (m, d) of queries block by block of the picture, from keys that count less the farther away.

    Args:
        entries: Of the noise (n).
        queries: From the same noise (m).
        values: (n, d) float32.
        block: Side of a block, in latent pixels.
        spread: Standard deviation of the window around it, in latent pixels.
        channels: Of the square latents.
    """
    side = int((values.shape[1] // channels) ** 0.5)
    estimate = torch.empty(len(queries.keys), values.shape[1], dtype=torch.float64)
    keys, asked, kept = entries.keys.double(), queries.keys.double(), values.double()
    places = torch.arange(side)
    for top in range(0, side, block):
        for start in range(0, side, block):
            down, across = _beyond(places, top, block), _beyond(places, start, block)
            apart = down[:, None].square() + across[None, :].square()
            window = torch.exp(-apart / (4 * spread**2)).expand(channels, side, side).flatten().double()
            inside = (apart == 0).expand(channels, side, side).flatten()
            weights, left = _solved(*_kernels(keys * window, asked * window))
            _, found = _carried(weights, left, [(keys[:, inside], asked[:, inside])], kept[:, inside])
            estimate[:, inside] = found
    return estimate.float()


def _beyond(places: Tensor, start: int, length: int) -> Tensor:
    """Return how far each place is from a stretch."""
    return torch.maximum(start - places, places - (start + length - 1)).clamp_min(0)


def _kernels(entries: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Return the library's kernel between entries (n, n), and towards queries (n, m)."""
    between, towards = _squared(entries, queries)
    scale = _RULE.bandwidth * _median(towards)
    return _RULE.correlated(between, scale), _RULE.correlated(towards, scale)


def _squared(entries: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Return squared distances between entries (n, n), and from entries to queries (n, m), in float64."""
    entries, queries = entries.double(), queries.double()
    exact = "donot_use_mm_for_euclid_dist"
    return (
        torch.cdist(entries, entries, compute_mode=exact).square(),
        torch.cdist(entries, queries, compute_mode=exact).square(),
    )


def _median(squared: Tensor) -> float:
    return float(squared.sqrt().median())


def _solved(between: Tensor, towards: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights (n, m) that sum to one, and what leaving each entry out leaves of it (n, n)."""
    factor = torch.linalg.cholesky(between + JITTER * torch.eye(len(between), dtype=torch.float64))
    ones = torch.ones(len(between), 1, dtype=torch.float64)
    solved = torch.cholesky_solve(torch.cat([towards, ones], 1), factor)
    each, trend = solved[:, :-1], solved[:, -1:]
    weights = each - trend * ((each.sum(0) - 1) / trend.sum())
    alone = torch.cholesky_inverse(factor) - trend @ trend.T / trend.sum()
    return weights, alone / alone.diagonal()[:, None]


def _carried(
    weights: Tensor, left: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], values: Tensor
) -> tuple[float, Tensor]:
    """Apply weights to the values, and add what they leave of each query, scaled as entries show.

    Returns:
        The mean square of what the same leaves of entries, each explained by the others; and the estimate.
    """
    columns, of_values = torch.stack([(left @ entries).flatten() for entries, _ in pairs], 1), (left @ values).flatten()
    scales = torch.linalg.lstsq(columns, of_values[:, None]).solution[:, 0]
    estimate = weights.T @ values
    for scale, (entries, queries) in zip(scales, pairs, strict=True):
        estimate = estimate + scale * (queries - weights.T @ entries)
    return float((of_values - columns @ scales).square().mean()), estimate


WIDER: Mapping[str, Callable[[Seen, Seen, Tensor], Tensor]] = {
    "kriging, all entries, the step before carried too": partial(kriging, carried=("keys", "before")),
    "kriging, all entries, the first calls' difference carried too": partial(kriging, carried=("keys", "first")),
    "kriging, all entries, prompts in the kernel": partial(kriging, text=2.0),
    "kriging, all entries, block by block": in_blocks,
}
"""By the name in tables."""
