"""Owns search in two passes (codes, then whole keys) and its exact stand-in; must not know where keys are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from redi.knowledge_base.codes import Coder
from redi.knowledge_base.index import Index, Measured
from redi.knowledge_base.recall import Reader, check_finite, scan

_SPARE = 32
_COMPARED_BYTES = 1 << 19
"""Of keys in float32 that are compared at once: what the processor's cache holds, or memory is what takes the time."""


class ScanIndex:
    """Exact search that reads all keys for every batch of queries and keeps none.

    Args:
        read: Reads keys by their places 0..n-1.
        names: (n) int64: what to call each place in answers; negative: leave it out.
        center: (d) about the mean key.
    """

    def __init__(self, read: Reader, names: Tensor, center: Tensor) -> None:
        self._read, self._names, self._center = read, names, center
        self._alive = int((names >= 0).sum())

    def search(self, queries: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
        """See :class:`~redi.knowledge_base.index.Index`."""
        asked = queries.detach().cpu().float()
        count = len(self._names)
        most = min(count, neighbors + _SPARE + count - self._alive)
        places = scan(self._read, count, asked, most, self._center)
        return compared(self._read, self._names, asked, list(places), min(neighbors, self._alive))


class CodedIndex:
    """Search of codes for candidates, whose whole keys are then compared with the query in float32.

    Args:
        coder: Made the codes.
        codes: A FAISS index of them.
        read: Reads keys by their places 0..n-1.
        names: (n) int64: what to call each place in answers; negative: leave it out.
        measured: How many candidates are enough for how many neighbours; for more neighbours all keys are scanned.
    """

    def __init__(self, coder: Coder, codes: Any, read: Reader, names: Tensor, measured: Sequence[Measured]) -> None:
        self._coder, self._codes, self._read, self._names, self._measured = coder, codes, read, names, measured
        self._alive = int((names >= 0).sum())
        self._exact = ScanIndex(read, names, coder.center)

    def search(self, queries: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
        """See :class:`~redi.knowledge_base.index.Index`."""
        enough = next((each.reranked for each in self._measured if each.neighbors >= neighbors), None)
        if enough is None:
            return self._exact.search(queries, neighbors)
        asked = queries.detach().cpu().float()
        most = min(len(self._names), enough + (_SPARE if self._alive < len(self._names) else 0))
        found = torch.from_numpy(self._codes.search(self._coder.coordinates(asked, stored=False), most)[1])
        candidates = [row[(row >= 0) & (row < len(self._names))] for row in found]
        wanted = min(neighbors, self._alive)
        if any(int((self._names[row] >= 0).sum()) < wanted for row in candidates):  # the nearest have been removed
            return self._exact.search(queries, neighbors)
        return compared(self._read, self._names, asked, candidates, wanted)


def compared(
    read: Reader, names: Tensor, queries: Tensor, candidates: Sequence[Tensor], wanted: int
) -> tuple[Tensor, Tensor]:
    """Return the ``wanted`` nearest of each query's candidates by explicit differences: (b, h) names and distances.

    Raises:
        KnowledgeBaseError: A candidate's key is not finite.
    """
    rows = torch.empty(len(queries), wanted, dtype=torch.int64)
    distances = torch.empty(len(queries), wanted)
    for place, (query, near) in enumerate(zip(queries, candidates, strict=True)):
        usable = near[names[near] >= 0].sort().values
        few = torch.split(usable, max(1, _COMPARED_BYTES // (4 * query.numel())))
        exact = torch.cat([torch.linalg.vector_norm(read(part).sub_(query), dim=1) for part in few])
        if not bool(exact.isfinite().all()):
            for part in few:
                check_finite(read(part))
        nearest = exact.sort(stable=True)
        distances[place] = nearest.values[:wanted]
        rows[place] = names[usable[nearest.indices[:wanted]]]
    return rows, distances


class Named:
    """An index whose answers are given other names: ``names`` (n) int64."""

    def __init__(self, index: Index, names: Tensor) -> None:
        self._index, self._names = index, names

    def search(self, queries: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
        """See :class:`~redi.knowledge_base.index.Index`."""
        places, distances = self._index.search(queries.detach().cpu().float(), neighbors)
        return self._names[places], distances


class WithTail:
    """An index and a second one of the entries that came after it was made; both give the same kind of names."""

    def __init__(self, first: Index, tail: Index) -> None:
        self._both = (first, tail)

    def search(self, queries: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
        """See :class:`~redi.knowledge_base.index.Index`."""
        found = [each.search(queries, neighbors) for each in self._both]
        rows, distances = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        nearest = distances.sort(dim=1, stable=True)
        return rows.gather(1, nearest.indices[:, :neighbors]), nearest.values[:, :neighbors]
