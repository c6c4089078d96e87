"""Claims about the public verbs on a pipeline made of blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AdaptiveProjectedGuidance, ClassifierFreeGuidance

import redi
from redi.engine import Jump, run
from redi.errors import IncompatibleError, UnsupportedError
from redi.identity import identity_of
from redi.modular import bars_of
from tiny import Watcher
from tiny_pipelines import MODULAR, SQUARE

PLAN = redi.Plan(8, key_step=3, value_steps=(6,))
PROMPTS = ["a red cat", "a big dog", "two boats"]


@pytest.fixture
def pipe() -> Any:
    return MODULAR["StableDiffusionXL, modular"].build()


@pytest.fixture
def base(pipe: Any, tmp_path: Path) -> redi.KnowledgeBase:
    call = {**SQUARE, "negative_prompt": "ugly"}
    return redi.build(pipe, PROMPTS, tmp_path / "base", plan=PLAN, noises=1, progress=False, **call)


def test_built_and_generated_a_prompt_of_the_base_ends_as_in_full(pipe: Any, base: redi.KnowledgeBase) -> None:
    everyone: dict[str, Any] = {"max_distance": float("inf"), "weights": "nearest", "progress": False}
    made = redi.generate(pipe, base, PROMPTS, compare=True, **everyone)
    assert [each.report.neighbors[0].prompt for each in made] == PROMPTS
    assert [(each.report.calls, each.full_report.calls) for each in made if each.full_report] == [(10, 16)] * 3
    for each in made:
        pixels, full = (torch.tensor(list(image.tobytes())).float() for image in (each.image, each.full_image) if image)
        assert (pixels - full).abs().mean() < 1.0
    styled = redi.stylize(pipe, base, PROMPTS[:1], "in ice", **everyone)
    assert styled[0].report.jumped
    assert styled[0].image.tobytes() != made[0].image.tobytes()


def test_another_guidance_scale_of_the_guider_is_refused(pipe: Any, base: redi.KnowledgeBase) -> None:
    pipe.guider.guidance_scale = 3.0
    with pytest.raises(IncompatibleError, match=r"guider\.guidance_scale"):
        redi.enable(pipe, base)
    pipe.guider.guidance_scale = 5.0
    with redi.enable(pipe, base, max_distance=float("inf")):
        pipe(prompt="a red cat", output_type="latent")
        assert redi.reports(pipe)[0].jumped


def test_progress_bars_are_the_users_again_after_a_call(pipe: Any, base: redi.KnowledgeBase) -> None:
    mine = {"disable": True, "desc": "mine"}
    for bar in bars_of(pipe):
        bar.set_progress_bar_config(**mine)
    redi.generate(pipe, base, PROMPTS[:1], max_distance=float("inf"), progress=False)
    found = [bar._progress_bar_config for bar in bars_of(pipe)]
    assert found == [mine] * len(found) != []


def call_of(pipe: Any, base: redi.KnowledgeBase, steps: int = 8) -> Any:
    latents = base.noise_bank.latents
    return pipe(prompt="a red cat", latents=latents, num_inference_steps=steps, output="images", output_type="latent")


@pytest.mark.parametrize(("window", "calls", "of_jump"), [((0.0, 0.5), 12, 8), ((0.45, 1.0), 13, 7)])
def test_guidance_for_a_part_of_the_schedule_costs_nothing_while_images_sleep(
    pipe: Any, base: redi.KnowledgeBase, window: tuple[float, float], calls: int, of_jump: int
) -> None:
    def windowed() -> Any:  # a fresh guider: one that has run encodes the next call as its last step was guided
        guider = ClassifierFreeGuidance(guidance_scale=5.0, start=window[0], stop=window[1])
        pipe.update_components(guider=guider)
        return call_of(pipe, base)

    own = Watcher()
    with run(pipe, own) as statistics:
        full = windowed()
    assert statistics.calls == [calls]
    with run(pipe, Watcher(3, lambda latents: [Jump(6, own.seen[6][0])])) as statistics:
        assert torch.equal(windowed(), full)
    assert statistics.calls == [of_jump]


def test_a_guider_with_momentum_is_refused_where_it_would_jump(pipe: Any, base: redi.KnowledgeBase) -> None:
    pipe.update_components(guider=AdaptiveProjectedGuidance(adaptive_projected_guidance_momentum=-0.5))
    plain = call_of(pipe, base)
    identity = identity_of(pipe, num_inference_steps=8)
    with run(pipe, Watcher()):
        assert torch.equal(call_of(pipe, base), plain)
    told = r"AdaptiveProjectedGuidance with adaptive_projected_guidance_momentum=-0\.5"
    with pytest.raises(UnsupportedError, match=told), run(pipe, Watcher(3)):
        call_of(pipe, base)
    assert identity_of(pipe, num_inference_steps=8) == identity, "what a guider keeps of a call is no setting"
