"""Owns how a way to search is chosen: recall measured on held-out keys, against an exact scan; must not know files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.codes import Coder, Codes, ProjectedCoder, RotatedCoder, encode, filled
from redi.knowledge_base.index import Measured

BAR = 0.99
QUERIES = 512
_NEIGHBORS = (2, 10, 64, 256)
_RERANKED = (32, 64, 128, 256, 512, 1024)
_SAMPLE = 2048
_SAMPLE_BYTES = 1 << 30
_CHUNK_BYTES = 64 << 20
_SIDED = 1.645
_COMPONENTS = (128, 256)
_BITS = (1, 2)

Reader = Callable[[Tensor], Tensor]
"""Keys by their places: (c) int64 to (c, d) float32."""


@dataclass(frozen=True)
class Choice:
    """A way to search: a coder and its codes, or None for an exact scan; what was measured, over how many queries."""

    coder: Coder | None
    codes: Codes | None
    measured: tuple[Measured, ...]
    queries: int


def choose(read: Reader, count: int, size: int) -> Choice:
    """Take the cheapest way whose recall reaches the bar for every number of neighbours; else the one with the most.

    Tried in this order: 127 and 255 principal components, 1 and 2 bits a dimension. The held-out queries are keys
    that no coder is fitted on; each is searched among all *other* keys.

    Args:
        read: Reads keys.
        count: How many there are (n), thousands.
        size: Numbers in one (d).
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    own = order[:QUERIES]
    queries = read(own)
    sample = read(order[QUERIES:][: min(_SAMPLE, max(512, _SAMPLE_BYTES // (4 * size)))].sort().values)
    nearest = true_neighbors(read, count, queries, own)
    best = Choice(None, None, (), len(own))
    for fit in _ways(sample):
        coder = fit()
        codes = encode_all(coder, read, range(count))
        measured = measure(coder, codes, queries, own, nearest)
        if len(measured) > len(best.measured):
            best = Choice(coder, codes, measured, len(own))
        if len(measured) == len(_asked(count)):
            break
    return best


def _ways(sample: Tensor) -> Iterator[Callable[[], Coder]]:
    size = min(sample.shape)
    for components in _COMPONENTS:
        if components < size:
            yield partial(ProjectedCoder.fit, sample, components)
    for bits in _BITS:
        yield partial(RotatedCoder.fit, sample, bits)


def _asked(count: int) -> list[int]:
    return [each for each in _NEIGHBORS if 4 * each <= count]


def chunks(count: int, size: int) -> Iterator[Tensor]:
    """Yield places 0..count-1 in parts whose keys of ``size`` numbers are read at once."""
    yield from torch.split(torch.arange(count), max(1, _CHUNK_BYTES // (4 * size)))


def encode_all(coder: Coder, read: Reader, places: Sequence[int]) -> Codes:
    """Return the codes of the keys at ``places``: (len(places), bytes) uint8."""
    wanted = torch.as_tensor(places, dtype=torch.int64)
    parts = [encode(coder, read(wanted[part])) for part in chunks(len(wanted), len(coder.center))]
    return np.concatenate(parts) if parts else encode(coder, torch.empty(0, len(coder.center)))


def scan(read: Reader, count: int, queries: Tensor, most: int, center: Tensor) -> Tensor:
    """Find the nearest of all keys by one exact pass in parts, centred, without keeping keys.

    Returns:
        (b, min(most, n)) int64 places, nearest first up to the rounding of a matrix product.
    """
    centred = queries - center
    best = torch.empty(len(queries), 0)
    places = torch.empty(len(queries), 0, dtype=torch.int64)
    for part in chunks(count, queries.shape[1]):
        keys = read(part).sub_(center)
        squared = keys.square().sum(dim=1) - 2 * (centred @ keys.T)
        if not bool(squared.isfinite().all()):
            check_finite(keys)
        both, where = torch.cat([best, squared], dim=1), torch.cat([places, part.expand(len(queries), -1)], dim=1)
        best, chosen = both.topk(min(most, both.shape[1]), dim=1, largest=False)
        places = where.gather(1, chosen)
    return places


def check_finite(keys: Tensor) -> None:
    """Refuse keys (n, d) float32 that nobody stored; told only where distances to them are not finite, which is cheap.

    Raises:
        KnowledgeBaseError: A number is not finite.
    """
    if not bool(keys.isfinite().all()):
        raise KnowledgeBaseError(
            "keys to compare with are not finite",
            expected="the copies of keys that redi wrote",
            fix="redi index --rebuild",
        )


def true_neighbors(read: Reader, count: int, queries: Tensor, own: Tensor) -> Tensor:
    """Return the places of the nearest keys of each query apart from itself: (b, h), nearest first."""
    most = max(_asked(count))
    center = read(torch.arange(min(count, 256))).mean(dim=0)
    return _without(scan(read, count, queries, most + 1, center), own, most)


def _without(places: Tensor, own: Tensor, most: int) -> Tensor:
    """Drop each row's own place, or else its last: (b, k+1) to (b, k)."""
    is_own = places == own[:, None]
    is_own[~is_own.any(dim=1), -1] = True
    return places[~is_own].view(len(places), -1)[:, :most]


def measure(coder: Coder, codes: Codes, queries: Tensor, own: Tensor, nearest: Tensor) -> tuple[Measured, ...]:
    """Tell, for every number of neighbours that reaches the bar, how few candidates are enough; stop at the first not.

    Args:
        coder: Made the codes.
        codes: (n, bytes) of all keys.
        queries: (b, d) float32, keys themselves.
        own: (b) their places.
        nearest: (b, h) their true neighbours.
    """
    index, asked = filled(coder, codes), coder.coordinates(queries, stored=False)

    limit = min(_RERANKED[-1], len(codes) - 1)

    @cache
    def found(most: int) -> Tensor:
        return _without(torch.from_numpy(index.search(asked, most + 1)[1]), own, most)

    def candidates(reranked: int) -> Tensor:
        # Of one level more candidates begin with the fewer, so one search serves all numbers.
        return found(limit if coder.breadth == 1 else reranked)[:, :reranked]

    answers = []
    for neighbors in _asked(len(codes)):
        tried = [each for each in _RERANKED if neighbors <= each <= limit]
        reached = _least(candidates, tried, nearest[:, :neighbors])
        if reached is None:
            break
        answers.append(reached)
    return tuple(answers)


def _least(candidates: Callable[[int], Tensor], tried: Sequence[int], nearest: Tensor) -> Measured | None:
    for reranked in tried:
        known = candidates(reranked).sort(dim=1).values.contiguous()
        places = torch.searchsorted(known, nearest.contiguous()).clamp(max=reranked - 1)
        hit = known.gather(1, places) == nearest
        recall = float(hit.float().mean())
        lower = lower_bound(recall, len(nearest))
        if lower >= BAR:
            return Measured(nearest.shape[1], reranked, recall, lower)
    return None


def lower_bound(share: float, count: int) -> float:
    """Return Wilson's one-sided lower 95 % bound of a share seen in ``count`` trials."""
    squared = _SIDED**2 / count
    spread = _SIDED * math.sqrt(share * (1 - share) / count + squared / (4 * count))
    return (share + squared / 2 - spread) / (1 + squared)
