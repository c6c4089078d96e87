"""Owns ``redi build``."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from redi.cli import options
from redi.cli.inspect import printable
from redi.errors import InputError
from redi.pipelines import MINIATURE
from redi.plan import DEFAULT_PLAN, PAPER_PLAN, Plan


def build(
    prompts: Annotated[
        Path,
        typer.Option(help="File of prompts: .txt, .jsonl, .csv, .parquet, or COCO's captions .json.", metavar="FILE"),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of the knowledge base, or s3://bucket/name: new, empty, or this build unfinished.",
            metavar="FOLDER",
        ),
    ],
    model: options.NewModel = MINIATURE,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the sampler's schedule.  [default: 24; beside others 50]", metavar="N")
    ] = None,
    key_step: Annotated[
        int | None,
        typer.Option(
            help="Completed steps of the key.  [default: 2; beside others 10, or the last of --key-steps]", metavar="N"
        ),
    ] = None,
    value_steps: Annotated[
        str | None,
        typer.Option(
            help="Completed steps of the values.  [default: 4,6; beside others 20,30,40]",
            metavar="N,N,...",
            callback=options.checked_steps,
        ),
    ] = None,
    key_steps: Annotated[
        str | None,
        typer.Option(help="More keys to record in the same pass.", metavar="N,N,...", callback=options.checked_steps),
    ] = None,
    scheduler: options.Scheduler = None,
    noises: Annotated[
        int, typer.Option(help="Noises in the bank: pictures that one prompt can give.", metavar="N")
    ] = 16,
    noise: Annotated[
        str,
        typer.Option(
            help="independent: every entry its own noise; for study, such a base retrieves nothing near.",
            metavar="shared|independent",
            callback=options.one_of(("shared", "independent")),
        ),
    ] = "shared",
    guidance: Annotated[
        float | None,
        typer.Option(help="Guidance scale.  [default: the pipeline's; for the miniature its own]", metavar="X"),
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="The same for all prompts.  [default: the pipeline's]", metavar="TEXT")
    ] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option(
            help="Another argument of every call of the pipeline, as JSON or text; may be given several times.",
            metavar="NAME=VALUE",
            callback=options.checked_arguments,
        ),
    ] = None,
    batch_size: options.BatchSize = 16,
    unit_size: Annotated[
        int | None,
        typer.Option(
            help="Entries committed together.  [default: whole batches, 64 to 256 by size]", min=1, metavar="N"
        ),
    ] = None,
    stop_at_value: Annotated[
        bool, typer.Option("--stop-at-value/--no-stop-at-value", help="Leave out the steps after the last value.")
    ] = True,
    previews: Annotated[bool, typer.Option("--previews", help="Run to the end and keep small pictures.")] = False,
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Record on a Ray cluster: local, auto (that this machine is part of) or host:port."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Workers on it.  [default: one for each GPU, else one for each machine]", min=1, metavar="N"),
    ] = None,
) -> None:
    """Build a knowledge base, or go on with one that was interrupted.

    Every prompt is run once, and its latents after the key step and after the value steps are kept. Steps are counted
    completed: --key-step 2 is after two steps. Without --steps, --key-step, --key-steps and --value-steps they are
    those that did best with half of a usual run's calls; what is left out beside one of these options is the paper's.
    Ctrl-C, a kill or a full disk lose nothing that was committed: the same command goes on.

    \b
    Example:
      redi build --prompts captions.txt --out my-base
      redi build --model ./stable-diffusion-v1-5 --prompts captions.json --out sd15 \\
        --scheduler dpm --steps 20 --key-step 5 --value-steps 10,15
      redi build --model ./wan2.1-t2v --prompts captions.txt --out wan --dtype bfloat16 \\
        --argument height=480 --argument width=832 --argument num_frames=33
      redi build --prompts captions.txt --out my-base --ray auto
      redi build status my-base
    """
    from redi.building import read_prompts

    if workers is not None and ray is None:
        raise InputError(
            "--workers without --ray", expected="both: only a cluster has workers", fix="add --ray, such as --ray local"
        )
    plan = _plan(steps, key_step, key_steps, value_steps)
    texts = read_prompts(prompts)

    from redi.building import build as build_base
    from redi.building.cluster import Cluster
    from redi.pipelines import default_guidance, load_pipeline, model_name

    named: dict[str, Any] = {"guidance_scale": default_guidance(model) if guidance is None else guidance}
    named |= {} if negative_prompt is None else {"negative_prompt": negative_prompt}
    call = {**named, **options.arguments(argument)}
    load = partial(load_pipeline, model, scheduler=scheduler, dtype=dtype, device=device)
    cluster = None if ray is None else Cluster(load, ray, workers)
    pipe = load()
    base = build_base(
        pipe,
        texts,
        out,
        plan=plan,
        noises=noises,
        noise=noise,
        batch_size=batch_size,
        unit_size=unit_size,
        stop_at_value=stop_at_value,
        previews=previews,
        model_id=model_name(model),
        cluster=cluster,
        **call,
    )
    refused = len(base.refused())
    told = f", {refused} refused (see {base.path / 'refused.jsonl'})" if refused else ""
    typer.echo(f"{base.address}: {len(base)} entries{told}")


def _plan(steps: int | None, key_step: int | None, key_steps: str | None, value_steps: str | None) -> Plan:
    if steps is None and key_step is None and key_steps is None and value_steps is None:
        return DEFAULT_PLAN
    more = options.steps(key_steps) if key_steps else ()
    return Plan(
        steps if steps is not None else PAPER_PLAN.num_inference_steps,
        key_step if key_step is not None else max(more, default=PAPER_PLAN.key_step),
        options.steps(value_steps) if value_steps else PAPER_PLAN.value_steps,
        more,
    )


def status(
    kb: Annotated[Path, typer.Argument(help="Folder of the knowledge base, or s3://bucket/name.", metavar="FOLDER")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell how far a build is, while it goes on or after: units and entries done, who builds, the last commit.

    \b
    Example:
      redi build status my-base
    """
    from redi.building.status import build_status

    found = build_status(kb)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    for name, done, total in (
        ("units", found.units_done, found.units),
        ("entries", found.entries, found.prompts),
        *([("grown or merged in", found.more, None)] if found.more else []),
        ("refused", found.refused, None),
        ("builder", found.builder or "nobody", None),
        ("last commit", found.last_commit or "none yet", None),
    ):
        typer.echo(f"{name}: {printable(str(done))}" + (f" of {total}" if total is not None else ""))
