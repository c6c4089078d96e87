"""Owns the list of content hashes of a base's files, signed by one hash; must not know what the files hold.

``hashes.json`` names every file with its size and SHA-256; its ``signature`` is the SHA-256 of that list and stands
for the whole base: who has it from a place that they trust needs to trust no other. Search indexes, which anybody may
derive again, previews, counts of uses and what only a builder writes (``lock``) are not in it. While a base changes
the list waits as ``hashes.old.json``, so that files of the table, which never change, need not be read to sign again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.durable import fsync_file, replace_file, writing
from redi.knowledge_base.guard import check_depth, hash_of, read_file, shortened
from redi.knowledge_base.layout import TABLE

FILE_NAME, _OLD = "hashes.json", "hashes.old.json"
MAX_BYTES = 1 << 27
_VERSION = 1
_NOT_HASHED = (FILE_NAME, _OLD, "lock", "README.md", ".gitattributes", ".cache", "previews", "uses.jsonl")
_INDEXES, _HASHED_INDEXES = "index", ("leave_one_out.safetensors",)
_NEVER_CHANGED = f"{TABLE}/data/"


@dataclass(frozen=True)
class FileHash:
    """Size in bytes and SHA-256 (64 hexadecimal digits) of one file, and the value step that alone needs it, if any."""

    size: int
    sha256: str
    value_step: int | None = None


@dataclass(frozen=True)
class FileHashes:
    """The files of a base by their names below its folder (with ``/``)."""

    files: Mapping[str, FileHash]

    @property
    def signature(self) -> str:
        """SHA-256 of the sorted list, 64 hexadecimal digits."""
        lines = (f"{each.sha256} {each.size} {each.value_step} {name}\n" for name, each in sorted(self.files.items()))
        return sha256("".join(lines).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the text of ``hashes.json``."""
        listed = {name: hash_fields(each) for name, each in sorted(self.files.items())}
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
            files = {checked_name(name): checked_hash(name, each) for name, each in fields["files"].items()}
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


def checked_name(name: str) -> str:
    path = PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name and path.parts and str(path) == name
    if not plain or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the name {shortened(name)}")
    return name


def hash_fields(each: FileHash) -> dict[str, Any]:
    step = {} if each.value_step is None else {"value_step": each.value_step}
    return {"size": each.size, "sha256": each.sha256, **step}


def checked_hash(name: str, fields: Any) -> FileHash:
    if not isinstance(fields, dict):
        raise ValueError(f"the hash of {shortened(name)}")
    size, digest, step = fields.get("size"), fields.get("sha256"), fields.get("value_step")
    if type(size) is not int or not 0 <= size < 2**63 or (step is not None and type(step) is not int):
        raise ValueError(f"the size or value step of {shortened(name)}")
    if not isinstance(digest, str) or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ValueError(f"the hash of {shortened(name)}")
    return FileHash(size, digest, step)


def write_hashes(folder: Path, value_steps: Mapping[str, int] | None = None) -> FileHashes:
    """Write ``hashes.json`` of a base that nobody is writing to, and return it.

    Args:
        folder: Of the base; every file in it is read, but files of the table that were in its last list, which keep
            their hashes: what has changed in them since is damage, and signing must not hide it.
        value_steps: By file name, the value step that alone needs the file.

    Raises:
        KnowledgeBaseError: A file cannot be read, or the disk is full.
    """
    drop_hashes(folder)
    steps, known = value_steps or {}, _never_changed(folder)
    found = {
        name: replace(known[name], value_step=steps.get(name))
        if name in known
        else _hash_of(folder / name, steps.get(name))
        for name in sorted(file_names(folder))
    }
    return _signed(folder, FileHashes(found))


def _never_changed(folder: Path) -> Mapping[str, FileHash]:
    """Return what is known of files that are written once; nothing where the list that says so does not read."""
    try:
        old = _read(folder / _OLD)
    except KnowledgeBaseError:
        return {}
    return {name: each for name, each in old.files.items() if name.startswith(_NEVER_CHANGED)} if old else {}


