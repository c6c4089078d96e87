"""Claims about the first step after a jump, which is taken again with the second call's answer."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import closed_form
from closed_form import distance
from redi.engine import Jump, run
from solver_cases import KARRAS, SD, Case
from solver_table import MEANS, X_T, euler_steps, jumped
from tiny import Watcher

PNDM = Case("PNDM", {"skip_prk_steps": True, "steps_offset": 1}, steps=50, key_step=10)


class MixtureNetwork(closed_form.ExactNetwork):
    """The exact prediction of eps for two Gaussians of spread 0.3, at the mean and opposite of it: not linear in x."""

    def forward(self, latents: Tensor, mean: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:
        latents, mean = latents.double(), 0.3 * mean.double()
        variance = (scale**2 * 0.3**2 + sigma**2).double()
        alike = torch.tanh((scale * mean * latents).sum((1, 2, 3), keepdim=True) / variance)
        return (sigma * (latents - scale * alike * mean) / variance).float()


def lost(network: Any, kind: str, settings: dict[str, Any], steps: int, value_step: int) -> tuple[float, float]:
    """Return how far a jump to the run's own value ends from the run: as it is, and with an Euler step."""
    pipe, own = closed_form.Loop(network, getattr(diffusers, kind)(**SD, **settings)), Watcher()
    with run(pipe, own):
        full = pipe(MEANS, X_T, steps)
    case = Case(kind, settings, steps, steps // 4)
    ways = (jumped(pipe, case, value_step, own.seen[value_step], retakes=again)[0] for again in (True, False))
    ours, euler = (distance(latents, full) for latents in ways)
    return ours, euler


@pytest.mark.parametrize(
    ("kind", "settings", "steps"),
    [
        ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, 50),
        ("DPMSolverMultistepScheduler", {}, 20),
        ("DPMSolverMultistepScheduler", KARRAS, 20),
        ("UniPCMultistepScheduler", {}, 20),
        ("DEISMultistepScheduler", {}, 20),
        ("LMSDiscreteScheduler", KARRAS, 20),
    ],
)
def test_taking_the_step_again_helps_where_the_network_is_not_linear_too(
    kind: str, settings: dict[str, Any], steps: int
) -> None:
    ours, euler = lost(MixtureNetwork(), kind, settings, steps, steps // 2)
    assert ours < 0.7 * euler


@pytest.mark.parametrize("kind", ["PNDM", "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "LMSDiscrete"])
def test_nothing_of_the_steps_before_a_jump_is_left_in_what_comes_after(kind: str) -> None:
    """Bit for bit: so it does not matter how far the neighbour was."""
    case = PNDM if kind == "PNDM" else Case(kind)
    pipe, own = closed_form.loop(case.scheduler()), Watcher()
    with run(pipe, own):
        pipe(MEANS, X_T, case.steps)
    ends = []
    for x_T in (X_T, 2 - X_T):
        with run(pipe, Watcher(case.key_step, lambda latents: [Jump(14, value) for value in own.seen[14]])):
            ends.append(pipe(MEANS, x_T, case.steps))
    assert torch.equal(*ends)


class EditingLoop(closed_form.Loop):
    """A pipeline that changes latents between two steps, as inpainting and callbacks do."""

    edit_after = 0

    def __call__(self, mean: Tensor, x_T: Tensor, num_inference_steps: int, **step: Any) -> Tensor:
        self.scheduler.set_timesteps(num_inference_steps)
        levels, latents = closed_form.noise_levels(self.scheduler), x_T
        for call, timestep in enumerate(self.scheduler.timesteps):
            answer = closed_form.ask(self.network, self.scheduler, latents, timestep, mean, levels[call])
            with torch.no_grad():
                latents = self.scheduler.step(answer, timestep, latents, return_dict=False, **step)[0]
            if call + 1 == self.edit_after:
                latents = latents + 0.1
        return latents


def test_what_a_pipeline_changes_after_the_first_step_is_kept() -> None:
    """The network is linear, so that the change comes out the same whether or not there was a jump."""
    pipe, own = EditingLoop(closed_form.ExactNetwork(), PNDM.scheduler()), Watcher()
    with run(pipe, own):
        full = pipe(MEANS, X_T, PNDM.steps)
    plain = jumped(pipe, PNDM, 40, own.seen[40])[0]
    pipe.edit_after = 42  # the first step after v=40 is call 42
    with run(pipe, Watcher()):
        change = pipe(MEANS, X_T, PNDM.steps) - full
    assert distance(jumped(pipe, PNDM, 40, own.seen[40])[0] - plain, change) < 0.05


def test_a_jump_to_the_last_step_has_no_second_call_and_makes_an_euler_step() -> None:
    pipe, own = closed_form.loop(PNDM.scheduler()), Watcher()
    with run(pipe, own):
        pipe(MEANS, X_T, PNDM.steps)
    again, calls = jumped(pipe, PNDM, 49, own.seen[49])
    with euler_steps():
        euler, _ = jumped(pipe, PNDM, 49, own.seen[49])
    assert calls == 12
    assert torch.equal(again, euler)


@pytest.mark.parametrize(
    "case",
    [PNDM, *map(Case, ("UniPCMultistep", "LMSDiscrete", "HeunDiscrete", "KDPM2Discrete", "FlowMatchHeunDiscrete"))],
    ids=lambda case: case.kind,
)
def test_images_that_jump_to_different_steps_or_not_at_all_each_end_where_they_end_alone(case: Case) -> None:
    """Float rounding aside, which follows the size of the batch."""
    means, x_T = (torch.cat([each, each[:1]]) for each in (MEANS, X_T))
    pipe, own = closed_form.loop(case.scheduler()), Watcher()
    with run(pipe, own):
        pipe(means, x_T, case.steps)
    steps = (14, None, 17)

    def end(images: list[int]) -> Tensor:
        """Return where these images end, together in a batch."""
        jumps = [steps[image] and Jump(steps[image], own.seen[steps[image]][image]) for image in images]
        with run(pipe, Watcher(case.key_step, lambda latents: jumps)):
            return pipe(means[images], x_T[images], case.steps)

    assert distance(end([0, 1, 2]), torch.cat([end([0]), end([1]), end([2])])) < 1e-6
