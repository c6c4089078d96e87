"""Owns ``redi index``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from redi.knowledge_base.index_files import Part


def index(
    kb: Annotated[Path, typer.Argument(help="Folder of the knowledge base, or s3://bucket/name.", metavar="FOLDER")],
    show: Annotated[bool, typer.Option("--show", help="Only tell what is there.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make it anew, also where the old one would do.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make or update the index of a large knowledge base, and tell what was chosen and why.

    Entries of one noise are searched exactly until their keys are many; then a part of them is held out, and the
    cheapest index is taken that finds at least 99 % of their true nearest neighbours. redi build does this by itself;
    after a base has grown, this brings the index up to it. Bases may be read meanwhile.

    \b
    Example:
      redi index my-base
      redi index my-base --show
    """
    from redi.knowledge_base import KnowledgeBase
    from redi.knowledge_base.index_files import read_facts

    base = KnowledgeBase.open(kb)
    indexer = base.indexer
    if not show and (rebuild or indexer.pays() or read_facts(indexer.folder)):
        indexer.update(rebuild=rebuild, told=lambda part: typer.echo(_told(part), err=True))
    found = read_facts(indexer.folder)
    facts: dict[str, Any] = {
        "knowledge base": base.address,
        "entries": len(base),
        "entries in the index": found[1].count if found else 0,
        "parts": [asdict(part) for part in found[1].parts] if found else [],
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    typer.echo(f"{base.address}: {facts['entries']} entries, {facts['entries in the index']} in the index")
    for part in found[1].parts if found else ():
        typer.echo(_told(part))
    if not facts["parts"]:
        typer.echo("every search is exact: no noise has keys enough for an index to pay")


def _told(part: Part) -> str:
    head = f"key step {part.key_step}, noise {part.noise_id}, {part.count} entries: {part.method}"
    measured = [
        f"{each.neighbors} nearest of {each.reranked} compared: {each.recall:.4f} (at least {each.lower:.4f})"
        for each in part.measured
    ]
    return "\n  ".join([head, *([f"recall on {part.queries} held-out keys"] if measured else []), *measured])
