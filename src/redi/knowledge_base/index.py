"""Owns nearest-neighbour search among keys that share one noise; must not know files."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

_CHUNK = 1 << 24
MOST_KEPT = 4 << 30
"""Bytes of keys that are kept in memory, or on a device, to be searched exactly."""


@runtime_checkable
class Index(Protocol):
    """Search among the n keys that it was made of. Make your own and pass its class to ``KnowledgeBase.open``."""

    def search(self, queries: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
        """Find the nearest keys by L2.

        Args:
            queries: (b, d) float32, finite, in the same coordinates as the keys.
            neighbors: How many to find (h); fewer if there are fewer keys.

        Returns:
            (b, h) int64 positions among the keys and (b, h) float32 distances, nearest first, on any device.
        """
        ...


IndexFactory = Callable[[Tensor], Index]


@dataclass(frozen=True)
class Measured:
    """How often the true nearest are found: ``recall`` of ``neighbors`` if ``reranked`` candidates are compared whole.

    ``lower`` is the lower 95 % bound (Wilson's, with each held-out query counted once).
    """

    neighbors: int
    reranked: int
    recall: float
    lower: float


class ExactIndex:
    """Exact search: distances by one matrix product of centred keys, then the best again by explicit differences.

    Centring by the mean key keeps the matrix product exact enough to find the candidates where keys share a large
    common part; the explicit differences make the order and the distances right.

    Args:
        keys: (n, d) float32 on the device to search on.
    """

    def __init__(self, keys: Tensor) -> None:
        wide = torch.float32 if keys.device.type == "mps" else torch.float64  # mps has no float64
        self._center = keys.mean(dim=0, dtype=wide).float() if len(keys) else keys.new_zeros(keys.shape[1:])
        self._keys = keys - self._center
        self._norms = self._keys.square().sum(dim=1)

    def search(self, queries: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
        """See :class:`Index`."""
        count = len(self._keys)
        found = min(neighbors, count)
        centred = queries.to(self._keys) - self._center
        candidates = min(count, max(4 * neighbors, 32))
        rough = self._norms - 2 * (centred @ self._keys.T)
        near = rough.topk(candidates, dim=1, largest=False).indices.sort(dim=1).values
        if not found or not len(queries):
            return near.new_empty((len(queries), found)), rough.new_empty((len(queries), found))
        exact = torch.stack([self._distances(query, chosen) for query, chosen in zip(centred, near, strict=True)])
        distances, order = exact.sort(dim=1, stable=True)
        return near.gather(1, order[:, :found]), distances[:, :found]

    def _distances(self, query: Tensor, chosen: Tensor) -> Tensor:
        step = max(1, _CHUNK // max(1, self._keys.shape[1]))
        parts = [torch.linalg.vector_norm(self._keys[part] - query, dim=1) for part in torch.split(chosen, step)]
        return torch.cat(parts) if parts else query.new_empty(0)


class GrownIndex:
    """Searches an index and a small one of the keys that came later, as if they were one.

    Args:
        first: The index of the first ``count`` keys.
        count: How many they are.
        later: The index of the keys after them.
    """

    def __init__(self, first: Index, count: int, later: Index) -> None:
        self.first, self.count, self._later = first, count, later

    def search(self, queries: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
        """See :class:`Index`."""
        places, distances = self.first.search(queries, neighbors)
        more, further = self._later.search(queries, neighbors)
        both = torch.cat([places, more.to(places.device) + self.count], dim=1)
        nearest, order = torch.cat([distances, further.to(distances)], dim=1).sort(dim=1, stable=True)
        return both.gather(1, order[:, :neighbors]), nearest[:, :neighbors]


class IndexCache:
    """Keeps the indexes used last, up to a number of bytes of keys.

    Args:
        limit: Bytes to keep; one index is always kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[Hashable, tuple[Index, int]] = OrderedDict()

    def get(self, name: Hashable, size: int, make: Callable[[], Index]) -> Index:
        """Return the index called ``name`` (of ``size`` bytes), made by ``make`` if it is not kept."""
        if name not in self._kept:
            self._kept[name] = (make(), size)
        self._kept.move_to_end(name)
        while len(self._kept) > 1 and sum(each for _, each in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)
        return self._kept[name][0]

    def kept(self) -> dict[Hashable, tuple[Index, int]]:
        """Return the indexes that are kept and their bytes, the one used last at the end."""
        return dict(self._kept)

    def clear(self) -> None:
        """Forget every index."""
        self._kept.clear()
