"""Owns the training of the bundled denoiser (U-Net and text encoder together); must not know how captions are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTextModel

from redi.miniature.architecture import make_noise_schedule
from redi.miniature.training import Stage, train

_EMPTY_SHARE = 0.1
_NOISE_BIAS = 0.75


def train_denoiser(
    stage: Stage,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    latents: NDArray[np.float16],
    tokens: NDArray[np.int16],
    empty_tokens: NDArray[np.int16],
    folder: Path,
    *,
    device: torch.device,
    compiled: bool = False,
) -> dict[str, Any]:
    """Train the U-Net, and the text encoder with it, in place, to predict noise (section 3.2, equation 8 of the paper).

    A tenth of the captions are emptied for classifier-free guidance (Ho and Salimans, 2022). Timesteps are drawn
    with a mild bias to high noise, where a caption decides most.

    Args:
        stage: Length and speed of the training.
        unet: Trained, in place.
        text_encoder: Trained further, in place.
        latents: (n, 4, 16, 16), scaled to unit size.
        tokens: (n, wordings, 40) token ids.
        empty_tokens: (40,) token ids of the empty caption.
        folder: Where checkpoint and losses go.
        device: Where to train.
        compiled: Whether to compile both networks: a third faster after two minutes, if there is a C++ compiler.

    Returns:
        The training record.
    """
    network = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).to(device)
    alphas = make_noise_schedule().alphas_cumprod.to(device)
    empty = torch.from_numpy(empty_tokens.astype(np.int64)).to(device)
    all_latents, all_tokens = (torch.tensor(array, device=device) for array in (latents, tokens))
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # fused attention's backward pass is slow on CPUs
        text_encoder.set_attn_implementation("eager")

    def predict(noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        hidden = text_encoder(ids).last_hidden_state
        predicted: Tensor = unet(noisy, timesteps, hidden, return_dict=False)[0]
        return predicted

    if compiled:  # small kernels: on a GPU, launching them one by one takes longer than running them
        predict = torch.compile(predict, mode="reduce-overhead" if device.type == "cuda" else "default")

    def loss_of(seeded: torch.Generator) -> Tensor:
        count, generator = stage.batch_size, torch.Generator(device).manual_seed(seeded.initial_seed())
        draw: dict[str, Any] = {"generator": generator, "device": device}
        rows = torch.randint(len(all_latents), (count,), **draw)
        ids = all_tokens[rows, torch.randint(all_tokens.shape[1], (count,), **draw)].long()
        ids = torch.where(torch.rand((count, 1), **draw) < _EMPTY_SHARE, empty, ids)
        clean = all_latents[rows].float()
        noise = torch.randn(clean.shape, **draw)
        timesteps = (len(alphas) * torch.rand(count, **draw) ** _NOISE_BIAS).long()
        signal = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        return nn.functional.mse_loss(predict(noisy, timesteps, ids).float(), noise)

    record = train(stage, network, loss_of, folder, device=device)
    unet.set_attn_processor(AttnProcessor2_0())
    text_encoder.set_attn_implementation("sdpa")
    return record
