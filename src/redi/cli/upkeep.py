"""Owns ``redi compact``, ``redi merge``, ``redi remove`` and ``redi split``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_Kb = Annotated[Path, typer.Argument(help="Folder of the knowledge base, or s3://bucket/name.", metavar="FOLDER")]
_Where = Annotated[
    list[str],
    typer.Option(
        "--where",
        help="Which entries: prompt=*dog*, noise=3, unit=0-9, or entry= and the start of an id. All must hold.",
        metavar="CONDITION",
    ),
]


def compact(
    kb: _Kb,
    *,
    now: Annotated[
        bool,
        typer.Option("--now", help="Delete old versions at once, also those that another process may be reading."),
    ] = False,
) -> None:
    """Put a knowledge base in order: few large files, no removed entries, fresh distances.

    Old versions stay for ten minutes, for those who read them; the next compact deletes them.

    \b
    Example:
      redi compact my-base
    """
    from datetime import timedelta

    from redi.knowledge_base import KnowledgeBase
    from redi.knowledge_base.guard import bytes_below
    from redi.knowledge_base.upkeep import WAIT
    from redi.knowledge_base.versions import GRACE

    base = KnowledgeBase.open(kb)
    before = bytes_below(base.path)
    with base.lock(WAIT):
        base.compact(grace=timedelta(0) if now else GRACE)
    typer.echo(
        f"{base.address}: {len(base)} entries, {before / 1e6:.1f} MB before, {bytes_below(base.path) / 1e6:.1f} MB now"
    )


def merge(
    a: Annotated[Path, typer.Argument(help="Folder of a knowledge base.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Folder of one that was built alike; left as it is.", metavar="B")],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Make a new base of both, instead of adding B's entries to A.", metavar="FOLDER"),
    ] = None,
) -> None:
    """Bring the entries of two knowledge bases together; what both hold comes once.

    Bases that differ in model, sampler, call, plan or noises are refused, with both sides.

    \b
    Example:
      redi merge my-base grown-elsewhere
      redi merge first second --out both
    """
    from redi.knowledge_base import KnowledgeBase
    from redi.knowledge_base.upkeep import merge as merge_bases
    from redi.knowledge_base.upkeep import merge_into

    first, second = KnowledgeBase.open(a), KnowledgeBase.open(b)
    if out is None:
        added = merge_bases(first, second)
        typer.echo(f"{added} of {len(second)} entries were new; {first.address} holds {len(first)}")
    else:
        made = merge_into(out, [first, second])
        typer.echo(f"{made.address} holds {len(made)} entries")


def remove(
    kb: _Kb,
    *,
    where: _Where,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell which entries are meant.")] = False,
) -> None:
    """Remove entries for good. Their numbers leave the disk with redi compact --now.

    \b
    Example:
      redi remove my-base --where "prompt=*dog*" --dry-run
      redi remove my-base --where noise=3 --where unit=0-9
    """
    from redi.building import preview_path
    from redi.knowledge_base import KnowledgeBase, upkeep

    base, conditions = KnowledgeBase.open(kb), upkeep.Where.parse(where)
    meant = [entry for _, entry in upkeep.matching(base, conditions)] if dry_run else upkeep.remove(base, conditions)
    for entry in meant:
        preview = None if dry_run else preview_path(base, entry)
        if preview is not None:
            preview.unlink()
    for entry in meant[:10]:
        typer.echo(f"{entry.entry_id.hex()[:12]}  noise {entry.noise_id}  {entry.prompt}")
    more = f" ({len(meant) - 10} are not shown)" if len(meant) > 10 else ""
    typer.echo(
        f"{len(meant)} entries {'would be removed' if dry_run else 'removed'}{more}; {base.address} holds {len(base)}"
    )


def split(
    kb: _Kb,
    *,
    where: _Where,
    out: Annotated[Path, typer.Option("--out", help="Folder of the new base.", metavar="FOLDER")],
) -> None:
    """Move entries of a knowledge base to one of their own.

    \b
    Example:
      redi split my-base --where noise=0-7 --out first-half
    """
    from redi.knowledge_base import KnowledgeBase, upkeep

    base = KnowledgeBase.open(kb)
    made, moved = upkeep.split(base, upkeep.Where.parse(where), out)
    typer.echo(f"{moved} entries moved; {made.address} holds {len(made)}, {base.address} holds {len(base)}")
