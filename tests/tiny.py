"""Builds a tiny real StableDiffusionPipeline with random weights, from nothing but a temporary folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from redi.engine import Jump

SD_SCHEDULE: Mapping[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}

SCHEDULERS: Mapping[str, tuple[type, Mapping[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True, "steps_offset": 1}),
    "dpm": (DPMSolverMultistepScheduler, {"steps_offset": 1}),
    "unipc": (UniPCMultistepScheduler, {"steps_offset": 1}),
    "euler": (EulerDiscreteScheduler, {"timestep_spacing": "leading", "steps_offset": 1}),
}


@dataclass
class Watcher:
    """A policy that keeps what it sees and jumps as it is told."""

    key_step: int | None = None
    decide: Callable[[torch.Tensor], Sequence[Jump | None]] = lambda latents: [None] * len(latents)
    start: torch.Tensor | None = None
    seen: dict[int, torch.Tensor] = field(default_factory=dict)

    def on_start(self, latents: torch.Tensor) -> None:
        self.start = latents.clone()

    def at_key(self, latents: torch.Tensor) -> Sequence[Jump | None]:
        return self.decide(latents)

    def on_step(self, completed: int, latents: torch.Tensor) -> None:
        self.seen[completed] = latents.clone()


THREE_STEPS: Mapping[str, Any] = {"num_inference_steps": 3, "output_type": "latent", "return_dict": False}
PROMPTS = ("a red cat", "a blue dog on grass", "a green house", "a small yellow boat")


def scheduler(name: str, **settings: Any) -> Any:
    """Return a scheduler by short name, with Stable Diffusion's noise schedule."""
    kind, defaults = SCHEDULERS[name]
    return kind(**{**SD_SCHEDULE, **defaults, **settings})


def tiny_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return a CLIP tokenizer of a few letters and no merges."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    symbols = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({symbol: place for place, symbol in enumerate(symbols)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)


def tiny_pipeline(folder: Path, scheduler_name: str = "pndm", **settings: Any) -> StableDiffusionPipeline:
    """Return a pipeline of 4x8x8 latents and 16x16 pixels; the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = tiny_tokenizer(folder)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=24,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=16,
        )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler(scheduler_name, **settings),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(*seeds: int, shape: tuple[int, ...] = (4, 8, 8)) -> torch.Tensor:
    """Return unit noise, one row per seed."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def generate(pipe: Any, prompts: list[str], x_T: torch.Tensor, steps: int, **kwargs: Any) -> torch.Tensor:
    """Return the final latents of a pipeline call."""
    return pipe(
        prompts, latents=x_T.clone(), num_inference_steps=steps, output_type="latent", return_dict=False, **kwargs
    )[0]
