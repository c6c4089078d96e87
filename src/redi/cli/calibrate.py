"""Owns ``redi calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from redi.cli import options
from redi.errors import InputError

if TYPE_CHECKING:
    from redi.calibrations import Calibration
    from redi.knowledge_base import KnowledgeBase

_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
_HELD_OUT_SEED = 7000


def calibrate(
    kb: Annotated[Path, typer.Argument(help="Folder of the knowledge base, or s3://bucket/name.", metavar="FOLDER")],
    max_loss: Annotated[
        float | None, typer.Option("--max-loss", help="The mean loss that is allowed.", metavar="X")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts to measure with, like those to come, at least 20: .txt, .jsonl, .csv, .parquet, or COCO's "
            ".json.  [default: what was measured before; held-out captions for a base of the bundled model]",
            metavar="FILE",
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="At most so many of the prompts.", min=20, metavar="N")] = 200,
    measure: Annotated[
        str | None,
        typer.Option(
            help="What a loss is: closeness (L2 in the features of redi's evaluator) or pixels (root mean square, 0 to "
            "1).  [default: closeness for a base of the bundled model, else pixels]",
            metavar="closeness|pixels",
            callback=options.one_of(("closeness", "pixels")),
        ),
    ] = None,
    model: options.Model = None,
    key_step: options.KeyStep = None,
    neighbors: options.Neighbors = None,
    weights: options.Weights = options.DEFAULT_WEIGHTS,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 16,
    device: options.Device = None,
) -> None:
    """Measure what jumps cost on a base, and which limits keep the mean loss below a number at the fewest calls.

    Prompts run in full and, from the same noise, to each value step. What is found is kept in the base, for this key
    step, these weights and this number of neighbours; redi generate --max-loss uses it until the base grows.

    \b
    Example:
      redi calibrate my-base --prompts held-out.txt --max-loss 0.05
      redi generate "a red cat on the grass" --kb my-base --max-loss 0.05
    """
    from redi.calibrating import calibrate, calls_to_make
    from redi.calibration import check_max_loss
    from redi.calibrations import Way, read
    from redi.enabling import open_base
    from redi.errors import KnowledgeBaseError
    from redi.pipelines import pipeline_for
    from redi.retrieval import combiner

    if max_loss is not None:
        check_max_loss(max_loss)
    base, rule = open_base(kb), combiner(weights)
    chosen_key, _ = base.plan.choose(key_step)
    way = Way.of(chosen_key, neighbors or rule.default_neighbors, rule)
    found = None
    if prompts is None and measure is None:
        try:
            found = read(base, way)
            typer.echo(f"measured before with {len(found.measured)} prompts; --prompts measures anew")
        except KnowledgeBaseError as error:
            typer.echo(f"to be measured: {error.got}")
    if found is None:
        texts = _prompts(base, prompts, count)
        typer.echo(f"{len(texts)} prompts, {calls_to_make(base, len(texts), key_step):,} steps of one picture to run")
        pipe = pipeline_for(base, model=model, device=device)
        found = calibrate(
            pipe,
            base,
            texts,
            measure=measure,
            key_step=key_step,
            neighbors=neighbors,
            weights=weights,
            seed=seed,
            batch_size=batch_size,
        )
    _tell(found, max_loss)
    typer.echo(f"kept in {base.path}: redi generate --kb {base.path} --max-loss X uses it")


def _prompts(base: KnowledgeBase, file: Path | None, count: int) -> list[str]:
    from redi.building.prompts import read_prompts
    from redi.pipelines import MINIATURE

    if file is not None:
        return list(read_prompts(file))[:count]
    if base.manifest.identity.get("information", {}).get("model") != MINIATURE:
        raise InputError(
            "no prompts to measure with", expected="prompts like those to come, not of the base", fix="--prompts FILE"
        )
    from redi.miniature.scenes import captions

    return list(captions(count, seed=_HELD_OUT_SEED, held_out=True))


def _tell(found: Calibration, max_loss: float | None) -> None:
    """Print what several losses cost, and the choice for the one that was asked for, or why there is none."""
    from redi.calibration import CONFIDENCE, reachable

    measured = found.measured
    latest = max(measured.losses)
    most = float(measured.losses[latest].mean())
    typer.echo(f"loss: {found.measure}; {found.way}; limits of {measured.best_score}; in full {measured.full_calls:g}")
    for step, losses in sorted(measured.losses.items()):
        typer.echo(f"  everyone to {step}: loss {losses.mean():.4g}, {measured.calls[step]:g} calls")
    typer.echo(f"  {'max loss':>10} {'calls':>7} {'jump':>6} {'expected':>10}  limits ({CONFIDENCE:.0%} sure)")
    asked = sorted({share * most for share in _SHARES} | ({max_loss} if max_loss else set()))
    for loss, choice in reachable(measured, asked):
        told = f"  {loss:>10.4g} "
        if choice is None:
            typer.echo(told + "nobody may jump")
            continue
        limits = ", ".join(f"{step}: {limit:.4g}" for step, limit in choice.limits.items())
        typer.echo(told + f"{choice.calls:>7.2f} {choice.jumping:>6.0%} {choice.expected:>10.4g}  {limits}")
    if max_loss is not None:
        chosen = measured.choose(max_loss)
        typer.echo(
            f"max loss {max_loss:g}: {chosen.calls:.2f} calls of {measured.full_calls:g} in the mean, "
            f"expected loss {chosen.expected:.4g}, below {chosen.bound:.4g} with {CONFIDENCE:.0%}"
        )
