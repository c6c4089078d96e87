"""Claims about what redi knows of each scheduler, against the closed-form Gaussian."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

import closed_form
import gaussian
from redi.engine import Jump, run
from redi.errors import UnsupportedError
from redi.solvers import facts_for, twin
from tiny import SCHEDULERS, Watcher, noise, scheduler

PROMPTS, X_T = gaussian.means(1, 2), noise(1, 2, shape=gaussian.SHAPE)
SETTINGS = {"ddim": (20, 5), "pndm": (50, 10), "dpm": (20, 5), "unipc": (20, 5), "euler": (20, 5)}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_calls_of_a_whole_schedule_are_those_of_its_timesteps(name: str) -> None:
    solver = scheduler(name)
    solver.set_timesteps(20)
    assert facts_for(solver).total_calls(20) == len(solver.timesteps)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_call_index_and_completed_steps_are_inverse(name: str) -> None:
    facts = facts_for(scheduler(name))
    assert [facts.completed_steps(facts.call_index(step)) for step in range(50)] == list(range(50))


def test_pndm_is_inside_its_first_step_after_one_call() -> None:
    assert facts_for(scheduler("pndm")).completed_steps(1) is None


@pytest.mark.parametrize(
    "refused",
    [
        EulerAncestralDiscreteScheduler(),
        PNDMScheduler(skip_prk_steps=False),
        scheduler("dpm", algorithm_type="sde-dpmsolver++"),
        FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        scheduler("unipc", solver_p=scheduler("dpm")),
        scheduler("pndm", prediction_type="sample"),
        scheduler("dpm", thresholding=True),
        scheduler("dpm", variance_type="learned"),
        scheduler("euler", prediction_type="sample"),
        scheduler("euler", prediction_type="v_prediction", timestep_type="continuous"),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_untested_solvers_are_refused_with_what_to_do(refused: object) -> None:
    with pytest.raises(UnsupportedError, match=r"(?s)Expected: .*Fix: "):
        facts_for(refused)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_twin_steps_without_touching_its_original(name: str) -> None:
    solver = scheduler(name)
    solver.set_timesteps(10)
    sample, prediction = noise(1), noise(2)
    solver.scale_model_input(sample, solver.timesteps[0])
    lists = {key: list(value) for key, value in vars(solver).items() if type(value) is list}
    others = {key: id(value) for key, value in vars(solver).items() if type(value) is not list}
    twin(solver).step(prediction, solver.timesteps[0], sample)
    assert {key: list(value) for key, value in vars(solver).items() if type(value) is list} == lists
    assert {key: id(value) for key, value in vars(solver).items() if type(value) is not list} == others


def uninterrupted(folder: Path, name: str, **settings: object) -> tuple[object, torch.Tensor, Watcher]:
    """Return the closed-form pipeline, the latents of its full run, and its trajectory."""
    pipe = gaussian.gaussian_pipeline(folder, name, **settings)
    watcher = Watcher()
    with run(pipe, watcher):
        full = gaussian.generate(pipe, PROMPTS, X_T, SETTINGS[name][0])
    return pipe, full, watcher


def jumped(pipe: object, name: str, value_step: int, values: torch.Tensor) -> torch.Tensor:
    """Return the latents of a run in which every image jumps to these values."""
    steps, key_step = SETTINGS[name]
    watcher = Watcher(key_step, lambda latents: [Jump(value_step, value) for value in values])
    with run(pipe, watcher):
        return gaussian.generate(pipe, PROMPTS, X_T, steps)


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_a_single_step_solver_loses_nothing_by_its_own_jump(tmp_path: Path, name: str) -> None:
    pipe, full, own = uninterrupted(tmp_path, name)
    assert torch.equal(jumped(pipe, name, 15, own.seen[15]), full)


@pytest.mark.parametrize(
    ("name", "settings", "value_step", "bound"),
    [
        ("pndm", {}, 40, 5e-4),
        ("pndm", {}, 30, 5e-4),
        ("pndm", {}, 20, 5e-4),
        ("dpm", {}, 15, 3e-3),
        ("dpm", {}, 13, 3e-3),
        ("dpm", {}, 10, 3e-3),
        ("dpm", {}, 8, 3e-3),
        ("dpm", {"solver_order": 1}, 15, 1e-6),
        ("dpm", {"solver_order": 3}, 15, 4e-3),
        ("dpm", {"use_karras_sigmas": True}, 15, 4e-3),
        ("dpm", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, 15, 4e-3),
        ("unipc", {}, 15, 5e-4),
        ("unipc", {}, 8, 5e-4),
        ("unipc", {"solver_order": 3}, 15, 1e-3),
        ("unipc", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}, 15, 1e-3),
    ],
)
def test_a_multistep_solver_restarts_close_to_its_own_run(
    tmp_path: Path, name: str, settings: dict[str, object], value_step: int, bound: float
) -> None:
    pipe, full, own = uninterrupted(tmp_path, name, **settings)
    assert gaussian.distance(jumped(pipe, name, value_step, own.seen[value_step]), full) < bound


@pytest.mark.parametrize("name", SCHEDULERS)
def test_jumping_to_the_exact_solution_ends_as_near_to_it_as_the_full_run(tmp_path: Path, name: str) -> None:
    pipe, full, _ = uninterrupted(tmp_path, name)
    steps, _ = SETTINGS[name]
    value_step = 3 * steps // 4
    start, here = (int(pipe.scheduler.timesteps[i]) for i in (0, facts_for(pipe.scheduler).call_index(value_step)))
    exact = pipe.unet.solve(X_T, PROMPTS, start, None)
    values = pipe.unet.solve(X_T, PROMPTS, start, here)
    if name == "euler":
        values = values / pipe.unet.schedule(here)[0]
    full_error = gaussian.distance(full, exact)
    assert gaussian.distance(jumped(pipe, name, value_step, values), exact) < 1.2 * full_error


@pytest.mark.parametrize(
    ("name", "value_step", "wrong_way", "times_worse"),
    [
        ("pndm", 40, gaussian.go_on_stale, 10),
        ("pndm", 40, gaussian.go_on_lagging, 20),
        ("dpm", 15, gaussian.go_on_stale, 10),
        ("dpm", 15, gaussian.go_on_without_moving_the_index, 100),
        ("unipc", 15, gaussian.go_on_stale, 500),
        ("unipc", 15, gaussian.go_on_without_moving_the_index, 500),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_wrong_way_to_jump_is_worse_than_the_restart(
    tmp_path: Path, name: str, value_step: int, wrong_way: object, times_worse: float
) -> None:
    pipe, full, own = uninterrupted(tmp_path, name)
    steps, key_step = SETTINGS[name]
    calls = tuple(facts_for(pipe.scheduler).call_index(step) for step in (key_step, value_step))
    values = own.seen[value_step]
    wrong = gaussian.jump_without_redi(pipe, PROMPTS, X_T, steps, calls, values, wrong_way)
    ours = jumped(pipe, name, value_step, values)
    assert gaussian.distance(wrong, full) > times_worse * gaussian.distance(ours, full)


@pytest.mark.parametrize(
    "kind", [FlowMatchEulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler]
)
def test_flow_matching_jumps_to_the_exact_solution_and_ends_as_near_to_it_as_the_full_run(kind: type) -> None:
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    solver = kind() if kind is FlowMatchEulerDiscreteScheduler else kind(**flow)
    pipe = closed_form.loop(solver)
    full = pipe(PROMPTS, X_T, 20)
    levels = closed_form.noise_levels(solver)
    exact = closed_form.solve(X_T, PROMPTS, levels[0], levels[-1])
    values = closed_form.solve(X_T, PROMPTS, levels[0], levels[14])
    with run(pipe, Watcher(5, lambda latents: [Jump(14, value) for value in values])) as statistics:
        jumped = pipe(PROMPTS, X_T, 20)
    assert statistics.calls == [11, 11]
    assert gaussian.distance(jumped, exact) < 1.2 * gaussian.distance(full, exact)
