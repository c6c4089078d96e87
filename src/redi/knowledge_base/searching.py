"""Owns Algorithm 2's search: queries, by their noise, against the keys of that noise; must not know how bases grow."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.entries import Neighbors
from redi.knowledge_base.index import MOST_KEPT, ExactIndex, GrownIndex, Index, IndexCache, IndexFactory
from redi.knowledge_base.index_files import IndexFiles, Part, View
from redi.knowledge_base.noises import Noises
from redi.knowledge_base.table import EntryTable


class Searcher:
    """Searches a table of entries; keeps the indexes it used last, one for each noise, key step and device.

    Args:
        table: The entries.
        noises: Their noises and references.
        shape: Of one latent.
        make: Makes an :class:`Index` of (n, d) keys; any but the exact one leaves the index files alone.
        files: The index of the base.
    """

    def __init__(
        self, table: EntryTable, noises: Noises, shape: tuple[int, ...], make: IndexFactory, files: IndexFiles
    ) -> None:
        self._table, self._noises, self._shape, self.make, self._files = table, noises, shape, make, files
        self._view: View | None = None
        self._size = math.prod(shape)
        self._indexes = IndexCache(MOST_KEPT)
        self._members: dict[Hashable, npt.NDArray[np.int64]] = {}
        self._older: dict[Hashable, tuple[Index, npt.NDArray[np.int64]]] = {}

    def forget(self) -> None:
        """Forget every index, because the table has changed."""
        self._indexes.clear()
        self._files.forget()
        self._members.clear()
        self._older.clear()

    def take_over(self, earlier: Searcher) -> None:
        """Go on with the indexes of a searcher of an earlier version of the same table, where entries only came."""
        kept = {
            name: (index, earlier._members[name])
            for name, (index, _) in earlier._indexes.kept().items()
            if name in earlier._members
        }
        self._older = {**earlier._older, **kept}
        while sum(map(self._bytes, (each for _, each in self._older.values()))) > MOST_KEPT:
            self._older.pop(next(iter(self._older)))

    def _bytes(self, members: npt.NDArray[np.int64]) -> int:
        return 4 * len(members) * self._size

    def latents(self, rows: npt.NDArray[np.int64], *columns: str) -> list[npt.NDArray[np.float16]]:
        """Return (n, d) float16 of each column: from the index's copies where it has them, else from the table.

        Raises:
            KnowledgeBaseError: A row does not exist or is damaged.
        """
        view = self._files.view() if self.make is ExactIndex else None
        if view and set(columns) <= set(view.columns) and view.has(rows):
            try:
                return view.packed.latents(view.place_of[rows], *columns)
            except KnowledgeBaseError as error:
                self._files.distrust(error)
        return self._table.latents(rows, *columns)

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
            reference = self._noises.reference(key_step, torch.tensor([noise_id])).to(where)
            offsets = (queries[asked].detach().to(where, torch.float32) - reference).flatten(1)
            searched.append((asked, members))
            index = self._index(noise_id, key_step, where, members)
            try:
                answer = index.search(offsets, neighbors)
            except KnowledgeBaseError as error:
                if self.make is not ExactIndex or not self._files.view():
                    raise
                self._files.distrust(error)
                answer = self._index(noise_id, key_step, where, members).search(offsets, neighbors)
            answers.append(answer)
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
        """Return the search of a noise's entries: on the device where they fit, by the index, or exact."""
        view = self._files.view() if self.make is ExactIndex else None
        part = view.part(key_step, noise_id) if view else None
        size = self._bytes(members)
        on_device = device.type != "cpu" and size <= MOST_KEPT
        if view and part and (part.measured or size > MOST_KEPT) and not on_device:
            if self._view is not view:
                self._indexes.clear()
                self._view = view
            try:
                return self._indexes.get((noise_id, key_step), 0, lambda: self._indexed(view, part, members))
            except KnowledgeBaseError as error:
                self._files.distrust(error)
        if self.make is ExactIndex and size > MOST_KEPT:
            return self._scanned(key_step, members)
        return self._exact(noise_id, key_step, device, members)

    def _exact(self, noise_id: int, key_step: int, device: torch.device, members: npt.NDArray[np.int64]) -> Index:
        name = (noise_id, key_step, str(device))

        def made_of(rows: npt.NDArray[np.int64]) -> Index:
            return self._made(key_step, rows, device)

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

    def _made(self, key_step: int, members: npt.NDArray[np.int64], device: torch.device) -> Index:
        keys = np.empty((0, self._size), dtype=np.float16)
        if members.size:
            keys = self.latents(members, f"key_{key_step}")[0]
        return self.make(torch.from_numpy(keys).to(device).float())

    def _indexed(self, view: View, part: Part, members: npt.NDArray[np.int64]) -> Index:
        """Return the index, and an exact one beside it of the entries that came after it was made."""
        rows = view.row_of[view.places(part.noise_id)]
        names = np.where(rows >= 0, np.searchsorted(members, rows), -1)
        index = view.index(part, names)
        later = np.flatnonzero(view.place_of[members] < 0)
        if not later.size:
            return index
        from redi.knowledge_base.coded_index import Named, WithTail

        cpu = torch.device("cpu")
        return WithTail(index, Named(self._made(part.key_step, members[later], cpu), torch.from_numpy(later)))

    def _scanned(self, key_step: int, members: npt.NDArray[np.int64]) -> Index:
        """Return an exact search that reads the table for every query, because its keys are too many to keep."""
        from redi.knowledge_base.coded_index import ScanIndex

        def read(places: Tensor) -> Tensor:
            return torch.from_numpy(self.latents(members[places.numpy()], f"key_{key_step}")[0]).float()

        center = read(torch.arange(min(256, len(members)))).mean(dim=0)
        return ScanIndex(read, torch.arange(len(members)), center)


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
