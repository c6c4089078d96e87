"""Owns asking a pipeline's network at latents of one's own, with guidance; must not know what for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def conditioning(pipe: Any, prompts: Sequence[str]) -> Tensor:
    """Return what the network is told of prompts (b): (2b, tokens, d), the empty prompt's first."""
    with torch.no_grad():
        told, empty = pipe.encode_prompt(list(prompts), pipe.device, 1, True)
    return torch.cat([empty, told])


def answer(pipe: Any, told: Tensor, guidance: float, timestep: Tensor, latents: Tensor) -> Tensor:
    """Return the network's answer (b, ...) at latents, with classifier-free guidance, in the latents' dtype.

    Args:
        pipe: Of Stable Diffusion's shape: a ``unet`` told of the prompt alone.
        told: Of :func:`conditioning`.
        guidance: Scale of the guidance.
        timestep: As the scheduler has it.
        latents: (b, ...), as the scheduler scales them for the network.
    """
    both = pipe.unet(torch.cat([latents, latents]).to(pipe.dtype), timestep, told, return_dict=False)[0]
    empty, asked = both.to(latents.dtype).chunk(2)
    guided: Tensor = empty + guidance * (asked - empty)
    return guided
