"""Owns reading prompts from files; must not know pipelines or knowledge bases."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from redi.errors import InputError

COLUMNS = ("prompt", "caption", "text")
"""Names under which a prompt is looked for, first hit wins, whatever their case."""


def read_prompts(path: str | Path) -> list[str]:
    """Read the prompts of a file, stripped, in the file's order, repeats included, blank ones skipped.

    Args:
        path: One of

            - ``.txt``: one prompt a line;
            - ``.jsonl``: one a line, a string or an object with a field prompt, caption or text;
            - ``.csv``: with a header; the column prompt, caption or text, or the only column;
            - ``.parquet``: the same columns;
            - ``.json``: COCO's captions; the first caption of each image, in the order in which the images appear.

    Raises:
        InputError: The file is missing, empty, not UTF-8, of another kind, or has no prompt where one is expected;
            the message names the line or row.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"prompts file {path}", expected=f"a file that ends in {', '.join(_READERS)}")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"prompts file {path} {what}", expected="a file", fix="check the path")
    try:
        prompts = [prompt for prompt in map(str.strip, reader(path)) if prompt]
    except OSError as error:
        raise InputError(f"prompts file {path} cannot be read: {error.strerror or error}") from error
    if not prompts:
        raise InputError(f"prompts file {path} is empty", expected="at least one prompt")
    return prompts


def read_captions(path: Path) -> dict[Any, list[str]]:
    """Read COCO's captions: those of each image by its id, stripped, blank ones skipped, images in the file's order.

    Raises:
        InputError: The file is not what COCO's captions look like; the message names the annotation.
    """
    text = _text(path)
    if not text.strip():
        return {}
    document = _json(text, str(path))
    annotations = document.get("annotations") if isinstance(document, Mapping) else None
    if not isinstance(annotations, Sequence) or isinstance(annotations, str):
        raise InputError(
            f"{path} has no list of annotations",
            expected='COCO\'s captions: {"annotations": [{"image_id": 1, "caption": "a cat"}, ...]}',
            fix="for one JSON record a line, name the file .jsonl",
        )
    found: dict[Any, list[str]] = {}
    for number, annotation in enumerate(annotations, start=1):
        where = f"annotation {number} of {path}"
        if not isinstance(annotation, Mapping) or not isinstance(annotation.get("image_id"), int | str):
            raise InputError(f"{where} has no image_id", expected='{"image_id": 1, "caption": "a cat"}')
        caption = _string(annotation.get("caption"), f"field 'caption' in {where}").strip()
        if caption:
            found.setdefault(annotation["image_id"], []).append(caption)
    return found


def _from_txt(path: Path) -> Iterator[str]:
    return iter(_text(path).split("\n"))


def _from_jsonl(path: Path) -> Iterator[str]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        record = _json(line, where)
        if isinstance(record, str):
            yield record
            continue
        if not isinstance(record, Mapping):
            raise InputError(f"{where} is a {type(record).__name__}", expected="a string or an object")
        column = _column(list(record), where, may_be_only=False)
        yield _string(record[column], f"field {column!r} in {where}")


def _from_csv(path: Path) -> Iterator[str]:
    rows = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = next(rows, [])
        if not header:
            return
        place = header.index(_column(header, f"the header of {path}"))
        for row in rows:
            if row and len(row) != len(header):
                raise InputError(
                    f"line {rows.line_num} of {path} has {len(row)} fields, the header {len(header)}",
                    expected="the same number",
                    fix='put a prompt that holds commas into double quotes: "a cat, asleep"',
                )
            if row:
                yield row[place]
    except csv.Error as error:
        raise InputError(
            f"line {rows.line_num} of {path} is not CSV: {error}", expected="comma-separated text"
        ) from error


def _from_parquet(path: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            column = _column(file.schema_arrow.names, f"the schema of {path}")
            number = 0
            for batch in file.iter_batches(columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield _string(value, f"column {column!r} in row {number} of {path}")
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is not a parquet file that reads: {error}", expected="a parquet table") from error


def _from_coco(path: Path) -> Iterator[str]:
    return (captions[0] for captions in read_captions(path).values())


_READERS: Mapping[str, Callable[[Path], Iterable[str]]] = {
    ".txt": _from_txt,
    ".jsonl": _from_jsonl,
    ".csv": _from_csv,
    ".parquet": _from_parquet,
    ".json": _from_coco,
}


def _text(path: Path) -> str:
    """Return a file's text with line ends as \\n, without a byte order mark."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"line {line} of {path} is not UTF-8 (byte 0x{raw[error.start]:02x})",
            expected="UTF-8 text",
            fix="convert it, e.g. iconv -f latin1 -t utf-8",
        ) from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}", expected="valid JSON") from error


def _column(names: Sequence[str], where: str, *, may_be_only: bool = True) -> str:
    """Return the name, as the file spells it, under which the prompts stand."""
    spelled = {name.strip().casefold(): name for name in reversed(names)}
    for column in COLUMNS:
        if column in spelled:
            return spelled[column]
    if may_be_only and len(names) == 1:
        return names[0]
    raise InputError(f"{where} names {', '.join(names) or 'nothing'}", expected=f"one of {', '.join(COLUMNS)}")


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        got = "nothing" if value is None else f"a value of type {type(value).__name__}"
        raise InputError(f"{where} holds {got}", expected="text")
    return value
