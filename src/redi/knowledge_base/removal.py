"""Owns taking entries out so that a crash at any point is made good; must not know why they go."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.durable import fsync_file, replace_file, writing
from redi.knowledge_base.guard import read_file
from redi.knowledge_base.ledger import Ledger, UnitRecord
from redi.knowledge_base.rows import FIRST_NAMED_UNIT
from redi.knowledge_base.table import EntryTable

FILE_NAME = "removing.json"
_MAX_BYTES = 1 << 28


class Removal:
    """What is about to be removed is written down, then removed, then recorded, then the note is taken away.

    Without the note nothing was begun; with it, all steps can be done again. Only under the builder's lock.
    """

    def __init__(self, folder: Path, table: EntryTable, ledger: Ledger) -> None:
        self._path, self._table, self._ledger = folder / FILE_NAME, table, ledger

    @property
    def pending(self) -> bool:
        """Whether a removal was begun and not ended."""
        return self._path.exists()

    def begin(self, entries: Collection[tuple[int, int]]) -> None:
        """Write down what goes, by unit and slot.

        Raises:
            KnowledgeBaseError: The disk is full; nothing is removed.
        """
        replace_file(self._path, json.dumps(sorted(entries)).encode())

    def end(self) -> None:
        """Remove what is written down.

        Raises:
            KnowledgeBaseError: The disk is full, or the note is damaged.
        """
        entries = self._read()
        self._table.delete(entries)
        counts = self._table.rows_by_unit()
        changed = []
        for unit in sorted({unit for unit, _ in entries}):
            known = self._ledger.records.get(unit)
            if known is None:
                continue
            rows = counts.get(unit, 0)
            gone = known.rows - rows
            if gone > 0:
                version = self._table.version
                changed.append(UnitRecord(unit, rows, known.refused, version, known.removed + gone))
        if changed:
            self._ledger.acknowledge_all(changed)
        with writing(self._path):
            self._path.unlink()
            fsync_file(self._path.parent)

    def tidy(self, least: int = 0) -> None:
        """Write one line for each unit into the ledger, without those that no build makes and that are all gone, once
        these are ``least``.

        Raises:
            KnowledgeBaseError: The disk is full or not writable; the ledger is as before.
        """
        if sum(map(_is_gone, self._ledger.records.values())) >= least:
            self._ledger.tidy(_is_gone)

    def _read(self) -> set[tuple[int, int]]:
        try:
            found = json.loads(read_file(self._path, _MAX_BYTES))
            entries = {(unit, slot) for unit, slot in found}
            if not all(type(number) is int for each in entries for number in each):
                raise ValueError("not whole numbers")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise KnowledgeBaseError(
                f"{self._path}: {str(error)[:300]}",
                expected="the entries that are being removed",
                fix="move the file away; remove the entries again",
            ) from error
        return entries


def _is_gone(record: UnitRecord) -> bool:
    return record.unit >= FIRST_NAMED_UNIT and not record.rows
