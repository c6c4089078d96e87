"""Owns what is read of a base: its entries, found by noise and key, their keys and values; must not know who writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from redi.knowledge_base.entries import Entry, Neighbors
from redi.knowledge_base.manifest import Manifest
from redi.knowledge_base.noise_bank import NoiseBank
from redi.knowledge_base.noises import Noises
from redi.knowledge_base.rows import FIRST_NAMED_UNIT, positions_of
from redi.knowledge_base.searching import Searcher
from redi.knowledge_base.table import EntryTable
from redi.plan import Plan


class Reader:
    """The reading half of :class:`~redi.knowledge_base.KnowledgeBase`."""

    def __init__(self, manifest: Manifest, noises: Noises, table: EntryTable, searcher: Searcher) -> None:
        self._manifest, self._noises, self._table, self._searcher = manifest, noises, table, searcher

    @property
    def manifest(self) -> Manifest:
        """What the base was built with."""
        return self._manifest

    @property
    def plan(self) -> Plan:
        """The recorded steps."""
        return self._manifest.plan

    @property
    def noise_bank(self) -> NoiseBank:
        """The initial noises that entries were built from."""
        return self._noises.bank

    @property
    def references(self) -> Mapping[int, Tensor]:
        """By step, where each noise comes to without a prompt: (M, *shape) float32."""
        return self._noises.references

    def __len__(self) -> int:
        """Return the number of entries."""
        return self._table.count()

    def noise_ids(self) -> npt.NDArray[np.int32]:
        """Return the noise id of every row: (n,), -1 for independent noise."""
        return self._table.directory.noise_id

    def count_of_more(self) -> int:
        """Return how many entries no build made: grown, or merged in."""
        return int((self._table.directory.unit >= FIRST_NAMED_UNIT).sum())

    def names(self) -> list[tuple[int, int]]:
        """Return unit and slot of every row, which name an entry for good."""
        return list(zip(self._table.directory.unit.tolist(), self._table.directory.slot.tolist(), strict=True))

    def search(
        self,
        queries: Tensor,
        noise_ids: Sequence[int | None],
        neighbors: int,
        key_step: int,
        device: torch.device | str | None = None,
    ) -> Neighbors:
        """Find the nearest keys of each query among the entries of its noise (L2; Algorithm 2 of the paper).

        Args:
            queries: (b, *shape): x after ``key_step`` completed steps; float32 arithmetic whatever the dtype.
            noise_ids: b noise ids; None, and an id without entries, finds nothing.
            neighbors: How many to find (h), at least 1.
            key_step: One of the plan's key steps.
            device: Where to keep keys and search; the CPU by default.

        Raises:
            PlanError: The key step is not recorded.
            KnowledgeBaseError: Shapes do not fit, or the table is damaged.
        """
        self.plan.choose(key_step)
        return self._searcher.search(queries, noise_ids, neighbors, key_step, device)

    def keys(self, rows: Tensor | Sequence[int], key_step: int, device: torch.device | str | None = None) -> Tensor:
        """Return the keys of rows: (n, *shape) float32, the reference added back.

        Raises:
            PlanError: The key step is not recorded.
            KnowledgeBaseError: A row does not exist or is damaged.
        """
        self.plan.choose(key_step)
        (offsets,) = self._read(rows, f"key_{key_step}")
        return self._referred(offsets, rows, key_step).to(device or "cpu")

    def values(self, rows: Tensor | Sequence[int], value_step: int, device: torch.device | str | None = None) -> Tensor:
        """Return the values of rows: (n, *shape) float32.

        Raises:
            PlanError: The value step is not recorded.
            KnowledgeBaseError: A row does not exist or is damaged.
        """
        self.plan.choose(value_step=value_step)
        (offsets,) = self._read(rows, f"value_{value_step}")
        return self._referred(offsets, rows, value_step).to(device or "cpu")

    def pairs(self, rows: Tensor | Sequence[int], key_step: int, value_step: int) -> tuple[Tensor, Tensor]:
        """Return :meth:`keys` and :meth:`values` of rows on the CPU, read at once; errors as theirs."""
        self.plan.choose(key_step, value_step)
        offsets, values = self._read(rows, f"key_{key_step}", f"value_{value_step}")
        return self._referred(offsets, rows, key_step), self._referred(values, rows, value_step)

    def _referred(self, offsets: Tensor, rows: Tensor | Sequence[int], step: int) -> Tensor:
        if step not in self._manifest.referenced_steps:
            return offsets
        noise_ids = torch.from_numpy(self._table.directory.noise_id[positions_of(rows)].astype(np.int64))
        return offsets + self._noises.reference(step, noise_ids)

    def _read(self, rows: Tensor | Sequence[int], *columns: str) -> list[Tensor]:
        shape = (-1, *self._manifest.latent_shape)
        return [
            torch.from_numpy(each).float().reshape(shape)
            for each in self._searcher.latents(positions_of(rows), *columns)
        ]

    def entries(self, rows: Tensor | Sequence[int]) -> list[Entry]:
        """Return what is known of rows, apart from their latents.

        Raises:
            KnowledgeBaseError: A row does not exist or is damaged.
        """
        return [Entry(**record) for record in self._table.metadata(positions_of(rows))]

    def prompts(self, rows: Tensor | Sequence[int]) -> list[str]:
        """Return the prompts of rows.

        Raises:
            KnowledgeBaseError: A row does not exist or is damaged.
        """
        return [entry.prompt for entry in self.entries(rows)]
