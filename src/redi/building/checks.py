"""Owns refusing what a build cannot use, before a network is called; must not know files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from redi.attachment import stock_class
from redi.calls import parameters_of
from redi.errors import InputError, PlanError, UnsupportedError, warn
from redi.plan import Plan
from redi.solvers import facts_for

_TESTED = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "PixArtSigmaPipeline",
    "SanaPipeline",
    "WanPipeline",
    "StableAudioPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLModularPipeline",
)
"""Pipelines that a base may be built with; the others wait for their tests."""


def check_pipeline(pipe: Any, *, allow_stochastic: bool = False) -> None:
    """Refuse a pipeline that does not go from noise and a prompt to a sample under an admitted scheduler.

    Raises:
        UnsupportedError: It starts from an image, takes no prompt or latents, or redi has not been tested with it or
            with its scheduler.
    """
    if not hasattr(pipe, "scheduler") or not callable(pipe):
        raise UnsupportedError(f"a {type(pipe).__name__} to build with", expected="a Diffusers pipeline")
    parameters = parameters_of(pipe)
    starts_from_picture = "image" in parameters and stock_class(pipe).__name__ not in _TESTED
    if starts_from_picture or not {"prompt", "latents", "num_inference_steps"} <= set(parameters):
        raise UnsupportedError(
            f"{type(pipe).__name__} to build with",
            expected="a pipeline that starts from a prompt alone (image-to-image starts inside the schedule)",
            fix="the text-to-image pipeline of the same model shares its weights: its from_pipe(pipe)",
        )
    if stock_class(pipe).__name__ not in _TESTED:
        raise UnsupportedError(
            f"{stock_class(pipe).__name__} to build with",
            expected=f"a pipeline that redi has been tested with: {', '.join(_TESTED)}",
            fix="if its model is a Stable Diffusion 1 or 2: StableDiffusionPipeline.from_pipe(pipe)",
        )
    facts_for(pipe.scheduler, allow_stochastic=allow_stochastic)


def checked_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    """Return the prompts.

    Raises:
        InputError: There are none, or they are no sequence of strings.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise InputError(
            f"prompts of type {type(prompts).__name__}",
            expected="a list of strings",
            fix="redi.building.read_prompts(path) reads a file of prompts",
        )
    if not prompts:
        raise InputError("no prompts", expected="at least one prompt")
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise InputError(f"prompt {number} is a {type(prompt).__name__}", expected="text")
    return tuple(prompts)


def checked_seeds(noises: int | Sequence[int], kind: str) -> tuple[int, ...]:
    """Return the seeds of the noise bank; none for independent noise.

    Raises:
        InputError: The kind of noise is unknown, or ``noises`` is neither a number of at least 1 nor seeds.
    """
    if kind not in ("shared", "independent"):
        raise InputError(f"noise={kind!r}", expected="'shared' or 'independent'")
    if isinstance(noises, int) and not isinstance(noises, bool):
        if noises < 1:
            raise InputError(f"noises={noises}", expected="at least 1 noise")
        return tuple(range(noises)) if kind == "shared" else ()
    if isinstance(noises, str | bool) or not isinstance(noises, Sequence):
        raise InputError(f"noises={noises!r}", expected="a number of noises, or a list of seeds")
    if kind == "independent":
        raise InputError("a list of seeds for independent noise", expected="no seeds: entry i draws from seed i")
    seeds = tuple(noises)
    usable = all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**64 for seed in seeds)
    if not seeds or not usable or len(set(seeds)) != len(seeds):
        raise InputError(f"noises={noises!r}", expected="different seeds from 0 to 2**64 - 1, at least one")
    return seeds


def check_numbers(plan: Plan, **sizes: int) -> None:
    """Refuse wrong types and sizes below 1.

    Raises:
        PlanError: ``plan`` is no plan.
        InputError: A size is wrong.
    """
    if not isinstance(plan, Plan):
        raise PlanError(f"plan of type {type(plan).__name__}", expected="a redi.Plan")
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"{name}={size!r}", expected="a whole number of at least 1")


def check_previews(pipe: Any) -> None:
    """Refuse previews of what cannot be seen.

    Raises:
        InputError: The pipeline makes sound.
    """
    if "num_waveforms_per_prompt" in parameters_of(pipe):
        raise InputError(
            f"previews of {stock_class(pipe).__name__}, which makes sound",
            expected="a pipeline that makes pictures or video",
            fix="leave previews out",
        )


def warn_of_long_prompts(pipe: Any, prompts: Sequence[str], call: Mapping[str, Any]) -> None:
    """Warn of prompts that every text encoder of the pipeline cuts off, and name the first few.

    Args:
        pipe: The pipeline.
        prompts: What it will read.
        call: Arguments of its call; ``max_sequence_length`` bounds what is read, where there is one.
    """
    tokenizers = [part for name, part in pipe.components.items() if name.startswith("tokenizer") and part is not None]
    limits = {id(each): _longest(pipe, each, call) for each in tokenizers}
    # A token stands for a byte or more, and two tokens mark start and end: most prompts need no tokenizing.
    longest = max(limits.values(), default=math.inf)
    suspects = [prompt for prompt in dict.fromkeys(prompts) if len(prompt.encode()) + 2 > longest]
    if not suspects:
        return
    over = [
        [len(tokens) > limits[id(each)] for tokens in each(suspects, verbose=False)["input_ids"]] for each in tokenizers
    ]
    too_long = [prompt for prompt, *judged in zip(suspects, *over, strict=True) if all(judged)]
    if too_long:
        named = "; ".join(f"{prompt[:60]!r}" for prompt in too_long[:3]) + ("; ..." if len(too_long) > 3 else "")
        warn(
            f"the model will not read the end of {len(too_long)} of {len(set(prompts))} prompts, "
            f"which have more than its {longest} tokens: {named}"
        )


def _longest(pipe: Any, tokenizer: Any, call: Mapping[str, Any]) -> float:
    """Return how many tokens of a prompt are read."""
    of_tokenizer = getattr(tokenizer, "model_max_length", math.inf)
    parameter = parameters_of(pipe).get("max_sequence_length")
    of_call = parameter and (call.get("max_sequence_length") or parameter.default)
    return min(of_tokenizer, of_call or math.inf)
