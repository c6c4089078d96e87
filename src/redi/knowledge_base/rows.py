"""Owns how an entry becomes a row: columns, float16 lists, checksums, ids; must not know where rows are kept."""

from __future__ import annotations

import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from redi.knowledge_base.codec import FLOAT16, Codec, Columns

METADATA = ("entry_id", "unit", "slot", "prompt", "noise_id", "seed", "crc")


def entry_id(kb_id: str, unit: int, slot: int) -> bytes:
    """Return the 16 bytes that name an entry: which base, which unit, which place in it."""
    return blake2b(f"{kb_id}/{unit}/{slot}".encode(), digest_size=16).digest()


@dataclass(frozen=True)
class TableRows:
    """Rows to append (n of them): metadata and float16 latents (n, d) by column name."""

    unit: int
    slots: list[int]
    prompts: list[str]
    noise_ids: list[int]
    seeds: list[int]
    latents: Mapping[str, npt.NDArray[np.float16]]

    def chosen(self, places: Sequence[int], unit: int) -> TableRows:
        """Return some of the rows, as slots 0, 1, ... of a unit."""
        return TableRows(
            unit=unit,
            slots=[*range(len(places))],
            prompts=[self.prompts[place] for place in places],
            noise_ids=[self.noise_ids[place] for place in places],
            seeds=[self.seeds[place] for place in places],
            latents={column: latents[list(places)] for column, latents in self.latents.items()},
        )


FIRST_NAMED_UNIT = 2**62
"""From here on unit numbers are made of what the units hold; builds count theirs from 0."""


@dataclass(frozen=True)
class Directory:
    """Where every row belongs, in table order: unit (n,) int64, slot (n,) int32, noise_id (n,) int32."""

    unit: npt.NDArray[np.int64]
    slot: npt.NDArray[np.int32]
    noise_id: npt.NDArray[np.int32]

    def repeated(self) -> int:
        """Return how many rows repeat the (unit, slot) of an earlier row."""
        both = np.stack([self.unit, self.slot.astype(np.int64)], axis=1)
        return int(len(both) - len(np.unique(both, axis=0)))


def positions_of(rows: Tensor | Sequence[int]) -> npt.NDArray[np.int64]:
    """Return rows, however they are told, as (n,) int64 on the host."""
    return np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows, dtype=np.int64).reshape(-1)


def unit_named(rows: TableRows, taken: Container[int]) -> int:
    """Return a unit number that follows from what the rows are, passing over those that are taken."""
    text = "\0".join(map("{}/{}/{}".format, rows.noise_ids, rows.seeds, rows.prompts))
    for salt in count():
        digest = blake2b(f"{salt}/{text}".encode(), digest_size=8).digest()
        unit = FIRST_NAMED_UNIT + int.from_bytes(digest) % FIRST_NAMED_UNIT
        if unit not in taken:
            break
    return unit


