"""Owns the training of the bundled autoencoder; must not know captions or the denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from redi.miniature.architecture import make_autoencoder
from redi.miniature.training import Stage, train

KL_WEIGHT = 5e-4
_EDGE_WEIGHT = 0.4
_CELL_WEIGHT = 6.0


def train_autoencoder(
    stage: Stage, drawn: NDArray[np.uint8], folder: Path, *, device: torch.device
) -> tuple[AutoencoderKL, dict[str, Any]]:
    """Train the autoencoder on pictures (n, 3, 64, 64) and set its ``scaling_factor`` to make latents unit-sized.

    X
    """
    torch.manual_seed(stage.seed)
    autoencoder = make_autoencoder().to(device)

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(drawn), (stage.batch_size,), generator=generator).numpy()
        batch = to_unit(torch.from_numpy(drawn[rows]).to(device))
        posterior = autoencoder.encode(batch).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        decoded = autoencoder.decode(posterior.mean + posterior.std * noise).sample
        edges = sum((decoded.diff(dim=axis) - batch.diff(dim=axis)).abs().mean() for axis in (2, 3))
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        error = decoded - batch
        cells = nn.functional.avg_pool2d(error, 4).square().mean()
        loss: Tensor = error.abs().mean() + _CELL_WEIGHT * cells + _EDGE_WEIGHT * edges + KL_WEIGHT * divergence
        return loss

    record = train(stage, autoencoder, loss_of, folder, device=device)
    latents = encode(autoencoder, drawn[:2000])
    autoencoder.register_to_config(scaling_factor=float(1.0 / latents.std()))
    record["scaling_factor"] = autoencoder.config.scaling_factor
    return autoencoder, record


def to_unit(picture: Tensor) -> Tensor:
    """Turn 0-255 integers into -1..1 floats."""
    return picture.float() / 127.5 - 1.0


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, drawn: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the unscaled mean latents (n, 4, 16, 16) of pictures (n, 3, 64, 64)."""
    device = next(autoencoder.parameters()).device
    batch_size = 32 if device.type == "cpu" else 1024
    parts = [
        autoencoder.encode(to_unit(torch.from_numpy(drawn[start : start + batch_size].copy()).to(device)))
        .latent_dist.mean.cpu()
        .numpy()
        for start in range(0, len(drawn), batch_size)
    ]
    return np.concatenate(parts)
