"""Owns copying a base, whole or smaller, into files that can be fetched apart; must not know the hub.

A copy has the same id, entries and order, and the same numbers unless fewer bits are asked for. What only one value
step needs lies in files of its own, so that somebody who wants one step fetches that one; ``hashes.json`` tells which,
and signs the copy.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from redi.errors import InputError, KnowledgeBaseError
from redi.knowledge_base.codec import CODECS, FLOAT16, Columns
from redi.knowledge_base.durable import JsonLines, replace_file, writing
from redi.knowledge_base.guard import check_links
from redi.knowledge_base.hashes import FileHashes, write_hashes
from redi.knowledge_base.layout import REFUSED, TABLE, check_free, columns_of
from redi.knowledge_base.ledger import BuilderLock, Ledger
from redi.knowledge_base.manifest import Manifest
from redi.knowledge_base.noises import Noises
from redi.knowledge_base.rows import METADATA, decode, latent_arrays, problems_in, schema_of
from redi.knowledge_base.table import ROWS_PER_FRAGMENT, EntryTable
from redi.knowledge_base.table_form import reading

_BATCH_BYTES = 64 << 20
_AVERAGED = 256


def copy_base(
    source: Path, target: Path, value_steps: Collection[int] | None = None, values: str | None = None
) -> FileHashes:
    """Copy the base in a folder into a new or empty one; every row is checked on the way.

    Args:
        source: Folder of the base; files that only other value steps need may be missing.
        target: New or empty folder.
        value_steps: Which of the plan's to keep; all by default.
        values: Name of the codec to keep values with; by default as they are.

    Returns:
        The hashes of the copy, as written beside it.

    Raises:
        PlanError: A value step is not recorded.
        InputError: There is no such codec.
        KnowledgeBaseError: The base is damaged or kept in fewer bits, the target holds something, or the disk is full.
    """
    check_links(source)
    whole = Manifest.read(source)
    for step in value_steps or ():
        whole.plan.choose(value_step=step)
    part = replace(whole, plan=replace(whole.plan, value_steps=tuple(value_steps or whole.plan.value_steps)))
    manifest = replace(part, values=_codec(whole, values))
    ledger, noises = Ledger(source / "ledger"), Noises.load(source, whole)
    table = EntryTable(source / TABLE, manifest.kb_id, columns_of(part), ledger.version)
    check_free(target)
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
    with BuilderLock(target / "lock").held():
        check_free(target)
        references = {step: noises.references[step] for step in part.referenced_steps}
        if manifest.values != part.values:
            references |= {step: _means(table, step, noises) for step in manifest.plan.value_steps}
        kept = Noises(noises.bank, references)
        written = replace(manifest, noise={**manifest.noise, "sha256": kept.save(target, manifest)})
        _copy_rows(table, target / TABLE, columns_of(part), columns_of(manifest), kept)
        copied = EntryTable(target / TABLE, manifest.kb_id, columns_of(manifest))
        copied.flushed.flush(everything=True)
        copied.drop_old_versions(timedelta(0))
        _copy_records(source, target, ledger, copied.version)
        written.write(target)
        return write_hashes(target, files_by_value_step(copied))


def _codec(manifest: Manifest, asked: str | None) -> str:
    if asked is None or asked == manifest.values:
        return manifest.values
    if asked not in CODECS:
        raise InputError(f"values {asked!r}", expected=f"one of {', '.join(CODECS)}")
    if manifest.values != FLOAT16.name:
        raise KnowledgeBaseError(
            f"values of {manifest.values}, asked for as {asked}",
            expected=f"values of {FLOAT16.name}",
            fix="start from the base as it was recorded; bits that are gone do not come back",
        )
    return asked


def _means(table: EntryTable, step: int, noises: Noises) -> Tensor:
    """Return (M, *shape) float32: what each noise has come to on average over its first entries."""
    means = torch.zeros_like(noises.bank.latents)
    for noise_id in range(len(noises.bank)):
        rows = np.flatnonzero(table.directory.noise_id == noise_id)[:_AVERAGED]
        if rows.size:
            (values,) = table.latents(rows, f"value_{step}")
            means[noise_id] = torch.from_numpy(values.astype(np.float32).mean(axis=0)).reshape(means.shape[1:])
    return means


def _copy_rows(table: EntryTable, place: Path, given: Columns, wanted: Columns, noises: Noises) -> None:
    """Write metadata and keys first, then each value step into files of its own."""
    keys = [name for name in wanted.names if name.startswith("key_")]
    parts = [[*METADATA, *_with_checksums(keys)]]
    parts += [_with_checksums([name]) for name in wanted.names if name not in keys]
    schema = schema_of(wanted)
    for number, names in enumerate(parts):
        batches = _batches(table, names, given, wanted, noises)
        reader = pa.RecordBatchReader.from_batches(pa.schema([schema.field(name) for name in names]), batches)
        with writing(place):
            if number:
                lance.dataset(str(place)).add_columns(reader)
            else:
                lance.write_dataset(reader, str(place), max_rows_per_file=ROWS_PER_FRAGMENT, data_storage_version="2.2")


def _batches(table: EntryTable, names: list[str], given: Columns, wanted: Columns, noises: Noises) -> Iterator[Any]:
    """Yield record batches of these columns as they are wanted."""
    latents = Columns(tuple(name for name in names if f"{name}_crc" in names), given.size, given.values)
    as_it_is = given.values == wanted.values or any(name.startswith("key_") for name in latents.names)
    for batch in _checked(table, latents):
        yield batch.select(names) if as_it_is else _encoded(batch, latents, wanted, noises)


def _checked(table: EntryTable, columns: Columns) -> Iterator[Any]:
    """Yield record batches of metadata and these columns.

    Raises:
        KnowledgeBaseError: A row is damaged.
    """
    position = 0
    for batch in table.batches([*METADATA, *_with_checksums(columns.names)], _BATCH_BYTES):
        for problem in problems_in(batch, position, table.kb_id, columns):
            raise KnowledgeBaseError(
                f"{table.path}: {problem}",
                expected="a base without damage",
                fix="run redi inspect --verify to see all of it; restore the base or build it again",
            )
        position += batch.num_rows
        yield batch


def _encoded(batch: Any, columns: Columns, wanted: Columns, noises: Noises) -> Any:
    """Return a record batch of one value step, kept as differences to the reference in fewer bits."""
    (name,) = columns.names
    step = int(name.removeprefix("value_"))
    ids = torch.from_numpy(batch["noise_id"].to_numpy().astype(np.int64))
    values = torch.from_numpy(decode(batch[name], name, columns)[0].astype(np.float32))
    offsets = values - noises.reference(step, ids).flatten(1)
    arrays = latent_arrays(offsets.half().numpy(), wanted.values)
    return pa.RecordBatch.from_arrays(
        arrays, schema=pa.schema([schema_of(wanted).field(each) for each in _with_checksums([name])])
    )


def _with_checksums(columns: Iterable[str]) -> list[str]:
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
