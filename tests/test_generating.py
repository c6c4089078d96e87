"""Claims about generating many pictures with a base, in full, and with a style."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import StableDiffusionPipeline

import redi
from recording import GUIDANCE, PROMPTS, SEEDS, SHAPE, record
from redi.conditioning import capture
from redi.engine import Jump, run
from redi.errors import InputError, NoiseError, PlanError, RediWarning
from redi.generating import full
from redi.knowledge_base import NoiseBank
from tiny import Watcher, tiny_pipeline

PLAN = redi.Plan(12, key_step=3, value_steps=(6, 8))
NOISES = NoiseBank.draw(SEEDS, SHAPE).latents
NEW = ["a big house", "a red boat", "two dogs", "grass", "a cat on a tree"]
QUIET: dict[str, Any] = {"progress": False}
EVERY: dict[str, Any] = {"max_distance": 1e9, **QUIET}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> redi.KnowledgeBase:
    folder = tmp_path_factory.mktemp("ground")
    return record(folder / "base", tiny_pipeline(folder / "model", "ddim"), PLAN)


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    return tiny_pipeline(tmp_path / "model", "ddim")


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RediWarning)
        yield


def pixels(images: list[Any]) -> npt.NDArray[np.int16]:
    return np.stack([np.asarray(image) for image in images]).astype(np.int16)


def test_pictures_are_those_of_the_enabled_pipeline(pipe: Any, base: redi.KnowledgeBase) -> None:
    generations = redi.generate(pipe, base, NEW[:2], noise_ids=[2, 0], **EVERY)
    with redi.enable(pipe, base, max_distance=1e9) as enabled:
        images = pipe(NEW[:2], latents=NOISES[[2, 0]]).images
    assert np.array_equal(pixels([each.image for each in generations]), pixels(images))
    assert [each.report.neighbors for each in generations] == [report.neighbors for report in enabled.reports]
    assert [(each.report.noise_id, each.report.seed) for each in generations] == [(2, 33), (0, 11)]
    assert [each.report.prompt for each in generations] == NEW[:2]


@pytest.mark.parametrize("batch_size", [2, 16])
def test_the_batch_size_changes_nothing(pipe: Any, base: redi.KnowledgeBase, batch_size: int) -> None:
    one = redi.generate(pipe, base, NEW, batch_size=1, seed=4, **EVERY)
    other = redi.generate(pipe, base, NEW, batch_size=batch_size, seed=4, **EVERY)
    assert [each.report.noise_id for each in one] == [each.report.noise_id for each in other]
    assert np.abs(pixels([each.image for each in one]) - pixels([each.image for each in other])).max() <= 1


def test_a_pictures_noise_depends_on_seed_and_place_only(pipe: Any, base: redi.KnowledgeBase) -> None:
    def noises(prompts: list[str], seed: int) -> list[int | None]:
        return [each.report.noise_id for each in redi.generate(pipe, base, prompts, seed=seed, **EVERY)]

    assert noises(NEW, 0)[:2] == noises(NEW[3:], 0)
    assert len({tuple(noises(NEW[:2], seed)) for seed in range(4)}) > 1


def test_the_users_random_state_is_not_touched(pipe: Any, base: redi.KnowledgeBase) -> None:
    before = torch.get_rng_state()
    redi.generate(pipe, base, NEW[0], compare=True, **EVERY)
    redi.stylize(pipe, base, NEW[0], "in red", **EVERY)
    assert torch.equal(torch.get_rng_state(), before)


def test_comparing_adds_the_full_run_from_the_same_noise(pipe: Any, base: redi.KnowledgeBase) -> None:
    compared = redi.generate(pipe, base, NEW, batch_size=2, compare=True, **EVERY)
    in_full = full(pipe, base, NEW, batch_size=2, **QUIET)
    assert np.array_equal(pixels([each.full_image for each in compared]), pixels([each.image for each in in_full]))
    for each, alone in zip(compared, in_full, strict=True):
        assert each.full_report is not None
        assert (each.report.calls, each.full_report.calls, alone.report.calls) == (7, 12, 12)
        assert each.report.full_calls == alone.report.full_calls
        assert each.report.noise_id == each.full_report.noise_id == alone.report.noise_id
        assert (alone.report.jumped, alone.report.reason) == (False, "run in full, as asked")


def test_full_is_the_plain_pipeline(pipe: Any, base: redi.KnowledgeBase) -> None:
    generations = full(pipe, base, NEW[:2], noise_ids=[1, 1], **QUIET)
    negative = [GUIDANCE["negative_prompt"]] * 2
    call = {**GUIDANCE, "negative_prompt": negative, "num_inference_steps": 12}
    plain = pipe(NEW[:2], latents=NOISES[[1, 1]], **call).images
    assert np.array_equal(pixels([each.image for each in generations]), pixels(plain))


@pytest.mark.parametrize("enabled", [False, True])
def test_the_pipeline_is_left_as_it_was(pipe: Any, base: redi.KnowledgeBase, enabled: bool) -> None:
    if enabled:
        redi.enable(pipe, base, value_step=6, max_distance=1e9)
    pipe(NEW[0])
    summary, attributes, config = redi.summary(pipe), set(vars(pipe)), dict(pipe._progress_bar_config)
    redi.generate(pipe, base, NEW[:2], value_step=8, **EVERY)
    assert (redi.summary(pipe), set(vars(pipe)), pipe._progress_bar_config) == (summary, attributes, config)
    assert isinstance(pipe, StableDiffusionPipeline)


# Styles (section 4.3)


def test_a_style_is_the_conditioning_swapped_by_hand(pipe: Any, base: redi.KnowledgeBase) -> None:
    style = "in red"
    generation = redi.stylize(pipe, base, PROMPTS[0], style, noise_ids=[1], **EVERY)[0]
    (row,) = [i for i, e in enumerate(base.entries(range(len(base)))) if (e.prompt, e.noise_id) == (PROMPTS[0], 1)]
    call = {**GUIDANCE, "num_inference_steps": 12}
    tail = capture(pipe, prompt=f"{PROMPTS[0]} {style}", **call)
    value = base.values([row], 8)[0]
    with run(pipe, Watcher(3, lambda latents: [Jump(8, value)]), tail_conditioning=tail):
        by_hand = pipe(PROMPTS[0], latents=NOISES[1:2], **call).images
    assert np.abs(pixels([generation.image]) - pixels(by_hand)).max() <= 1
    assert generation.report.prompt == f"{PROMPTS[0]} {style}"
    assert generation.report.neighbors[0].prompt == PROMPTS[0]
    plain = redi.generate(pipe, base, PROMPTS[0], noise_ids=[1], **EVERY)[0]
    assert not np.array_equal(pixels([generation.image]), pixels([plain.image]))


def test_a_picture_that_abstains_gets_its_style_after_the_key_step(pipe: Any, base: redi.KnowledgeBase) -> None:
    generation = redi.stylize(pipe, base, NEW[0], "in red", noise_ids=[0], max_distance=0, compare=True, **QUIET)[0]
    call = {**GUIDANCE, "num_inference_steps": 12}
    tail = capture(pipe, prompt=f"{NEW[0]} in red", **call)
    with run(pipe, Watcher(3), tail_conditioning=tail):
        by_hand = pipe(NEW[0], latents=NOISES[:1], **call).images
    assert np.array_equal(pixels([generation.image]), pixels(by_hand))
    in_full = pipe(f"{NEW[0]} in red", latents=NOISES[:1], **call).images
    assert np.array_equal(pixels([generation.full_image]), pixels(in_full))


def test_styles_of_a_batch_do_not_mix(pipe: Any, base: redi.KnowledgeBase) -> None:
    together = redi.stylize(pipe, base, NEW[:3], "in red", value_step=6, **EVERY)
    alone = redi.stylize(pipe, base, NEW[:3], "in red", value_step=6, batch_size=1, **EVERY)
    assert np.abs(pixels([g.image for g in together]) - pixels([g.image for g in alone])).max() <= 1


@pytest.mark.parametrize("style", ["", "  ", None])
def test_an_empty_style_is_refused(pipe: Any, base: redi.KnowledgeBase, style: Any) -> None:
    with pytest.raises(InputError, match="style"):
        redi.stylize(pipe, base, NEW, style, **QUIET)


# Bad input


@pytest.mark.parametrize(
    ("prompts", "options", "error"),
    [
        ([], {}, InputError),
        (["a cat", 3], {}, InputError),
        (NEW, {"batch_size": 0}, InputError),
        (NEW, {"seed": -1}, InputError),
        (NEW, {"seed": 2**64 - 1}, InputError),
        (NEW[:1], {"noise_ids": [1.0]}, NoiseError),
        (NEW, {"noise_ids": [0]}, InputError),
        (NEW[:1], {"noise_ids": [3]}, NoiseError),
        (NEW, {"neighbors": 0}, InputError),
        (NEW, {"value_step": 7}, PlanError),
    ],
)
def test_bad_input_is_refused(
    pipe: Any, base: redi.KnowledgeBase, prompts: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        redi.generate(pipe, base, prompts, **QUIET, **options)


def test_a_prompt_that_the_tokenizer_cuts_is_named(pipe: Any, base: redi.KnowledgeBase) -> None:
    long = "a very long story of a cat and a dog"
    with pytest.warns(RediWarning, match="1 of 2 prompts, .* its 24 tokens: 'a very long story") as caught:
        redi.generate(pipe, base, [long, NEW[0]], **EVERY)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_progress_bar_counts_pictures(pipe: Any, base: redi.KnowledgeBase, capfd: pytest.CaptureFixture[str]) -> None:
    redi.generate(pipe, base, NEW[:3], batch_size=2, max_distance=1e9)
    shown = capfd.readouterr().err
    assert "3/3" in shown
    assert "12/12" not in shown


def test_independent_noise_is_drawn_by_seed_and_place(pipe: Any, tmp_path: Path) -> None:
    base = record(tmp_path / "independent", pipe, PLAN, shared=False)
    together = redi.generate(pipe, base, NEW[:3], seed=1000, **EVERY)
    alone = redi.generate(pipe, base, NEW[:3], seed=1000, batch_size=1, **EVERY)
    assert np.abs(pixels([g.image for g in together]) - pixels([g.image for g in alone])).max() <= 1
    assert all(each.report.jumped for each in together)


def test_a_style_does_not_change_the_noise_that_a_seed_makes(pipe: Any, tmp_path: Path) -> None:
    base = record(tmp_path / "independent", pipe, PLAN, shared=False)
    (styled,) = redi.stylize(pipe, base, PROMPTS[0], "on grass", seed=1000, **EVERY)
    assert styled.report.neighbors[0].prompt == PROMPTS[0]
    assert styled.report.neighbors[0].distance < 0.1
