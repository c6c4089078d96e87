"""Owns ``redi push`` and ``redi pull``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from redi.cli import options
from redi.errors import InputError

CODECS = ("float16", "int8", "nf4")


def push(
    kb: Annotated[Path, typer.Argument(help="Folder of the knowledge base, or s3://bucket/name.", metavar="FOLDER")],
    repo_id: Annotated[str, typer.Argument(help="What the hub shall call it.", metavar="OWNER/NAME")],
    private: Annotated[bool, typer.Option("--private", help="If the dataset is new, make it private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch.  [default: the main one]", metavar="NAME")] = None,
    license: Annotated[
        str | None, typer.Option(help="As the hub names licences, such as apache-2.0.", metavar="NAME")
    ] = None,
    quality: Annotated[
        Path | None, typer.Option(help="JSON object of measured figures for the card.", metavar="FILE")
    ] = None,
) -> None:
    """Put a knowledge base on the Hugging Face hub, as a dataset with a card made from its manifest.

    \b
    Example:
      redi push my-base me/my-base --private --license apache-2.0
    """
    from redi.knowledge_base import KnowledgeBase

    base = KnowledgeBase.open(kb)
    figures = _figures(quality) if quality else None
    address = base.push_to_hub(repo_id, private=private, revision=revision, license=license, quality=figures)
    typer.echo(address)


def pull(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of a knowledge base, s3://bucket/name, or a hub id.", metavar="FOLDER|ADDRESS|OWNER/NAME"
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="New or empty folder, or s3://bucket/name.", metavar="FOLDER|ADDRESS")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the hub.  [default: the main branch]", metavar="NAME")
    ] = None,
    value_step: Annotated[
        str | None,
        typer.Option(help="Value steps to keep.  [default: all]", metavar="N,N,...", callback=options.checked_steps),
    ] = None,
    values: Annotated[
        str | None,
        typer.Option(
            help="Keep values in 16, 8 or 4 bits; keys stay as they are.  [default: as they are]",
            metavar="|".join(CODECS),
            callback=options.one_of(CODECS),
        ),
    ] = None,
) -> None:
    """Copy a knowledge base of a folder, a bucket or the hub: whole, with fewer value steps or with fewer bits.

    Of a base on the hub only the files of the value steps asked for are fetched. Every file is compared with
    hashes.json where there is one, every row is checked, and the copy gets a hashes.json of its own.

    \b
    Example:
      redi pull me/my-base my-base --value-step 40
      redi pull my-base /backup/my-base
      redi pull my-base s3://bucket/my-base
      redi pull my-base smaller --values int8
    """
    from redi.knowledge_base import sharing
    from redi.knowledge_base.bucket import as_written

    steps = options.steps(value_step) if value_step else None
    hashes = sharing.save(source, folder, revision=revision, value_steps=steps, values=values)
    size = sum(file.size for file in hashes.files.values())
    typer.echo(f"{as_written(folder)}: {size / 1e6:.1f} MB in {len(hashes.files)} files, signature {hashes.signature}")


def _figures(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}", expected="a JSON object of figures") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a JSON {type(found).__name__}", expected="a JSON object of figures")
    return found
