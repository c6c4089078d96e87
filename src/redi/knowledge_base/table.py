"""Owns the Lance table of entries: crash-safe commits, checked reads, recovery; must not know search or samplers."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.codec import Columns
from redi.knowledge_base.durable import writing
from redi.knowledge_base.flushing import Flushed
from redi.knowledge_base.rows import (
    Directory,
    TableRows,
    decode,
    encode,
    entry_id,
    finite_rows,
    problems_in,
    row_crc,
    schema_of,
)
from redi.knowledge_base.table_form import check_count, check_filled, check_form, check_sizes, is_of_reading, reading
from redi.knowledge_base.versions import GRACE, drop_replaced, last_before_empty, set_torn_aside, stamp_of

ROWS_PER_FRAGMENT = 4096
COMMITS_PER_COMPACTION = 256
_READ_BYTES = 64 * 1024 * 1024

Rows = Sequence[int] | npt.NDArray[np.int64]


class EntryTable:
    """Entries as rows of a Lance table, read at one version. Only deleting rows changes the positions of others.

    Args:
        path: Folder of the table.
        kb_id: Id of the knowledge base; enters every entry's id, so that a foreign row shows.
        columns: The latent columns.
        version: Table version to fall back to when the newest one was torn by a power loss (0: none).
    """

    def __init__(self, path: Path, kb_id: str, columns: Columns, version: int = 0) -> None:
        self.path, self.kb_id, self._columns, self._size = path, kb_id, columns, columns.size
        self.flushed = Flushed(path)
        self._use(self._open(version))
        with reading(self.path):
            check_form(self._dataset, self.path, schema_of(self._columns))
        self._directory: Directory | None = None
        self._units: dict[int, int] | None = None

    @classmethod
    def create(cls, path: Path, kb_id: str, columns: Columns) -> EntryTable:
        """Write an empty table.

        Raises:
            KnowledgeBaseError: The disk is full or not writable.
        """
        mode = "overwrite" if path.exists() else "create"
        with writing(path):
            lance.write_dataset(schema_of(columns).empty_table(), str(path), mode=mode, data_storage_version="2.2")
            table = cls(path, kb_id, columns)
            table.flushed.flush(everything=True)
        return table

    def _open(self, version: int) -> Any:
        if not self.path.is_dir():
            raise KnowledgeBaseError(
                f"no table at {self.path}", expected="the table of entries", fix="restore it or build it again"
            )
        try:
            with reading(self.path):
                try:
                    return lance.dataset(str(self.path))
                except (OSError, ValueError, RuntimeError):
                    if not version:
                        raise
                    return lance.dataset(str(self.path), version=version)
        except KnowledgeBaseError as error:
            if last_before_empty(self.path / "_versions") is None:
                raise
            raise KnowledgeBaseError(
                f"{self.path}: the newest version of the table is empty (0 bytes)",
                expected="the whole table that redi wrote",
                fix="run the same redi build again: it makes the missing units again; or restore the folder",
            ) from error

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the latent columns."""
        return self._columns.names

    def check_files(self) -> None:
        """Compare every data file's size with what the table says, which costs no read of it.

        Raises:
            KnowledgeBaseError: A file is missing, or shorter or longer than it was written.
        """
        with reading(self.path):
            check_sizes(self._dataset, self.path)

    @property
    def version(self) -> int:
        """Table version that this object reads."""
        return int(self._dataset.version)

    @property
    def is_current(self) -> bool:
        """Whether nobody has written since (a look at the newest version's name and file, some microseconds).

        The file is looked at because a working copy of a base in a bucket may be set back, and a version come again.
        """
        with reading(self.path):
            newest = bool(self._dataset.latest_version == self._dataset.version)
        return newest and self._stamp == stamp_of(self.path, self.version)

    def _use(self, dataset: Any) -> None:
        self._dataset = dataset
        self._stamp = stamp_of(self.path, int(dataset.version))

    @property
    def directory(self) -> Directory:
        """Where every row belongs.

        Raises:
            KnowledgeBaseError: The table is damaged.
        """
        if self._directory is None:
            with reading(self.path):
                check_count(self._dataset, self.path)
                found = self._dataset.to_table(columns=["unit", "slot", "noise_id"])
                names = ("unit", "slot", "noise_id")
                check_filled(found, self.path)
                self._directory = Directory(*(found[name].to_numpy().copy() for name in names))
        return self._directory

    def count(self) -> int:
        """Return the number of rows."""
        with reading(self.path):
            return int(self._dataset.count_rows())

    def rows_by_unit(self) -> dict[int, int]:
        """Return how many rows each unit has."""
        if self._units is None:
            units, counts = np.unique(self.directory.unit, return_counts=True)
            self._units = dict(zip(units.tolist(), counts.tolist(), strict=True))
        return self._units

    def present(self, rows: TableRows) -> set[tuple[str, int, int]]:
        """Return which of the prompts, noise ids and seeds of ``rows`` the table holds.

        Raises:
            KnowledgeBaseError: The table is damaged.
        """
        asked = [row_crc(*each) for each in zip(rows.prompts, rows.noise_ids, rows.seeds, strict=True)]
        with reading(self.path):
            crcs = self._dataset.to_table(columns=["crc"])["crc"].to_numpy()
        found = self.metadata(np.flatnonzero(np.isin(crcs, asked)))
        return {(each["prompt"], each["noise_id"], each["seed"]) for each in found}

    def refresh(self) -> None:
        """Read the newest version from the disk (another process may have written)."""
        with reading(self.path):
            self._use(lance.dataset(str(self.path)))
        self._directory = self._units = None

    # Writing: only under the builder's lock.

    def append_unit(self, rows: TableRows) -> bool:
        """Commit the rows of one unit and flush them; False, and no change, if the unit is already there.

        Raises:
            KnowledgeBaseError: The disk is full or not writable; no row of the unit is visible, or all are.
        """
        if rows.unit in self.rows_by_unit():
            self.flushed.flush()
            return False
        data = encode(rows, self.kb_id, self._columns)
        before = self._data_files()
        try:
            with writing(self.path):
                self._use(lance.write_dataset(data, self._dataset, mode="append"))
            self.flushed.flush()
        except KnowledgeBaseError:
            self._forget_failed(rows.unit, before)
            raise
        self._extend_directory(rows)
        return True

    def _extend_directory(self, rows: TableRows) -> None:
        """Add what was just appended, so that a long build does not read the table again for every unit."""
        known, count = self.directory, len(rows.slots)
        unit = np.concatenate([known.unit, np.full(count, rows.unit, dtype=np.int64)])
        slot = np.concatenate([known.slot, np.array(rows.slots, dtype=np.int32)])
        noise_id = np.concatenate([known.noise_id, np.array(rows.noise_ids, dtype=np.int32)])
        self._directory = Directory(unit, slot, noise_id)
        self._units = {**self.rows_by_unit(), rows.unit: count}

    def _forget_failed(self, unit: int, before: set[str]) -> None:
        """After a failed commit: read the truth from the disk, and delete data files that nothing names."""
        self.refresh()
        if unit in self.rows_by_unit():
            return
        for name in self._data_files() - before:
            (self.path / "data" / name).unlink(missing_ok=True)

    def delete(self, entries: Collection[tuple[int, int]]) -> None:
        """Commit the removal of entries, by unit and slot, and flush it; those that are not there are passed over.

        Raises:
            KnowledgeBaseError: The disk is full or not writable; every row is still there, or none of these is.
        """
        with reading(self.path):
            found = self._dataset.to_table(columns=["unit", "slot"], with_row_id=True)
        units, slots = found["unit"].to_numpy(), found["slot"].to_numpy()
        rows = np.flatnonzero(np.isin(units, [unit for unit, _ in entries]))
        wanted = set(entries)
        own = [each in wanted for each in zip(units[rows].tolist(), slots[rows].tolist(), strict=True)]
        ids = found["_rowid"].to_numpy()[rows[own]] if rows.size else rows
        if not ids.size:
            return
        with writing(self.path):
            self._dataset.delete(f"_rowid IN ({', '.join(map(str, ids.tolist()))})")
        self.refresh()
        self.flushed.flush(everything=True)

    def _data_files(self) -> set[str]:
        folder = self.path / "data"
        return set(os.listdir(folder)) if folder.is_dir() else set()

    def recover(self, known_units: set[int], version: int) -> list[int]:
        """Make the table whole after a crash; return units that were committed but not in ``known_units``.

        Such a unit is kept if its rows read back right. If power was lost before they were flushed, the table
        goes back to ``version``, the newest one that the ledger knows, and the unit has to be done again.

        Raises:
            KnowledgeBaseError: The table is damaged and there is no version to go back to.
        """
        try:
            self.refresh()
        except KnowledgeBaseError:
            if not version:
                raise
            set_torn_aside(self.path / "_versions", version)
            self.refresh()
        try:
            found = self._checked_units(known_units)
        except KnowledgeBaseError:
            if not version or version >= self.version:
                raise
            with writing(self.path):
                lance.dataset(str(self.path), version=version).restore()
            self.refresh()
            found = self._checked_units(known_units)
        if found:
            self.flushed.flush(everything=True)
        return found

    def _checked_units(self, known_units: set[int]) -> list[int]:
        """Return the units of the table that are not known, once all of their rows have been read."""
        found = sorted(set(self.rows_by_unit()) - known_units)
        for unit in found:
            rows = np.flatnonzero(self.directory.unit == unit)
            self.metadata(rows)
            self.latents(rows, *self._columns.names)
        return found

    def compact(self, *, least: int | None = None) -> bool:
        """Merge small fragments once there are more than ``least`` (by default COMMITS_PER_COMPACTION) of them, or
        once deleted rows are a quarter of all.

        A number for ``least`` also rewrites fragments that hold deleted rows, so that these leave the disk with the
        old versions. Row positions stay. Old versions stay too, until :meth:`drop_old_versions`.

        Raises:
            KnowledgeBaseError: The disk is full; nothing is lost.
        """
        fragments = self._dataset.get_fragments()
        small = sum(fragment.count_rows() < ROWS_PER_FRAGMENT for fragment in fragments)
        deleted = sum(fragment.num_deletions for fragment in fragments)
        tidy = not deleted if least is not None else 4 * deleted < deleted + len(self.directory.unit)
        if tidy and small <= max(1, COMMITS_PER_COMPACTION if least is None else least):
            return False
        units = self.directory.unit
        share = 0.1 if least is None else 0.0
        with writing(self.path):
            self._dataset.optimize.compact_files(
                target_rows_per_fragment=ROWS_PER_FRAGMENT, materialize_deletions_threshold=share
            )
            self.refresh()
            if not np.array_equal(units, self.directory.unit):
                raise KnowledgeBaseError(f"compacting {self.path} changed the order of rows", expected="the same order")
            self.flushed.flush(everything=True)
        return True

    def drop_old_versions(self, grace: timedelta = GRACE) -> None:
        """Delete what only versions need that were replaced ``grace`` ago (after the newest was recorded as flushed).

        Who still reads one of them in another process has to open it again.
        """
        with writing(self.path):
            drop_replaced(self._dataset, grace)
            self.flushed.forget_deleted()

    # Reading.

    def latents(self, rows: Rows, *columns: str) -> list[npt.NDArray[np.float16]]:
        """Return (n, d) float16 of each latent column, in the order of ``rows``, read at once; every row is checked.

        Raises:
            KnowledgeBaseError: A row does not exist, is damaged, or belongs to another base.
        """
        wanted = self._positions(rows)
        found = [np.empty((len(wanted), self._size), dtype=np.float16) for _ in columns]
        step = max(1, _READ_BYTES // (2 * self._size * max(1, len(columns))))
        for start in range(0, len(wanted), step):
            part = wanted[start : start + step]
            taken = self._take(part, [*columns, *(f"{column}_crc" for column in columns)])
            for column, latents in zip(columns, found, strict=True):
                latents[start : start + step] = self._checked(taken, column, part)
        return found

    def _checked(self, taken: Any, column: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        latents, sums = decode(taken[column], column, self._columns)
        bad = np.flatnonzero(sums != taken[f"{column}_crc"].to_numpy())
        if bad.size:
            raise KnowledgeBaseError(
                f"{self.path}: {column} of row {rows[bad[0]]} does not match its checksum",
                expected="the numbers that were stored",
                fix="run redi inspect --verify to see what is damaged; restore the folder or build it again",
            )
        bad = np.flatnonzero(~finite_rows(latents))
        if bad.size:
            raise KnowledgeBaseError(
                f"{self.path}: {column} of row {rows[bad[0]]} is not finite",
                expected="finite numbers; redi stores no others",
                fix="restore the folder or build it again",
            )
        return latents

    def checksums(self, column: str) -> npt.NDArray[np.uint32]:
        """Return the stored checksum of every row's latent: (n,), in table order.

        Raises:
            KnowledgeBaseError: The table is damaged.
        """
        with reading(self.path):
            found = self._dataset.to_table(columns=[f"{column}_crc"])
            check_filled(found, self.path)
        return np.array(found[f"{column}_crc"].to_numpy(), dtype=np.uint32)

    def metadata(self, rows: Rows) -> list[dict[str, Any]]:
        """Return entry_id, unit, slot, prompt, noise_id and seed of each row.

        Raises:
            KnowledgeBaseError: A row does not exist, is damaged, or belongs to another base.
        """
        wanted = self._positions(rows)
        records: list[dict[str, Any]] = self._take(wanted, ["prompt", "seed", "crc"]).to_pylist()
        for row, record in zip(wanted.tolist(), records, strict=True):
            if record.pop("crc") != row_crc(record["prompt"], record["noise_id"], record["seed"]):
                raise KnowledgeBaseError(
                    f"{self.path}: prompt, noise or seed of row {row} does not match its checksum",
                    expected="what was stored",
                    fix="restore the folder or build it again",
                )
        return records

    def _positions(self, rows: Rows) -> npt.NDArray[np.int64]:
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        count = len(self.directory.unit)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= count):
            raise KnowledgeBaseError(f"rows {wanted[:5].tolist()} of a table of {count}", expected=f"0 to {count - 1}")
        return wanted

    def _take(self, wanted: npt.NDArray[np.int64], columns: list[str]) -> Any:
        """Take rows in the order asked for, and check that each is the entry that the directory names."""
        unique, inverse = np.unique(wanted, return_inverse=True)
        with reading(self.path):
            names = ["entry_id", "unit", "slot", "noise_id", *columns]
            taken = self._dataset.take(unique.tolist(), columns=names)
            check_filled(taken, self.path)
            if unique.size != wanted.size or not np.array_equal(inverse, np.arange(wanted.size)):
                taken = taken.take(pa.array(inverse))
        directory = self.directory
        for name, known in (("unit", directory.unit), ("slot", directory.slot), ("noise_id", directory.noise_id)):
            if not np.array_equal(taken[name].to_numpy(), known[wanted]):
                raise KnowledgeBaseError(f"{self.path} changed while it was open", fix="open the knowledge base again")
        ids = zip(taken["entry_id"].to_pylist(), taken["unit"].to_pylist(), taken["slot"].to_pylist(), strict=True)
        for row, (found, unit, slot) in zip(wanted.tolist(), ids, strict=True):
            if found != entry_id(self.kb_id, unit, slot):
                raise KnowledgeBaseError(
                    f"{self.path}: row {row} belongs to another knowledge base",
                    expected=f"entries of {self.kb_id}",
                    fix="restore the table that belongs to this manifest, or build it again",
                )
        return taken

    def batches(self, columns: Sequence[str], size: int) -> Iterator[Any]:
        """Yield every row in order, as record batches of these columns and about ``size`` bytes.

        Raises:
            KnowledgeBaseError: The table is damaged.
        """
        step = max(1, size // (2 * self._size * max(1, len(columns))))
        with reading(self.path):
            check_count(self._dataset, self.path)
            yield from self._dataset.scanner(columns=list(columns), batch_size=step, scan_in_order=True).to_batches()

    def columns_by_file(self) -> dict[str, list[str]]:
        """Return which columns each data file holds."""
        with reading(self.path):
            names = {field.id(): field.name() for field in self._dataset.lance_schema.fields()}
            files = [file for fragment in self._dataset.get_fragments() for file in fragment.metadata.files]
        return {file.path: [names[each] for each in file.fields if each in names] for file in files}

    def problems(self) -> Iterator[str]:
        """Read every row again and say what is wrong with it: unreadable, wrong checksum, not finite, foreign."""
        position = 0
        step = max(1, _READ_BYTES // (2 * self._size * max(1, len(self._columns.names))))
        for fragment in self._dataset.get_fragments():
            count = fragment.count_rows()
            read = 0
            try:
                for batch in fragment.to_batches(batch_size=step):
                    yield from problems_in(batch, position + read, self.kb_id, self._columns)
                    read += batch.num_rows
                if read != count:
                    yield f"rows {position} to {position + count - 1}: only {read} of {count} can be read"
            except BaseException as error:
                if not is_of_reading(error):
                    raise
                reason = str(error).splitlines()[0][:200]
                yield f"rows {position + read} to {position + count - 1} cannot be read: {reason}"
            position += count
