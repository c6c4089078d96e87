"""Owns runs of several jumps: a call at every stop, then an estimate of the latents at the next; must not know tables.

What a stop has seen (the prediction of its call, those of earlier stops, its latents) says where the trajectory goes:
entries of the same noise have all of it, and their latents at the next stop too. The estimate is kriging over them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from redi.errors import UnsupportedError
from redi.experiments.answers import answer, conditioning
from redi.experiments.paths import as_built, set_schedule, starts
from redi.experiments.predictions import last_prediction
from redi.experiments.sampling import CHAINED, Chain
from redi.experiments.wider_estimators import carried_on, fitted
from redi.knowledge_base import KnowledgeBase
from redi.solvers import MultistepFacts, facts_for

_BATCH = 32


class Trails:
    """What entries (n) of one noise have at every stop.

    Args:
        scheduler: As a run has it before its first step; stays as it is.
        latents: Of the entries, (n, ...) each: at the start and after every step of the run, the last one too.
        stops: Completed steps before each call, rising from 0.
    """

    def __init__(self, scheduler: Any, latents: Sequence[Tensor], stops: Sequence[int]) -> None:
        self._seen = [
            (latents[stop].double().flatten(1), last_prediction(scheduler, latents[: stop + 2]).flatten(1))
            for stop in stops
        ]
        self._targets = [latents[end].double().flatten(1) for end in (*stops[1:], len(latents) - 1)]

    def next(self, queries: Sequence[tuple[Tensor, Tensor]], *, neighbours: bool = True) -> Tensor:
        """Estimate the latents (m, d) of queries at the next stop, or at the end.

        Args:
            queries: Of every stop so far: latents and prediction, (m, d) each.
            neighbours: Whether entries that are alike count more; else the mean and fitted steps are all.
        """
        entries, asked = _known(self._seen[: len(queries)]), _known(queries)
        return (carried_on if neighbours else fitted)(entries, asked, self._targets[len(queries) - 1])


def _known(seen: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Return predictions, the newest first, and the latents; at the start all latents are the same."""
    predictions = [prediction for _, prediction in reversed(seen)]
    return predictions if len(seen) == 1 else [*predictions, seen[-1][0]]


def looked_at(base: KnowledgeBase) -> NDArray[np.int64]:
    """Return the rows of the entries that chains look at: the first of each noise."""
    of_noises = base.noise_ids()
    return np.concatenate([np.flatnonzero(of_noises == each)[:CHAINED] for each in np.unique(of_noises)])


def finished(pipe: Any, base: KnowledgeBase) -> Tensor:
    """Return the latents (n, ...) in which the runs of the entries that chains look at end, by one call of each.

    Raises:
        UnsupportedError: The base has no value after the last step but one, or its solver ends at some noise.
    """
    rows, last = looked_at(base), base.plan.num_inference_steps - 1
    if last not in base.plan.value_steps:
        raise UnsupportedError(f"a chain through values of {base.plan.value_steps}", expected=f"{last} among them")
    network = _Network(pipe, base)
    parts = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
    return torch.cat(
        [
            network.prediction(base.values(part.tolist(), last), conditioning(pipe, base.prompts(part.tolist())), last)
            for part in tqdm(parts, desc="last steps", unit="batch")
        ]
    )


def run_chain(
    pipe: Any, base: KnowledgeBase, ends: Tensor, prompts: Sequence[str], noise_ids: Sequence[int], chain: Chain
) -> tuple[list[Image.Image], list[int], list[bool], float]:
    """Return pictures, calls, whether each jumped and seconds of prompts (n) that are run by several jumps.

    Args:
        pipe: Of the base's model and solver.
        base: Has latents after every step but the last.
        ends: Of :func:`finished`.
        prompts: What to run.
        noise_ids: (n) where each starts.
        chain: Its stops.
    """
    started = time.perf_counter()
    network, of_prompts = _Network(pipe, base), torch.as_tensor(noise_ids)
    parts = [slice(start, start + _BATCH) for start in range(0, len(prompts), _BATCH)]
    told = [conditioning(pipe, prompts[part]) for part in parts]
    trails = {each: _trails(network, base, ends, each, chain.stops) for each in sorted(set(noise_ids))}
    reached = starts(pipe, base.noise_bank, noise_ids).double().cpu() * network.scheduler.init_noise_sigma
    seen: list[tuple[Tensor, Tensor]] = []
    for stop in tqdm(chain.stops, desc="stops", unit="stop"):
        predicted = torch.cat(
            [network.prediction(reached[part], each, stop) for part, each in zip(parts, told, strict=True)]
        )
        seen.append((reached.flatten(1), predicted.double().flatten(1)))
        reached = torch.empty_like(reached)
        for noise_id, entries in trails.items():
            own = of_prompts == noise_id
            queries = [(latents[own], prediction[own]) for latents, prediction in seen]
            reached[own] = entries.next(queries, neighbours=chain.neighbours).reshape(reached[own].shape)
    pictures = [image for part in parts for image in network.decoded(reached[part])]
    count = len(prompts)
    return pictures, [len(chain.stops)] * count, [True] * count, time.perf_counter() - started


def _trails(network: _Network, base: KnowledgeBase, ends: Tensor, noise_id: int, stops: Sequence[int]) -> Trails:
    rows = looked_at(base)
    own = base.noise_ids()[rows] == noise_id
    mine, keys = rows[own].tolist(), set(base.plan.key_steps)
    start = starts(network.pipe, base.noise_bank, [noise_id] * len(mine)).float().cpu()
    between = [
        (base.keys(mine, step) if step in keys else base.values(mine, step)).float().cpu()
        for step in range(1, base.plan.num_inference_steps)
    ]
    latents = [start * network.scheduler.init_noise_sigma, *between, ends[torch.from_numpy(own)].float()]
    return Trails(network.scheduler, latents, stops)


class _Network:
    """A pipeline's network and decoder, asked at latents of one's own as the base was built."""

    def __init__(self, pipe: Any, base: KnowledgeBase) -> None:
        call = as_built(base)
        self.pipe, self.scheduler = pipe, type(pipe.scheduler).from_config(pipe.scheduler.config)
        set_schedule(self.scheduler, call)
        self.guidance = call["guidance_scale"]
        facts = facts_for(self.scheduler)
        if not isinstance(facts, MultistepFacts) or float(self.scheduler.sigmas[-1]) != 0:
            raise UnsupportedError(
                f"a chain of a {type(self.scheduler).__name__}",
                expected="a multistep solver of one call a step that ends at sigma 0",
            )
        self.facts = facts

    def prediction(self, latents: Tensor, told: Tensor, step: int) -> Tensor:
        """Return the prediction of x_0 (b, ...) after so many steps, by one call told as of :func:`conditioning`."""
        at, timestep = self.facts.reading(self.scheduler, step), self.scheduler.timesteps[step]
        with torch.inference_mode():
            here = latents.float().to(self.pipe.device)
            predicted = at.data(here, answer(self.pipe, told, self.guidance, timestep, here))
        return predicted.cpu()

    def decoded(self, latents: Tensor) -> list[Image.Image]:
        """Return the pictures of finished latents (b, ...)."""
        own = self.pipe.vae
        with torch.inference_mode():
            scaled = latents.to(self.pipe.device, self.pipe.dtype) / own.config.scaling_factor
            pictures = own.decode(scaled, return_dict=False)[0]
        found: list[Image.Image] = self.pipe.image_processor.postprocess(pictures, output_type="pil")
        return found
