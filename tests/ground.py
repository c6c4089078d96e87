"""Owns a folder of bases, one for each scheduler, with pipelines to enable them on; must not know pytest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from torch import Tensor

import redi
from recording import SEEDS, SHAPE, record
from redi.knowledge_base import NoiseBank
from tiny import tiny_pipeline

PLAN = redi.Plan(12, key_step=3, value_steps=(6, 8), more_key_steps=(2,))
NOISES = NoiseBank.draw(SEEDS, SHAPE).latents
NEW = "a big house on grass"


class Ground:
    """A folder with a base of each scheduler that was asked for, and a fresh pipeline for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pipe(self, name: str = "ddim") -> StableDiffusionPipeline:
        return tiny_pipeline(self.folder / "model", name)

    def base(self, name: str = "ddim", plan: redi.Plan = PLAN) -> redi.KnowledgeBase:
        path = self.folder / f"{name}-{plan.num_inference_steps}"
        return redi.KnowledgeBase.open(path) if path.exists() else record(path, self.pipe(name), plan)


def latents(output: Any) -> Tensor:
    return output.images


def call(pipe: Any, prompts: list[str] | str, **kwargs: Any) -> Tensor:
    return latents(pipe(prompts, output_type="latent", **kwargs))