def schema_of(columns: Columns) -> Any:
    """Return the Arrow schema of a table with these latent columns."""
    fields = [
        pa.field("entry_id", pa.binary(16), nullable=False),
        pa.field("unit", pa.int64(), nullable=False),
        pa.field("slot", pa.int32(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("noise_id", pa.int32(), nullable=False),
        pa.field("seed", pa.uint64(), nullable=False),
        pa.field("crc", pa.uint32(), nullable=False),
    ]
    for column in columns.names:
        codec = columns.codec(column)
        numbers = pa.list_(pa.float16(), columns.size)
        kept = numbers if codec == FLOAT16 else pa.list_(pa.uint8(), codec.width(columns.size))
        fields.append(pa.field(column, kept, nullable=False))
        fields.append(pa.field(f"{column}_crc", pa.uint32(), nullable=False))
    return pa.schema(fields)


def encode(rows: TableRows, kb_id: str, columns: Columns) -> Any:
    """Return the Arrow table of these rows, checksums included."""
    count = len(rows.slots)
    arrays: list[Any] = [
        pa.array([entry_id(kb_id, rows.unit, slot) for slot in rows.slots], pa.binary(16)),
        pa.array([rows.unit] * count, pa.int64()),
        pa.array(rows.slots, pa.int32()),
        pa.array(rows.prompts, pa.string()),
        pa.array(rows.noise_ids, pa.int32()),
        pa.array(rows.seeds, pa.uint64()),
        pa.array(map(row_crc, rows.prompts, rows.noise_ids, rows.seeds), pa.uint32()),
    ]
    for column in columns.names:
        arrays += latent_arrays(rows.latents[column], columns.codec(column))
    return pa.Table.from_arrays(arrays, schema=schema_of(columns))


def latent_arrays(latents: npt.NDArray[np.float16], codec: Codec) -> list[Any]:
    """Return the Arrow array of (n, d) latents and that of their checksums."""
    half = np.ascontiguousarray(latents, dtype=np.float16)
    kept = half if codec == FLOAT16 else codec.encode(half)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(kept.reshape(-1)), kept.shape[1])
    return [lists, pa.array(crcs(kept), pa.uint32())]


def problems_in(batch: Any, start: int, kb_id: str, columns: Columns) -> Iterator[str]:
    """Say what is wrong with the rows of one record batch, the first of which is row ``start``."""
    empty = [name for name in batch.schema.names if batch[name].null_count]
    if empty:
        yield f"rows {start} to {start + batch.num_rows - 1}: no {', '.join(empty)}"
        return
    metadata = batch.select(list(METADATA)).to_pylist()
    for row, record in enumerate(metadata, start):
        if record["entry_id"] != entry_id(kb_id, record["unit"], record["slot"]):
            yield f"row {row}: belongs to another knowledge base"
        if record["crc"] != row_crc(record["prompt"], record["noise_id"], record["seed"]):
            yield f"row {row}: prompt, noise or seed does not match its checksum"
    for column in columns.names:
        latents, sums = decode(batch[column], column, columns)
        if latents.shape != (batch.num_rows, columns.size):
            yield f"rows {start} to {start + batch.num_rows - 1}: {column} has shape {latents.shape}"
            continue
        wrong = sums != batch[f"{column}_crc"].to_numpy()
        for row in np.flatnonzero(wrong).tolist():
            yield f"row {start + row}: {column} does not match its checksum"
        for row in np.flatnonzero(~finite_rows(latents)).tolist():
            yield f"row {start + row}: {column} is not finite"


def decode(column: Any, name: str, columns: Columns) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint32]]:
    """Return (n, d) float16 of an Arrow column of lists, and the checksums (n,) of what was kept."""
    codec = columns.codec(name)
    if codec == FLOAT16:
        half = np.asarray(_lists(column, columns.size, np.float16), dtype=np.float16)
        return half, crcs(half)
    payload = np.asarray(_lists(column, codec.width(columns.size), np.uint8), dtype=np.uint8)
    return codec.decode(payload, columns.size), crcs(payload)


def _lists(column: Any, width: int, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Return (n, width) of an Arrow column of lists."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width) for chunk in chunks]
    if not parts:
        return np.empty((0, width), dtype=dtype)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def crcs(kept: npt.NDArray[np.float16] | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Return CRC-32 of each row's little-endian bytes: (n, d) float16 or uint8 to (n,) uint32."""
    rows = np.ascontiguousarray(kept, dtype=kept.dtype.newbyteorder("<"))
    return np.array([zlib.crc32(row) for row in rows], dtype=np.uint32)


def finite_rows(latents: npt.NDArray[np.float16]) -> npt.NDArray[np.bool_]:
    """Say which rows hold finite numbers only: (n, d) float16 to (n,) bool."""
    exponent = np.uint16(0x7C00)
    bits = np.ascontiguousarray(latents, dtype="<f2").view(np.uint16)
    return np.asarray((bits & exponent).max(axis=1, initial=0) != exponent)


def row_crc(prompt: str, noise_id: int, seed: int) -> int:
    """Return CRC-32 of what a row says besides its latents."""
    return zlib.crc32(f"{noise_id}/{seed}/{prompt}".encode())
