"""Owns ``redi stylize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redi.cli import options


def stylize(
    prompt: options.Prompts = None,
    *,
    style: Annotated[str, typer.Option(help='Appended to the prompts, such as "as a mosaic".', metavar="WORDS")],
    kb: options.Base,
    prompts: options.PromptFile = None,
    model: options.Model = None,
    key_step: options.KeyStep = None,
    value_step: options.ValueStep = None,
    neighbors: options.Neighbors = None,
    weights: options.Weights = options.DEFAULT_WEIGHTS,
    max_distance: options.MaxDistance = None,
    quantile: options.Quantile = None,
    max_loss: options.MaxLoss = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 16,
    compare: options.Compare = False,
    strict: options.Strict = False,
    out: options.Out = Path("pictures"),
    device: options.Device = None,
) -> None:
    """Generate pictures in a style that the knowledge base does not hold.

    Each prompt alone guides the steps before the jump, prompt and style together those after it. An early value step
    gives the style more steps to show. Files as of redi generate.

    \b
    Example:
      redi stylize "a cat" --style "as a mosaic" --kb my-base --value-step 4 --compare
    """
    from redi.cli.run import run_and_write

    run_and_write(
        "stylize",
        prompt,
        prompts,
        kb,
        out,
        style=style,
        model=model,
        device=device,
        seed=seed,
        batch_size=batch_size,
        compare=compare,
        key_step=key_step,
        value_step=value_step,
        neighbors=neighbors,
        weights=weights,
        max_distance=options.limit(max_distance),
        quantile=options.limit(quantile),
        max_loss=max_loss,
        strict=strict,
    )
