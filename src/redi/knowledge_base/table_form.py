"""Owns what a Lance table must look like before its rows are believed, and how its errors are told; reads no row."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.guard import bytes_in

_ID_BYTES = 16
_PLACE_IN_LANCE = re.compile(r",? *\S+\.rs:\d+:\d+.*")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what Lance raises over damage into a :class:`KnowledgeBaseError`."""
    try:
        yield
    except BaseException as error:
        if not is_of_reading(error):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise KnowledgeBaseError(
            f"cannot read {path}: {_PLACE_IN_LANCE.sub('', first)[:300]}",
            expected="the whole table that redi wrote",
            fix="run redi inspect --verify to see what is damaged; restore the folder or build it again",
        ) from error


def is_of_reading(error: BaseException) -> bool:
    """Say whether this is what Lance raises over damage; its panics are no ``Exception``, and their class is hidden."""
    known = isinstance(error, (OSError, ValueError, RuntimeError, OverflowError, MemoryError, pa.ArrowException))
    return known or type(error).__name__ == "PanicException"


def check_form(dataset: Any, path: Path, schema: Any) -> None:
    """Compare a table's columns with the schema expected, and refuse one that takes data from elsewhere.

    Raises:
        KnowledgeBaseError: A column is missing or has another type, or data lies outside of the folder.
    """
    elsewhere = dataset.base_paths()
    if elsewhere:
        raise KnowledgeBaseError(
            f"{path} takes data from {str(elsewhere)[:200]}",
            expected="a table whose data is in its own folder",
            fix="copy the entries into a base of their own",
        )
    found = {field.name: field.type for field in dataset.schema}
    wrong = [
        f"{field.name} is {found.get(field.name, 'missing')}, not {field.type}"
        for field in schema
        if found.get(field.name) != field.type
    ]
    if wrong:
        raise KnowledgeBaseError(
            f"{path}: {'; '.join(wrong)[:1000]}",
            expected="the columns that the manifest's plan and latent shape name",
            fix="the table or the manifest comes from another base; restore the one that belongs here",
        )


def check_sizes(dataset: Any, path: Path) -> None:
    """Compare every data file's size with what the table says, which costs no read of it.

    Raises:
        KnowledgeBaseError: A file is missing, or shorter or longer than it was written, or in another folder.
    """
    for file in (file for fragment in dataset.get_fragments() for file in fragment.metadata.files):
        if file.path != os.path.basename(file.path):
            raise KnowledgeBaseError(f"{path} names the file {file.path!r}", expected="files of its own folder")
        data = path / "data" / file.path
        size = data.stat().st_size if data.exists() else 0
        if file.file_size_bytes and size != file.file_size_bytes:
            raise KnowledgeBaseError(
                f"{data} has {size} bytes",
                expected=f"the {file.file_size_bytes} that were written",
                fix="run redi inspect --verify to see what is damaged; restore the folder or build it again",
            )


def check_count(dataset: Any, path: Path) -> None:
    """Refuse more rows than the data files can hold: a few bytes may claim any number of equal rows.

    Ids are hashes, which no encoding makes smaller than their 16 bytes.

    Raises:
        KnowledgeBaseError: There are more.
        OSError: There is no data.
    """
    count = int(dataset.count_rows())
    held = bytes_in((path / "data").iterdir()) if count else 0
    if count * _ID_BYTES > held:
        raise KnowledgeBaseError(
            f"{path} claims {count} rows in {held} bytes of data",
            expected=f"at least {_ID_BYTES} bytes a row",
            fix="restore the table, or build the base again",
        )


def check_filled(found: Any, path: Path) -> None:
    """Refuse rows that lack a field.

    Raises:
        KnowledgeBaseError: There are some.
    """
    empty = [name for name in found.column_names if found[name].null_count]
    if empty:
        raise KnowledgeBaseError(
            f"{path}: rows without {', '.join(empty)}", expected="every field of every row", fix="restore the table"
        )
