"""Owns jumps to a neighbour's finished picture, noised again or as it is (the rivals' reuse); must not know tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from redi.experiments.other_keys import nearest_by_text, run_full, run_to
from redi.experiments.paths import latents_after
from redi.experiments.sampling import Jump
from redi.knowledge_base import KnowledgeBase

_FRESH_NOISE = 77


def reuse_pictures(
    pipe: Any, base: KnowledgeBase, prompts: Sequence[str], noise_ids: Sequence[int], jump: Jump
) -> tuple[list[Image.Image], list[int], list[bool], float]:
    """Return pictures, calls, whether each jumped and seconds of prompts (n) that reuse a neighbour's picture.

    Up to the last step it is noised to the value step with fresh noise and denoised under the new prompt (SDEdit, Meng
    et al., 2022; for cached images Xia et al., 2025, MoDM); at the last step it is handed out as it is. The neighbour's
    picture is made again, as a base keeps none; calls and seconds are without that.
    """
    started = time.perf_counter()
    if jump.key == "text":
        rows = nearest_by_text(pipe, base, prompts, noise_ids)
    else:
        (queries,) = latents_after(pipe, base, prompts, noise_ids, [jump.key_step])
        rows = base.search(queries, list(noise_ids), 1, jump.key_step).rows[:, 0].tolist()
    searched = time.perf_counter() - started
    last = base.plan.num_inference_steps
    theirs, from_noises = base.prompts(rows), [int(base.noise_ids()[row]) for row in rows]
    if jump.value_step == last:
        pictures = run_full(pipe, base, theirs, from_noises)
        return pictures, [jump.key_step] * len(pictures), [True] * len(pictures), searched
    (finished,) = latents_after(pipe, base, theirs, from_noises, [last])
    values = _noised(finished, pipe.scheduler, last, jump.value_step)
    pictures, calls, jumped, seconds = run_to(values, pipe, base, prompts, noise_ids, jump)
    return pictures, calls, jumped, seconds + searched


def _noised(finished: Tensor, scheduler: Any, last: int, value_step: int) -> Tensor:
    """Return finished latents (n, ...) at the noise that a run has after ``value_step`` of ``last`` steps."""
    draw = torch.Generator().manual_seed(_FRESH_NOISE)
    noise = torch.randn(finished.shape, generator=draw)
    own = type(scheduler).from_config(scheduler.config)
    own.set_timesteps(last)
    noised: Tensor = own.add_noise(finished.cpu(), noise, own.timesteps[value_step].repeat(len(finished)))
    return noised
