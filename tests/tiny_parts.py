"""Builds tiny real components of pipelines: tokenizers of letters, text encoders, U-Nets, autoencoders, pictures."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tiny import SD_SCHEDULE

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = 24
"""What every tokenizer keeps of a prompt."""


def clip_tokenizer() -> CLIPTokenizer:
    """Return a CLIP tokenizer of single letters."""
    symbols = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: place for place, symbol in enumerate(symbols)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)


def t5_tokenizer() -> T5Tokenizer:
    """Return a T5 tokenizer of single letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TOKENS)


def gemma_tokenizer() -> GemmaTokenizer:
    """Return a Gemma tokenizer of single letters."""
    symbols = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    vocabulary = {symbol: place for place, symbol in enumerate(symbols)}
    return GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)


def clip(kind: type = CLIPTextModel, width: int = 16) -> Any:
    """Return a text encoder for :func:`clip_tokenizer`."""
    tokenizer = clip_tokenizer()
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=32,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def t5(kind: type = T5EncoderModel, config: type = T5Config, width: int = 32) -> Any:
    """Return a text encoder for :func:`t5_tokenizer`."""
    shape = {"d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    return kind(config(**shape, feed_forward_proj="gated-gelu", is_encoder_decoder=False))


def unet(in_channels: int = 4, **settings: Any) -> UNet2DConditionModel:
    """Return a U-Net of two levels, one with attention."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
        **{"cross_attention_dim": 16, **settings},
    )


def vae(**settings: Any) -> AutoencoderKL:
    """Return an autoencoder of two pixels a latent and side."""
    return AutoencoderKL(
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
        **settings,
    )


def sd_parts() -> dict[str, Any]:
    """Return the components of Stable Diffusion, without safety checker."""
    return {
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "unet": unet(),
        "scheduler": DDIMScheduler(**SD_SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
    }


def sdxl_parts() -> dict[str, Any]:
    """Return the components of Stable Diffusion XL."""
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return {
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip(CLIPTextModelWithProjection),
        "tokenizer_2": clip_tokenizer(),
        "unet": unet(cross_attention_dim=32, projection_class_embeddings_input_dim=6 * 8 + 16, **added),
        "scheduler": EulerDiscreteScheduler(**SD_SCHEDULE, timestep_spacing="leading", steps_offset=1),
    }


def picture(seed: int, channels: int = 3) -> torch.Tensor:
    """Return a picture of noise, (1, channels, 16, 16) between 0 and 1."""
    return torch.rand(1, channels, 16, 16, generator=torch.Generator().manual_seed(seed))
