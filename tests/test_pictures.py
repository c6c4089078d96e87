"""Claims about pictures among the arguments of a call: a base is built for one, and its pipeline is called with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image, new

import redi
from pipeline_claims import PROMPTS, Case
from redi.errors import IncompatibleError, InputError
from redi.pictures import is_picture, is_written, stand_in, written
from tiny_parts import picture
from tiny_pipelines import FROM_PICTURE

CONTROL = {"image": picture(1), "control_guidance_end": 0.5}


@pytest.mark.parametrize(
    "value", [picture(1), picture(1).bfloat16(), picture(1).numpy(), new("RGB", (8, 4)), new("L", (3, 3))]
)
def test_a_picture_is_written_down_by_form_size_and_hash(value: Any) -> None:
    line = written(value)
    assert is_picture(value)
    assert is_written(line)
    black = stand_in(line)
    assert type(black) is (Image if isinstance(value, Image) else type(value))
    size = "size" if isinstance(value, Image) else "shape"
    assert getattr(black, size) == getattr(value, size)
    assert written(black).rsplit(" ", 1)[0] == line.rsplit(" ", 1)[0]
    assert written([value, value]) == [line, line]


@pytest.mark.parametrize("value", [3, "a tensor", [], [1.0, 2.0], None, torch.zeros(3), np.zeros(2)])
def test_what_is_no_picture_is_handed_on(value: Any) -> None:
    assert not is_picture(value)
    assert written(value) is value
    assert stand_in(value) is value


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A ControlNet pipeline, and a base that was built with one control picture."""
    pipe = FROM_PICTURE["StableDiffusionControlNet"].build()
    plan = redi.Plan(8, key_step=3, value_steps=(6,))
    folder = tmp_path_factory.mktemp("controlled") / "base"
    return pipe, redi.build(pipe, ["a red cat", "a big dog"], folder, plan=plan, noises=1, progress=False, **CONTROL)


def test_a_base_built_with_a_control_picture_serves_calls_with_it(controlled: Any) -> None:
    pipe, base = controlled
    generator = torch.Generator().manual_seed(0)
    with redi.enable(pipe, base, weights="nearest"):
        jumped = pipe("a big dog", image=picture(1), generator=generator, output_type="latent").images
        (report,) = redi.reports(pipe)
    call = {"num_inference_steps": 8, "output_type": "latent", "latents": base.noise_bank.latents, **CONTROL}
    full = pipe("a big dog", **call).images
    assert (report.jumped, report.neighbors[0].prompt, report.calls) == (True, "a big dog", 10)
    assert (jumped - full).norm() < 1e-3 * full.norm()


def test_another_control_picture_is_refused(controlled: Any) -> None:
    pipe, base = controlled
    with (
        redi.enable(pipe, base),
        pytest.raises(IncompatibleError, match=r"image(.|\n)*tensor 1x3x16x16 float32 sha256:"),
    ):
        pipe("a big dog", image=picture(2))


def test_a_call_without_the_control_picture_is_told_which_is_missing(controlled: Any) -> None:
    pipe, base = controlled
    with redi.enable(pipe, base), pytest.raises(InputError, match="a call without image\n"):
        pipe("a big dog")
    with pytest.raises(InputError, match="a call without image\n"):
        redi.generate(pipe, base, "a big dog", progress=False)


def test_a_build_without_its_control_picture_is_refused(controlled: Any, tmp_path: Path) -> None:
    pipe, base = controlled
    with pytest.raises(InputError, match="StableDiffusionControlNetPipeline cannot be called"):
        redi.build(pipe, ["a cat"], tmp_path / "base", plan=base.plan, progress=False)


def test_inpainting_at_full_strength_starts_from_the_banks_noise(tmp_path: Path) -> None:
    case = Case(FROM_PICTURE["StableDiffusionInpaint"], tmp_path)
    pipe = case.pipe()
    pictures = {name: case.tiny.call[name] for name in ("image", "mask_image")}
    with case.enabled(pipe):
        pipe(PROMPTS[0], generator=torch.Generator().manual_seed(0), output_type="latent", **pictures)
        (report,) = redi.reports(pipe)
    assert report.jumped
    assert report.noise_id in (0, 1)
