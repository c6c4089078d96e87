"""Owns ``redi experiments``: the studies from the command line; must not know how they are made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from redi.experiments.rating import Task
    from redi.experiments.subjects import Subject

experiments_app = typer.Typer(help="Regenerate the paper's tables and redi's own claims.", no_args_is_help=True)

_NAMES = (
    "table1, table2, table3, rivals, keys, keys-pndm, chains, variants, smaller, estimates, styles, bound, gate, bank, "
    "breaks, figure6-short, figure6, figure6-pndm, or all."
)


_Size = Annotated[
    str, typer.Option("--scale", help="toy (minutes), small (hours, on the bundled model) or paper (days on a GPU).")
]
_Work = Annotated[Path, typer.Option(help="Where bases and samples are kept; runs that are there are not repeated.")]
_Results = Annotated[Path, typer.Option(help="Where the results go, as JSON and sheets.")]
_Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default the first that is there.")]
_Model = Annotated[str, typer.Option(help="Whose trajectories: the bundled model, or with --coco a folder or hub id.")]
_Coco = Annotated[
    Path | None, typer.Option(help="COCO 2014: annotations/captions_train2014.json, captions_val2014.json, val2014/.")
]
_Features = Annotated[
    list[Path] | None,
    typer.Option(
        help="Local weights that read pictures: a folder of CLIP or DINOv2, or Inception or LPIPS as TorchScript; the "
        "first gives the distances, the first CLIP the scores, LPIPS a column. [default: the bundled evaluator]"
    ),
]
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
    model: _Model = "miniature",
    coco: _Coco = None,
    features: _Features = None,
) -> None:
    """Run what is missing of a study and write its results; interrupt it at any time and call it again to go on.

    What the paper's scale needs and costs is in docs/experiments.md.

    Example: redi experiments run table2 --scale toy
    """
    from redi.errors import InputError
    from redi.experiments.beforehand import check
    from redi.experiments.laboratory import Laboratory
    from redi.experiments.runner import EXPERIMENTS, OF_THE_MINIATURE, experiment
    from redi.experiments.sampling import scale_of
    from redi.experiments.studies import STUDIES

    _check_scale(scale)
    chosen = {each: experiment(each) for each in (EXPERIMENTS if name == "all" else (name,))}
    subject = _subject(name, model, coco, features or [], scale, device)
    left_out = [each for each in chosen if each in OF_THE_MINIATURE and not subject.judges]
    for each in left_out:
        typer.echo(f"{each}: left out, it needs the bundled model's evaluator")
        del chosen[each]
    if rows is not None and name not in STUDIES:
        raise InputError(f"--rows with {name!r}", expected=f"one of {', '.join(STUDIES)}")
    laboratories = {each: Laboratory(work, scale_of(scale, each), device, subject=subject) for each in chosen}
    for each, laboratory in laboratories.items():
        check(each, laboratory, results)
    for each, run_it in chosen.items():
        laboratory = laboratories.pop(each)  # with what it holds: features of real pictures
        some = {} if rows is None else {"only": rows}
        run_it(laboratory, results, tell=typer.echo, **some)
        typer.echo(f"wrote {results / scale / each}.json")


@experiments_app.command()
def bound(
    scale: _Size = "toy",
    work: _Work = _WORK,
    results: _Results = _RESULTS,
    device: _Device = None,
    model: _Model = "miniature",
    coco: _Coco = None,
    features: _Features = None,
) -> None:
    """Compare the paper's error bound (section 5) with what is observed: the same as redi experiments run bound.

    Example: redi experiments bound --scale toy
    """
    run("bound", scale, work, results, device, None, model, coco, features)


def _check_scale(scale: str) -> None:
    from redi.errors import InputError
    from redi.experiments.sampling import SCALES

    if scale not in SCALES:
        raise InputError(f"scale {scale!r}", expected=f"one of {', '.join(SCALES)}")


def _subject(name: str, model: str, coco: Path | None, features: list[Path], scale: str, device: str | None) -> Subject:
    """Return what the options name, before anything is run."""
    from redi.errors import InputError
    from redi.experiments.costs import at_paper
    from redi.experiments.runner import EXPERIMENTS, OF_THE_MINIATURE
    from redi.experiments.subjects import Coco, Miniature
    from redi.metrics.extractors import load_extractor
    from redi.metrics.perceptual import load_perceptual
    from redi.pipelines import MINIATURE, chosen_device

    told = f"--scale {scale} with --model {model} and {'no ' if coco is None else ''}--coco"
    if name in OF_THE_MINIATURE and (model != MINIATURE or coco is not None or scale == "paper"):
        expected = "the bundled model at toy or small: its evaluator judges there"
        raise InputError(f"{name}, {told}", expected=expected, fix=f"redi experiments run {name}")
    if (model == MINIATURE) != (coco is None) or (scale == "paper" and coco is None):
        expected = "the bundled model at toy or small, or another model on COCO"
        if scale == "paper":
            taken = at_paper(list(EXPERIMENTS) if name == "all" else [name])
            expected += f"; there {name} takes {taken} (docs/experiments.md)"
        raise InputError(
            told,
            expected=expected,
            fix=f"redi experiments run {name} --scale {scale} --model ./stable-diffusion-v1-5 --coco ./coco "
            "--features ./inception.pt --features ./clip",
        )
    by_path = {path: load_perceptual(path, device=device) for path in features}
    lpips = next((each for each in by_path.values() if each), None)
    extractors = [load_extractor(path, device=device) for path, other in by_path.items() if other is None]
    if coco is None:
        return Miniature(extractors[0] if extractors else None, lpips=lpips)
    scorer = next((each for each in extractors if each.compare), None)
    if scorer is None:
        raise InputError(f"{len(extractors)} --features and no CLIP among them", expected="at least a folder of CLIP")
    dtype = "float32" if chosen_device(device) == "cpu" else "float16"
    return Coco(model, coco, extractors[0], scorer, dtype, lpips)


@experiments_app.command()
def rate(
    folder: Annotated[Path, typer.Argument(help="What redi generate --compare or redi stylize --compare wrote.")],
    scores: Annotated[
        list[Path],
        typer.Option(
            help="Where a rater's scores go, one line of JSON for a pair; rated pairs are kept. With --summary one of "
            "each rater."
        ),
    ],
    style_free: Annotated[
        Path | None,
        typer.Option(
            help="What redi generate --compare wrote for the same prompts and --seed: also compare layouts with its "
            "runs in full."
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Of the page on this machine; 0 is a free one.", min=0, max=65535)] = 0,
    seed: Annotated[int, typer.Option(help="Decides the order of pairs and of their sides.", min=0)] = 0,
    summary: Annotated[bool, typer.Option("--summary", help="Tell the scores so far instead.")] = False,
) -> None:
    """Rate pictures of ReDi and of the full run from 1 to 5 without knowing which is which, on a page in the browser.

    Asked for is how well a picture shows its prompt, of styles also how well it keeps to the style, and with
    --style-free how similar its layout is to the picture's without the style: the paper's figure 4. The keys 1 to 5
    score the picture with the frame, Backspace takes a score back. Ctrl-C ends it; call it again to go on.

    \b
    Example:
      redi experiments rate monet --style-free pictures --scores ann.jsonl
      redi experiments rate monet --scores ann.jsonl --scores ben.jsonl --summary
    """
    from redi.errors import InputError
    from redi.experiments import rating
    from redi.experiments.rating_page import server

    task = rating.task_of(folder, style_free=style_free, seed=seed)
    if summary:
        _tell(task, scores)
        return
    if len(scores) != 1:
        raise InputError(
            f"{len(scores)} files of scores to write", expected="one, a rater's own", fix="one --scores, or --summary"
        )
    session = rating.Session(task, scores[0])
    session.rated()
    with server(session, port=port) as page:
        typer.echo(f"http://127.0.0.1:{page.server_address[1]}/")
        try:
            page.serve_forever()
        except KeyboardInterrupt:
            typer.echo(f"scores are in {scores[0]}")


def _tell(task: Task, scores: list[Path]) -> None:
    """Tell what the raters' scores say, by aspect."""
    from redi.errors import InputError
    from redi.experiments.rating import check_folder
    from redi.experiments.scores import read_scores, summaries

    lines = []
    for path in scores:
        found = read_scores(path)
        if not found:
            raise InputError(f"no rated pairs in {path}", expected="a rater's scores", fix="redi experiments rate")
        check_folder(task, path, found)
        lines += found
    typer.echo(f"{len(scores)} rater{'s' if len(scores) > 1 else ''}")
    for aspect, told in summaries(lines).items():
        typer.echo(f"{aspect}, {told.pairs} pairs")
        for name, each in (("redi", told.redi), ("full", told.full), ("difference", told.difference)):
            typer.echo(f"  {name}: {each.value:.2f} [{each.low:.2f}, {each.high:.2f}]")


@experiments_app.command()
def report(
    scale: Annotated[str, typer.Option(help="Whose results.")] = "small",
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
    out: Annotated[
        Path | None,
        typer.Option(help="The page.  [default: docs/results.md; of other scales docs/results-SCALE.md]"),
    ] = None,
) -> None:
    """Write docs/results.md and its plots from the results.

    Example: redi experiments report
    """
    from redi.experiments.report import write_report
    from redi.experiments.sampling import SMALL

    _check_scale(scale)
    out = out or Path("docs") / ("results.md" if scale == SMALL.name else f"results-{scale}.md")
    write_report(results, out, scale=scale)
    typer.echo(f"wrote {out}")