def _signed(folder: Path, hashes: FileHashes) -> FileHashes:
    with writing(folder / _OLD):
        (folder / _OLD).unlink(missing_ok=True)
    replace_file(folder / FILE_NAME, hashes.to_json().encode())
    return hashes


def read_hashes(folder: Path) -> FileHashes | None:
    """Return the hashes that a base was saved with; None if it has none.

    Raises:
        KnowledgeBaseError: The list is damaged.
    """
    return _read(folder / FILE_NAME)


def _read(path: Path) -> FileHashes | None:
    try:
        text = read_file(path, MAX_BYTES).decode("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise KnowledgeBaseError(f"cannot read {path}: {error}", expected="a list of hashes") from error
    return FileHashes.from_json(text)


def drop_hashes(folder: Path) -> None:
    """Take away the list of a base that is about to change, flushed to the disk before anything is changed.

    Raises:
        KnowledgeBaseError: The folder is not writable.
    """
    with writing(folder / FILE_NAME), suppress(FileNotFoundError):
        os.replace(folder / FILE_NAME, folder / _OLD)
        fsync_file(folder)


@contextmanager
def signed_again(folder: Path, name: str) -> Iterator[None]:
    """Let one file of a base be replaced; a base that was signed is signed again, one that was not is left so.

    Args:
        folder: Of the base.
        name: Of the file, below it.

    Raises:
        KnowledgeBaseError: The list is damaged, the file cannot be read, or the disk is full.
    """
    known = read_hashes(folder)
    if known is None:
        yield
        return
    drop_hashes(folder)  # killed on the way, the base has no list rather than a wrong one
    yield
    _signed(folder, FileHashes({**known.files, name: _hash_of(folder / name)}))


def compare_files(folder: Path) -> list[str]:
    """Read every file that ``hashes.json`` names; return a sentence for each that is missing, changed or not named.

    Of a base that has changed since it was signed, the table's data files that were there before are read.

    Raises:
        KnowledgeBaseError: The list itself is damaged.
    """
    known = read_hashes(folder)
    if known is None:
        old = sorted(_never_changed(folder).items())
        compared = ((folder / name, _difference(folder, name, each, _OLD)) for name, each in old)
        return [said for path, said in compared if said and path.is_file()]
    found = differing_files(folder, known.files)
    return found + [f"{name} is not in {FILE_NAME}" for name in sorted(set(file_names(folder)) - set(known.files))]


def differing_files(folder: Path, files: Mapping[str, FileHash]) -> list[str]:
    """Read these files; return a sentence for each that is missing or changed."""
    compared = (_difference(folder, name, expected, FILE_NAME) for name, expected in sorted(files.items()))
    return [said for said in compared if said]


def _difference(folder: Path, name: str, expected: FileHash, its_list: str) -> str:
    path = folder / name
    if not path.is_file():
        return f"{name} is missing"
    if path.stat().st_size != expected.size:
        return f"{name} has {path.stat().st_size} bytes, not {expected.size}"
    if _hash_of(path, expected.value_step) != expected:
        return f"{name} was changed: it is not the file whose hash is in {its_list}"
    return ""


def is_lasting(name: str) -> bool:
    """Whether a name below a base's folder is of a file that the base consists of: not derived, not a builder's."""
    top, _, below = name.partition("/")
    if top == _INDEXES:
        return below in _HASHED_INDEXES
    return top not in _NOT_HASHED and (bool(below) or not top.endswith(".torn"))


def file_names(folder: Path) -> Iterator[str]:
    """Yield the names of the files that :func:`is_lasting`."""
    for place, folders, files in os.walk(folder):
        if Path(place) == folder:  # previews may be many
            folders[:] = [each for each in folders if each not in _NOT_HASHED]
        names = ((Path(place) / file).relative_to(folder).as_posix() for file in files)
        yield from filter(is_lasting, names)


def _hash_of(path: Path, value_step: int | None = None) -> FileHash:
    try:
        return FileHash(path.stat().st_size, hash_of(path), value_step)
    except OSError as error:
        raise KnowledgeBaseError(f"cannot read {path}: {error}", expected="a file of the base") from error
