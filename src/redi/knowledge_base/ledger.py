"""Owns the record of finished units of work and the builder's lock; must not know what a unit holds."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.durable import JsonLines, writing
from redi.knowledge_base.guard import check_links, shortened


@dataclass(frozen=True)
class UnitRecord:
    """A finished unit: how many of its entries are stored and refused, and the table version that holds them.

    ``removed`` entries of it were stored once and taken out on purpose since.
    """

    unit: int
    rows: int
    refused: int
    version: int
    removed: int = 0


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
        names = ["unit", "rows", "refused", "version"] if "unit" in line else ["version"]
        names += ["removed"] if "removed" in line else []
        if any(type(line.get(name)) is not int or not 0 <= line[name] < 2**63 for name in names):
            raise KnowledgeBaseError(
                f"{self._lines.path}: line {shortened(line)}",
                expected="whole numbers unit, rows, refused, version",
                fix="move the file away; the next build writes it again from the table",
            )
        self._version = max(self._version, line["version"])
        if "unit" in line:
            record = UnitRecord(line["unit"], line["rows"], line["refused"], line["version"], line.get("removed", 0))
            known = self._records.get(record.unit)
            if known is None or (_once_stored(known) == _once_stored(record) and known.removed < record.removed):
                self._records[record.unit] = record
            elif _once_stored(known) != _once_stored(record):
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
        self.acknowledge_all([record])

    def acknowledge_all(self, records: Sequence[UnitRecord]) -> None:
        """Record several units in one write, also what was removed from units that are recorded.

        Raises:
            KnowledgeBaseError: The disk is full or not writable.
        """
        lines = list(map(_line, records))
        self._lines.append(lines)
        for line in lines:
            self._take(line)

    def tidy(self, dropped: Callable[[UnitRecord], bool]) -> None:
        """Write one line for each unit, without the units that need no record any more; whole or not at all.

        Raises:
            KnowledgeBaseError: The disk is full or not writable; the ledger is as before.
        """
        kept = [record for record in self._records.values() if not dropped(record)]
        self._lines.rewrite([*map(_line, kept), {"version": self._version}])
        self._records = {record.unit: record for record in kept}

    def take_back(self, units: Collection[int], version: int) -> None:
        """Record that these units are not on the disk after all, nor any table version after ``version``.

        Raises:
            KnowledgeBaseError: The disk is full or not writable; the ledger is as before.
        """
        known = [record for record in self._records.values() if record.unit not in units]
        kept = [replace(record, version=min(record.version, version)) for record in known]
        self._lines.rewrite([*map(_line, kept), {"version": version}])
        self._records, self._version = {record.unit: record for record in kept}, version

    def flushed(self, version: int) -> None:
        """Record that a table version without new entries (after compaction) has been flushed."""
        self._lines.append([{"version": version}])
        self._version = max(self._version, version)


def _once_stored(record: UnitRecord) -> tuple[int, int]:
    return record.rows + record.removed, record.refused


def _line(record: UnitRecord) -> dict[str, int]:
    fields = asdict(record)
    return fields if record.removed else {name: fields[name] for name in fields if name != "removed"}


class LockedError(KnowledgeBaseError):
    """Another builder has the lock."""


class BuilderLock:
    """A file lock that one builder holds; re-entrant within its thread, released by the kernel if the process dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = threading.RLock()
        self._depth = 0

    @contextmanager
    def held(self, wait: float = 0.0) -> Iterator[bool]:
        """Hold the lock; the value says whether it was just taken (False: already held further out).

        Args:
            wait: Seconds to wait for another builder.

        Raises:
            LockedError: Another builder still holds it.
            KnowledgeBaseError: The folder is not writable.
        """
        deadline = time.monotonic() + wait
        if not self._thread.acquire(timeout=wait):
            raise self._refusal("another thread of this process")
        try:
            if self._depth:
                yield False
                return
            descriptor = self._take(deadline)
            self._depth = 1
            try:
                yield True
            finally:
                self._depth = 0
                _let_go(descriptor)
        finally:
            self._thread.release()

    def _take(self, deadline: float) -> int:
        check_links(self._path.parent, to_write=True)
        with writing(self._path):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            _flock(descriptor, deadline)
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

    def _refusal(self, holder: str) -> LockedError:
        return LockedError(
            f"{self._path.parent} is being built by {holder}",
            expected="one builder at a time",
            fix="wait for it or stop it; a lock whose process has died is free",
        )


def _flock(descriptor: int, deadline: float) -> None:
    """Take the kernel's lock, trying until the deadline (of the monotonic clock)."""
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.01)


def _let_go(descriptor: int) -> None:
    """Unlock and close; a process that was forked meanwhile has the descriptor too, and would keep the lock."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def holder_of(path: Path) -> str | None:
    """Return who holds a builder's lock ("process 7 on host"), None if it is free; takes it for no longer than a look.

    Raises:
        KnowledgeBaseError: The file is there and cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KnowledgeBaseError(f"cannot read {path}: {error}", expected="the builder's lock, a file") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "an unknown process"
    finally:
        _let_go(descriptor)
    return None
