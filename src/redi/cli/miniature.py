"""Owns ``redi miniature``: training and judging the bundled model from the command line; must not know how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

miniature_app = typer.Typer(help="Train and judge the bundled text-to-image model.", no_args_is_help=True)


@miniature_app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the training run; an earlier run in it is resumed.")],
    stage: Annotated[
        str, typer.Option(help="tokenizer, text, autoencoder, denoiser, evaluator, or all of them in this order.")
    ] = "all",
    steps: Annotated[int | None, typer.Option(help="Optimiser steps in all, of a single stage.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per step, of a single stage.", min=1)] = None,
    scenes: Annotated[int, typer.Option(help="Training scenes of text encoder and denoiser.", min=1)] = 60_000,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    start_from: Annotated[
        Path | None, typer.Option(help="An exported model, to train its denoiser further in an empty folder.")
    ] = None,
    compile_network: Annotated[
        bool,
        typer.Option("--compile", help="Compile the denoiser for long runs; needs a C++ compiler or Triton."),
    ] = False,
) -> None:
    """Train the bundled model from an empty folder; interrupt it at any time and call it again to go on.

    Writes checkpoints every two minutes, <stage>.losses.jsonl, losses.png, samples.png and, at the end, model/.

    Example: redi miniature train --out runs/miniature

    Example: redi miniature train --out runs/further --start-from src/redi/miniature/weights --stage denoiser
    """
    if start_from is not None and stage != "denoiser":
        raise typer.BadParameter("--start-from trains the denoiser further: add --stage denoiser")
    if stage == "all" and (steps is not None or batch_size is not None):
        raise typer.BadParameter("--steps and --batch-size are of a single stage; name it with --stage")
    import torch

    from redi.miniature.training_run import STAGES, TrainingRun

    run = TrainingRun(out, torch.device(device), scenes, compile_network)
    if start_from is not None:
        run.start_from(start_from)
    for name in STAGES if stage == "all" else (stage,):
        run.train(name, steps=steps, batch_size=batch_size)
    if stage == "all":
        typer.echo(f"wrote {run.export()}")


@miniature_app.command()
def export(out: Annotated[Path, typer.Option(help="Folder of the training run.")]) -> None:
    """Write model/ (float16), losses.png and samples.png of a training run, from the last finished stages.

    Example: redi miniature export --out runs/miniature
    """
    import torch

    from redi.miniature.training_run import TrainingRun

    typer.echo(f"wrote {TrainingRun(out, torch.device('cpu')).export()}")


@miniature_app.command()
def evaluate(
    model: Annotated[Path | None, typer.Option(help="The model's folder; the bundled one by default.")] = None,
    captions: Annotated[int, typer.Option(help="Held-out captions to generate.", min=1)] = 1000,
    renders: Annotated[int, typer.Option(help="Held-out drawings to read.", min=1)] = 2000,
    steps: Annotated[int, typer.Option(help="Sampler steps of each picture.", min=2)] = 50,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; the model's own by default.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Write the figures here as JSON too.")] = None,
) -> None:
    """Print how well the evaluator reads held-out drawings, and how well pictures do what held-out captions ask.

    Example: redi miniature evaluate --captions 1000
    """
    from redi.miniature.evaluation import evaluate_model, format_evaluation
    from redi.results import write_json

    result = evaluate_model(
        model,
        captions=captions,
        renders=renders,
        steps=steps,
        guidance_scale=guidance,
        batch_size=batch_size,
        device=device,
    )
    if out is not None:
        write_json(out, result)
    typer.echo(format_evaluation(result))
