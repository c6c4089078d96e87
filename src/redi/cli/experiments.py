"""Owns ``redi experiments``: the studies from the command line; must not know how they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

experiments_app = typer.Typer(help="Regenerate the paper's tables and redi's own claims.", no_args_is_help=True)

_NAMES = (
    "table1, table2, table3, rivals, smaller, estimates, styles, bound, gate, "
    "figure6-short, figure6, figure6-pndm, or all."
)


@experiments_app.command()
def run(
    name: Annotated[str, typer.Argument(help=_NAMES)],
    scale: Annotated[str, typer.Option(help="toy (minutes) or small (hours, on the bundled model).")] = "toy",
    work: Annotated[
        Path, typer.Option(help="Where bases and samples are kept; runs that are there are not repeated.")
    ] = Path("runs/experiments"),
    results: Annotated[Path, typer.Option(help="Where the results go, as JSON and sheets.")] = Path("results"),
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the first that is there.")] = None,
) -> None:
    """Run what is missing of a study and write its results; interrupt it at any time and call it again to go on.

    Example: redi experiments run table2 --scale toy
    """
    from redi.errors import InputError
    from redi.experiments.laboratory import Laboratory
    from redi.experiments.runner import EXPERIMENTS, experiment
    from redi.experiments.sampling import SCALES

    if scale not in SCALES:
        raise InputError(f"scale {scale!r}", expected=f"one of {', '.join(SCALES)}")
    chosen = {each: experiment(each) for each in (EXPERIMENTS if name == "all" else (name,))}
    laboratory = Laboratory(work, SCALES[scale], device)
    for each, run_it in chosen.items():
        run_it(laboratory, results, tell=typer.echo)
        typer.echo(f"wrote {results / scale / each}.json")


@experiments_app.command()
def report(
    scale: Annotated[str, typer.Option(help="Whose results.")] = "small",
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
    out: Annotated[Path, typer.Option(help="The page.")] = Path("docs/results.md"),
) -> None:
    """Write docs/results.md and its plots from the results.

    Example: redi experiments report
    """
    from redi.experiments.report import write_report

    write_report(results, out, scale=scale)
    typer.echo(f"wrote {out}")
