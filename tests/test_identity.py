"""Claims about reading a pipeline's identity, on a tiny real StableDiffusionPipeline."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline

import tiny
from redi.errors import InputError, UnsupportedError
from redi.identity import compared, identity_of
from redi.knowledge_base.manifest import differences
from redi.weights_hash import hash_weights

CALL: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 7.5, "negative_prompt": None}


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    return tiny.tiny_pipeline(tmp_path / "tiny")


def what_differs(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [difference.field for difference in differences(compared(one), compared(other))]


def test_identity_is_json_and_the_same_every_time(pipe: Any, tmp_path: Path) -> None:
    identity = identity_of(pipe, **CALL)
    assert json.loads(json.dumps(identity, allow_nan=False)) == identity
    assert identity_of(tiny.tiny_pipeline(tmp_path / "again"), **CALL) == identity


def test_identity_names_what_the_trajectories_depend_on(pipe: Any) -> None:
    identity = identity_of(pipe, **CALL)
    assert identity["pipeline"] == "StableDiffusionPipeline"
    assert sorted(identity["weights"]) == ["text_encoder", "unet"]
    assert identity["adapters"] == {}
    assert identity["dtype"] == "float32"
    assert identity["prediction_type"] == "epsilon"
    assert identity["latents"] == {
        "shape": [4, 8, 8],
        "dtype": "float32",
        "scaling_factor": 0.18215,
        "shift_factor": None,
    }
    assert identity["scheduler"]["class"] == "PNDMScheduler"
    assert identity["scheduler"]["config"]["beta_schedule"] == "scaled_linear"
    assert len(identity["schedule"]["timesteps"]) == 21
    assert identity["call"] == {
        "num_inference_steps": 20,
        "guidance_scale": 7.5,
        "guidance_rescale": 0.0,
        "height": 16,
        "width": 16,
    }
    assert identity["information"]["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_reading_changes_nothing_of_the_scheduler(pipe: Any) -> None:
    pipe.scheduler.set_timesteps(7)
    before = copy.deepcopy(vars(pipe.scheduler))
    identity_of(pipe, **CALL)
    after = vars(pipe.scheduler)
    assert before.keys() == after.keys()
    assert torch.equal(before.pop("timesteps"), after["timesteps"])
    assert all(repr(after[name]) == repr(value) for name, value in before.items())


@pytest.mark.parametrize("name", sorted(tiny.SCHEDULERS))
def test_timesteps_are_those_that_the_pipeline_will_use(pipe: Any, name: str) -> None:
    pipe.scheduler = tiny.scheduler(name)
    timesteps = identity_of(pipe, **CALL)["schedule"]["timesteps"]
    pipe.scheduler.set_timesteps(20)
    assert timesteps == pytest.approx(pipe.scheduler.timesteps.tolist(), abs=1e-4)


def test_a_pipeline_saved_and_loaded_is_the_same_whatever_its_folder(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "my-model")
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "my-model")
    identity = identity_of(loaded, **CALL)
    assert what_differs(identity_of(pipe, **CALL), identity) == []
    assert identity["information"]["model"] == "my-model"
    assert str(tmp_path) not in json.dumps(identity)


def test_information_is_not_compared(pipe: Any) -> None:
    one, other = identity_of(pipe, **CALL, revision="a"), identity_of(pipe, **CALL, revision="b")
    assert one["information"]["revision"] == "a"
    assert one != other
    assert compared(one) == compared(other)


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"guidance_scale": 5.0}, ["call.guidance_scale"]),
        ({"negative_prompt": "blurry"}, ["call.negative_prompt"]),
        ({"num_inference_steps": 25}, ["call.num_inference_steps", "schedule.timesteps"]),
        ({"height": 32}, ["call.height", "latents.shape"]),
        ({"height": 16}, []),
    ],
)
def test_a_changed_argument_changes_its_fields_only(pipe: Any, change: dict[str, Any], fields: list[str]) -> None:
    assert what_differs(identity_of(pipe, **CALL), identity_of(pipe, **{**CALL, **change})) == fields


def test_no_negative_prompt_is_an_empty_one(pipe: Any) -> None:
    assert identity_of(pipe, **CALL) == identity_of(pipe, **{**CALL, "negative_prompt": ""})


def test_a_changed_scheduler_changes_the_identity(pipe: Any) -> None:
    before = identity_of(pipe, **CALL)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert "scheduler.class" in what_differs(before, identity_of(pipe, **CALL))
    pipe.scheduler = tiny.scheduler("pndm", prediction_type="v_prediction")
    assert what_differs(before, identity_of(pipe, **CALL)) == ["prediction_type"]


def test_config_numbers_that_json_has_no_word_for_are_kept_as_text(pipe: Any) -> None:
    pipe.scheduler = DPMSolverMultistepScheduler()
    assert identity_of(pipe, **CALL)["scheduler"]["config"]["lambda_min_clipped"] == "-inf"


def by_one_number(weight: torch.nn.Parameter) -> None:
    with torch.no_grad():
        weight.view(-1)[1] += 1


def by_writing_through_data(weight: torch.nn.Parameter) -> None:
    weight.data.mul_(1.001)


def by_new_data(weight: torch.nn.Parameter) -> None:
    weight.data = weight.data + 0.001


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
@pytest.mark.parametrize("change", [by_one_number, by_writing_through_data, by_new_data])
def test_a_changed_weight_changes_the_identity(
    pipe: Any, component: str, change: Callable[[torch.nn.Parameter], None]
) -> None:
    before = identity_of(pipe, **CALL)
    change(max(getattr(pipe, component).parameters(), key=torch.Tensor.numel))
    assert what_differs(before, identity_of(pipe, **CALL)) == [f"weights.{component}"]


def test_a_changed_decoder_changes_nothing_of_the_trajectory(pipe: Any) -> None:
    before = identity_of(pipe, **CALL)
    by_writing_through_data(next(pipe.vae.parameters()))
    assert identity_of(pipe, **CALL) == before


def test_another_dtype_is_another_identity(pipe: Any) -> None:
    before = identity_of(pipe, **CALL)
    after = identity_of(pipe.to(torch.bfloat16), **CALL)
    assert after["dtype"] == "bfloat16"
    assert what_differs(before, after) == ["dtype", "latents.dtype", "weights.text_encoder", "weights.unet"]


def test_memory_layout_inference_mode_and_a_compiled_wrapper_change_nothing(pipe: Any) -> None:
    before = identity_of(pipe, **CALL)
    pipe.unet.to(memory_format=torch.channels_last)
    assert identity_of(pipe, **CALL) == before
    pipe.unet = torch.compile(pipe.unet)
    assert identity_of(pipe, **CALL) == before
    with torch.inference_mode():
        pipe.text_encoder.to(torch.float64).to(torch.float32)
        assert identity_of(pipe, **CALL) == before


def test_the_second_hash_is_free() -> None:
    network = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(6)))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        hash_weights(network)
        times.append(time.perf_counter() - start)
    assert min(times[1:]) < times[0] / 10


def test_the_hash_keeps_no_network_alive() -> None:
    import gc
    import weakref

    network = torch.nn.Linear(2, 2)
    hash_weights(network)
    gone = weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None


def test_weights_that_are_not_in_memory_are_refused(pipe: Any) -> None:
    pipe.unet.to("meta")
    with pytest.raises(UnsupportedError, match="is not in memory"):
        identity_of(pipe, **CALL)


def test_a_schedule_that_cannot_be_made_is_refused(pipe: Any) -> None:
    pipe.scheduler = tiny.scheduler("ddim")
    with pytest.raises(UnsupportedError, match="DDIMScheduler cannot make the schedule that the pipeline asks for"):
        identity_of(pipe, **{**CALL, "num_inference_steps": 2000})


# --- switches and vocabularies ---


def test_freeu_changes_the_identity_as_long_as_it_is_on(pipe: Any) -> None:
    before = identity_of(pipe, **CALL)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert what_differs(before, identity_of(pipe, **CALL)) == ["switches.unet.freeu"]
    pipe.disable_freeu()
    assert identity_of(pipe, **CALL) == before


def test_equal_weights_with_another_config_are_another_identity(pipe: Any) -> None:
    before = identity_of(pipe, **CALL)
    pipe.unet.register_to_config(attention_head_dim=4)
    pipe.text_encoder.config.num_attention_heads = 4
    assert what_differs(before, identity_of(pipe, **CALL)) == [
        "switches.text_encoder.num_attention_heads",
        "switches.unet.attention_head_dim",
    ]


def test_only_what_is_not_at_its_default_is_written_down(pipe: Any) -> None:
    switches = identity_of(pipe, **CALL)["switches"]["unet"]
    assert switches["norm_num_groups"] == 4
    assert "act_fn" not in switches
    assert "freeu" not in switches


def test_another_vocabulary_or_length_is_another_identity(pipe: Any) -> None:
    before = identity_of(pipe, **CALL)
    pipe("a cat", num_inference_steps=1, output_type="latent")
    assert identity_of(pipe, **CALL) == before, "what a call leaves on the tokenizer is no difference"
    pipe.tokenizer.add_tokens(["<ink>"])
    assert what_differs(before, identity_of(pipe, **CALL)) == ["tokenizers.tokenizer"]
    longer = identity_of(pipe, **CALL)
    pipe.tokenizer.model_max_length = 12
    assert what_differs(longer, identity_of(pipe, **CALL)) == ["tokenizers.tokenizer"]


# --- adapters ---


@pytest.fixture
def adapted(pipe: Any) -> Any:
    torch.manual_seed(1)
    for seed_name in ("ink", "sand"):
        pipe.unet.add_adapter(
            peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), adapter_name=seed_name
        )
    pipe.unet.set_adapter("ink")
    return pipe


def test_an_adapter_is_named_beside_the_same_weights(adapted: Any, tmp_path: Path) -> None:
    plain = identity_of(tiny.tiny_pipeline(tmp_path / "plain"), **CALL)
    identity = identity_of(adapted, **CALL)
    assert list(identity["adapters"]["unet"]) == ["ink"]
    assert what_differs(plain, identity) == ["adapters.unet"]
    adapted.unet.disable_adapters()
    assert what_differs(plain, identity_of(adapted, **CALL)) == []


def test_a_changed_adapter_weight_scale_or_choice_changes_the_identity(adapted: Any) -> None:
    before = identity_of(adapted, **CALL)
    adapted.unet.set_adapters(["ink"], [0.5])
    assert what_differs(before, identity_of(adapted, **CALL)) == ["adapters.unet.ink.scales"]
    adapted.unet.set_adapters(["ink"], [1.0])
    assert what_differs(before, identity_of(adapted, **CALL)) == []
    weight = next(weight for name, weight in adapted.unet.named_parameters() if "lora_B.ink" in name)
    by_writing_through_data(weight)
    assert what_differs(before, identity_of(adapted, **CALL)) == ["adapters.unet.ink.hash"]
    adapted.unet.set_adapter("sand")
    assert "adapters.unet.sand" in what_differs(before, identity_of(adapted, **CALL))


def test_an_adapter_that_does_not_take_part_changes_nothing(adapted: Any) -> None:
    before = identity_of(adapted, **CALL)
    weight = next(weight for name, weight in adapted.unet.named_parameters() if "lora_B.sand" in name)
    by_writing_through_data(weight)
    assert what_differs(before, identity_of(adapted, **CALL)) == []


def test_a_fused_adapter_shows_as_changed_weights(adapted: Any) -> None:
    before = identity_of(adapted, **CALL)
    adapted.unet.fuse_lora(adapter_names=["ink"])
    fused = identity_of(adapted, **CALL)
    assert what_differs(before, fused) == ["adapters.unet", "weights.unet"]
    adapted.unet.unload_lora()
    assert what_differs(fused, identity_of(adapted, **CALL)) == []


# --- the call that the pipeline would make ---


def test_the_shape_of_latents_is_the_shape_that_the_pipeline_makes(pipe: Any) -> None:
    for size in ({}, {"height": 32, "width": 48}):
        made = pipe("a cat", num_inference_steps=1, output_type="latent", **size).images
        assert identity_of(pipe, **CALL, **size)["latents"]["shape"] == list(made.shape[1:])


def test_a_call_that_the_pipeline_refuses_is_refused(pipe: Any) -> None:
    with pytest.raises(InputError, match="divisible by 8 but are 17"):
        identity_of(pipe, **CALL, height=17)


def test_reading_leaves_no_trace_on_the_pipeline_and_evaluates_nothing_that_denoises(pipe: Any) -> None:
    evaluated: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda *_: evaluated.append(1))
    before, drawn = dict(vars(pipe)), torch.get_rng_state()
    identity_of(pipe, **CALL)
    assert vars(pipe) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert evaluated == []


def test_what_the_pipeline_sets_up_is_asked_once_as_long_as_it_stays_as_it_is(pipe: Any) -> None:
    encoded: list[int] = []
    pipe.text_encoder.register_forward_hook(lambda *_: encoded.append(1))
    identity_of(pipe, **CALL)
    once = len(encoded)
    identity_of(pipe, **CALL)
    assert len(encoded) == once > 0
    pipe.scheduler = tiny.scheduler("ddim")
    assert len(identity_of(pipe, **CALL)["schedule"]["timesteps"]) == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance_scale": "7"}, "a number"),
        ({"guidance_scale": float("nan")}, "a finite number"),
        ({"negative_prompt": ["x"]}, "one text for all prompts"),
        ({"prompt": "a cat"}, "prompt as an argument of every call"),
        ({"latents": torch.zeros(1)}, "latents as an argument of every call"),
        ({"hight": 16}, "one of height, width"),
        ({"ip_adapter_image": torch.zeros(1)}, "numbers, text, pictures, and lists of them"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_argument_that_cannot_be_recorded_is_refused(pipe: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        identity_of(pipe, **{**CALL, **change})


def test_a_pipeline_without_a_network_that_denoises_is_refused(pipe: Any) -> None:
    pipe.unet = None
    with pytest.raises(UnsupportedError, match="without a unet"):
        identity_of(pipe, **CALL)
