"""Owns Algorithm 2's search: queries, by their noise, against the keys of that noise; must not know how bases grow."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.entries import Neighbors
from redi.knowledge_base.index import GrownIndex, Index, IndexCache, IndexFactory
from redi.knowledge_base.noises import Noises
from redi.knowledge_base.table import EntryTable

_CACHE_BYTES = 4 << 30


class Searcher:
    """Searches a table of entries; keeps the indexes it used last, one for each noise, key step and device.

    Args:
        table: The entries.
        noises: Their noises and references.
        shape: Of one latent.
        make: Makes an :class:`Index` of (n, d) keys.
    """

    def __init__(self, table: EntryTable, noises: Noises, shape: tuple[int, ...], make: IndexFactory) -> None:
        self._table, self._noises, self._shape, self.make = table, noises, shape, make
        self._indexes = IndexCache(_CACHE_BYTES)
        self._members: dict[Hashable, npt.NDArray[np.int64]] = {}
        self._older: dict[Hashable, tuple[Index, npt.NDArray[np.int64]]] = {}

    def forget(self) -> None:
        """Forget every index, because the table has changed."""
        self._indexes.clear()
        self._members.clear()
        self._older.clear()

    def take_over(self, earlier: Searcher) -> None:
        """Go on with the indexes of a searcher of an earlier version of the same table, where entries only came."""
        kept = {name: (index, earlier._members[name]) for name, (index, _) in earlier._indexes.kept().items()}
        self._older = {**earlier._older, **kept}
        while sum(map(self._bytes, (each for _, each in self._older.values()))) > _CACHE_BYTES:
            self._older.pop(next(iter(self._older)))

    def _bytes(self, members: npt.NDArray[np.int64]) -> int:
        return 4 * len(members) * int(np.prod(self._shape))

    def search(
        self,
        queries: Tensor,
        noise_ids: Sequence[int | None],
        neighbors: int,
        key_step: int,
        device: torch.device | str | None,
    ) -> Neighbors:
        """See :meth:`redi.KnowledgeBase.search`, which has checked the key step."""
        count = len(queries)
        if tuple(queries.shape[1:]) != self._shape or len(noise_ids) != count:
            raise KnowledgeBaseError(
                f"queries of shape {tuple(queries.shape)} with {len(noise_ids)} noise ids",
                expected=f"(b, {', '.join(map(str, self._shape))}) and b ids",
            )
        if neighbors < 1:
            raise KnowledgeBaseError(f"{neighbors} neighbours", expected="at least 1")
        rows = torch.full((count, neighbors), -1, dtype=torch.int64)
        distances = torch.full((count, neighbors), torch.inf)
        where = torch.device("cpu" if device is None else device)
        usable = queries.flatten(1).isfinite().all(dim=1).tolist()
        searched: list[tuple[list[int], npt.NDArray[np.int64]]] = []
        answers: list[tuple[Tensor, Tensor]] = []
        for noise_id in {each for each, fine in zip(noise_ids, usable, strict=True) if fine and each is not None}:
            members = np.flatnonzero(self._table.directory.noise_id == noise_id)
            if not members.size:
                continue
            asked = [i for i in range(count) if noise_ids[i] == noise_id and usable[i]]
            index = self._index(noise_id, key_step, where, members)
            reference = self._noises.reference(key_step, torch.tensor([noise_id])).to(where)
            offsets = (queries[asked].detach().to(where, torch.float32) - reference).flatten(1)
            searched.append((asked, members))
            answers.append(index.search(offsets, neighbors))
        for (asked, members), (positions, found) in zip(searched, _on_host(answers, where), strict=True):
            if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < len(members):
                raise KnowledgeBaseError(
                    f"an index that points to place {int(positions.max())} of {len(members)} entries",
                    expected="an index of these entries",
                    fix="delete the folder index/ of the base; what is in it is derived, and made again",
                )
            rows[asked, : positions.shape[1]] = torch.from_numpy(members)[positions]
            distances[asked, : positions.shape[1]] = found
        most = max(1, int((rows >= 0).sum(dim=1).max())) if count else neighbors
        return Neighbors(rows[:, :most], distances[:, :most])

    def _index(self, noise_id: int, key_step: int, device: torch.device, members: npt.NDArray[np.int64]) -> Index:
        name = (noise_id, key_step, str(device))

        def made_of(rows: npt.NDArray[np.int64]) -> Index:
            (keys,) = self._table.latents(rows, f"key_{key_step}")
            return self.make(torch.from_numpy(keys).to(device).float())

        def make() -> Index:
            directory = self._table.directory
            names = np.stack([directory.unit[members], directory.slot[members]], axis=1)
            self._members[name] = names
            index, known = self._older.pop(name, (None, names))
            if index is None or not np.array_equal(known, names[: len(known)]):
                return made_of(members)
            first, count = (index.first, index.count) if isinstance(index, GrownIndex) else (index, len(known))
            if len(members) == len(known):
                return index
            return GrownIndex(first, count, made_of(members[count:])) if _is_small(members, count) else made_of(members)

        return self._indexes.get(name, self._bytes(members), make)


def _is_small(members: npt.NDArray[np.int64], count: int) -> bool:
    """Say whether what came after the first ``count`` members is little enough to be searched beside them."""
    return len(members) - count <= max(64, count // 8)


def _on_host(answers: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Bring what several searches found to the CPU, with two reads of the device however many they are."""
    if not answers:
        return []
    shapes = [positions.shape for positions, _ in answers]
    sizes = [shape.numel() for shape in shapes]
    positions = torch.split(torch.cat([each.to(device).flatten() for each, _ in answers]).cpu(), sizes)
    distances = torch.split(torch.cat([each.to(device).float().flatten() for _, each in answers]).cpu(), sizes)
    return [(p.view(shape), d.view(shape)) for p, d, shape in zip(positions, distances, shapes, strict=True)]
