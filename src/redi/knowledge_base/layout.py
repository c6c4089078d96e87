"""Owns where a base's table is in its folder, and which folders are free for a new base; must not know contents."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.codec import CODECS, Columns
from redi.knowledge_base.ledger import Ledger
from redi.knowledge_base.manifest import FILE_NAME, Manifest

TABLE = "entries.lance"
REFUSED = "refused.jsonl"
INDEX = "index"
_SCHEME = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9+.-]+):/")


def columns_of(manifest: Manifest) -> Columns:
    """Return the table's latent columns."""
    plan = manifest.plan
    names = (*(f"key_{step}" for step in plan.key_steps), *(f"value_{step}" for step in plan.value_steps))
    return Columns(names, manifest.size, CODECS[manifest.values])


def local_folder(path: str | PathLike[str]) -> Path:
    """Return the folder that a base is, or is to be.

    Raises:
        KnowledgeBaseError: No path, or the address of a store, of which ``pathlib`` would make a folder named ``s3:``.
    """
    if not isinstance(path, (str, PathLike)):
        raise KnowledgeBaseError(f"a knowledge base at {path!r}", expected="a folder, or s3://bucket/name")
    scheme = _SCHEME.match(str(path))
    if scheme:
        raise KnowledgeBaseError(
            f"a knowledge base at {str(path)!r}",
            expected="a folder of a local or mounted disk, or s3://bucket/name where a base is built or opened",
            fix=f"copy it to a folder or a bucket; {scheme['name']} is not read by redi here",
        )
    return Path(path)


def check_free(folder: Path) -> None:
    """Refuse a folder that holds anything but what a killed :meth:`KnowledgeBase.create` leaves, or is in a base.

    Raises:
        KnowledgeBaseError: It does, or is.
    """
    local_folder(folder)
    for above in folder.resolve().parents:
        if (above / FILE_NAME).is_file() and (above / TABLE).is_dir():
            raise KnowledgeBaseError(
                f"{folder} is inside of the knowledge base {above}",
                expected="a folder outside of every base, whose files are all its own",
                fix="choose another folder",
            )
    found = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if folder.exists() and not folder.is_dir():
        raise KnowledgeBaseError(f"{folder} is a file", expected="a new or empty folder")
    if FILE_NAME in found:
        raise KnowledgeBaseError(
            f"{folder} holds a knowledge base already",
            expected="a new or empty folder",
            fix="open it to go on building, or choose another folder",
        )
    ours = {name for name in found if name in ("noise", TABLE, "ledger", "lock") or name.startswith(FILE_NAME)}
    if found - ours:
        raise KnowledgeBaseError(
            f"{folder} holds {', '.join(sorted(found - ours)[:5])}", expected="a new or empty folder"
        )
    if Ledger(folder / "ledger").records:
        raise KnowledgeBaseError(
            f"{folder} holds entries but no {FILE_NAME}",
            expected="a new or empty folder",
            fix=f"restore {FILE_NAME}; the entries cannot be read without it",
        )
