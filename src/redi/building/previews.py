"""Owns the small pictures of entries, ``previews/`` of a knowledge base; must not know how they were made."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from redi.knowledge_base import Entry, KnowledgeBase
from redi.knowledge_base.durable import replace_file, writing
from redi.knowledge_base.rows import entry_id
from redi.samples import shown

MAX_SIDE = 128


def preview_path(kb: KnowledgeBase, entry: Entry) -> Path | None:
    """Return the file that shows an entry (WebP, at most 128 pixels a side), None if there is none."""
    path = _path(kb, entry.entry_id)
    return path if path.is_file() else None


def save_preview(kb: KnowledgeBase, unit: int, slot: int, output: Any) -> None:
    """Write what can be seen of a picture or a video as the preview of an entry, whole or not at all.

    Raises:
        KnowledgeBaseError: The disk is full or not writable.
    """
    path = _path(kb, entry_id(kb.manifest.kb_id, unit, slot))
    picture = shown(output)
    if picture is None:
        return
    small = picture.convert("RGB")
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=90)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, buffer.getvalue())


def _path(kb: KnowledgeBase, identifier: bytes) -> Path:
    name = identifier.hex()
    return kb.path / "previews" / name[:2] / f"{name}.webp"
