"""Owns ``redi generate``."""

from __future__ import annotations

from pathlib import Path

from redi.cli import options


def generate(
    prompt: options.Prompts = None,
    *,
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
    grow: options.Grow = False,
    capacity: options.Capacity = None,
    capacity_size: options.CapacitySize = None,
    eviction: options.Eviction = None,
    out: options.Out = Path("pictures"),
    device: options.Device = None,
) -> None:
    """Generate pictures with a knowledge base.

    Writes one PNG for each prompt, and report.json: what happened to each picture, its neighbours, calls and
    milliseconds. With --compare also the runs in full, and comparison.png.

    \b
    Example:
      redi generate "a red cat on the grass" "two boats at night" --kb my-base --compare
      redi generate --prompts captions.txt --kb my-base --value-step 30
      redi generate --prompts captions.txt --kb my-base --quantile 20:0.95,40:0.5
      redi generate --prompts captions.txt --kb my-base --grow --capacity-size 2GB
    """
    from redi.cli.run import run_and_write
    from redi.errors import InputError
    from redi.knowledge_base.growth import Growth

    growth = Growth(capacity, options.size(capacity_size), eviction or "aged")
    if not grow and (capacity, capacity_size, eviction) != (None, None, None):
        raise InputError(
            "a capacity or a rule of eviction without --grow",
            expected="both: nothing is added without it, so nothing goes",
            fix="add --grow, or leave --capacity, --capacity-size and --eviction out",
        )
    run_and_write(
        "generate",
        prompt,
        prompts,
        kb,
        out,
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
        grow=growth if grow else False,
    )
