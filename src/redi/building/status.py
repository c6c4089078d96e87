"""Owns how far a build is, read from its folder while it goes on; must not know pipelines, and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike

from redi.identity import INFORMATION
from redi.knowledge_base import KnowledgeBase
from redi.knowledge_base.ledger import holder_of
from redi.knowledge_base.rows import FIRST_NAMED_UNIT


@dataclass(frozen=True)
class BuildStatus:
    """How far a build is.

    Args:
        units_done: Units of work of the build that need not be done again.
        units: Units in all; None if the base was not made by a build.
        entries: Entries stored by the build.
        more: Entries that came otherwise: grown, or merged in.
        prompts: Prompts of the build; None if the base was not made by one.
        refused: Prompts that were skipped, named in ``refused.jsonl``.
        builder: Process and machine that build now; None: nobody.
        last_commit: When a unit was last committed, UTC, to the second; None: never.
    """

    units_done: int
    units: int | None
    entries: int
    more: int
    prompts: int | None
    refused: int
    builder: str | None
    last_commit: str | None


def build_status(path: str | PathLike[str]) -> BuildStatus:
    """Return how far the build of a base is; reads what is committed, whether or not somebody builds.

    Raises:
        KnowledgeBaseError: There is no base, or it is damaged.
    """
    kb = KnowledgeBase.open(path)
    information = kb.manifest.identity.get(INFORMATION, {})
    prompts = information.get("prompts", {}).get("count")
    unit_size = information.get("unit_size")
    units = -(-prompts // unit_size) if isinstance(prompts, int) and isinstance(unit_size, int) and unit_size else None
    units_there = kb.completed_units()
    done = [unit for unit in units_there if unit < FIRST_NAMED_UNIT]
    more = kb.count_of_more()
    ledger = kb.path / "ledger" / "units.jsonl"
    committed = datetime.fromtimestamp(ledger.stat().st_mtime, UTC) if units_there and ledger.is_file() else None
    return BuildStatus(
        units_done=len(done),
        units=units,
        entries=len(kb) - more,
        more=more,
        prompts=prompts if isinstance(prompts, int) else None,
        refused=len(kb.refused()),
        builder=holder_of(kb.path / "lock"),
        last_commit=committed.isoformat(timespec="seconds") if committed else None,
    )
