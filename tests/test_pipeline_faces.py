"""Claims about the public verbs on every pipeline that redi is tested with: build, enable and generate by arguments
that the pipeline itself takes, on tiny random-weight instances of the real classes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from peft import LoraConfig
from torch import Tensor

import redi
from redi.building import preview_path
from redi.errors import IncompatibleError, InputError, PlanError, RediWarning
from redi.samples import shown
from tiny_pipelines import TEXT_TO_ANYTHING

STEPS = 20
PLAN = redi.Plan(STEPS, key_step=4, value_steps=(10, 14))
PROMPTS = ("a red cat", "a dog on grass", "two boats", "an old house")
NEW = ("a big tree", "a blue cat")
SINGLE_STEP = (DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler)
EVERY: dict[str, Any] = {"max_distance": 1e9}


class Face:
    """One pipeline, arguments of its calls (guided), and a base of every prompt under each of two noises."""

    def __init__(self, name: str, folder: Path) -> None:
        self.tiny = TEXT_TO_ANYTHING[name]
        self.call = {**self.tiny.call, **self.tiny.guided}
        self.pipe = self.tiny.build()
        known = [prompt for prompt in PROMPTS for _ in range(2)]
        self.base = redi.build(
            self.pipe, known, folder / "base", plan=PLAN, noises=2, batch_size=4, progress=False, **self.call
        )
        self.noises = self.base.noise_bank.latents

    def plain(self, prompts: Sequence[str], noise_ids: list[int], **more: Any) -> Any:
        """Return what the stock pipeline makes in full: final latents if not told otherwise."""
        call = {"num_inference_steps": STEPS, "output_type": "latent", **self.call, **more}
        negative = [call.pop("negative_prompt")] * len(prompts)
        return self.pipe(prompt=list(prompts), latents=self.noises[noise_ids], negative_prompt=negative, **call)[0]


@pytest.fixture(scope="module", params=TEXT_TO_ANYTHING)
def face(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Face:
    return Face(request.param, tmp_path_factory.mktemp("face"))


@pytest.fixture(autouse=True)
def stock_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves the pipeline enabled, and none warns unseen."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RediWarning)
        yield
    if "face" in request.fixturenames:
        redi.disable(request.getfixturevalue("face").pipe)


def _default(pipe: Any, name: str) -> Any:
    return inspect.signature(pipe.__call__).parameters[name].default


def distance(one: Tensor, other: Tensor) -> float:
    """Return the relative L2 distance of two batches."""
    return float(torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other))


class Evaluations:
    """Counts the evaluations of a pipeline's denoisers, at a layer inside so that remembered answers don't count."""

    def __init__(self, pipe: Any) -> None:
        self.count = 0
        networks = [getattr(pipe, name, None) for name in ("unet", "transformer", "transformer_2")]
        layers = [next(layer for layer in each.modules() if not list(layer.children())) for each in networks if each]
        self.hooks = [layer.register_forward_hook(self._called) for layer in layers]

    def _called(self, *_: object) -> None:
        self.count += 1

    def __enter__(self) -> Evaluations:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def test_the_base_tells_the_schedule_and_the_latents_of_the_pipelines_own_run(face: Face) -> None:
    final = face.plain([PROMPTS[0]], [0])
    told, scheduler = face.base.manifest.identity, face.pipe.scheduler
    assert told["schedule"]["timesteps"] == pytest.approx(scheduler.timesteps.tolist(), rel=1e-5)
    if hasattr(scheduler, "sigmas"):
        assert told["schedule"]["sigmas"] == pytest.approx(scheduler.sigmas.tolist(), rel=1e-5)
    assert face.base.manifest.latent_shape == tuple(final.shape[1:]) == face.tiny.shape
    assert told["call"].items() >= face.call.items()


def test_a_prompt_of_the_base_ends_as_its_own_full_run_in_the_calls_that_the_plan_says(face: Face) -> None:
    in_full = face.plain(PROMPTS[:2], [1, 1])
    with Evaluations(face.pipe) as plain:
        face.plain([PROMPTS[0]], [1])
    redi.enable(face.pipe, face.base, neighbors=1, **EVERY)
    with Evaluations(face.pipe) as jumping:
        jumped = face.pipe(prompt=list(PROMPTS[:2]), latents=face.noises[[1, 1]], output_type="latent")[0]
    # Single-step solvers lose what half precision rounds off a stored value, multistep ones also their history.
    single_step = isinstance(face.pipe.scheduler, SINGLE_STEP)
    assert distance(jumped, in_full) < (5e-4 if single_step else 1e-2)
    assert distance(jumped, in_full) < 0.5 * distance(in_full.flip(0), in_full)
    reports = redi.reports(face.pipe)
    assert [report.neighbors[0].prompt for report in reports] == list(PROMPTS[:2])
    assert [(report.key_step, report.value_step) for report in reports] == [(4, 14)] * 2
    assert plain.count in (STEPS, 2 * STEPS)
    assert jumping.count == plain.count * 10 // STEPS
    assert [(report.calls, report.full_calls) for report in reports] == [(jumping.count, plain.count)] * 2


def test_pictures_of_a_batch_that_part_end_as_if_they_were_alone(face: Face) -> None:
    prompts, noise_ids = [PROMPTS[0], NEW[0], PROMPTS[1]], [1, 0, 0]
    near = float(face.base.leave_one_out(4).min()) / 4
    alone = [
        redi.generate(face.pipe, face.base, [prompt], noise_ids=[noise_id], max_distance=near, progress=False)[0]
        for prompt, noise_id in zip(prompts, noise_ids, strict=True)
    ]
    together = redi.generate(face.pipe, face.base, prompts, noise_ids=noise_ids, max_distance=near, progress=False)
    assert [each.report.jumped for each in together] == [True, False, True]
    for one, other in zip(together, alone, strict=True):
        assert one.report.calls == other.report.calls
        rounding = 1 if face.tiny.output == "images" else 1e-4  # of 255 levels, or of numbers from -1 or 0 to 1
        assert np.abs(np.asarray(one.output, float) - np.asarray(other.output, float)).max() <= rounding


def test_an_abstaining_call_is_the_plain_one_bit_for_bit(face: Face) -> None:
    in_full = face.plain([NEW[0]], [0])
    redi.enable(face.pipe, face.base, max_distance=0.0)
    abstained = face.pipe(NEW[0], latents=face.noises[:1], output_type="latent")[0]
    assert torch.equal(abstained, in_full)
    assert not redi.reports(face.pipe)[0].jumped


def test_a_sample_and_a_record_are_generated_for_each_prompt(face: Face) -> None:
    made = redi.generate(face.pipe, face.base, NEW, noise_ids=[1, 0], compare=True, progress=False, **EVERY)
    assert [each.report.prompt for each in made] == list(NEW)
    assert [each.report.noise_id for each in made] == [1, 0]
    assert all(each.report.jumped and each.full_report and not each.full_report.jumped for each in made)
    latents = face.noises[[1, 0]]
    redi.enable(face.pipe, face.base, **EVERY)
    by_hand = face.pipe(prompt=list(NEW), latents=latents)[0]
    redi.disable(face.pipe)
    in_full = face.plain(NEW, [1, 0], output_type=_default(face.pipe, "output_type"))
    for each, jumped, full in zip(made, by_hand, in_full, strict=True):
        assert np.array_equal(np.asarray(each.output), np.asarray(jumped))
        assert np.array_equal(np.asarray(each.full_output), np.asarray(full))
    assert (shown(made[0].output) is None) == (face.tiny.output == "audios")


def test_noise_comes_from_the_bank_for_several_samples_of_a_prompt(face: Face) -> None:
    redi.enable(face.pipe, face.base, **EVERY)
    face.pipe(NEW[0], generator=torch.Generator().manual_seed(0), output_type="latent", **{face.tiny.several: 2})
    assert sorted(report.noise_id for report in redi.reports(face.pipe)) == [0, 1]


def test_another_model_scheduler_or_argument_is_refused_by_name(face: Face) -> None:
    name = "unet" if "unet" in face.pipe.components else "transformer"
    other = face.tiny.build()
    with torch.no_grad():
        next(getattr(other, name).parameters()).add_(1e-2)
    with pytest.raises(IncompatibleError, match=f"weights.{name}"):
        redi.enable(other, face.base)
    other = face.tiny.build()
    other.scheduler = type(other.scheduler).from_config(other.scheduler.config, num_train_timesteps=900)
    with pytest.raises(IncompatibleError, match=r"scheduler.config.num_train_timesteps:\n.* 1000\n.* 900"):
        redi.enable(other, face.base)
    redi.enable(face.pipe, face.base, **EVERY)
    with pytest.raises(IncompatibleError, match="guidance_scale"):
        face.pipe(NEW[0], guidance_scale=1.5)
    size = "audio_end_in_s" if face.tiny.output == "audios" else "height"
    with pytest.raises(IncompatibleError, match=size):
        face.pipe(NEW[0], **{size: face.base.manifest.identity["call"][size] / 2})


def test_a_pipeline_saved_while_enabled_is_the_bases_own_when_it_is_opened_again(face: Face, tmp_path: Path) -> None:
    redi.enable(face.pipe, face.base, **EVERY)
    face.pipe.save_pretrained(tmp_path / "model")
    opened = DiffusionPipeline.from_pretrained(tmp_path / "model")
    assert type(opened) is type(face.tiny.build())
    opened.set_progress_bar_config(disable=True)
    redi.enable(opened, face.base, **EVERY)
    call = {"latents": face.noises[:1], "output_type": "latent"}
    # Not bit for bit: the stock pipeline too rounds otherwise (3e-7) where its weights lie elsewhere in memory.
    assert distance(opened(NEW[0], **call)[0], face.pipe(NEW[0], **call)[0]) < 1e-5


def test_a_base_of_another_pipeline_is_refused_by_name(face: Face) -> None:
    name = "PixArt-Sigma" if "PixArt" not in type(face.pipe).__name__ else "Sana"
    other = TEXT_TO_ANYTHING[name].build()
    both = f'pipeline:\n.*"{type(face.pipe).__name__}"\n.*"{type(other).__name__}"'
    with pytest.raises(IncompatibleError, match=both):
        redi.enable(other, face.base)


# Arguments


@pytest.fixture(scope="module")
def flux_base(tmp_path_factory: pytest.TempPathFactory) -> redi.KnowledgeBase:
    """A base that was built with sigmas of its own and a size, the rest left to the pipeline."""
    tiny = TEXT_TO_ANYTHING["Flux"]
    plan = redi.Plan(4, key_step=1, value_steps=(2,))
    return redi.build(
        tiny.build(),
        PROMPTS,
        tmp_path_factory.mktemp("flux") / "base",
        plan=plan,
        noises=1,
        progress=False,
        sigmas=[1.0, 0.8, 0.5, 0.2],
        **{**tiny.call, "height": 32},
    )


def test_flux_is_recorded_on_the_schedule_that_its_size_and_sigmas_give(flux_base: redi.KnowledgeBase) -> None:
    pipe, call = TEXT_TO_ANYTHING["Flux"].build(), flux_base.manifest.identity["call"]
    pipe("", num_inference_steps=4, sigmas=[1.0, 0.8, 0.5, 0.2], height=32, width=16, output_type="latent")
    schedule = flux_base.manifest.identity["schedule"]
    assert schedule["timesteps"] == pytest.approx(pipe.scheduler.timesteps.tolist(), rel=1e-5)
    assert (call["height"], call["width"], call["sigmas"]) == (32, 16, [1.0, 0.8, 0.5, 0.2])
    assert (call["guidance_scale"], call["true_cfg_scale"]) == (3.5, 1.0), "left to the pipeline"
    pipe("", num_inference_steps=4, height=32, width=16, output_type="latent")
    assert schedule["timesteps"] != pytest.approx(pipe.scheduler.timesteps.tolist(), rel=1e-3)


def test_a_bare_call_gets_what_the_base_was_built_with(flux_base: redi.KnowledgeBase) -> None:
    pipe = TEXT_TO_ANYTHING["Flux"].build()
    redi.enable(pipe, flux_base, **EVERY)
    image = pipe(NEW[0]).images[0]
    assert image.size == (16, 32)
    assert redi.reports(pipe)[0].jumped
    assert pipe(NEW[0], sigmas=np.array([1.0, 0.8, 0.5, 0.2]).tolist(), width=16).images[0] == image
    for argument in ({"sigmas": [1.0, 0.8, 0.5, 0.1]}, {"true_cfg_scale": 2.0}, {"max_sequence_length": 12}):
        with pytest.raises(IncompatibleError, match=next(iter(argument))):
            pipe(NEW[0], **argument)


@pytest.mark.parametrize(
    ("name", "call", "error", "message"),
    [
        ("Flux", {"sigmas": [1.0, 0.5]}, PlanError, "a schedule of 2 steps where 4 were asked for"),
        ("Wan", {"num_frames": "five"}, InputError, "num_frames='five'"),
        ("Wan", {"height": 17, "width": 16}, InputError, "WanPipeline cannot be called with .*divisible by 16"),
        ("StableAudio", {"audio_end_in_s": 400.0}, InputError, "longer than the model maximum"),
        ("StableAudio", {"previews": True}, InputError, "makes sound"),
        ("StableDiffusionXL", {"prompt_2": "a cat"}, InputError, "prompt_2 as an argument of every call"),
    ],
)
def test_arguments_that_a_pipeline_cannot_be_built_with_are_refused(
    name: str, call: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    plan = redi.Plan(4, key_step=1, value_steps=(2,))
    with pytest.raises(error, match=message):
        redi.build(TEXT_TO_ANYTHING[name].build(), PROMPTS, tmp_path / "base", plan=plan, progress=False, **call)
    assert not (tmp_path / "base").exists()


def test_an_empty_negative_prompt_is_none_only_where_the_pipeline_makes_the_same_of_both(tmp_path: Path) -> None:
    plan = redi.Plan(4, key_step=1, value_steps=(2,))
    for name, is_none in (("StableDiffusion3", True), ("StableDiffusionXL", False)):
        tiny = TEXT_TO_ANYTHING[name]
        pipe = tiny.build()
        base = redi.build(pipe, PROMPTS, tmp_path / name, plan=plan, noises=1, progress=False, **tiny.call)
        call = {"num_inference_steps": 4, "latents": base.noise_bank.latents, "output_type": "latent", **tiny.call}
        assert torch.equal(pipe("a cat", **call)[0], pipe("a cat", negative_prompt="", **call)[0]) is is_none
        redi.enable(pipe, base, **EVERY)
        if is_none:
            pipe("a cat", negative_prompt="")
        else:
            with pytest.raises(IncompatibleError, match="negative_prompt"):
                pipe("a cat", negative_prompt="")


def test_an_adapter_that_is_loaded_or_scaled_is_noticed_on_a_transformer(flux_base: redi.KnowledgeBase) -> None:
    pipe = TEXT_TO_ANYTHING["Flux"].build()
    redi.enable(pipe, flux_base, **EVERY)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]), adapter_name="ink")
    with pytest.raises(IncompatibleError, match=r"adapters\.transformer:\n.*\(not there\)"):
        pipe(NEW[0])
    pipe.transformer.delete_adapters("ink")
    pipe(NEW[0])


@pytest.mark.parametrize("name", ["Flux", "Wan", "StableAudio"])
def test_a_pipeline_in_half_precision_is_built_and_jumps_in_its_own_dtypes(name: str, tmp_path: Path) -> None:
    tiny, plan = TEXT_TO_ANYTHING[name], redi.Plan(STEPS, key_step=4, value_steps=(14,))
    pipe = tiny.build(torch.bfloat16)
    base = redi.build(pipe, PROMPTS, tmp_path / "base", plan=plan, noises=1, progress=False, **tiny.call)
    identity = base.manifest.identity
    assert (identity["dtype"], identity["latents"]["dtype"]) == ("bfloat16", "float32" if name == "Wan" else "bfloat16")
    redi.enable(pipe, base, neighbors=1, **EVERY)
    latents = pipe(PROMPTS[1], output_type="latent")[0]
    redi.disable(pipe)
    noise = base.noise_bank.latents.to(latents.dtype)
    in_full = pipe(PROMPTS[1], latents=noise, num_inference_steps=STEPS, output_type="latent", **tiny.call)[0]
    assert latents.dtype == in_full.dtype == (torch.float32 if name == "Wan" else torch.bfloat16)
    assert distance(latents.float(), in_full.float()) < 3e-2
    with pytest.raises(IncompatibleError, match="dtype"):
        redi.enable(tiny.build(), base)


def test_a_video_is_previewed_by_a_frame(tmp_path: Path) -> None:
    from PIL import Image

    tiny = TEXT_TO_ANYTHING["Wan"]
    plan = redi.Plan(4, key_step=1, value_steps=(2,))
    base = redi.build(
        tiny.build(), PROMPTS[:2], tmp_path / "base", plan=plan, noises=1, previews=True, progress=False, **tiny.call
    )
    path = preview_path(base, base.entries([0])[0])
    assert path is not None
    with Image.open(path) as preview:
        assert preview.size == (32, 32)
