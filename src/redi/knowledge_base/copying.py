"""Owns copying a base, whole or with fewer value steps, into files that can be fetched apart; must not know the hub.

A copy has the same id, entries, order and numbers. What only one value step needs lies in files of its own, so that
somebody who wants one step fetches that one; ``hashes.json`` tells which, and signs the copy.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.durable import JsonLines, replace_file, writing
from redi.knowledge_base.guard import check_links
from redi.knowledge_base.hashes import FileHashes, write_hashes
from redi.knowledge_base.layout import REFUSED, TABLE, check_free, columns_of
from redi.knowledge_base.ledger import BuilderLock, Ledger
from redi.knowledge_base.manifest import Manifest
from redi.knowledge_base.noises import Noises
from redi.knowledge_base.rows import METADATA, problems_in, schema_of
from redi.knowledge_base.table import ROWS_PER_FRAGMENT, EntryTable
from redi.knowledge_base.table_form import reading

_BATCH_BYTES = 64 << 20


def copy_base(source: Path, target: Path, value_steps: Collection[int] | None = None) -> FileHashes:
    """Copy the base in a folder into a new or empty one; every row is checked on the way.

    Args:
        source: Folder of the base; files that only other value steps need may be missing.
        target: New or empty folder.
        value_steps: Which of the plan's to keep; all by default.

    Returns:
        The hashes of the copy, as written beside it.

    Raises:
        PlanError: A value step is not recorded.
        KnowledgeBaseError: The base is damaged, the target holds something, or the disk is full.
    """
    check_links(source)
    whole = Manifest.read(source)
    for step in value_steps or ():
        whole.plan.choose(value_step=step)
    kept = whole.plan.value_steps if value_steps is None else tuple(value_steps)
    manifest = replace(whole, plan=replace(whole.plan, value_steps=kept))
    noises, ledger = Noises.load(source, whole), Ledger(source / "ledger")
    table = EntryTable(source / TABLE, manifest.kb_id, columns_of(manifest.plan), manifest.size, ledger.version)
    check_free(target)
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
    with BuilderLock(target / "lock").held():
        check_free(target)
        noises.save(target)
        _copy_rows(table, target / TABLE, manifest)
        copied = EntryTable(target / TABLE, manifest.kb_id, columns_of(manifest.plan), manifest.size)
        copied.sync(everything=True)
        copied.drop_old_versions()
        _copy_records(source, target, ledger, copied.version)
        manifest.write(target)
        return write_hashes(target, files_by_value_step(copied))


def _copy_rows(table: EntryTable, place: Path, manifest: Manifest) -> None:
    """Write metadata and keys first, then each value step into files of its own."""
    keys = [f"key_{step}" for step in manifest.plan.key_steps]
    parts = [[*METADATA, *_with_checksums(keys)]]
    parts += [_with_checksums([f"value_{step}"]) for step in manifest.plan.value_steps]
    for number, names in enumerate(parts):
        batches = _checked(table, manifest, names)
        fields = schema_of(columns_of(manifest.plan), manifest.size)
        reader = pa.RecordBatchReader.from_batches(pa.schema([fields.field(name) for name in names]), batches)
        with writing(place):
            if number:
                lance.dataset(str(place)).add_columns(reader)
            else:
                lance.write_dataset(reader, str(place), max_rows_per_file=ROWS_PER_FRAGMENT, data_storage_version="2.2")


def _checked(table: EntryTable, manifest: Manifest, names: Sequence[str]) -> Iterator[Any]:
    """Yield record batches of these columns.

    Raises:
        KnowledgeBaseError: A row is damaged.
    """
    columns = [name for name in names if f"{name}_crc" in names]
    position = 0
    for batch in table.batches([*METADATA, *_with_checksums(columns)], _BATCH_BYTES):
        for problem in problems_in(batch, position, manifest.kb_id, columns, manifest.size):
            raise KnowledgeBaseError(
                f"{table.path}: {problem}",
                expected="a base without damage",
                fix="run redi inspect --verify to see all of it; restore the base or build it again",
            )
        position += batch.num_rows
        yield batch.select(list(names))


def _with_checksums(columns: Sequence[str]) -> list[str]:
    return [name for column in columns for name in (column, f"{column}_crc")]


def _copy_records(source: Path, target: Path, ledger: Ledger, version: int) -> None:
    """Copy what is known of units and refusals, and what was derived from keys alone."""
    JsonLines(target / "ledger" / "units.jsonl").append(
        [{"version": version}, *(vars(replace(record, version=version)) for record in ledger.records.values())]
    )
    for name in (REFUSED, "index/leave_one_out.safetensors"):
        if (source / name).is_file():
            with writing(target / name):
                (target / name).parent.mkdir(exist_ok=True)
            replace_file(target / name, (source / name).read_bytes())
    if (source / "previews").is_dir():
        with writing(target / "previews"):
            shutil.copytree(source / "previews", target / "previews")


def files_by_value_step(table: EntryTable) -> dict[str, int]:
    """Return, by name below the base's folder, the data files that hold nothing but one value step."""
    with reading(table.path):
        return {
            f"{TABLE}/data/{name}": int(step.pop())
            for name, columns in table.columns_by_file().items()
            if len(step := {column.removeprefix("value_").removesuffix("_crc") for column in columns}) == 1
            and all(column.startswith("value_") for column in columns)
        }
