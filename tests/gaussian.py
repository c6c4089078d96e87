"""A denoiser with a known answer: anisotropic Gaussian data, whose probability-flow ODE has a closed solution.

Data x_0 ~ N(mean, diag(spread^2)), latents x_t = a x_0 + s noise. Then the exact noise prediction is
s (x - a mean) / (a^2 spread^2 + s^2), and (x - a mean) / sqrt(a^2 spread^2 + s^2) stays constant along a trajectory.
The mean is the prompt: it comes in as ``encoder_hidden_states``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, StableDiffusionPipeline
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from tiny import scheduler, tiny_pipeline

SHAPE = (4, 4, 4)
SIZE = 64


class GaussianDenoiser(ModelMixin, ConfigMixin):
    """The exact noise prediction, in the clothes of a U-Net."""

    @register_to_config
    def __init__(self, sample_size: int = 4, in_channels: int = 4, time_cond_proj_dim: int | None = None) -> None:
        super().__init__()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self.register_buffer("alphas_cumprod", torch.cumprod(1 - betas, 0))
        self.spread = torch.nn.Parameter(torch.logspace(-1.7, 0.18, SIZE).reshape(SHAPE), requires_grad=False)

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = True, **_: Any
    ) -> tuple[Tensor]:
        scale, sigma = self.schedule(timestep)
        mean = encoder_hidden_states[:, 0].reshape(-1, *SHAPE)
        return (sigma * (sample - scale * mean) / (scale**2 * self.spread**2 + sigma**2),)

    def schedule(self, timestep: Tensor | int) -> tuple[Tensor, Tensor]:
        """Return a and s at a timestep."""
        alpha = self.alphas_cumprod[int(timestep)]
        return alpha.sqrt(), (1 - alpha).sqrt()

    def solve(self, latents: Tensor, mean: Tensor, start: int, end: int | None) -> Tensor:
        """Return the exact ODE solution at timestep ``end`` (None: t=0) from latents at timestep ``start``."""
        scale, sigma = self.schedule(start)
        standard = (latents - scale * mean) / (scale**2 * self.spread**2 + sigma**2).sqrt()
        scale, sigma = self.schedule(end) if end is not None else (torch.tensor(1.0), torch.tensor(0.0))
        return scale * mean + standard * (scale**2 * self.spread**2 + sigma**2).sqrt()


def means(*seeds: int) -> Tensor:
    """Return the data means that stand for prompts, ``(b, 4, 4, 4)``."""
    return torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 + seed)) for seed in seeds])


def gaussian_pipeline(folder: Path, scheduler_name: str, **settings: Any) -> StableDiffusionPipeline:
    """Return a real StableDiffusionPipeline around the closed-form denoiser."""
    parts = tiny_pipeline(folder).components
    pipe = StableDiffusionPipeline(
        **{
            **parts,
            "unet": GaussianDenoiser(),
            "text_encoder": None,
            "tokenizer": None,
            "scheduler": scheduler(scheduler_name, **settings),
        },
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, mean: Tensor, x_T: Tensor, steps: int) -> Tensor:
    """Return the final latents of a pipeline call without guidance."""
    return pipe(
        prompt_embeds=mean.reshape(len(mean), 1, SIZE),
        guidance_scale=1.0,
        latents=x_T.clone(),
        num_inference_steps=steps,
        output_type="latent",
        return_dict=False,
    )[0]


def jump_without_redi(
    pipe: Any, mean: Tensor, x_T: Tensor, steps: int, calls: tuple[int, int], x_v: Tensor, treat: Callable[..., Any]
) -> Tensor:
    """Sample with a bare loop that jumps from call ``calls[0]`` to ``calls[1]``; ``treat`` handles the solver.

    ``treat(used, fresh, value_call)`` returns the scheduler to go on with.
    """
    solver = copy.deepcopy(pipe.scheduler)
    solver.set_timesteps(steps)
    fresh = copy.deepcopy(solver)
    latents = x_T * solver.init_noise_sigma
    key_call, value_call = calls
    for call, timestep in enumerate(solver.timesteps):
        if key_call <= call < value_call:
            continue
        if call == value_call:
            latents, solver = x_v, treat(solver, fresh, value_call)
        model_input = solver.scale_model_input(latents, timestep)
        prediction = pipe.unet(model_input, timestep, mean.reshape(len(mean), 1, SIZE))[0]
        latents = solver.step(prediction, timestep, latents, return_dict=False)[0]
    return latents


def go_on_stale(used: Any, fresh: Any, value_call: int) -> Any:
    """Move the index and keep the query's history: what a callback that swaps latents does."""
    if hasattr(used, "_step_index"):
        used._step_index = value_call
    return used


def go_on_lagging(used: Any, fresh: Any, value_call: int) -> Any:
    """Take a fresh scheduler at its own label: PLMS repeats its first step and lags behind by one."""
    return fresh


def go_on_without_moving_the_index(used: Any, fresh: Any, value_call: int) -> Any:
    """Take a fresh history and leave the step index where it was."""
    index = used._step_index
    fresh._step_index = index
    return fresh


def distance(one: Tensor, other: Tensor) -> float:
    """Return the root mean square difference over the root mean square of ``other``."""
    return ((one - other).square().mean() / other.square().mean()).sqrt().item()
