"""Claims about redi together with what else users put on a pipeline: compiling, LoRA, offloading, caches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from DeepCache import DeepCacheSDHelper
from diffusers import (
    AutoencoderKL,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from torch import Tensor

import redi
from ground import NEW, NOISES, PLAN, Ground, call
from recording import PROMPTS, full_images, record
from redi.conditioning import capture
from redi.engine import Jump, RunStatistics, run
from redi.errors import IncompatibleError, UnsupportedError
from tiny import Watcher, noise

LIKE_THE_FULL_RUN = 5e-3
"""What jumping to an entry's own value, stored in float16, may lose (relative); caches at their settings here, too."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


def distance(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other))


def count(module: torch.nn.Module) -> list[int]:
    """Return a list that grows by the rows of every call of ``module``."""
    rows: list[int] = []
    module.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    return rows


def enable(pipe: Any, base: redi.KnowledgeBase) -> Any:
    """With the weights that give an entry of the base itself, exactly."""
    redi.enable(pipe, base, weights="least-squares", max_distance=1e9, strict=True)
    return pipe


# torch.compile


@pytest.mark.parametrize("enabled_first", [True, False], ids=["enable, compile", "compile, enable"])
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "wrapper"])
def test_an_enabled_pipeline_compiles_to_one_graph(ground: Ground, enabled_first: bool, in_place: bool) -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    wanted = call(enable(ground.pipe(), ground.base()), NEW, latents=NOISES[:1])
    pipe, counter = ground.pipe(), CompileCounter()
    if enabled_first:
        enable(pipe, ground.base())
    if in_place:
        pipe.unet.compile(backend=counter, fullgraph=True)
    else:
        pipe.unet = torch.compile(pipe.unet, backend=counter, fullgraph=True)
    if not enabled_first:
        enable(pipe, ground.base())
    for _ in range(2):
        torch.testing.assert_close(call(pipe, NEW, latents=NOISES[:1]), wanted)
        assert redi.reports(pipe)[0].calls == 7
    assert counter.frame_count == 1


# LoRA


@pytest.fixture(scope="module")
def lora(ground: Ground) -> dict[str, Tensor]:
    """The state dict of a LoRA for the tiny U-Net."""
    unet = ground.pipe().unet
    torch.manual_seed(1)
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    found = peft.get_peft_model_state_dict(unet)
    return {f"unet.{name}": tensor.clone() for name, tensor in found.items()}


def load(pipe: Any, lora: dict[str, Tensor]) -> Any:
    pipe.load_lora_weights(dict(lora), adapter_name="ink")
    return pipe


def test_a_base_built_with_a_lora_jumps_with_it(ground: Ground, lora: dict[str, Tensor], tmp_path: Path) -> None:
    pipe = load(ground.pipe(), lora)
    base = record(tmp_path / "adapted", pipe, PLAN)
    full = full_images(pipe, PROMPTS[:2], NOISES[:2], 12)
    rows = count(pipe.unet.conv_in)
    jumped = call(enable(pipe, base), list(PROMPTS[:2]), latents=NOISES[:2])
    assert distance(jumped, full) < LIKE_THE_FULL_RUN
    assert distance(full_images(ground.pipe(), PROMPTS[:2], NOISES[:2], 12), full) > 10 * LIKE_THE_FULL_RUN
    assert len(rows) == redi.reports(pipe)[0].calls == 7


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda pipe: pipe.set_adapters(["ink"], [0.5]), "adapters.unet.ink.scales"),
        (lambda pipe: pipe.disable_lora(), "adapters.unet"),
        (lambda pipe: pipe.unload_lora_weights(), "adapters.unet"),
        (lambda pipe: pipe.fuse_lora(), "weights.unet"),
    ],
    ids=["scale", "disabled", "unloaded", "fused"],
)
def test_a_lora_changed_after_enabling_is_noticed(
    ground: Ground, lora: dict[str, Tensor], tmp_path: Path, change: Callable[[Any], None], field: str
) -> None:
    pipe = load(ground.pipe(), lora)
    enable(pipe, record(tmp_path / "adapted", pipe, PLAN, PROMPTS[:1]))
    change(pipe)
    assert field in redi.summary(pipe)
    with pytest.raises(IncompatibleError, match=field):
        call(pipe, NEW, latents=NOISES[:1])


def test_a_lora_loaded_after_enabling_is_noticed_until_it_is_unloaded(ground: Ground, lora: dict[str, Tensor]) -> None:
    pipe = enable(ground.pipe(), ground.base())
    wanted = call(pipe, NEW, latents=NOISES[:1])
    load(pipe, lora)
    with pytest.raises(IncompatibleError, match="ink"):
        call(pipe, NEW, latents=NOISES[:1])
    pipe.unload_lora_weights()
    assert torch.equal(call(pipe, NEW, latents=NOISES[:1]), wanted)


# Offloading


