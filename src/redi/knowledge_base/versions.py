"""Owns which old versions of a table may go while other processes read; must not know what a table holds."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from redi.knowledge_base.durable import fsync_file, writing

GRACE = timedelta(minutes=10)
"""How long a version that has been replaced stays, so that who reads it can end what they have begun."""


def drop_replaced(dataset: Any, grace: timedelta) -> None:
    """Delete what only versions need that were replaced at least ``grace`` ago, and what nothing names.

    A version's own time tells when it was made; it was replaced when the next one was made. So the newest version
    that is older than ``grace`` tells which ones may go: those before it. Only under the builder's lock: a file that
    nothing names yet may be another writer's.
    """
    now = datetime.now()
    made = [version["timestamp"] for version in dataset.versions()]
    old = [when for when in made if now - when >= grace]
    if old:
        dataset.cleanup_old_versions(older_than=now - max(old), delete_unverified=True)


def set_torn_aside(folder: Path, version: int) -> None:
    """Rename manifests newer than ``version``; nothing that they alone name was ever acknowledged."""
    with writing(folder):
        for file in folder.glob("*.manifest"):
            if _number_of(file) > version:
                file.rename(file.with_suffix(".torn"))
        fsync_file(folder)


def last_before_empty(folder: Path) -> int | None:
    """Return the version before those whose manifests hold nothing, 0 if no other is left; None if none is empty.

    Versions that were all set aside count as empty: who did so was killed before there was a new one.
    """
    sizes: dict[int, int] = {}
    for file in folder.glob("*.manifest"):
        with suppress(FileNotFoundError):
            sizes[_number_of(file)] = file.stat().st_size
    whole = max((number for number, size in sizes.items() if size), default=0)
    empty = any(number > whole for number in sizes) or (not whole and any(folder.glob("*.torn")))
    return whole if empty else None


def _number_of(manifest: Path) -> int:
    """Return the version that a manifest is of; Lance names versions in two ways."""
    number = int(manifest.stem) if manifest.stem.isdecimal() else 0
    return 2**64 - 1 - number if len(manifest.stem) == 20 else number


def stamp_of(table: Path, version: int) -> tuple[int, int] | None:
    """Return what tells a version's file from another of the same number; None if it is gone."""
    for name in (f"{2**64 - 1 - version:020d}.manifest", f"{version}.manifest"):  # Lance names versions in two ways
        with suppress(FileNotFoundError):
            found = (table / "_versions" / name).stat()
            return found.st_ino, found.st_mtime_ns
    return None
