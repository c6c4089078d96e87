"""Owns the list of content hashes of a base's files, signed by one hash; must not know what the files hold.

``hashes.json`` names every file with its size and SHA-256; its ``signature`` is the SHA-256 of that list and stands
for the whole base: who has it from a place that they trust needs to trust no other. Derived files (``index/``) and
what only a builder writes (``lock``) are not in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.durable import replace_file, writing
from redi.knowledge_base.guard import check_depth, read_file, shortened

FILE_NAME = "hashes.json"
MAX_BYTES = 1 << 27
_VERSION = 1
_CHUNK = 1 << 22
_NOT_HASHED = (FILE_NAME, "lock", "README.md", ".gitattributes", ".cache", "index", "previews")


@dataclass(frozen=True)
class FileHash:
    """Size in bytes and SHA-256 (64 hexadecimal digits) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class FileHashes:
    """The files of a base by their names below its folder (with ``/``)."""

    files: Mapping[str, FileHash]

    @property
    def signature(self) -> str:
        """SHA-256 of the sorted list, 64 hexadecimal digits."""
        lines = (f"{each.sha256} {each.size} {name}\n" for name, each in sorted(self.files.items()))
        return sha256("".join(lines).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the text of ``hashes.json``."""
        listed = {name: {"size": each.size, "sha256": each.sha256} for name, each in sorted(self.files.items())}
        return json.dumps({"version": _VERSION, "signature": self.signature, "files": listed}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> FileHashes:
        """Read what :meth:`to_json` wrote.

        Raises:
            KnowledgeBaseError: It is damaged, names a file outside of the folder, or its signature is another's.
        """
        try:
            fields = json.loads(text)
            check_depth(fields, FILE_NAME)
            if not isinstance(fields, dict) or fields.get("version") != _VERSION:
                raise ValueError("not version 1")
            if not isinstance(fields.get("files"), dict):
                raise ValueError("no files")
            files = {_name(name): _hash(name, each) for name, each in fields["files"].items()}
        except (ValueError, RecursionError) as error:
            raise KnowledgeBaseError(
                f"{FILE_NAME} cannot be read: {str(error)[:300]}",
                expected="the list that redi wrote",
                fix="restore it, or save the base again if you trust the files (redi pull <it> <folder>)",
            ) from error
        found = cls(files)
        if fields.get("signature") != found.signature:
            raise KnowledgeBaseError(
                f"{FILE_NAME} was changed: it sums up to {found.signature}",
                expected=f"its signature {shortened(fields.get('signature'))}",
                fix="restore it, or save the base again if you trust the files (redi pull <it> <folder>)",
            )
        return found


def _name(name: str) -> str:
    path = PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name and path.parts and str(path) == name
    if not plain or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the name {shortened(name)}")
    return name


def _hash(name: str, fields: Any) -> FileHash:
    size, digest = (fields.get("size"), fields.get("sha256")) if isinstance(fields, dict) else (None, None)
    fine = type(size) is int and 0 <= size < 2**63 and isinstance(digest, str) and len(digest) == 64
    if not fine or not set(str(digest)) <= set("0123456789abcdef"):
        raise ValueError(f"the hash of {shortened(name)}")
    return FileHash(int(str(size)), str(digest))


def hash_files(folder: Path) -> FileHashes:
    """Read every file of a base and return its hashes.

    Raises:
        KnowledgeBaseError: A file cannot be read.
    """
    return FileHashes({name: _hash_of(folder / name) for name in sorted(_names(folder))})


def write_hashes(folder: Path) -> FileHashes:
    """Write ``hashes.json`` of a base that nobody is writing to, and return it.

    Raises:
        KnowledgeBaseError: A file cannot be read, or the disk is full.
    """
    found = hash_files(folder)
    replace_file(folder / FILE_NAME, found.to_json().encode())
    return found


def read_hashes(folder: Path) -> FileHashes | None:
    """Return the hashes that a base was saved with; None if it has none.

    Raises:
        KnowledgeBaseError: The list is damaged.
    """
    try:
        text = read_file(folder / FILE_NAME, MAX_BYTES).decode("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise KnowledgeBaseError(f"cannot read {folder / FILE_NAME}: {error}", expected="a list of hashes") from error
    return FileHashes.from_json(text)


def drop_hashes(folder: Path) -> None:
    """Delete the list of a base that is about to change.

    Raises:
        KnowledgeBaseError: The folder is not writable.
    """
    with writing(folder / FILE_NAME):
        (folder / FILE_NAME).unlink(missing_ok=True)


def compare_files(folder: Path) -> list[str]:
    """Read every file that ``hashes.json`` names; return a sentence for each that is missing, changed or not named.

    Raises:
        KnowledgeBaseError: The list itself is damaged.
    """
    known = read_hashes(folder)
    if known is None:
        return []
    found = []
    for name, expected in sorted(known.files.items()):
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != expected.size:
            found.append(f"{name} has {path.stat().st_size} bytes, not {expected.size}")
        elif _hash_of(path) != expected:
            found.append(f"{name} was changed: it is not the file whose hash is in {FILE_NAME}")
    return found + [f"{name} is not in {FILE_NAME}" for name in sorted(set(_names(folder)) - set(known.files))]


def _names(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        top = Path(place) == folder
        folders[:] = [each for each in folders if not (top and each in _NOT_HASHED)]
        for file in files:
            if not (top and (file in _NOT_HASHED or file.endswith(".torn"))):
                yield (Path(place) / file).relative_to(folder).as_posix()


def _hash_of(path: Path) -> FileHash:
    digest, size = sha256(), 0
    try:
        with open(path, "rb") as file:
            while part := file.read(_CHUNK):
                digest.update(part)
                size += len(part)
    except OSError as error:
        raise KnowledgeBaseError(f"cannot read {path}: {error}", expected="a file of the base") from error
    return FileHash(size, digest.hexdigest())