@pytest.mark.parametrize("enabled_first", [True, False], ids=["enable, offload", "offload, enable"])
def test_sleeping_steps_bring_no_offloaded_weights_back(ground: Ground, enabled_first: bool) -> None:
    wanted = call(enable(ground.pipe(), ground.base()), NEW, latents=NOISES[:1])
    pipe = ground.pipe()
    loads: list[int] = []

    class Counting(ModelHook):
        def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            loads.append(1)
            return args, kwargs

    if enabled_first:
        enable(pipe, ground.base())
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    add_hook_to_module(pipe.unet.conv_in, Counting(), append=True)
    assert pipe.unet.conv_in.weight.is_meta
    if not enabled_first:
        enable(pipe, ground.base())
    assert torch.equal(call(pipe, NEW, latents=NOISES[:1]), wanted)
    assert len(loads) == redi.reports(pipe)[0].calls == 7


# DeepCache


def deep_cache(pipe: Any, interval: int = 3) -> DeepCacheSDHelper:
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    return helper


def count_deep(pipe: Any) -> list[int]:
    """Return a list that grows whenever the deepest block is computed, not handed back by DeepCache."""
    return count(pipe.unet.mid_block.resnets[0])


@pytest.mark.parametrize(("value_step", "stale"), [(8, 3.1e-3), (10, 3.8e-3)])
def test_deep_cache_starts_afresh_after_the_jump(ground: Ground, value_step: int, stale: float) -> None:
    """``stale`` is what the features of step 1 would lose, measured without forgetting them."""
    pipe, own = ground.pipe(), Watcher()
    with run(pipe, own):
        full = full_images(pipe, PROMPTS[:3], NOISES, 12)
    deep = count_deep(pipe)
    deep_cache(pipe)
    with run(pipe, Watcher(3, lambda latents: [Jump(value_step, row) for row in own.seen[value_step]])) as statistics:
        jumped = full_images(pipe, PROMPTS[:3], NOISES, 12)
    assert distance(jumped, full) < stale / 3
    assert statistics.calls == [15 - value_step] * 3
    assert len(deep) == {8: 3, 10: 2}[value_step], "call 0, the one after the jump, and every third from there"


def test_deep_cache_forgets_when_the_images_of_a_batch_part(ground: Ground) -> None:
    pipe, own = ground.pipe(), Watcher()
    with run(pipe, own):
        full = full_images(pipe, PROMPTS[:3], NOISES, 12)
    deep_cache(pipe)
    cached = full_images(pipe, PROMPTS[:3], NOISES, 12)
    decisions = [Jump(8, own.seen[8][0]), None, Jump(10, own.seen[10][2])]
    with run(pipe, Watcher(3, lambda latents: decisions)) as statistics:
        mixed = full_images(pipe, PROMPTS[:3], NOISES, 12)
    assert statistics.calls == [7, 12, 5]
    for image in range(3):
        assert distance(mixed[image], full[image]) < 1.1 * distance(cached[image], full[image])
    assert torch.equal(full_images(pipe, PROMPTS[:3], NOISES, 12), cached)


@pytest.mark.parametrize("enabled_first", [True, False], ids=["enable, DeepCache", "DeepCache, enable"])
def test_deep_cache_saves_blocks_and_redi_calls(ground: Ground, enabled_first: bool) -> None:
    pipe = ground.pipe()
    full = full_images(pipe, PROMPTS[:2], NOISES[:2], 12)
    rows, deep = count(pipe.unet.conv_in), count_deep(pipe)
    if enabled_first:
        enable(pipe, ground.base())
    deep_cache(pipe)
    if not enabled_first:
        enable(pipe, ground.base())
    jumped = call(pipe, list(PROMPTS[:2]), latents=NOISES[:2])
    assert (len(rows), len(deep)) == (7, 3)
    assert redi.reports(pipe)[0].calls == 7
    redi.disable(pipe)
    assert distance(jumped, full) < distance(full_images(pipe, PROMPTS[:2], NOISES[:2], 12), full)


def compiled_in_place(pipe: Any) -> None:
    pipe.unet.compile(backend="eager")


def compiled_wrapper(pipe: Any) -> None:
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def deep_cache_that_skips_nothing(pipe: Any) -> None:
    deep_cache(pipe, interval=1)


@pytest.mark.parametrize("change", [compiled_in_place, compiled_wrapper, deep_cache_that_skips_nothing])
def test_a_style_reaches_a_network_that_hides_the_names_of_its_arguments(
    ground: Ground, change: Callable[[Any], None]
) -> None:
    """Its timestep is positional, and must stay the run's own."""

    def styled(pipe: Any) -> Tensor:
        style = capture(pipe, prompt=[NEW], num_inference_steps=12, guidance_scale=5.0, output_type="latent")
        with run(pipe, Watcher(4), tail_conditioning=style):
            return full_images(pipe, [PROMPTS[0]], NOISES[:1], 12)

    pipe = ground.pipe()
    wanted = styled(pipe)
    change(pipe)
    torch.testing.assert_close(styled(pipe), wanted)


def test_deep_cache_forgets_the_prompt_when_a_style_takes_its_place(ground: Ground) -> None:
    pipe = ground.pipe()
    deep = count_deep(pipe)
    deep_cache(pipe)
    style = capture(pipe, prompt=[NEW], num_inference_steps=12, guidance_scale=5.0, output_type="latent")
    with run(pipe, Watcher(4), tail_conditioning=style):
        full_images(pipe, [PROMPTS[0]], NOISES[:1], 12)
    assert len(deep) == 5, "calls 0 and 3, and 4, 7 and 10 with the style"


