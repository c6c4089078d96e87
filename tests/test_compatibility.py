"""Claims about what a base asks of a pipeline and of its calls: refused with both sides, before anything runs."""

from __future__ import annotations

import inspect
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import redi
from ground import NEW, NOISES, Ground, call, latents
from recording import GUIDANCE, PROMPTS
from redi.errors import (
    IncompatibleError,
    KnowledgeBaseError,
    RediWarning,
    UnsupportedError,
)
from tiny import scheduler


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RediWarning)
        yield


def other_weights(pipe: Any) -> None:
    with torch.no_grad():
        pipe.unet.conv_in.weight.add_(1e-3)


def other_scheduler(pipe: Any) -> None:
    pipe.scheduler = scheduler("dpm")


def other_spacing(pipe: Any) -> None:
    pipe.scheduler = scheduler("ddim", timestep_spacing="trailing")


@pytest.mark.parametrize(
    ("change", "field", "both_sides"),
    [
        (other_weights, "weights.unet", ("sha256:", "sha256:")),
        (other_scheduler, "scheduler.class", ('"DDIMScheduler"', '"DPMSolverMultistepScheduler"')),
        (other_spacing, "scheduler.config.timestep_spacing", ('"leading"', '"trailing"')),
    ],
)
def test_a_changed_pipeline_is_refused_with_both_sides(
    ground: Ground, change: Callable[[Any], None], field: str, both_sides: tuple[str, str]
) -> None:
    enabled, fresh = ground.pipe(), ground.pipe()
    redi.enable(enabled, ground.base())
    call(enabled, NEW)
    change(enabled)
    change(fresh)
    with pytest.raises(IncompatibleError) as at_enable:
        redi.enable(fresh, ground.base())
    with pytest.raises(IncompatibleError) as at_call:
        call(enabled, NEW)
    for error in (at_enable, at_call):
        block = str(error.value).partition(f"{field}:\n")[2].splitlines()[:2]
        assert [line.partition(":")[0].strip() for line in block] == ["knowledge base", "pipeline"]
        assert all(side in line for side, line in zip(both_sides, block, strict=True))
    assert "next call will be refused" in redi.summary(enabled)


def test_summary_says_that_the_scheduler_was_replaced(ground: Ground) -> None:
    pipe = ground.pipe()
    redi.enable(pipe, ground.base())
    other_scheduler(pipe)
    assert "pipe.scheduler was replaced" in redi.summary(pipe)
    pipe.scheduler = scheduler("ddim")
    assert "replaced" not in redi.summary(pipe)
    call(pipe, NEW)


def test_an_untested_scheduler_is_refused(ground: Ground) -> None:
    from diffusers import DDPMScheduler

    pipe = ground.pipe()
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(UnsupportedError, match="DDPMScheduler"):
        redi.enable(pipe, ground.base())


