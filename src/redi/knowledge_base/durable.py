"""Owns how files are made to survive a crash (fsync, atomic replace, JSON lines); must not know what they hold."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.guard import read_file

_MAX_BYTES = 1 << 28


@contextmanager
def writing(what: str | Path) -> Iterator[None]:
    """Turn an :class:`OSError` (disk full, no permission) into a :class:`KnowledgeBaseError` that names ``what``."""
    try:
        yield
    except OSError as error:
        raise KnowledgeBaseError(
            f"cannot write {what}: {error}",
            expected="room on the disk and permission to write",
            fix="make room and start the same build again; what was acknowledged is kept, the rest is redone",
        ) from error


def fsync_file(path: Path) -> None:
    """Flush one file (or directory) to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader, and a crash, sees the old file or the new one, never a part.

    Raises:
        KnowledgeBaseError: The disk is full or not writable; the old file stays.
    """
    with writing(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".tmp-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        fsync_file(path.parent)


class JsonLines:
    """An append-only file of JSON objects, one a line.

    A last line without its newline is what a crash left of a write that nobody was told had succeeded: readers
    pass over it, the next append cuts it off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Return every whole line.

        Raises:
            KnowledgeBaseError: A whole line is not a JSON object, or the file is no plain file or over 256 MB.
        """
        try:
            data = read_file(self.path, _MAX_BYTES)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise KnowledgeBaseError(f"cannot read {self.path}: {error}", expected="a file of JSON lines") from error
        lines = data[: data.rfind(b"\n") + 1].splitlines()
        return [self._parse(line, number) for number, line in enumerate(lines, 1)]

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise KnowledgeBaseError(
                f"{self.path}: line {number} is {line[:60]!r}",
                expected="one JSON object a line",
                fix="move the file away; the next build writes it again from the table",
            )
        return record

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add lines and flush them to the disk; on failure the file is as before.

        Raises:
            KnowledgeBaseError: The disk is full or not writable.
        """
        data = self._lines(records)
        with writing(self.path):
            new = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab+", buffering=0) as file:
                whole = self._whole_bytes(file.fileno())
                file.truncate(whole)
                try:
                    written = 0
                    while written < len(data):
                        written += os.write(file.fileno(), data[written:])
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(whole)
                    raise
            if new:
                fsync_file(self.path.parent)
                fsync_file(self.path.parent.parent)

    def rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace every line; a crash leaves the old ones or the new ones.

        Raises:
            KnowledgeBaseError: The disk is full or not writable; the file is as before.
        """
        replace_file(self.path, self._lines(records))

    @staticmethod
    def _lines(records: Iterable[Mapping[str, Any]]) -> bytes:
        return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)

    @staticmethod
    def _whole_bytes(descriptor: int) -> int:
        """Return the length up to and with the last newline, reading from the end."""
        size = os.fstat(descriptor).st_size
        end = size
        while end > 0:
            start = max(0, end - 65536)
            found = os.pread(descriptor, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0
