"""Owns one pipeline call under a policy, with its noises, clocks and reports; must not know how one is decided."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from redi.attachment import draw_noise_through
from redi.conditioning import capture
from redi.engine import RunStatistics, run
from redi.errors import KnowledgeBaseError, warn
from redi.jumping import Decision, NoiseWatch, neighbors_of
from redi.knowledge_base import KnowledgeBase
from redi.modular import is_modular
from redi.retrieval import Neighbor, Report

NoiseChoice = Callable[[int], Sequence[int]]
"""Chooses a noise of the bank for each of ``count`` images."""


def reported_call(
    pipe: Any,
    call: Callable[..., Any],
    arguments: Mapping[str, Any],
    policy: NoiseWatch,
    *,
    choose: NoiseChoice | None = None,
    tail_prompts: Sequence[str] | None = None,
) -> tuple[Any, list[Report]]:
    """Make one pipeline call and say what happened to each of its images.

    Args:
        pipe: The pipeline.
        call: Its stock ``__call__``, bound.
        arguments: Of the call, complete.
        policy: Decides; a ``JumpPolicy``, or a ``NoiseWatch`` for a run in full.
        choose: Chooses the noises that the pipeline would draw itself; by default by its ``generator`` argument.
        tail_prompts: One per prompt, guides it after the key step in its place (section 4.3).

    Returns:
        What the pipeline returned, untouched, and one report per image, in the order of the images.
    """
    base, generator = policy.base, arguments.get("generator")

    def bank_noise(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        ids = choose(shape[0]) if choose else base.noise_bank.choose(shape[0], generator)
        return base.noise_bank.latents[list(ids)].to(device, dtype)

    started = time.perf_counter()
    tail = None
    if tail_prompts:  # without the generators, which belong to the run
        tail = capture(pipe, **{**arguments, "prompt": list(tail_prompts), "generator": None})
    with ExitStack() as stack:
        if len(base.noise_bank) and not is_modular(pipe):
            stack.enter_context(draw_noise_through(pipe, bank_noise))
        elif len(base.noise_bank) and all(arguments.get(name) is None for name in ("latents", "image")):
            dtype = getattr(torch, base.manifest.identity["latents"]["dtype"])
            shape = (_samples_of(arguments), *base.manifest.latent_shape)
            randn_tensor(shape, generator=generator, device=pipe.device, dtype=dtype)  # moves generators on, as without
            arguments = {**arguments, "latents": bank_noise(shape, dtype, pipe.device)}
        statistics = stack.enter_context(
            run(pipe, policy, tail_conditioning=tail, allow_stochastic=policy.allow_stochastic)
        )
        output = call(**arguments)
    neighbors, reading = _neighbors(policy)
    total = time.perf_counter() - started

    for warning in policy.warnings:
        warn(warning)
    prompts = list(tail_prompts) if tail_prompts else _prompts_of(arguments)
    reports = _reports(pipe, policy, prompts, neighbors, statistics, total, reading)
    policy.ended(pipe, arguments, reports, swapped=tail is not None)
    return output, reports


def _samples_of(arguments: Mapping[str, Any]) -> int:
    """Return how many samples a call makes."""
    embeds = arguments.get("prompt_embeds")
    prompts = len(_prompts_of(arguments)) if embeds is None else len(embeds)
    return prompts * int(arguments.get("num_images_per_prompt") or 1)


def _prompts_of(arguments: Mapping[str, Any]) -> list[str]:
    """Return the prompts of a call, without repeats for several images of one prompt."""
    prompt = arguments.get("prompt")
    if prompt is None:
        return ["(prompt_embeds)"]
    return [prompt] if isinstance(prompt, str) else [str(each) for each in prompt]


def _neighbors(policy: NoiseWatch) -> tuple[list[tuple[Neighbor, ...]], float]:
    """Name the neighbours, and tell the seconds that it took; a base that vanished meanwhile costs names only."""
    started = time.perf_counter()
    try:
        found = neighbors_of(policy.base, policy.decisions)
    except KnowledgeBaseError as error:
        policy.warnings.append(f"the neighbours' prompts cannot be read\n  {error}")
        found = [()] * len(policy.decisions)
    return found, time.perf_counter() - started


def _reports(
    pipe: Any,
    policy: NoiseWatch,
    prompts: list[str],
    neighbors: list[tuple[Neighbor, ...]],
    statistics: RunStatistics,
    total: float,
    reading: float,
) -> list[Report]:
    images = len(policy.decisions)
    retrieval = statistics.policy_seconds + reading
    rest = max(0.0, total - statistics.network_seconds - retrieval)
    return [
        Report(
            prompt=prompts[image * len(prompts) // images],
            seed=_seed(policy.base, decision.noise_id),
            noise_id=None if decision.noise_id in (None, -1) else decision.noise_id,
            **_decided(policy, decision, statistics),
            num_inference_steps=policy.base.plan.num_inference_steps,
            sampler=type(pipe.scheduler).__name__,
            neighbors=neighbors[image],
            calls=statistics.calls[image],
            full_calls=statistics.calls[image] + statistics.skipped_calls[image],
            network_ms=1000 * statistics.network_seconds,
            retrieval_ms=1000 * retrieval,
            rest_ms=1000 * rest,
        )
        for image, decision in enumerate(policy.decisions)
    ]


def _reason(decision: Decision, statistics: RunStatistics) -> str | None:
    """Return why the image abstained, and where its run was interrupted."""
    interrupted = statistics.interrupted_after
    if interrupted is None:
        return decision.reason
    cut = f"interrupted after {interrupted} scheduler calls"
    return f"{decision.reason}; {cut}" if decision.reason else cut


def _decided(policy: NoiseWatch, decision: Decision, statistics: RunStatistics) -> dict[str, Any]:
    """Return the fields of a report that tell a decision."""
    made = decision.combination
    return {
        "jumped": made is not None,
        "reason": _reason(decision, statistics),
        "key_step": policy.base.plan.key_step if policy.key_step is None else policy.key_step,
        "value_step": decision.value_step,
        "residual": made.residual if made else None,
        "condition_number": made.condition_number if made else None,
        "weight_sum": made.weight_sum if made else None,
        "variance": made.variance if made else None,
        "carried": made.carried if made else None,
    }


def _seed(base: KnowledgeBase, noise_id: int | None) -> int | None:
    known = noise_id is not None and 0 <= noise_id < len(base.noise_bank)
    return base.noise_bank.seeds[noise_id] if known and noise_id is not None else None
