"""Owns what is checked of a base's files before they are believed (kinds, links, sizes); must not know their content.

A knowledge base may come from a stranger. Whatever is in its folder, reading it ends in numbers or in a
:class:`KnowledgeBaseError`, takes memory in proportion to the bytes that are there, touches no file outside of the
folder and executes nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import file_digest
from pathlib import Path
from typing import Any

from redi.errors import KnowledgeBaseError

MAX_DEPTH = 64
_UNSCANNED = ("previews",)  # many, and each is only ever shown


def read_file(path: Path, limit: int) -> bytes:
    """Return the bytes of a file, at most ``limit`` of them.

    Raises:
        OSError: There is no such file, or it cannot be read.
        KnowledgeBaseError: It is no plain file (a device or a pipe would never end), or larger.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KnowledgeBaseError(f"{path} is no plain file", expected="a file that redi wrote", fix="restore it")
        data = file.read(min(limit, status.st_size) + 1) if status.st_size <= limit else b""
        if status.st_size > limit or len(data) > limit:
            raise KnowledgeBaseError(
                f"{path} has {max(status.st_size, len(data))} bytes",
                expected=f"at most {limit}",
                fix="the file does not belong to this base; restore it",
            )
        return data


def bytes_in(files: Iterable[Path]) -> int:
    """Return the bytes of files, passing over those that a writer has renamed or deleted meanwhile."""
    held = 0
    for file in files:
        with suppress(FileNotFoundError):
            held += file.stat().st_size
    return held


def bytes_below(folder: Path) -> int:
    """Return the bytes of all files in a folder and below it, as :func:`bytes_in` does."""
    return bytes_in(file for file in folder.rglob("*") if file.is_file())


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        return str(file_digest(file, "sha256").hexdigest())


def check_depth(value: Any, what: str) -> None:
    """Refuse JSON that is nested deeper than anything redi writes, before something walks it recursively.

    Raises:
        KnowledgeBaseError: It is.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            below
            for each in level
            if isinstance(each, (dict, list))
            for below in (each.values() if isinstance(each, dict) else each)
            if isinstance(below, (dict, list))
        ]
        if not level:
            return
    raise KnowledgeBaseError(f"{what} is nested deeper than {MAX_DEPTH} levels", expected="what redi wrote")


def check_links(folder: Path, *, to_write: bool = False) -> None:
    """Refuse links that lead out of a base's folder; before writing, every link.

    A download of the Hugging Face cache consists of links to ``blobs`` beside its snapshots; those may be read.

    Args:
        folder: Of the base; may itself be a link, which is the user's own.
        to_write: Whether files will be changed: a builder must not write through a stranger's link.

    Raises:
        KnowledgeBaseError: There is such a link.
    """
    inside = _allowed(folder)
    for link in _links(folder):
        target = Path(os.path.realpath(link))
        if to_write:
            raise KnowledgeBaseError(
                f"{link} is a link to {target}",
                expected="plain files in a base that is written to",
                fix="copy the base first (redi pull <it> <folder>), which makes files of links",
            )
        if not any(target.is_relative_to(each) for each in inside):
            raise KnowledgeBaseError(
                f"{link} is a link to {target}, outside of the knowledge base",
                expected="files inside of the folder",
                fix="put the file itself in its place, if you trust it",
            )


def _allowed(folder: Path) -> list[Path]:
    real = Path(os.path.realpath(folder))
    cached = real.parent.name == "snapshots"
    return [real, real.parent.parent / "blobs"] if cached else [real]


def _links(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:  # not there, or no folder: the reader says so better
        return
    for entry in entries:
        if entry.is_symlink():
            yield Path(entry.path)
        elif entry.is_dir(follow_symlinks=False) and entry.name not in _UNSCANNED:
            yield from _links(Path(entry.path))


def shortened(value: object, limit: int = 120) -> str:
    """Return ``repr`` of what was got, cut off, so that a message stays a message."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
