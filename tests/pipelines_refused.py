"""Builds tiny instances of the real pipelines that redi cannot run, and asks why; must not know pytest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    StableDiffusionImg2ImgPipeline,
    TextToVideoZeroPipeline,
)

import tiny
from redi.engine import run
from redi.errors import UnsupportedError
from tiny import Watcher
from tiny_parts import picture, sd_parts, t5, t5_tokenizer
from tiny_pipelines import VIDEO, wan


def sky_reels() -> SkyReelsV2DiffusionForcingPipeline:
    """SkyReels 2's shape: one scheduler per frame, copied from its own."""
    parts = wan().components
    transformer = SkyReelsV2Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    shared = {name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    return SkyReelsV2DiffusionForcingPipeline(transformer=transformer, **shared)


def cog_video_x() -> CogVideoXPipeline:
    """CogVideoX's shape, with the scheduler whose ``step`` takes another step's answer."""
    return CogVideoXPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
        ),
        transformer=CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=32,
            num_layers=1,
            sample_width=2,
            sample_height=2,
            sample_frames=9,
            max_text_seq_length=24,
        ),
        scheduler=CogVideoXDPMScheduler(),
    )


def text_to_video_zero() -> TextToVideoZeroPipeline:
    """Text2Video-Zero: Stable Diffusion, stepped by a copy of its scheduler too."""
    return TextToVideoZeroPipeline(**sd_parts(), requires_safety_checker=False)


def image_to_image_with_pndm() -> StableDiffusionImg2ImgPipeline:
    """PNDM repeats its first step, which image-to-image leaves out."""
    parts = {**sd_parts(), "scheduler": tiny.scheduler("pndm")}
    return StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)


WORDS = torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(3))
FRAMES = {**VIDEO, "prompt": None, "prompt_embeds": WORDS, "guidance_scale": 1.0, "base_num_frames": 5}


@dataclass(frozen=True)
class Refused:
    """A pipeline to be built, and a call of it that it can make alone."""

    make: Callable[[], Any]
    call: Mapping[str, Any]

    def samples(self, pipe: Any) -> torch.Tensor:
        """Return what the pipeline makes, from the same noise every time."""
        steps = {"num_inference_steps": 4, "output_type": "latent", "return_dict": False}
        generator = torch.Generator().manual_seed(0)
        return torch.as_tensor(pipe(**{"prompt": "a cat", **steps, **self.call}, generator=generator)[0])

    def refusal(self, pipe: Any) -> str:
        """Return the first line of what redi says."""
        try:
            with run(pipe, Watcher(2)):
                self.samples(pipe)
        except UnsupportedError as error:
            return str(error).splitlines()[0]
        return "not refused"


REFUSED: Mapping[str, Refused] = {
    "SkyReelsV2DiffusionForcing": Refused(sky_reels, FRAMES),
    "TextToVideoZero": Refused(text_to_video_zero, {"video_length": 2, "t0": 1, "t1": 2}),
    "CogVideoX": Refused(cog_video_x, {"num_frames": 8, "height": 16, "width": 16, "max_sequence_length": 24}),
    "StableDiffusionImg2Img with PNDM": Refused(image_to_image_with_pndm, {"image": picture(1), "strength": 0.5}),
}
