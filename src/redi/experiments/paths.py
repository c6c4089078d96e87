"""Owns running prompts from a base's noises and keeping their latents after some steps; must not know tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from redi.attachment import quiet
from redi.engine import StopTrajectory, run
from redi.jumping import NoiseWatch
from redi.knowledge_base import KnowledgeBase, NoiseBank


class _Path(NoiseWatch):
    """A policy that keeps the latents of some steps and ends the run after the last of them."""

    def __init__(self, base: KnowledgeBase, scheduler: Any, steps: Sequence[int]) -> None:
        super().__init__(base, scheduler)
        self.steps = steps
        self.latents: list[Tensor] = []

    def on_step(self, completed: int, latents: Tensor) -> None:
        if completed in self.steps:
            self.latents.append(latents.float())
        if completed == self.steps[-1]:
            raise StopTrajectory


def starts(pipe: Any, bank: NoiseBank, noise_ids: Sequence[int]) -> Tensor:
    """Return noises (n, ...) as the pipeline takes them, on its device and in its dtype."""
    return bank.latents[list(noise_ids)].to(pipe.device, pipe.dtype)


def as_built(base: KnowledgeBase) -> dict[str, Any]:
    """Return the arguments of a call, besides the prompts, that a base of pictures was built with."""
    call = base.manifest.identity["call"]
    return {name: call[name] for name in ("num_inference_steps", "timesteps", "guidance_scale") if name in call}


def set_schedule(scheduler: Any, call: Mapping[str, Any]) -> None:
    """Set a scheduler's steps as a pipeline does: to the timesteps where a call names them, else to their number."""
    name = "timesteps" if "timesteps" in call else "num_inference_steps"
    scheduler.set_timesteps(**{name: call[name]})


def latents_after(
    pipe: Any,
    base: KnowledgeBase,
    prompts: Sequence[str],
    noise_ids: Sequence[int],
    steps: Sequence[int],
    *,
    batch_size: int = 32,
) -> list[Tensor]:
    """Return the latents (n, ...) of prompts (n) after each of the steps, in rising order, run as the base was built.

    Args:
        pipe: Of the base's model and solver.
        base: Gives the noises, the guidance and the schedule.
        prompts: What to run.
        noise_ids: (n) where each starts.
        steps: Completed steps, rising.
        batch_size: Prompts of one call.
    """
    found: list[list[Tensor]] = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        policy = _Path(base, pipe.scheduler, steps)
        try:
            with quiet(pipe), run(pipe, policy):
                pipe(
                    list(prompts[part]),
                    **as_built(base),
                    latents=starts(pipe, base.noise_bank, noise_ids[part]),
                    output_type="latent",
                )
        except StopTrajectory:
            pass
        found.append(policy.latents)
    return [torch.cat(each) for each in zip(*found, strict=True)]
