"""Owns the demonstration: a small base of the bundled model, and held-out prompts in full and with ReDi beside them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

import redi
from redi.comparison import Column, page
from redi.errors import IncompatibleError
from redi.generating import Generation, full, generate
from redi.miniature.architecture import GUIDANCE_SCALE
from redi.miniature.evaluation import bundled_evaluator
from redi.miniature.quality import summarize
from redi.miniature.scenes import captions
from redi.pipelines import MINIATURE, load_pipeline
from redi.plan import Plan
from redi.results import COMPARISON, REPORT, per_picture, write_json, write_picture
from redi.retrieval import DEFAULT_WEIGHTS

PLAN = Plan(20, key_step=2, value_steps=(7, 12))
"""15 and 10 calls of 20. With shared noise two steps tell the prompts apart, and the earlier the key, the longer the
tail that the same number of calls pays for."""

_SCHEDULER = "dpm"
_NOISES = 4
_BASE_SEED, _PROMPT_SEED = 11, 12
_BUILD_BATCH, _BATCH = 32, 12
_SHARES = ("objects", "background", "style", "all")


@dataclass(frozen=True)
class Outcome:
    """One row of the table: the same prompts, from the same noises, generated one way.

    Attributes:
        name: What is written beside it.
        value_step: Where pictures go on after the jump; None for the run in full.
        prompts: How many pictures.
        jumped: How many of them jumped; the others ran in full.
        calls: Network evaluations of a picture, on average.
        seconds: Wall clock of all pictures, everything but opening model and base.
        retrieval_ms: Milliseconds of search and weights, for one picture.
        faithfulness: Shares of pictures that show what their prompts ask for.
    """

    name: str
    value_step: int | None
    prompts: int
    jumped: int
    calls: float
    seconds: float
    retrieval_ms: float
    faithfulness: dict[str, float | None]


def run_demo(out: Path, *, entries: int = 800, pictures: int = 24, device: str | None = None) -> str:
    """Build the base in ``out/base`` (or go on with it), generate, write comparison and report; return the table.

    Raises:
        InputError: The bundled model is not there, or ``out`` cannot be written.
        KnowledgeBaseError, IncompatibleError: ``out/base`` holds something else.
    """
    pipe = load_pipeline(MINIATURE, scheduler=_SCHEDULER, device=device)
    evaluator = bundled_evaluator()
    base = _base(pipe, out / "base", entries)
    asked = captions(pictures, seed=_PROMPT_SEED, held_out=True)
    prompts, descriptions = list(asked), list(asked.values())
    full(pipe, base, prompts[:_BATCH], batch_size=_BATCH, progress=False)  # first calls are slow: not to be measured

    outcomes: list[Outcome] = []
    made: list[list[Generation]] = []
    for value_step in (None, *PLAN.value_steps):
        started = time.perf_counter()
        if value_step is None:
            found = full(pipe, base, prompts, batch_size=_BATCH)
        else:
            found = generate(pipe, base, prompts, batch_size=_BATCH, value_step=value_step)
        seconds = time.perf_counter() - started
        shares = summarize(descriptions, evaluator.read([each.image for each in found]))
        outcomes.append(_outcome(value_step, found, seconds, shares))
        made.append(found)

    write_picture(out / COMPARISON, _comparison(outcomes, made))
    report = {
        "redi": redi.__version__,
        "model": MINIATURE,
        "scheduler": type(pipe.scheduler).__name__,
        "plan": PLAN.to_dict(),
        "entries": len(base),
        "noises": _NOISES,
        "weights": DEFAULT_WEIGHTS,
        "outcomes": [asdict(outcome) for outcome in outcomes],
        "pictures": [[each.report.to_dict() for each in found] for found in made],
    }
    write_json(out / REPORT, report)
    told = f"{', '.join(_SHARES)}: share of the pictures that show what their prompts say of it, read by the evaluator"
    return (
        f"{format_outcomes(outcomes)}\n{told}\n{out / COMPARISON} shows them, {out / REPORT} says what happened to each"
    )


def _base(pipe: Any, folder: Path, entries: int) -> redi.KnowledgeBase:
    """Build the demonstration's base, or go on with it."""
    try:
        return redi.build(
            pipe,
            list(captions(entries, seed=_BASE_SEED, held_out=False)),
            folder,
            plan=PLAN,
            noises=_NOISES,
            guidance_scale=GUIDANCE_SCALE,
            batch_size=_BUILD_BATCH,
            model_id=MINIATURE,
        )
    except IncompatibleError as error:
        raise IncompatibleError(
            error.got,
            expected=error.expected,
            fix=f"remove {folder} (it was built with something else), or choose another --out",
        ) from error


def _outcome(
    value_step: int | None, found: Sequence[Generation], seconds: float, shares: dict[str, float | None]
) -> Outcome:
    count = len(found)
    reports = [each.report for each in found]
    retrieval = sum(per_picture(each.retrieval_ms, count, place, _BATCH) for place, each in enumerate(reports)) / count
    return Outcome(
        name="full" if value_step is None else f"ReDi to {value_step}",
        value_step=value_step,
        prompts=count,
        jumped=sum(each.jumped for each in reports),
        calls=sum(each.calls for each in reports) / count,
        seconds=seconds,
        retrieval_ms=retrieval,
        faithfulness={name: shares[name] for name in _SHARES},
    )


def format_outcomes(outcomes: Sequence[Outcome]) -> str:
    """Return the table: a line for each way to generate."""
    lines = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in (
        "",
        "prompts",
        "jumped",
        "calls",
        "seconds",
        "retrieval ms",
        *(f"right: {name}" for name in _SHARES),
    ):
        lines.add_column(heading, justify="right" if heading else "left")
    for outcome in outcomes:
        shares = ["-" if share is None else f"{share:.0%}" for share in outcome.faithfulness.values()]
        lines.add_row(
            outcome.name,
            str(outcome.prompts),
            "-" if outcome.value_step is None else str(outcome.jumped),
            f"{outcome.calls:.1f}",
            f"{outcome.seconds:.2f}",
            "-" if outcome.value_step is None else f"{outcome.retrieval_ms:.2f}",
            *shares,
        )
    return _text(lines)


def _text(table: Table) -> str:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=120, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip())


def _comparison(outcomes: Sequence[Outcome], made: Sequence[Sequence[Generation]]) -> Any:
    columns = [
        Column(
            across[0].report.prompt,
            tuple(each.image for each in across),
            tuple(_note(each) for each in across),
        )
        for across in zip(*made, strict=True)
    ]
    heading = "The same prompts from the same noises; none of the prompts is in the knowledge base"
    return page(columns, [outcome.name for outcome in outcomes], heading=heading)


def _note(each: Generation) -> str:
    calls = f"{each.report.calls} calls"
    distance = f", nearest {each.report.neighbors[0].distance:.3g}" if each.report.neighbors else ""
    abstained = each.report.neighbors and not each.report.jumped
    return f"{calls}{distance}" + (", abstained" if abstained else "")
