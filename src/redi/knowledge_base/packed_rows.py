"""Owns copies of a table's latents in plain files that processes map and share; must not know indexes.

The table is the truth. A copy holds one latent column, row after row in float16, and only ever grows; a row is checked
against its checksum the first time that a process hands it out.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.durable import writing
from redi.knowledge_base.rows import finite_rows

Latents = npt.NDArray[np.float16]


class PackedRows:
    """The first ``count`` rows of the copies in a folder.

    Args:
        folder: Of the copies.
        size: Numbers in one latent (d).
        checksums: By column, (n) uint32: CRC-32 of each row.

    Raises:
        KnowledgeBaseError: A copy is missing or too short.
    """

    def __init__(self, folder: Path, size: int, checksums: Mapping[str, npt.NDArray[np.uint32]]) -> None:
        self._checksums = checksums
        self._mapped = {column: _map(folder / _name(column), len(each), size) for column, each in checksums.items()}
        self._tensors = {column: torch.from_numpy(each) for column, each in self._mapped.items()}
        self._seen = {column: np.zeros(len(each), dtype=bool) for column, each in checksums.items()}

    def keys(self, column: str, rows: Tensor) -> Tensor:
        """Return (n, d) float32 for comparing; unchecked, because what is handed out in the end is checked.

        A number that is not finite shows in the distances, where who compares looks for it.
        """
        return self._tensors[column].index_select(0, rows).float()

    def latents(self, rows: npt.NDArray[np.int64], *columns: str) -> list[Latents]:
        """Return (n, d) float16 of each column.

        Raises:
            KnowledgeBaseError: A row does not match its checksum.
        """
        found = []
        for column in columns:
            taken = self._mapped[column][rows]
            for place in np.flatnonzero(~self._seen[column][rows]).tolist():
                fine = finite_rows(taken[place : place + 1])[0]
                if not fine or zlib.crc32(taken[place]) != self._checksums[column][rows[place]]:
                    raise KnowledgeBaseError(
                        f"the copy of {column} in the index does not match its checksum", fix="redi index --rebuild"
                    )
                self._seen[column][rows[place]] = True
            found.append(taken)
        return found


def _name(column: str) -> str:
    return f"{column}.f16"


def _map(path: Path, count: int, size: int) -> Latents:
    try:
        if path.stat().st_size < 2 * count * size:
            raise ValueError(f"{path.stat().st_size} bytes")
        if not count * size:
            return np.empty((count, size), dtype=np.float16)
        mapped: Latents = np.memmap(path, dtype="<f2", mode="c", shape=(count, size))  # torch wants it writable
    except (OSError, ValueError) as error:
        raise KnowledgeBaseError(
            f"cannot map {path}: {error}", expected=f"{count} latents of {size} numbers", fix="redi index --rebuild"
        ) from error
    return mapped


def pack(folder: Path, column: str, start: int, parts: Iterable[Latents], size: int) -> None:
    """Write rows from ``start`` on, flushed to the disk; readers of the rows before are not disturbed.

    Raises:
        KnowledgeBaseError: The disk is full or not writable.
    """
    path = folder / _name(column)
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        with open(descriptor, "r+b") as file:
            file.truncate(2 * start * size)  # what a killed update may have left
            file.seek(2 * start * size)
            for part in parts:
                file.write(np.ascontiguousarray(part, dtype="<f2").data)
            file.flush()
            os.fsync(descriptor)
