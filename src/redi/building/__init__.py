"""Owns building a knowledge base: prompts, units of work, resume and runners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redi.building.prompts import read_prompts

if TYPE_CHECKING:
    from redi.building.previews import preview_path
    from redi.building.runner import build

__all__ = ["build", "preview_path", "read_prompts"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for."""
    if name == "build":
        from redi.building.runner import build

        return build
    if name == "preview_path":
        from redi.building.previews import preview_path

        return preview_path
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
