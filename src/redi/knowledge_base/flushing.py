"""Owns that what Lance has written to a table is on the disk, which Lance never sees to; must not know rows."""

from __future__ import annotations

import os
from pathlib import Path

from redi.knowledge_base.durable import fsync_file, writing

_FOLDERS = ("data", "_versions", "_deletions", "_transactions")
_LASTING = (".lance", ".txn", ".manifest", ".arrow", ".bin")


class Flushed:
    """Which files of a table have been flushed, so that each is flushed once.

    Args:
        table: Its folder; nothing of it counts as flushed yet.
    """

    def __init__(self, table: Path) -> None:
        self._table = table
        self._files: set[str] = set()
        self._new = not (table / "data").is_dir()

    def flush(self, *, everything: bool = False) -> None:
        """Flush what has been written since the last call.

        Rows need their data file and the version's manifest. ``everything`` adds what only a concurrent writer
        or a faster opening needs, and the folders themselves, which change only when the table is made.

        Raises:
            KnowledgeBaseError: The disk is full or not writable.
        """
        with writing(self._table):
            for name in _FOLDERS if everything else _FOLDERS[:2]:
                folder = self._table / name
                if not folder.is_dir():
                    continue
                for file in sorted(os.listdir(folder)):
                    key, lasting = f"{name}/{file}", file.endswith(_LASTING)
                    if key not in self._files and (lasting or everything):
                        fsync_file(folder / file)
                    if lasting:
                        self._files.add(key)
                fsync_file(folder)
            if everything or self._new:
                fsync_file(self._table)
                fsync_file(self._table.parent)
                self._new = False

    def forget_deleted(self) -> None:
        """Forget files that are gone."""
        self._files = {name for name in self._files if (self._table / name).exists()}
