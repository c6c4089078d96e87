"""Owns measuring how a query and its neighbour drift apart, and what the bound is made of; must not know tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from redi.errors import InputError
from redi.experiments.answers import answer, conditioning
from redi.experiments.paths import as_built, latents_after, set_schedule
from redi.knowledge_base import KnowledgeBase
from redi.theory import Drift, drift_of_noise, lipschitz

_BATCH = 16
ITERATIONS = 12
"""Of the power iteration for L: each takes two derivatives."""


@dataclass(frozen=True, eq=False)
class Divergence:
    """What was measured after each step, from the key step to the last value step (p points), of each query (b).

    Attributes:
        apart: (p, b) L2 distance between the query's latents and its neighbour's, both run from the same noise.
        rates: (p, b) L of the query's drift: the larger of the two at the query's and at the neighbour's latents.
        gaps: (p, b) mu: L2 between the drifts under the neighbour's and the query's prompt, both at the neighbour's
            latents (the g(t, z) of theorem A.2).
        clock: (p) log(alpha / sigma) at each point, rising.
    """

    apart: NDArray[np.float64]
    rates: NDArray[np.float64]
    gaps: NDArray[np.float64]
    clock: NDArray[np.float64]


def measure(
    pipe: Any, base: KnowledgeBase, prompts: Sequence[str], noise_ids: Sequence[int], *, iterations: int = ITERATIONS
) -> Divergence:
    """Run prompts (b) and their nearest entries' prompts in full, and measure both ways between key and last value.

    Args:
        pipe: Its solver is DPM-Solver's, its network predicts noise.
        base: Whose nearest entry, by the only key step, is each prompt's neighbour.
        prompts: The queries.
        noise_ids: (b) where each starts.
        iterations: Of the power iteration for L.

    Raises:
        InputError: The network predicts something else, or an entry's noise has no neighbour.
    """
    if pipe.scheduler.config.prediction_type != "epsilon":
        raise InputError(f"a network that predicts {pipe.scheduler.config.prediction_type}", expected="epsilon")
    with _differentiable(pipe.unet):
        found = [
            _measure(pipe, base, prompts[start : start + _BATCH], noise_ids[start : start + _BATCH], iterations)
            for start in range(0, len(prompts), _BATCH)
        ]
    apart, rates, gaps = (
        np.concatenate([getattr(each, name) for each in found], axis=1) for name in ("apart", "rates", "gaps")
    )
    return Divergence(apart, rates, gaps, found[0].clock)


@contextmanager
def _differentiable(network: Any) -> Iterator[None]:
    """Let a network have forward-mode derivatives; afterwards it is as it was."""
    processors = network.attn_processors
    trained = [each for each in network.parameters() if each.requires_grad]
    network.set_attn_processor(AttnProcessor())  # fused attention has none
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.set_attn_processor(processors)
        for each in trained:
            each.requires_grad_(True)


def _measure(
    pipe: Any, base: KnowledgeBase, prompts: Sequence[str], noise_ids: Sequence[int], iterations: int
) -> Divergence:
    key_step, steps = base.plan.key_step, range(base.plan.key_step, max(base.plan.value_steps) + 1)
    queries = latents_after(pipe, base, prompts, noise_ids, steps)
    rows = base.search(queries[0].cpu(), noise_ids, 1, key_step).rows[:, 0]
    if (rows < 0).any():
        raise InputError("a noise without entries", expected="an entry for each query's noise")
    near = base.prompts(rows)
    neighbours = latents_after(pipe, base, near, noise_ids, steps)
    guidance = as_built(base)["guidance_scale"]
    own, others = conditioning(pipe, prompts), conditioning(pipe, near)
    set_schedule(pipe.scheduler, as_built(base))
    apart, rates, gaps, clock = [], [], [], []
    for step, x, y in tqdm(list(zip(steps, queries, neighbours, strict=True)), desc="L of each step", unit="step"):
        ratio, timestep = float(pipe.scheduler.sigmas[step]), pipe.scheduler.timesteps[step]
        sigma = ratio / (1 + ratio**2) ** 0.5
        drift = _drift(pipe, own, guidance, timestep, sigma)
        with torch.no_grad():
            gap = _drift(pipe, others, guidance, timestep, sigma)(y) - drift(y)
            most = torch.maximum(*(lipschitz(drift, at, iterations=iterations) for at in (x, y)))
        apart.append((x - y).flatten(1).norm(dim=1))
        gaps.append(gap.flatten(1).norm(dim=1))
        rates.append(most)
        clock.append(-np.log(ratio))
    parts = [torch.stack(each).double().cpu().numpy() for each in (apart, rates, gaps)]
    return Divergence(parts[0], parts[1], parts[2], np.asarray(clock))


def _drift(pipe: Any, told: Tensor, guidance: float, timestep: Tensor, sigma: float) -> Drift:
    """Return the probability flow's drift with classifier-free guidance inside, as the solver integrates it."""

    def drift(latents: Tensor) -> Tensor:
        return drift_of_noise(latents, answer(pipe, told, guidance, timestep, latents), sigma)

    return drift
