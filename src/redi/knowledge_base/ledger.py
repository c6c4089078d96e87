"""Owns the record of finished units of work and the builder's lock; must not know what a unit holds."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.durable import JsonLines, writing
from redi.knowledge_base.guard import check_links, shortened


@dataclass(frozen=True)
class UnitRecord:
    """A finished unit: how many of its entries are stored and refused, and the table version that holds them."""

    unit: int
    rows: int
    refused: int
    version: int


class Ledger:
    """``ledger/units.jsonl``: a line for every unit whose entries are known to be on the disk.

    The table is the truth about entries; the ledger says which of its versions were flushed, and names units
    that hold no entry because all of them were refused.
    """

    def __init__(self, folder: Path) -> None:
        self._lines = JsonLines(folder / "units.jsonl")
        self._records: dict[int, UnitRecord] = {}
        self._version = 0
        self.reload()

    def reload(self) -> None:
        """Read the file again (another process may have written).

        Raises:
            KnowledgeBaseError: A line is damaged, or two lines disagree on a unit.
        """
        self._records, self._version = {}, 0
        for line in self._lines.read():
            self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        names = ("unit", "rows", "refused", "version") if "unit" in line else ("version",)
        if any(type(line.get(name)) is not int or not 0 <= line[name] < 2**63 for name in names):
            raise KnowledgeBaseError(
                f"{self._lines.path}: line {shortened(line)}",
                expected="whole numbers unit, rows, refused, version",
                fix="move the file away; the next build writes it again from the table",
            )
        self._version = max(self._version, line["version"])
        if "unit" in line:
            record = UnitRecord(line["unit"], line["rows"], line["refused"], line["version"])
            known = self._records.setdefault(record.unit, record)
            if (known.rows, known.refused) != (record.rows, record.refused):
                raise KnowledgeBaseError(
                    f"{self._lines.path}: unit {record.unit} has two records",
                    expected="one",
                    fix="move the file away; the next build writes it again from the table",
                )

    @property
    def records(self) -> dict[int, UnitRecord]:
        """Finished units by number."""
        return self._records

    @property
    def version(self) -> int:
        """Newest table version that is known to be on the disk whole; 0 if none was recorded."""
        return self._version

    def acknowledge(self, record: UnitRecord) -> None:
        """Record a unit whose entries have been flushed.

        Raises:
            KnowledgeBaseError: The disk is full or not writable.
        """
        line = {"unit": record.unit, "rows": record.rows, "refused": record.refused, "version": record.version}
        self._lines.append([line])
        self._take(line)

    def flushed(self, version: int) -> None:
        """Record that a table version without new entries (after compaction) has been flushed."""
        self._lines.append([{"version": version}])
        self._version = max(self._version, version)


class BuilderLock:
    """A file lock that one builder holds; re-entrant within its thread, released by the kernel if the process dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = threading.RLock()
        self._depth = 0

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Hold the lock; the value says whether it was just taken (False: already held further out).

        Raises:
            KnowledgeBaseError: Another builder holds it, or the folder is not writable.
        """
        if not self._thread.acquire(blocking=False):
            raise self._refusal("another thread of this process")
        try:
            if self._depth:
                yield False
                return
            descriptor = self._take()
            self._depth = 1
            try:
                yield True
            finally:
                self._depth = 0
                os.close(descriptor)
        finally:
            self._thread.release()

    def _take(self) -> int:
        check_links(self._path.parent, to_write=True)
        with writing(self._path):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "an unknown process"
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise self._refusal(holder) from None
            raise KnowledgeBaseError(f"cannot lock {self._path}: {error}", expected="a disk with file locks") from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError:  # a full disk must not keep a builder from finding out what is finished
            pass
        return descriptor

    def _refusal(self, holder: str) -> KnowledgeBaseError:
        return KnowledgeBaseError(
            f"{self._path.parent} is being built by {holder}",
            expected="one builder at a time",
            fix="wait for it or stop it; a lock whose process has died is free",
        )