@pytest.mark.parametrize(
    ("arguments", "base_side", "call_side"),
    [
        ({"num_inference_steps": 20}, "12", "20"),
        ({"guidance_scale": 7.5}, "5.0", "7.5"),
        ({"guidance_scale": torch.tensor(7.5)}, "5.0", '"a Tensor"'),
        ({"negative_prompt": "blurry"}, '"ugly"', '"blurry"'),
        ({"negative_prompt": ""}, '"ugly"', '""'),
        ({"negative_prompt": ["ugly", "blurry"]}, '"ugly"', '["ugly", "blurry"]'),
        ({"height": 32}, "16", "32"),
        ({"clip_skip": 1}, "null", "1"),
        ({"guidance_rescale": 0.5}, "0.0", "0.5"),
        ({"timesteps": [900, 800]}, "null", '"a list"'),
        ({"latents": torch.zeros(1, 4, 16, 16)}, '["b", 4, 8, 8]', "[1, 4, 16, 16]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_contradict_the_base_are_refused_before_any_network_call(
    ground: Ground, arguments: dict[str, Any], base_side: str, call_side: str
) -> None:
    pipe = ground.pipe()
    redi.enable(pipe, ground.base())
    evaluated: list[int] = []
    for network in (pipe.unet, pipe.text_encoder):
        network.register_forward_hook(lambda *_: evaluated.append(1))
    with pytest.raises(IncompatibleError) as error:
        call(pipe, NEW, **arguments)
    assert f"knowledge base: {base_side}" in str(error.value)
    assert f"this call:      {call_side}" in str(error.value)
    assert evaluated == []


def test_arguments_that_agree_with_the_base_may_be_given_in_any_form(ground: Ground) -> None:
    pipe = ground.pipe()
    redi.enable(pipe, ground.base(), max_distance=1e9)
    expected = call(pipe, NEW, latents=NOISES[:1])
    explicit = pipe(NEW, 16, 16, 12, guidance_scale=5, negative_prompt="ugly", latents=NOISES[:1], output_type="latent")
    assert torch.equal(latents(explicit), expected)
    listed = call(pipe, [NEW], negative_prompt=["ugly"], latents=NOISES[:1], cross_attention_kwargs={}, clip_skip=None)
    torch.testing.assert_close(listed, expected)
    embeds, _ = pipe.encode_prompt(NEW, "cpu", 1, False)
    torch.testing.assert_close(call(pipe, None, prompt_embeds=embeds, latents=NOISES[:1]), expected)
    assert redi.reports(pipe)[0].prompt == "(prompt_embeds)"


def test_outputs_are_handed_on_as_the_pipeline_makes_them(ground: Ground) -> None:
    pipe = ground.pipe()
    stock = inspect.signature(pipe.__call__)
    redi.enable(pipe, ground.base(), max_distance=1e9)
    assert inspect.signature(pipe.__call__) == stock
    assert pipe(NEW).images[0].size == (16, 16)
    assert isinstance(pipe(NEW, return_dict=False), tuple)
    assert pipe(NEW, output_type="np").images.shape == (1, 16, 16, 3)
    assert len(pipe([NEW, PROMPTS[0]], num_images_per_prompt=2).images) == 4
    assert [report.prompt for report in redi.reports(pipe)] == [NEW, NEW, PROMPTS[0], PROMPTS[0]]


def test_a_base_that_does_not_say_its_call_and_a_thing_that_is_no_pipeline_are_refused(
    ground: Ground, tmp_path: Path
) -> None:
    shutil.copytree(ground.base().path, tmp_path / "base")
    manifest = tmp_path / "base" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"call"', '"calls"'))
    with pytest.raises(KnowledgeBaseError, match="how the pipeline was called"):
        redi.enable(ground.pipe(), tmp_path / "base")
    with pytest.raises(UnsupportedError, match="a Diffusers pipeline"):
        redi.enable(ground.pipe().unet, ground.base())


def test_an_argument_that_came_with_a_later_diffusers_may_be_at_its_default(ground: Ground, tmp_path: Path) -> None:
    shutil.copytree(ground.base().path, tmp_path / "base")
    path = tmp_path / "base" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["identity"]["call"].pop("guidance_rescale") == 0.0
    path.write_text(json.dumps(manifest))
    pipe = ground.pipe()
    redi.enable(pipe, tmp_path / "base", max_distance=1e9)
    call(pipe, NEW, guidance_rescale=0.0)
    with pytest.raises(IncompatibleError, match="guidance_rescale"):
        call(pipe, NEW, guidance_rescale=0.5)


def test_the_bases_guidance_is_what_a_bare_call_gets(ground: Ground) -> None:
    pipe = ground.pipe()
    redi.enable(pipe, ground.base(), max_distance=0)
    bare = call(pipe, NEW, latents=NOISES[:1])
    redi.disable(pipe)
    assert torch.equal(bare, call(pipe, NEW, latents=NOISES[:1], num_inference_steps=12, **GUIDANCE))
