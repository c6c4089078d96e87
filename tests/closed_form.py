"""Owns a pipeline-like loop around the closed-form Gaussian for any scheduler of Diffusers; must not know redi.

Data x_0 ~ N(mean, diag(spread^2)), latents x = a x_0 + s eps. Which a and s a call has is the scheduler's: variance
preserving, scaled by the sigma (x = x_0 + s eps), or the straight line of flow matching (a = 1 - s).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

SHAPE = (4, 4, 4)
SPREAD = torch.logspace(-1.7, 0.18, 64).reshape(SHAPE).double()

Level = tuple[Tensor, Tensor]


class ExactNetwork(ModelMixin, ConfigMixin):
    """Answers in the prediction type that its config says."""

    @register_to_config
    def __init__(self, prediction_type: str = "epsilon") -> None:
        super().__init__()

    def forward(self, latents: Tensor, mean: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:
        """Return the exact prediction for x (b, 4, 4, 4) = scale x_0 + sigma eps."""
        scale, sigma, latents = scale.double(), sigma.double(), latents.double()
        variance = scale**2 * SPREAD**2 + sigma**2
        noise = sigma * (latents - scale * mean) / variance
        data = mean + scale * SPREAD**2 * (latents - scale * mean) / variance
        return {
            "epsilon": noise,
            "sample": data,
            "v_prediction": (scale * noise - sigma * data) / (scale**2 + sigma**2).sqrt(),
            "flow_prediction": noise - data,
        }[self.config.prediction_type].float()


class Loop(DiffusionPipeline):
    """The loop of every text-to-image pipeline, with latents in and out."""

    def __init__(self, network: ExactNetwork, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(network=network, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, mean: Tensor, x_T: Tensor, num_inference_steps: int, **step: Any) -> Tensor:
        """Return the final latents (b, 4, 4, 4) of x_T (b, 4, 4, 4) guided by mean (b, 4, 4, 4)."""
        self.scheduler.set_timesteps(num_inference_steps)
        levels = noise_levels(self.scheduler)
        latents = x_T * getattr(self.scheduler, "init_noise_sigma", 1.0)
        for call, timestep in enumerate(self.scheduler.timesteps):
            answer = ask(self.network, self.scheduler, latents, timestep, mean, levels[call])
            latents = self.scheduler.step(answer, timestep, latents, return_dict=False, **step)[0]
        return latents


def loop(scheduler: Any) -> Loop:
    """Return the loop of a scheduler, with a network that answers as it asks."""
    name = type(scheduler).__name__
    asked = scheduler.config.get("prediction_type", "flow_prediction" if "Flow" in name else "v_prediction")
    return Loop(ExactNetwork("sample" if name.startswith("EDM") else asked), scheduler)


def ask(network: Any, scheduler: Any, latents: Tensor, timestep: Any, mean: Tensor, level: Level) -> Tensor:
    """Return the network's answer to one call, for latents scaled as the scheduler scales them."""
    scale, sigma = level
    given = latents
    if hasattr(scheduler, "scale_model_input"):
        given = scheduler.scale_model_input(latents, timestep)
        factor = scheduler.scale_model_input(torch.ones(1), timestep)
        scale, sigma = scale * factor, sigma * factor
    answer = network(given, mean, scale, sigma)
    if not hasattr(scheduler, "precondition_outputs"):
        return answer
    of_latents, of_answer = (scheduler.precondition_outputs(*unit, level[1]) for unit in ((1, 0), (0, 1)))
    return ((answer - of_latents * latents) / of_answer).float()


def noise_levels(scheduler: Any) -> list[Level]:
    """Return a and s at every call of the schedule, and at its end."""
    if not hasattr(scheduler, "sigmas") and hasattr(scheduler, "alphas_cumprod"):
        cumulated = scheduler.alphas_cumprod[scheduler.timesteps.long()]
        end = getattr(scheduler, "final_alpha_cumprod", torch.ones(()))  # DDPM goes to the data
        cumulated = torch.cat([cumulated, end[None]])
        return list(zip(cumulated.sqrt(), (1 - cumulated).sqrt(), strict=True))
    if not hasattr(scheduler, "sigmas"):
        return list(zip(scheduler.alphas, scheduler.betas, strict=True))
    sigmas = scheduler.sigmas
    if hasattr(scheduler, "sigmas_interpol"):  # every second call is at the middle of a step
        sigmas = torch.where(torch.arange(len(sigmas)) % 2 == 1, scheduler.sigmas_interpol, sigmas)
        sigmas[-1] = scheduler.sigmas[-1]
    if "Flow" in type(scheduler).__name__ or scheduler.config.get("use_flow_sigmas"):
        return list(zip(1 - sigmas, sigmas, strict=True))
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        return [tuple(map(torch.as_tensor, scheduler._sigma_to_alpha_sigma_t(sigma))) for sigma in sigmas]
    return [(torch.ones(()), sigma) for sigma in sigmas]


def solve(latents: Tensor, mean: Tensor, start: Level, end: Level) -> Tensor:
    """Return the exact ODE solution at one noise level, from latents (b, 4, 4, 4) at another."""
    (a, s), (scale, sigma) = ((each.double() for each in level) for level in (start, end))
    standard = (latents.double() - a * mean) / (a**2 * SPREAD**2 + s**2).sqrt()
    return (scale * mean + standard * (scale**2 * SPREAD**2 + sigma**2).sqrt()).float()


def distance(one: Tensor, other: Tensor) -> float:
    """Return the root mean square difference over the root mean square of ``other``."""
    return ((one - other).square().mean() / other.square().mean()).sqrt().item()
