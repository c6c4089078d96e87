"""Records a small knowledge base by running a tiny pipeline in full; must not know redi.building."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from redi.engine import run
from redi.identity import identity_of
from redi.knowledge_base import EntryBatch, KnowledgeBase, Manifest, NoiseBank
from redi.plan import Plan
from tiny import Watcher, noise

SHAPE = (4, 8, 8)
SEEDS = (11, 22, 33)
PROMPTS = ("a red cat", "a blue dog on grass", "a green house", "a small yellow boat", "two birds", "an old tree")
GUIDANCE: dict[str, Any] = {"guidance_scale": 5.0, "negative_prompt": "ugly"}


def full_images(pipe: Any, prompts: Sequence[str], x_T: torch.Tensor, steps: int, **kwargs: Any) -> torch.Tensor:
    """Return the final latents of a plain run with the base's guidance."""
    call = {**GUIDANCE, **kwargs}
    if isinstance(call["negative_prompt"], str):
        call["negative_prompt"] = [call["negative_prompt"]] * len(prompts)
    return pipe(
        list(prompts), latents=x_T.clone(), num_inference_steps=steps, output_type="latent", return_dict=False, **call
    )[0]


def record(
    path: Path, pipe: Any, plan: Plan, prompts: Sequence[str] = PROMPTS, *, finish: bool = True, shared: bool = True
) -> KnowledgeBase:
    """Build a base that holds every prompt under every noise (or once, under a noise of its own)."""
    bank = NoiseBank.draw(SEEDS if shared else (), SHAPE)
    identity = identity_of(pipe, num_inference_steps=plan.num_inference_steps, **GUIDANCE)
    kind = {"kind": "shared" if shared else "independent", "seeds": list(bank.seeds)}
    references = {step: bank.latents.clone() for step in plan.key_steps}
    base = KnowledgeBase.create(path, Manifest(plan, identity, SHAPE, kind), bank, references)
    runs = [[seed] * len(prompts) for seed in bank.seeds] if shared else [[1000 + i for i in range(len(prompts))]]
    for unit, seeds in enumerate(runs if prompts else []):
        watcher = Watcher()
        with run(pipe, watcher):
            full_images(pipe, prompts, noise(*seeds).to(pipe.unet.dtype), plan.num_inference_steps)
        keys = {step: watcher.seen[step] for step in plan.key_steps}
        values = {step: watcher.seen[step] for step in plan.value_steps}
        noise_ids = [unit if shared else -1] * len(prompts)
        base.add_unit(unit, EntryBatch(list(prompts), noise_ids, seeds, keys, values))
    if finish:
        base.finish()
    return base
