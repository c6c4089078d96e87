"""Owns ``redi demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redi.cli import options


def demo(
    out: Annotated[Path, typer.Option(help="Folder for base, pictures and report.", metavar="FOLDER")] = Path("demo"),
    entries: Annotated[int, typer.Option(help="Entries of the knowledge base.", min=1, metavar="N")] = 800,
    pictures: Annotated[
        int, typer.Option(help="Prompts to compare, none of them in the base.", min=1, metavar="N")
    ] = 24,
    device: options.Device = None,
) -> None:
    """Build a small base with the bundled model and compare ReDi with full runs.

    Leaves comparison.png and report.json, and prints calls, seconds and how many pictures show what their prompts
    say. Nothing is downloaded.

    \b
    Example:
      redi demo --out demo
    """
    from redi.demo import run_demo

    typer.echo(run_demo(out, entries=entries, pictures=pictures, device=device))
