"""Owns ``redi experiments``: the studies from the command line; must not know how they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

experiments_app = typer.Typer(help="Regenerate the paper's tables and redi's own claims.", no_args_is_help=True)

_NAMES = (
    "table1, table2, table3, rivals, variants, smaller, estimates, styles, bound, gate, "
    "figure6-short, figure6, figure6-pndm, or all."
)


_Size = Annotated[str, typer.Option("--scale", help="toy (minutes) or small (hours, on the bundled model).")]
_Work = Annotated[Path, typer.Option(help="Where bases and samples are kept; runs that are there are not repeated.")]
_Results = Annotated[Path, typer.Option(help="Where the results go, as JSON and sheets.")]
_Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default the first that is there.")]
_WORK, _RESULTS = Path("runs/experiments"), Path("results")


@experiments_app.command()
def run(
    name: Annotated[str, typer.Argument(help=_NAMES)],
    scale: _Size = "toy",
    work: _Work = _WORK,
    results: _Results = _RESULTS,
    device: _Device = None,
    rows: Annotated[
        str | None,
        typer.Option(help="Run these rows of a table only (a pattern such as '*kriging*'), and keep the others'."),
    ] = None,
) -> None:
    """Run what is missing of a study and write its results; interrupt it at any time and call it again to go on.

    Example: redi experiments run table2 --scale toy
    """
    from redi.errors import InputError
    from redi.experiments.laboratory import Laboratory
    from redi.experiments.runner import EXPERIMENTS, experiment
    from redi.experiments.sampling import SCALES
    from redi.experiments.studies import STUDIES

    if scale not in SCALES:
        raise InputError(f"scale {scale!r}", expected=f"one of {', '.join(SCALES)}")
    chosen = {each: experiment(each) for each in (EXPERIMENTS if name == "all" else (name,))}
    if rows is not None and name not in STUDIES:
        raise InputError(f"--rows with {name!r}", expected=f"one of {', '.join(STUDIES)}")
    laboratory = Laboratory(work, SCALES[scale], device)
    for each, run_it in chosen.items():
        some = {} if rows is None else {"only": rows}
        run_it(laboratory, results, tell=typer.echo, **some)
        typer.echo(f"wrote {results / scale / each}.json")


@experiments_app.command()
def bound(scale: _Size = "toy", work: _Work = _WORK, results: _Results = _RESULTS, device: _Device = None) -> None:
    """Compare the paper's error bound (section 5) with what is observed: the same as redi experiments run bound.

    Example: redi experiments bound --scale toy
    """
    run("bound", scale, work, results, device)


@experiments_app.command()
def rate(
    folder: Annotated[Path, typer.Argument(help="What redi generate --compare wrote.")],
    scores: Annotated[Path, typer.Option(help="Where scores go, one line of JSON for a pair; rated pairs are kept.")],
    port: Annotated[int, typer.Option(help="Of the page on this machine; 0 is a free one.", min=0, max=65535)] = 0,
    seed: Annotated[int, typer.Option(help="Decides the order of pairs and of their sides.", min=0)] = 0,
    summary: Annotated[bool, typer.Option("--summary", help="Tell the scores so far instead.")] = False,
) -> None:
    """Rate pictures of ReDi and of the full run from 1 to 5 without knowing which is which, on a page in the browser.

    The keys 1 to 5 score the picture with the frame. Ctrl-C ends it; call it again to go on.

    Example: redi experiments rate pictures --scores scores.jsonl
    """
    from redi.experiments import rating

    if summary:
        told = rating.summary(scores)
        typer.echo(f"{told['pairs']} pairs")
        for name in ("redi", "full", "difference"):
            found = told[name]
            typer.echo(f"{name}: {found.value:.2f} [{found.low:.2f}, {found.high:.2f}]")
        return
    with rating.server(rating.Session(rating.pairs_of(folder, seed=seed), scores), port=port) as page:
        typer.echo(f"http://127.0.0.1:{page.server_address[1]}/")
        try:
            page.serve_forever()
        except KeyboardInterrupt:
            typer.echo(f"scores are in {scores}")


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
