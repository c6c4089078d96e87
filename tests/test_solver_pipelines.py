"""Claims about samplers in real pipelines: from noise, and from an image inside the schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

import redi
from redi.engine import Jump, run
from redi.errors import UnsupportedError
from redi.pipelines import pipeline_for
from redi.solvers import facts_for
from solver_cases import no_noise
from tiny import Watcher, noise, tiny_pipeline

STEPS, VALUE_STEP = 12, 8

SAMPLERS: dict[str, dict[str, Any]] = {
    "DPMSolverSinglestep": {},
    "DEISMultistep": {},
    "LMSDiscrete": {"use_karras_sigmas": True},
    "HeunDiscrete": {},
    "KDPM2Discrete": {},
    "SASolver": {"tau_func": no_noise},
}


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Return a text-to-image and an image-to-image pipeline of the same networks."""
    pipe = tiny_pipeline(tmp_path_factory.mktemp("pipe"))
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return pipe, other


def made(pipe: Any) -> torch.Tensor:
    """Return the final latents of two pictures."""
    more: dict[str, Any] = {}
    if isinstance(pipe, StableDiffusionImg2ImgPipeline):
        more = {"image": noise(5, 6, shape=(3, 16, 16)).clamp(0, 1), "strength": 0.75}
    generator = torch.Generator().manual_seed(0)
    prompts = ["a red cat", "a blue dog"]
    settings = {"num_inference_steps": STEPS, "generator": generator, "output_type": "latent", "return_dict": False}
    return pipe(prompts, **settings, **more)[0]


@pytest.mark.parametrize(("place", "key_step"), [(0, 3), (1, 5)], ids=["text", "image"])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_pipeline_jumps_with_every_sampler_and_abstains_bit_identically(
    pipes: tuple[Any, Any], kind: str, place: int, key_step: int
) -> None:
    pipe, own = pipes[place], Watcher()
    pipe.scheduler = getattr(diffusers, f"{kind}Scheduler").from_config(pipe.scheduler.config, **SAMPLERS[kind])
    plain = made(pipe)
    with run(pipe, own) as in_full:
        assert torch.equal(made(pipe), plain)
    facts = facts_for(pipe.scheduler)
    with run(pipe, Watcher(key_step, lambda latents: [Jump(VALUE_STEP, each) for each in own.seen[VALUE_STEP]])) as s:
        jumped = made(pipe)
    skipped = facts.call_index(VALUE_STEP) - facts.call_index(key_step)
    assert s.calls == [calls - skipped for calls in in_full.calls]
    exact = facts.loses_nothing(pipe.scheduler, VALUE_STEP)
    assert torch.equal(jumped, plain) if exact else (jumped - plain).norm() < 1e-2 * plain.norm()


def test_a_base_of_a_scheduler_that_holds_a_function_is_not_opened_by_its_manifest(
    pipes: tuple[Any, Any], tmp_path: Path
) -> None:
    pipe = pipes[0]
    pipe.scheduler = diffusers.SASolverScheduler.from_config(pipe.scheduler.config, tau_func=no_noise)
    plan = redi.Plan(6, key_step=2, value_steps=(4,))
    base = redi.build(pipe, ["a red cat"], tmp_path / "base", plan=plan, noises=1, model_id="mine", progress=False)
    with pytest.raises(UnsupportedError, match="SASolverScheduler and a function of yours"):
        pipeline_for(base)
    (made,) = redi.generate(pipe, base, "a red cat", max_distance=1e9, progress=False)
    assert made.report.calls == 4
