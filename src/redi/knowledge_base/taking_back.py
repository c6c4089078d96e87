"""Owns what is done about table versions that a power cut left empty; must not know how units are made again."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path

from redi.errors import KnowledgeBaseError, warn
from redi.knowledge_base import leave_one_out
from redi.knowledge_base.bucket import is_address
from redi.knowledge_base.hashes import drop_hashes
from redi.knowledge_base.layout import TABLE, columns_of, local_folder
from redi.knowledge_base.ledger import BuilderLock, Ledger
from redi.knowledge_base.manifest import Manifest
from redi.knowledge_base.table import EntryTable
from redi.knowledge_base.versions import last_before_empty, set_torn_aside

_NAMED = 20


def take_back_lost(path: str | PathLike[str], planned: Callable[[Manifest], int]) -> None:
    """Set acknowledged versions aside that hold nothing, and forget the units that only they held, with a warning.

    Killed on the way, it is ended when it is called again. A base in a bucket is left alone: its copy here is made
    whole from the bucket.

    Args:
        path: Folder of the base, or its address.
        planned: Says how many units the caller can make again, 0 to n-1; raises if the base is not the caller's.

    Raises:
        KnowledgeBaseError: What is lost cannot be made again (then nothing was changed), another builder works on
            the base, or the disk is full.
    """
    if is_address(path):
        return
    folder = local_folder(path)
    if last_before_empty(folder / TABLE / "_versions") is None:
        return
    manifest = Manifest.read(folder)
    units = planned(manifest)
    with BuilderLock(folder / "lock").held():
        version = last_before_empty(folder / TABLE / "_versions")
        ledger = Ledger(folder / "ledger")
        if version is None or 0 < ledger.version <= version:  # nobody was told of more: opening sets that aside
            return
        lost = _lost(folder / TABLE, manifest, ledger, version, units)
        drop_hashes(folder)
        if lost:
            leave_one_out.forget(folder)
        ledger.take_back(lost, max(version, 1))  # 1: the empty table that is made below
        set_torn_aside(folder / TABLE / "_versions", version)
        if not version:
            EntryTable.create(folder / TABLE, manifest.kb_id, columns_of(manifest))
    named = ", ".join(map(str, sorted(lost)[:_NAMED])) + (f", ... ({len(lost)} in all)" if len(lost) > _NAMED else "")
    missing = f"units that only it held are made again: {named}" if lost else "no unit is missing"
    warn(f"{folder / TABLE}: the newest version of the table was empty (0 bytes) and has been set aside; {missing}")


def _lost(table: Path, manifest: Manifest, ledger: Ledger, version: int, planned: int) -> set[int]:
    """Return the units that the ledger has and the table does not.

    Raises:
        KnowledgeBaseError: Not all of them can be made again, or entries would come back that were removed.
    """
    held = EntryTable(table, manifest.kb_id, columns_of(manifest), version).rows_by_unit() if version else {}
    known = {unit: record.rows for unit, record in ledger.records.items()}
    changed = {unit for unit in held.keys() | known.keys() if held.get(unit, 0) != known.get(unit, 0)}
    removed = {unit for unit in changed if unit in known and ledger.records[unit].removed}
    beyond = {unit for unit in changed if unit in held or not 0 <= unit < planned} | removed
    if beyond or not ledger.version:
        what = f"{len(beyond)} units of grown, merged or removed entries" if ledger.version else "what no ledger tells"
        raise KnowledgeBaseError(
            f"{table}: the newest version of the table is empty (0 bytes), and with it is lost {what}",
            expected="nothing lost but units that this build can make again",
            fix="restore the folder from a copy; or run the same redi build into a new folder, for its own entries",
        )
    return changed