def test_deep_cache_finds_everything_as_it_left_it(ground: Ground) -> None:
    pipe = ground.pipe()
    plain = full_images(pipe, [NEW], NOISES[:1], 12)
    helper = deep_cache(pipe)
    cached = full_images(pipe, [NEW], NOISES[:1], 12)
    forwards = {name: vars(module).get("forward") for name, module in pipe.unet.named_modules()}
    redi.enable(pipe, ground.base(), max_distance=0)
    assert torch.equal(call(pipe, NEW, latents=NOISES[:1]), cached)
    redi.enable(pipe, ground.base(), max_distance=1e9)
    call(pipe, NEW, latents=NOISES[:1])
    redi.disable(pipe)
    assert {name: vars(module).get("forward") for name, module in pipe.unet.named_modules()} == forwards
    assert torch.equal(full_images(pipe, [NEW], NOISES[:1], 12), cached)
    helper.disable()
    assert torch.equal(full_images(pipe, [NEW], NOISES[:1], 12), plain)


# Diffusers' own caches, on a tiny Flux

EMBEDS = noise(5, 6, 7, shape=(6, 16))
POOLED = noise(8, 9, 10, shape=(16,))
X_T = noise(1, 2, 3, shape=(16, 16))
CACHES: dict[str, Callable[[Any], Any]] = {
    "first block": lambda pipe: FirstBlockCacheConfig(threshold=1e9),  # reuses whatever it can
    "pyramid": lambda pipe: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=3,
        spatial_attention_timestep_skip_range=(-1, 1001),
        spatial_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: 500,
    ),
    "taylor": lambda pipe: TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=2, max_order=1),
}
SKIPPED = {"first block": 1.6e-2, "pyramid": 2e-3, "taylor": 8e-4}
"""What each cache loses in a full run (measured, the worst image): after a jump it must not lose more."""


def tiny_flux() -> FluxPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
        )
        vae = AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4, shift_factor=0.1)
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe = FluxPipeline(scheduler=scheduler, vae=vae.eval(), transformer=transformer.eval(), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux_images(pipe: Any) -> Tensor:
    size = {"height": 8, "width": 8, "num_inference_steps": 12}
    return pipe(
        prompt_embeds=EMBEDS,
        pooled_prompt_embeds=POOLED,
        latents=X_T.clone(),
        output_type="latent",
        return_dict=False,
        **size,
    )[0]


@pytest.fixture(scope="module")
def flux_full() -> tuple[Tensor, Watcher]:
    pipe, own = tiny_flux(), Watcher()
    with run(pipe, own):
        return flux_images(pipe), own


def jump(pipe: Any, decisions: list[Jump | None]) -> tuple[Tensor, RunStatistics]:
    with run(pipe, Watcher(3, lambda latents: decisions)) as statistics:
        return flux_images(pipe), statistics


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_starts_afresh_after_the_jump(cache: str, flux_full: tuple[Tensor, Watcher]) -> None:
    full, own = flux_full
    pipe = tiny_flux()
    attention = count(pipe.transformer.transformer_blocks[1].attn.to_q)
    pipe.transformer.enable_cache(CACHES[cache](pipe))
    plain = flux_images(pipe)
    with run(pipe, Watcher(3)):
        assert torch.equal(flux_images(pipe), plain), "abstaining is bit-identical"
    attention.clear()
    jumped, statistics = jump(pipe, [Jump(8, row) for row in own.seen[8]])
    assert statistics.calls == [7, 7, 7]
    assert len(attention) == {"first block": 2, "pyramid": 3, "taylor": 5}[cache], "the first and those after the jump"
    assert distance(jumped, full) < distance(plain, full) / 2
    assert torch.equal(flux_images(pipe), plain)


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_forgets_when_the_images_of_a_batch_part(cache: str, flux_full: tuple[Tensor, Watcher]) -> None:
    full, own = flux_full
    pipe = tiny_flux()
    pipe.transformer.enable_cache(CACHES[cache](pipe))
    plain = flux_images(pipe)
    mixed, statistics = jump(pipe, [Jump(8, own.seen[8][0]), None, Jump(10, own.seen[10][2])])
    assert statistics.calls == [7, 12, 5]
    for image in range(3):
        assert distance(mixed[image], full[image]) < 1.1 * distance(plain[image], full[image])
    assert torch.equal(flux_images(pipe), plain)


def test_a_cache_that_counts_its_own_calls_is_refused_by_name() -> None:
    pipe = tiny_flux()
    pipe.transformer.enable_cache(MagCacheConfig(num_inference_steps=12, mag_ratios=[1.0] * 12))
    with pytest.raises(UnsupportedError, match=r"enable_cache\(MagCacheConfig\)"), run(pipe, Watcher(3)):
        flux_images(pipe)
    pipe.transformer.disable_cache()
    with run(pipe, Watcher(3)):
        flux_images(pipe)
