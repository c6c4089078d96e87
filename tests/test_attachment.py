"""Claims about getting between a user and a pipeline's call."""

from __future__ import annotations

import copy
import inspect
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from redi.attachment import draw_noise_through, intercept_calls, interception_of, release, stock_call
from redi.errors import UnsupportedError
from tiny import THREE_STEPS, generate, noise, tiny_pipeline


@pytest.fixture
def pipe(tmp_path: Path) -> StableDiffusionPipeline:
    return tiny_pipeline(tmp_path / "parts", "ddim")


def pass_on(pipe: Any, original_call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return original_call(*args, **kwargs)


def test_calls_go_through_around_with_their_arguments(pipe: StableDiffusionPipeline) -> None:
    plain = generate(pipe, ["a cat"], noise(1), 2)
    seen: list[Any] = []

    def around(pipe: Any, original_call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.append((pipe, args, kwargs["num_inference_steps"]))
        return original_call(*args, **kwargs)

    intercept_calls(pipe, around)
    assert torch.equal(generate(pipe, ["a cat"], noise(1), 2), plain)
    assert seen == [(pipe, (["a cat"],), 2)]


def test_an_intercepted_pipeline_looks_like_a_stock_one(pipe: StableDiffusionPipeline) -> None:
    attributes = set(vars(pipe))
    intercept_calls(pipe, pass_on)
    kind = type(pipe)
    assert isinstance(pipe, StableDiffusionPipeline)
    assert (kind.__name__, kind.__qualname__, kind.__module__) == (
        StableDiffusionPipeline.__name__,
        StableDiffusionPipeline.__qualname__,
        StableDiffusionPipeline.__module__,
    )
    assert inspect.signature(pipe.__call__) == inspect.signature(stock_call(pipe))
    assert set(pipe.components) == set(StableDiffusionPipeline(**pipe.components).components)
    assert set(vars(pipe)) == attributes


def test_intercepting_again_replaces_and_release_restores(pipe: StableDiffusionPipeline) -> None:
    intercept_calls(pipe, pass_on)
    again = lambda pipe, original_call, args, kwargs: "second"  # noqa: E731
    intercept_calls(pipe, again)
    assert interception_of(pipe) is again
    assert pipe("a cat") == "second"
    release(pipe)
    release(pipe)
    assert type(pipe) is StableDiffusionPipeline
    assert interception_of(pipe) is None


def test_other_pipelines_of_the_class_are_untouched(pipe: StableDiffusionPipeline) -> None:
    other = StableDiffusionPipeline(**pipe.components)
    intercept_calls(pipe, pass_on)
    assert interception_of(other) is None


def test_an_intercepted_pipeline_saves_and_reloads_as_stock(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    plain = generate(pipe, ["a cat"], noise(1), 2)
    intercept_calls(pipe, pass_on)
    pipe.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    reloaded = DiffusionPipeline.from_pretrained(tmp_path / "saved", local_files_only=True)
    reloaded.set_progress_bar_config(disable=True)
    assert type(reloaded) is StableDiffusionPipeline
    assert torch.equal(generate(reloaded, ["a cat"], noise(1), 2), plain)


def test_copies_are_stock(pipe: StableDiffusionPipeline) -> None:
    intercept_calls(pipe, pass_on)
    assert type(copy.copy(pipe)) is StableDiffusionPipeline
    assert type(StableDiffusionPipeline.from_pipe(pipe)) is StableDiffusionPipeline


def test_a_second_thread_is_refused_and_the_first_one_finishes(pipe: StableDiffusionPipeline) -> None:
    inside, leave = threading.Event(), threading.Event()
    results: list[str] = []

    def around(pipe: Any, original_call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        inside.set()
        leave.wait(10)
        return "done"

    intercept_calls(pipe, around)
    first = threading.Thread(target=lambda: results.append(pipe("a cat")))
    first.start()
    inside.wait(10)
    with pytest.raises(UnsupportedError, match="while one runs"):
        pipe("a dog")
    leave.set()
    first.join(10)
    assert results == ["done"]
    assert pipe("a bird") == "done"


def test_the_supplied_noise_takes_the_place_of_the_pipelines_own(pipe: StableDiffusionPipeline) -> None:
    asked: list[Any] = []

    def supply(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        asked.append((shape, dtype, device))
        return noise(5, 6)

    wanted = generate(pipe, ["a cat", "a dog"], noise(5, 6), 2)
    with draw_noise_through(pipe, supply):
        drawn = pipe(["a cat", "a dog"], **THREE_STEPS | {"num_inference_steps": 2})[0]
    assert torch.equal(drawn, wanted)
    assert asked == [((2, 4, 8, 8), torch.float32, torch.device("cpu"))]
    assert "prepare_latents" not in vars(pipe)


def test_latents_of_the_user_are_left_alone(pipe: StableDiffusionPipeline) -> None:
    wanted = generate(pipe, ["a cat"], noise(1), 2)
    with draw_noise_through(pipe, lambda shape, dtype, device: noise(5)):
        assert torch.equal(generate(pipe, ["a cat"], noise(1), 2), wanted)


def test_a_supplier_may_decline_and_the_users_generator_moves_as_ever(pipe: StableDiffusionPipeline) -> None:
    plain_generator, generator, declined = (torch.Generator().manual_seed(3) for _ in range(3))
    plain = pipe("a cat", generator=plain_generator, **THREE_STEPS)[0]
    with draw_noise_through(pipe, lambda shape, dtype, device: None):
        assert torch.equal(pipe("a cat", generator=declined, **THREE_STEPS)[0], plain)
    with draw_noise_through(pipe, lambda shape, dtype, device: noise(5)):
        pipe("a cat", generator=generator, **THREE_STEPS)
    assert torch.equal(generator.get_state(), plain_generator.get_state())
