"""Owns reading a whole base again to find damage; must not know how it came about."""

from __future__ import annotations

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.entries import VerifyReport
from redi.knowledge_base.index_files import IndexFiles
from redi.knowledge_base.ledger import Ledger
from redi.knowledge_base.table import EntryTable


def verified(table: EntryTable, ledger: Ledger, noises: int, refused: int, index: IndexFiles) -> VerifyReport:
    """Read every row again: checksums, finite numbers, shapes, ids; compare with the ledger; read the index."""
    damaged = [*table.problems(), *index.problems()]
    try:
        counts, duplicates = table.rows_by_unit(), table.directory.repeated()
        outside = set(table.directory.noise_id.tolist()) - set(range(-1, noises))
    except KnowledgeBaseError as error:
        return VerifyReport(table.count(), 0, refused, (*damaged, error.got))
    if outside:
        damaged.append(f"entries name noises {sorted(outside)[:5]} that the bank does not hold")
    for unit, record in sorted(ledger.records.items()):
        if counts.get(unit, 0) != record.rows:
            damaged.append(f"unit {unit}: {counts.get(unit, 0)} entries in the table, {record.rows} in the ledger")
    return VerifyReport(table.count(), duplicates, refused, tuple(damaged))
