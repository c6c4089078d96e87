"""Owns jumps whose neighbours are not found by the trajectory (the rivals of Table 3); must not know tables."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from redi.attachment import quiet
from redi.enabling import prepare
from redi.engine import Jump as EngineJump
from redi.engine import StopTrajectory, run
from redi.errors import InputError
from redi.experiments.paths import as_built, latents_after, starts
from redi.experiments.sampling import Jump
from redi.jumping import JumpPolicy, NoiseWatch
from redi.knowledge_base import KnowledgeBase
from redi.retrieval import combiner
from redi.solvers import facts_for

_BATCH = 32


class _Given(NoiseWatch):
    """A policy whose jumps were chosen before the run."""

    def __init__(self, base: KnowledgeBase, scheduler: Any, key_step: int, jumps: Sequence[EngineJump | None]) -> None:
        super().__init__(base, scheduler, key_step=key_step)
        self.jumps = jumps

    def at_key(self, latents: Tensor) -> Sequence[EngineJump | None]:
        return self.jumps


class _Decided(JumpPolicy):
    """Algorithm 2 up to its jump: keeps x_v and ends the run there."""

    def at_key(self, latents: Tensor) -> Sequence[EngineJump | None]:
        jumps = super().at_key(latents)
        self.latents = torch.stack([jump.latents for jump in jumps if jump is not None])
        raise StopTrajectory


def estimates(
    pipe: Any,
    base: KnowledgeBase,
    prompts: Sequence[str],
    noise_ids: Sequence[int],
    jump: Jump,
    *,
    before: Sequence[int] = (),
) -> Tensor:
    """Return x_v (n, ...) as the jump's key estimates it, before any run: from entries of the same noise.

    Args:
        pipe: Of the base's model.
        base: Its entries are looked at.
        prompts: What to run.
        noise_ids: (n) where each starts.
        jump: Its key, weights and value step.
        before: Noises of the prompts before these, where these are a part of more. A random key draws for them too:
            a prompt's entry is the same however prompts are parted.

    Raises:
        InputError: The key is unknown.
    """
    if jump.key == "random":
        rng = np.random.default_rng(0)
        drawn = [int(rng.choice(rows)) for rows in _of_same_noise(base, [*before, *noise_ids])]
        return base.values(drawn[len(before) :], jump.value_step)
    if jump.key != "text":
        raise InputError(f"key {jump.key!r}", expected="'text' or 'random'")
    rule = combiner(jump.weights)
    count = jump.neighbors or rule.default_neighbors
    of_entries, of_prompts = _embeddings(pipe, base, prompts)
    found = []
    for query, rows in zip(of_prompts, _of_same_noise(base, noise_ids), strict=True):
        keys = of_entries[rows]
        near = (keys - query).norm(dim=1).argsort()[:count]
        values = base.values(rows[near.numpy()].tolist(), jump.value_step)
        found.append(rule.combine(query, keys[near], values).values)
    return torch.stack(found)


def nearest_by_text(pipe: Any, base: KnowledgeBase, prompts: Sequence[str], noise_ids: Sequence[int]) -> list[int]:
    """Return for each prompt (n) the row of the entry of its noise whose prompt has the nearest text embedding."""
    of_entries, of_prompts = _embeddings(pipe, base, prompts)
    return [
        int(rows[int((of_entries[rows] - query).norm(dim=1).argmin())])
        for query, rows in zip(of_prompts, _of_same_noise(base, noise_ids), strict=True)
    ]


def run_full(pipe: Any, base: KnowledgeBase, prompts: Sequence[str], noise_ids: Sequence[int]) -> list[Image.Image]:
    """Return the pictures of prompts (n), run in full as the base was built."""
    with quiet(pipe):
        batches = [_call(pipe, base, prompts[batch], noise_ids[batch]).images for batch in _batches(len(prompts))]
    return [picture for batch in batches for picture in batch]


def run_to(
    values: Tensor, pipe: Any, base: KnowledgeBase, prompts: Sequence[str], noise_ids: Sequence[int], jump: Jump
) -> tuple[list[Image.Image], list[int], list[bool], float]:
    """Run every prompt (n) to the key step, jump to its x_v (n, ...) and finish."""
    return _run([EngineJump(jump.value_step, value) for value in values], pipe, base, prompts, noise_ids, jump)


def run_by_similarity(
    pipe: Any, base: KnowledgeBase, prompts: Sequence[str], noise_ids: Sequence[int], jump: Jump
) -> tuple[list[Image.Image], list[int], list[bool], float]:
    """Run prompts (n) by the jump's thresholds (NIRVANA: Agarwal et al., 2024): each from the x_v of the entry of its
    noise with the most similar prompt, the later the more similar, or in full."""
    of_entries, of_prompts = (normalize(each, dim=1) for each in _embeddings(pipe, base, prompts))
    jumps: list[EngineJump | None] = []
    for query, rows in zip(of_prompts, _of_same_noise(base, noise_ids), strict=True):
        cosine, nearest = (of_entries[rows] @ query).max(dim=0)
        step = next((step for least, step in jump.thresholds if float(cosine) >= least), None)
        jumps.append(None if step is None else EngineJump(step, base.values([int(rows[int(nearest)])], step)[0]))
    return _run(jumps, pipe, base, prompts, noise_ids, jump)


def _run(
    jumps: Sequence[EngineJump | None],
    pipe: Any,
    base: KnowledgeBase,
    prompts: Sequence[str],
    noise_ids: Sequence[int],
    jump: Jump,
) -> tuple[list[Image.Image], list[int], list[bool], float]:
    """Run every prompt (n) to the key step, make its jump and finish.

    What comes after a jump does not depend on what came before it, so of a jump from the start one step is run all the
    same (an engine's jump comes after a step), and not counted.
    """
    key_step, uncounted = max(1, jump.key_step), 0 if jump.key_step else facts_for(pipe.scheduler).call_index(1)
    pictures: list[Image.Image] = []
    calls: list[int] = []
    started = time.perf_counter()
    for batch in _batches(len(prompts)):
        policy = _Given(base, pipe.scheduler, key_step, jumps[batch])
        with quiet(pipe), run(pipe, policy) as statistics:
            pictures += _call(pipe, base, prompts[batch], noise_ids[batch]).images
        calls += [made - uncounted if each else made for made, each in zip(statistics.calls, jumps[batch], strict=True)]
    return pictures, calls, [each is not None for each in jumps], time.perf_counter() - started


def distance_at_value(
    pipe: Any, base: KnowledgeBase, prompts: Sequence[str], noise_ids: Sequence[int], jump: Jump
) -> list[float]:
    """Return each prompt's distance between the x_v that the jump goes to and that of its run in full (Table 3)."""
    enabled = prepare(
        pipe,
        base,
        key_step=jump.key_step,
        value_step=jump.value_step,
        neighbors=jump.neighbors,
        weights=jump.weights,
        max_distance=float("inf"),
    )
    given = None if jump.key == "trajectory" else estimates(pipe, base, prompts, noise_ids, jump)
    found: list[float] = []
    for batch in _batches(len(prompts)):
        (reached,) = latents_after(pipe, base, prompts[batch], noise_ids[batch], [jump.value_step])
        if given is None:
            decided = _Decided(base, pipe.scheduler, enabled.rule)
            try:
                with quiet(pipe), run(pipe, decided):
                    _call(pipe, base, prompts[batch], noise_ids[batch])
            except StopTrajectory:
                estimated = decided.latents
        else:
            estimated = given[batch]
        found += (estimated.float() - reached.cpu()).flatten(1).norm(dim=1).tolist()
    return found


def _call(pipe: Any, base: KnowledgeBase, prompts: Sequence[str], noise_ids: Sequence[int]) -> Any:
    return pipe(
        list(prompts),
        **as_built(base),
        latents=starts(pipe, base.noise_bank, noise_ids),
    )


def _of_same_noise(base: KnowledgeBase, noise_ids: Sequence[int]) -> Iterator[NDArray[np.int64]]:
    """Yield, for each noise id, the rows of its entries."""
    of_entries = base.noise_ids()
    return (np.flatnonzero(of_entries == noise_id) for noise_id in noise_ids)


def _embeddings(pipe: Any, base: KnowledgeBase, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the text embeddings of the base's prompts (N, d) and of others (n, d)."""
    return embedded(pipe, base.prompts(range(len(base)))), embedded(pipe, prompts)


@torch.no_grad()
def embedded(pipe: Any, prompts: Sequence[str]) -> Tensor:
    """Return the pipeline's own text embeddings (n, d), at each prompt's end, as CLIP pools them."""
    most = pipe.tokenizer.model_max_length
    told = pipe.tokenizer(list(prompts), padding="max_length", truncation=True, max_length=most, return_tensors="pt")
    ids = told.input_ids.to(pipe.device)
    return torch.cat([pipe.text_encoder(ids[batch]).pooler_output for batch in _batches(len(ids))]).float().cpu()


def _batches(count: int) -> list[slice]:
    return [slice(start, start + _BATCH) for start in range(0, count, _BATCH)]
