"""Claims about capturing what a pipeline sends its network, and sending it in the tail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from torch import Tensor

from redi.attachment import intercept_calls
from redi.conditioning import capture
from redi.engine import Jump, run
from redi.errors import IncompatibleError
from tiny import PROMPTS, Watcher, generate, noise, tiny_pipeline
from tiny_pipelines import TEXT_TO_ANYTHING

BASE, STYLED, X_T = list(PROMPTS[:2]), [f"{prompt} as a mosaic" for prompt in PROMPTS[:2]], noise(1, 2)


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    return tiny_pipeline(tmp_path, "ddim")


def swap_after(step: int, prompt_embeds: Tensor) -> Callable[..., Any]:
    """Return Diffusers' own way to swap the prompt, which works on Stable Diffusion."""

    def callback(pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": prompt_embeds} if index + 1 == step else {}

    return callback


def styled_embeds(pipe: Any, prompts: list[str]) -> Tensor:
    wanted, unwanted = pipe.encode_prompt(prompts, pipe.device, 1, True)
    return torch.cat([unwanted, wanted])


@pytest.mark.parametrize("decide", [lambda latents: [None, None], lambda latents: [Jump(8, row) for row in latents]])
def test_replay_in_the_tail_is_bit_identical_to_swapping_the_prompt(pipe: Any, decide: Any) -> None:
    swap = swap_after(3, styled_embeds(pipe, STYLED))
    with run(pipe, Watcher(3, decide)):
        swapped = generate(pipe, BASE, X_T, 12, callback_on_step_end=swap)
    with run(pipe, Watcher(3, decide), tail_conditioning=capture(pipe, prompt=STYLED)):
        replayed = generate(pipe, BASE, X_T, 12)
    with run(pipe, Watcher(3, decide)):
        unswapped = generate(pipe, BASE, X_T, 12)
    assert torch.equal(replayed, swapped)
    assert not torch.equal(replayed, unswapped)


def test_a_batch_that_disagrees_gets_each_image_its_own_conditioning(pipe: Any) -> None:
    decisions = [None, Jump(8, noise(9)[0])]
    with run(pipe, Watcher(3, lambda latents: decisions), tail_conditioning=capture(pipe, prompt=STYLED)):
        together = generate(pipe, BASE, X_T, 12)
    for image, decision in enumerate(decisions):
        conditioning = capture(pipe, prompt=[STYLED[image]])
        with run(pipe, Watcher(3, lambda latents, d=decision: [d]), tail_conditioning=conditioning):
            alone = generate(pipe, BASE[image : image + 1], X_T[image : image + 1], 12)
        torch.testing.assert_close(together[image], alone[0], rtol=1e-4, atol=1e-4 * alone.abs().max().item())


def test_one_captured_prompt_serves_a_whole_batch(pipe: Any) -> None:
    with run(pipe, Watcher(3), tail_conditioning=capture(pipe, prompt=["a mosaic", "a mosaic"])):
        repeated = generate(pipe, BASE, X_T, 12)
    with run(pipe, Watcher(3), tail_conditioning=capture(pipe, prompt="a mosaic")):
        shared = generate(pipe, BASE, X_T, 12)
    torch.testing.assert_close(shared, repeated, rtol=1e-4, atol=1e-4)


def test_conditioning_of_another_batch_or_guidance_is_refused(pipe: Any) -> None:
    conditioning = capture(pipe, prompt=list(PROMPTS[:3]))
    with pytest.raises(IncompatibleError, match="6 rows"), run(pipe, Watcher(3), tail_conditioning=conditioning):
        generate(pipe, BASE, X_T, 12)


def test_capture_evaluates_no_network_and_leaves_no_trace(pipe: Any) -> None:
    generate(pipe, BASE, X_T, 1)
    evaluated: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda *_: evaluated.append(1))
    owners = (pipe, pipe.scheduler, pipe.unet, pipe.vae, pipe.text_encoder)
    before = [set(vars(owner)) for owner in owners]
    random_state = torch.get_rng_state()
    capture(pipe, prompt=STYLED)
    assert evaluated == []
    assert [set(vars(owner)) for owner in owners] == before
    assert torch.equal(torch.get_rng_state(), random_state)


def test_capture_goes_past_an_interception(pipe: Any) -> None:
    intercept_calls(pipe, lambda pipe, original_call, args, kwargs: pytest.fail("went through the interception"))
    assert list(capture(pipe, prompt="a mosaic").networks) == ["unet"]


def test_a_mistake_in_the_call_is_reported_as_the_pipeline_does(pipe: Any) -> None:
    with pytest.raises(ValueError, match="prompt"):
        capture(pipe)


def test_captured_are_text_and_not_latents_or_control(pipe: Any) -> None:
    controlnet = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8))
    controlled = StableDiffusionControlNetPipeline(
        **pipe.components, controlnet=controlnet, requires_safety_checker=False
    )
    controlled.set_progress_bar_config(disable=True)
    conditioning = capture(controlled, prompt="a mosaic", image=torch.rand(1, 3, 16, 16))
    assert set(conditioning.networks) == {"unet", "controlnet"}
    for calls in conditioning.networks.values():
        assert "encoder_hidden_states" in calls[0].arguments
        assert not [
            name for name in calls[0].arguments if name.startswith(("sample", "timestep_", "controlnet", "down"))
        ]


def test_a_call_that_begins_while_some_images_sleep_keeps_its_own_rows() -> None:
    """SD3's skip-layer guidance calls its network a second time in a part of the schedule, with half the rows."""
    pipe = TEXT_TO_ANYTHING["StableDiffusion3"].build()
    skipping = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.4, "skip_layer_guidance_stop": 0.9}
    call = {"num_inference_steps": 12, "guidance_scale": 5.0, "output_type": "latent", "return_dict": False}

    def made(prompts: list[str], x_T: Tensor) -> Tensor:
        return pipe(prompts, latents=x_T, **call, **skipping)[0]

    own = Watcher()
    with run(pipe, own):
        full = made(BASE, X_T)
    for decisions in ([None, Jump(8, own.seen[8][1])], [Jump(8, own.seen[8][0]), Jump(8, own.seen[8][1])]):
        with run(pipe, Watcher(3, lambda latents, d=decisions: d)):
            jumped = made(BASE, X_T)
        torch.testing.assert_close(jumped, full, rtol=1e-4, atol=1e-4)
