"""Claims about running a real StableDiffusionPipeline with ghost steps; calls are counted on the network."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import StableDiffusionImg2ImgPipeline
from torch import Tensor

from redi.engine import Jump, StopTrajectory, run
from redi.errors import PlanError, RetrievalError, UnsupportedError
from tiny import PROMPTS, SCHEDULERS, Watcher, generate, noise, tiny_pipeline

SETTINGS = {"ddim": (12, 3, 8), "pndm": (12, 3, 8), "dpm": (12, 3, 8), "unipc": (12, 3, 8), "euler": (12, 3, 8)}
THREE, X_T = list(PROMPTS[:3]), noise(1, 2, 3)


@pytest.fixture(params=SCHEDULERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def trajectory(pipe: Any, steps: int, prompts: list[str] = THREE, x_T: Tensor = X_T) -> tuple[Tensor, Watcher]:
    """Return the final latents and the recorded steps of a plain run."""
    watcher = Watcher()
    with run(pipe, watcher):
        return generate(pipe, prompts, x_T, steps), watcher


def count_rows(network: torch.nn.Module) -> list[int]:
    """Return a list that grows by the number of rows at every evaluation of the network."""
    rows: list[int] = []
    network.conv_in.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    return rows


def test_abstaining_is_bit_identical(tmp_path: Path, name: str) -> None:
    pipe = tiny_pipeline(tmp_path, name)
    steps, key_step, _ = SETTINGS[name]
    plain = generate(pipe, THREE, X_T, steps)
    with run(pipe, Watcher(key_step)) as statistics:
        abstained = generate(pipe, THREE, X_T, steps)
    assert torch.equal(abstained, plain)
    assert statistics.skipped_calls == [0, 0, 0]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_jumping_to_ones_own_value_gives_ones_own_image(tmp_path: Path, name: str, prediction_type: str) -> None:
    pipe = tiny_pipeline(tmp_path, name, prediction_type=prediction_type)
    steps, key_step, value_step = SETTINGS[name]
    full, own = trajectory(pipe, steps)
    watcher = Watcher(key_step, lambda latents: [Jump(value_step, row) for row in own.seen[value_step]])
    with run(pipe, watcher):
        jumped = generate(pipe, THREE, X_T, steps)
    if name in ("ddim", "euler"):
        assert torch.equal(jumped, full)
    lost = 1e-3 if prediction_type == "epsilon" else 2e-2  # of v, a random network makes larger steps; v - 1 loses 6e-2
    assert torch.linalg.vector_norm(jumped - full) < lost * torch.linalg.vector_norm(full)


@pytest.mark.parametrize(
    ("name", "steps", "key_step", "value_step", "calls"),
    [
        ("pndm", 50, 10, 40, 21),
        ("pndm", 50, 10, 30, 31),
        ("pndm", 50, 10, 20, 41),
        ("dpm", 20, 5, 15, 10),
        ("dpm", 20, 5, 13, 12),
        ("dpm", 20, 5, 10, 15),
        ("dpm", 20, 5, 8, 17),
    ],
)
def test_calls_are_those_of_the_paper(
    tmp_path: Path, name: str, steps: int, key_step: int, value_step: int, calls: int
) -> None:
    pipe = tiny_pipeline(tmp_path, name)
    rows = count_rows(pipe.unet)
    watcher = Watcher(key_step, lambda latents: [Jump(value_step, latents[0])])
    with run(pipe, watcher) as statistics:
        generate(pipe, ["a cat"], noise(1), steps)
    assert len(rows) == calls
    assert statistics.calls == [calls]
    assert statistics.network_calls == calls
    assert statistics.skipped_calls == [value_step - key_step]
    assert statistics.network_seconds > 0


def decisions_that_disagree(own: Watcher, value_step: int) -> list[Jump | None]:
    return [
        Jump(value_step, own.seen[value_step][0]),
        None,
        Jump(value_step + 1, own.seen[value_step + 1][1]),
        Jump(value_step, own.seen[value_step][2]),
    ]


def test_each_image_of_a_batch_ends_as_if_it_were_alone(tmp_path: Path, name: str) -> None:
    pipe = tiny_pipeline(tmp_path, name)
    steps, key_step, value_step = SETTINGS[name]
    prompts, x_T = list(PROMPTS), noise(1, 2, 3, 4)
    _, own = trajectory(pipe, steps, prompts, x_T)
    decisions = decisions_that_disagree(own, value_step)

    rows = count_rows(pipe.unet)
    with run(pipe, Watcher(key_step, lambda latents: decisions)) as together:
        batch = generate(pipe, prompts, x_T, steps)
    assert {len(own.seen), together.network_calls} == {steps, len(rows)}
    assert sum(rows) == 2 * sum(together.calls), "guidance evaluates two rows per image, sleeping images none"

    for image, decision in enumerate(decisions):
        with run(pipe, Watcher(key_step, lambda latents, decision=decision: [decision])) as alone:
            single = generate(pipe, [prompts[image]], x_T[image : image + 1], steps)
        assert alone.calls == together.calls[image : image + 1]
        assert alone.skipped_calls == together.skipped_calls[image : image + 1]
        torch.testing.assert_close(batch[image], single[0], rtol=1e-4, atol=1e-4 * single.abs().max().item())


def test_the_policy_sees_start_key_and_every_real_step(tmp_path: Path, name: str) -> None:
    pipe = tiny_pipeline(tmp_path, name)
    steps, key_step, value_step = SETTINGS[name]
    asked: list[Tensor] = []

    def decide(latents: Tensor) -> list[Jump | None]:
        asked.append(latents.clone())
        return [Jump(value_step, row) for row in latents]

    watcher = Watcher(key_step, decide)
    with run(pipe, watcher):
        generate(pipe, THREE, X_T, steps)
    assert torch.equal(watcher.start, X_T * pipe.scheduler.init_noise_sigma)
    assert list(watcher.seen) == [*range(1, key_step + 1), *range(value_step + 1, steps + 1)]
    assert torch.equal(asked[0], watcher.seen[key_step])


def test_several_pipeline_calls_of_a_run_follow_each_other_in_the_statistics(tmp_path: Path) -> None:
    pipe = tiny_pipeline(tmp_path, "ddim")
    with run(pipe, Watcher(2)) as statistics:
        generate(pipe, THREE, X_T, 6)
        generate(pipe, ["a cat"], noise(1), 4)
    assert statistics.calls == [6, 6, 6, 4]


@pytest.mark.parametrize("decide_alike", [True, False])
def test_without_guidance_and_with_full_pictures(tmp_path: Path, decide_alike: bool) -> None:
    pipe = tiny_pipeline(tmp_path, "dpm")
    _, own = trajectory(pipe, 12)
    decisions = [Jump(8, row) if decide_alike or image else None for image, row in enumerate(own.seen[8])]
    with run(pipe, Watcher(3, lambda latents: decisions)) as statistics:
        images = pipe(THREE, latents=X_T, num_inference_steps=12, guidance_scale=1.0, output_type="np").images
    assert images.shape == (3, 16, 16, 3)
    assert statistics.calls == [7 if decide_alike else 12, 7, 7]


def test_indices_and_callbacks_stay_those_of_the_whole_schedule(tmp_path: Path) -> None:
    pipe = tiny_pipeline(tmp_path, "euler")
    told: list[tuple[int, int]] = []

    def callback(pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        told.append((index, pipe.scheduler.step_index))
        return tensors

    with run(pipe, Watcher(3, lambda latents: [Jump(8, row) for row in latents])):
        generate(pipe, THREE, X_T, 12, callback_on_step_end=callback)
    assert told == [(index, index + 1) for index in range(12)]


class _Interrupt(KeyboardInterrupt):
    pass


def fail(error: BaseException) -> Callable[..., Any]:
    def callback(pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if index == 5:
            raise error
        return tensors

    return callback


@pytest.mark.parametrize("error", [None, RuntimeError("broken"), _Interrupt()], ids=["success", "error", "ctrl-c"])
def test_nothing_of_ours_stays_behind(tmp_path: Path, name: str, error: BaseException | None) -> None:
    pipe = tiny_pipeline(tmp_path, name)
    plain = generate(pipe, THREE, X_T, 12)
    networks = [component for component in pipe.components.values() if isinstance(component, torch.nn.Module)]
    before = [set(vars(owner)) for owner in (pipe, pipe.scheduler, *networks)]
    callback = fail(error) if error else None
    decisions = [None, Jump(8, noise(7)[0]), Jump(9, noise(8)[0])]
    expected = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with expected, run(pipe, Watcher(3, lambda latents: decisions)):
        generate(pipe, THREE, X_T, 12, callback_on_step_end=callback)
    after = [set(vars(owner)) for owner in (pipe, pipe.scheduler, *networks)]
    assert [now - then for now, then in zip(after, before, strict=True)] == [set()] * len(before)
    assert torch.equal(generate(pipe, THREE, X_T, 12), plain)


def test_a_method_that_the_user_put_on_a_network_is_kept(tmp_path: Path) -> None:
    pipe = tiny_pipeline(tmp_path, "ddim")
    calls = []
    original = pipe.unet.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    pipe.unet.forward = forward
    with run(pipe, Watcher(3, lambda latents: [Jump(8, row) for row in latents])):
        generate(pipe, THREE, X_T, 12)
    assert len(calls) == 7
    assert pipe.unet.forward is forward


def test_a_policy_may_stop_the_trajectory(tmp_path: Path) -> None:
    pipe = tiny_pipeline(tmp_path, "pndm")

    class Recorder(Watcher):
        def on_step(self, completed: int, latents: Tensor) -> None:
            super().on_step(completed, latents)
            if completed == 5:
                raise StopTrajectory

    recorder = Recorder()
    with pytest.raises(StopTrajectory), run(pipe, recorder) as statistics:
        generate(pipe, THREE, X_T, 12)
    assert list(recorder.seen) == [1, 2, 3, 4, 5]
    assert statistics.calls == [6, 6, 6]


def test_signatures_that_pipelines_probe_are_kept(tmp_path: Path, name: str) -> None:
    pipe = tiny_pipeline(tmp_path, name)
    before = [inspect.signature(method) for method in (pipe.scheduler.step, pipe.scheduler.set_timesteps)]
    with run(pipe, Watcher()):
        assert [inspect.signature(method) for method in (pipe.scheduler.step, pipe.scheduler.set_timesteps)] == before


def test_a_stochastic_run_is_refused(tmp_path: Path) -> None:
    pipe = tiny_pipeline(tmp_path, "ddim")
    with pytest.raises(UnsupportedError, match=r"eta=0\.5"), run(pipe, Watcher(3)):
        generate(pipe, THREE, X_T, 12, eta=0.5)


def img2img(pipe: Any, strength: float) -> torch.Tensor:
    """Return the final latents of an image-to-image call of twelve steps."""
    pipe = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = noise(5, shape=(3, 16, 16)).clamp(0, 1)
    generator = torch.Generator().manual_seed(0)
    settings = {"num_inference_steps": 12, "output_type": "latent", "return_dict": False}
    return pipe("a cat", image=image, strength=strength, generator=generator, **settings)[0]


@pytest.mark.parametrize(("sampler", "error"), [("ddim", 0.0), ("euler", 0.0), ("dpm", 1e-2), ("unipc", 1e-2)])
def test_image_to_image_jumps_at_steps_of_the_whole_schedule(tmp_path: Path, sampler: str, error: float) -> None:
    pipe = tiny_pipeline(tmp_path, sampler)
    plain, watcher = img2img(pipe, 0.75), Watcher(5)
    with run(pipe, watcher) as statistics:
        abstained = img2img(pipe, 0.75)
    assert torch.equal(abstained, plain)
    assert (sorted(watcher.seen), statistics.calls) == (list(range(4, 13)), [9])
    with run(pipe, Watcher(5, lambda latents: [Jump(9, watcher.seen[9][0])])) as statistics:
        jumped = img2img(pipe, 0.75)
    assert (statistics.calls, statistics.skipped_calls) == ([5], [4])
    assert (jumped - plain).norm() <= error * plain.norm()


@pytest.mark.parametrize("key_step", [2, 6])
def test_a_key_step_that_image_to_image_has_behind_it_is_never_asked_about(tmp_path: Path, key_step: int) -> None:
    pipe, asked = tiny_pipeline(tmp_path, "dpm"), []
    with run(pipe, Watcher(key_step, lambda latents: asked.append(1) or [None])) as statistics:
        made = img2img(pipe, 0.5)
    assert torch.equal(made, img2img(pipe, 0.5))
    assert (asked, statistics.calls) == ([], [6])


def test_pndm_from_inside_its_schedule_is_refused(tmp_path: Path) -> None:
    pipe = tiny_pipeline(tmp_path, "pndm")
    with pytest.raises(UnsupportedError, match="image-to-image"), run(pipe, Watcher(3)):
        img2img(pipe, 0.5)


def test_running_twice_at_once_is_refused(tmp_path: Path) -> None:
    pipe = tiny_pipeline(tmp_path, "ddim")
    with run(pipe, Watcher()), pytest.raises(UnsupportedError, match="already"), run(pipe, Watcher()):
        pass


def test_a_copy_of_a_patched_scheduler_is_refused(tmp_path: Path) -> None:
    pipe = tiny_pipeline(tmp_path, "ddim")
    with run(pipe, Watcher()), pytest.raises(UnsupportedError, match="copies"):
        copy.deepcopy(pipe.scheduler)


@pytest.mark.parametrize(
    ("decisions", "error"),
    [
        (lambda latents: [], RetrievalError),
        (lambda latents: [Jump(8, row[:, :4]) for row in latents], RetrievalError),
        (lambda latents: [Jump(3, row) for row in latents], PlanError),
        (lambda latents: [Jump(12, row) for row in latents], PlanError),
    ],
    ids=["too few", "wrong shape", "value at key", "value at the end"],
)
def test_impossible_decisions_are_refused(tmp_path: Path, decisions: Any, error: type[Exception]) -> None:
    pipe = tiny_pipeline(tmp_path, "ddim")
    with pytest.raises(error, match="Expected: "), run(pipe, Watcher(3, decisions)):
        generate(pipe, THREE, X_T, 12)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_network_is_compiled_once(tmp_path: Path, in_place: bool) -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    pipe = tiny_pipeline(tmp_path, "ddim")
    full, own = trajectory(pipe, 12)
    counter = CompileCounter()
    if in_place:
        pipe.unet.compile(backend=counter, fullgraph=True)
    else:
        pipe.unet = torch.compile(pipe.unet, backend=counter, fullgraph=True)
    with run(pipe, Watcher(3, lambda latents: [Jump(8, row) for row in own.seen[8]])) as statistics:
        jumped = generate(pipe, THREE, X_T, 12)
    torch.testing.assert_close(jumped, full)
    assert statistics.calls == [7, 7, 7]
    assert counter.frame_count == 1


def test_sleeping_steps_do_not_wake_an_offloading_hook(tmp_path: Path) -> None:
    pipe = tiny_pipeline(tmp_path, "ddim")
    loads: list[int] = []

    class CountingHook(ModelHook):
        def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            loads.append(1)
            return args, kwargs

    add_hook_to_module(pipe.unet, CountingHook())
    with run(pipe, Watcher(3, lambda latents: [Jump(8, row) for row in latents])):
        generate(pipe, THREE, X_T, 12)
    assert len(loads) == 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_values_are_cast_to_the_runs_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    pipe = tiny_pipeline(tmp_path, "dpm").to(torch.bfloat16)
    watcher = Watcher(3, lambda latents: [Jump(8, latents[0].to(dtype)), None, Jump(9, latents[2].to(dtype))])
    with run(pipe, watcher):
        assert generate(pipe, THREE, X_T.bfloat16(), 12).dtype == torch.bfloat16
    assert watcher.seen[9].dtype == torch.bfloat16
