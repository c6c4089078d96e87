"""Owns the measurement of what an enabled but abstaining engine costs, against a network of Stable Diffusion's size.

Run from the repository: ``python benchmarks/overhead.py [--out bench]``. The cost of redi is measured in seconds where
it can be told from noise, on the bundled model and on the tests' tiny instances of the real pipelines: plain and
enabled calls of the pipeline take turns, and the median of the paired differences counts. Looking whether a network's
weights have changed, once a pipeline call, takes longer the more tensors it has, so the time of looking at the big
network is added. The sum, over the calls of the network in a run, is set against one call of the U-Net of Stable
Diffusion 1.5 (its configuration, random weights, one image of 64 x 64 latents without guidance, so the cheapest call
that it makes).

- ``overhead.<pipeline>.<sampler>``: in percent of such a call, one call a step (no guidance), the strictest case.

The same is measured directly, in the JSON only, because it drowns in noise: plain and enabled runs of a
StableDiffusionPipeline with that U-Net on small latents.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from figures import Figure, tell
from transformers import CLIPTextConfig, CLIPTextModel

import redi
from redi.pipelines import MINIATURE, load_pipeline
from redi.weights_hash import hash_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_pipelines import TEXT_TO_ANYTHING

PLANS = {"pndm": redi.Plan(20, key_step=5, value_steps=(15,)), "dpm": redi.Plan(20, key_step=5, value_steps=(15,))}
KNOWN, NEW = ("a cat", "a red dog", "two boats", "a big tree"), "an old house"
DIRECT = redi.Plan(4, key_step=1, value_steps=(2,))


def paired(repeats: int, plain: Callable[[], Any], enabled: Callable[[], Any]) -> tuple[list[float], list[float]]:
    """Return the seconds of both, taking turns, after a warm-up of each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    plain(), enabled()
    for repeat in range(repeats):
        for which in (0, 1) if repeat % 2 else (1, 0):
            started = time.perf_counter()
            (plain, enabled)[which]()
            seconds[which].append(time.perf_counter() - started)
    return seconds


def abstaining_cost(pipe: Any, plan: redi.Plan, folder: Path, repeats: int, **call: Any) -> dict[str, Any]:
    """Measure plain and enabled calls of a pipeline from the same noise; every sample abstains by its distance."""
    pipe.set_progress_bar_config(disable=True)
    base = redi.build(pipe, KNOWN, folder, plan=plan, noises=1, batch_size=4, progress=False, **call)
    latents = base.noise_bank.latents[:1]
    steps = plan.num_inference_steps

    def plain() -> Any:
        kwargs = {**call, "num_inference_steps": steps, "output_type": "latent"}
        return pipe(NEW, latents=latents.clone(), **kwargs)[0]

    def enabled() -> Any:
        with redi.enable(pipe, base, max_distance=0.0):
            before = time.perf_counter()
            samples = pipe(NEW, latents=latents.clone(), output_type="latent")[0]
            inside.append(time.perf_counter() - before)
            reports.extend(redi.reports(pipe))
        return samples

    inside: list[float] = []
    reports: list[redi.Report] = []
    same = torch.equal(plain(), enabled())
    inside.clear()
    before, _ = paired(repeats, plain, enabled)
    after = inside[1:]  # without the warm-up; enabling is once, not once a call
    if not same or any(report.jumped for report in reports):
        raise SystemExit("an abstaining run is not the plain one")
    return {
        "calls": reports[0].calls,
        "seconds_plain": before,
        "seconds_enabled": after,
        "seconds": statistics.median(late - early for early, late in zip(before, after, strict=True)),
    }


def big_network() -> UNet2DConditionModel:
    """Return Stable Diffusion 1.5's U-Net with random weights."""
    return UNet2DConditionModel(
        sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8
    ).eval()


def big_pipeline(network: UNet2DConditionModel) -> StableDiffusionPipeline:
    """Return a pipeline around it whose other parts are small."""
    small = load_pipeline(MINIATURE, scheduler="dpm")
    text = CLIPTextConfig(
        vocab_size=len(small.tokenizer), hidden_size=768, intermediate_size=64, num_hidden_layers=1,
        max_position_embeddings=small.tokenizer.model_max_length, bos_token_id=small.tokenizer.bos_token_id,
        eos_token_id=small.tokenizer.eos_token_id, pad_token_id=small.tokenizer.pad_token_id,
    )  # fmt: skip
    eight = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (4, 4, 4, 4),
        "norm_num_groups": 2,
    }
    return StableDiffusionPipeline(
        vae=AutoencoderKL(latent_channels=4, sample_size=512, **eight).eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=small.tokenizer,
        unet=network,
        scheduler=small.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def seconds_of(work: Callable[[], Any], repeats: int) -> list[float]:
    """Return the seconds of each repeat, after a warm-up."""
    found = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return found[1:]


def main() -> int:
    """Measure, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    details: dict[str, Any] = {"pipelines": {}}
    with tempfile.TemporaryDirectory() as folder:
        for sampler, plan in PLANS.items():
            pipe = load_pipeline(MINIATURE, scheduler=sampler)
            found = abstaining_cost(pipe, plan, Path(folder) / sampler, options.repeats, guidance_scale=1.0)
            details["pipelines"][f"{type(pipe).__name__}.{sampler}"] = found
            print(f"{sampler}: {1000 * found['seconds']:.1f} ms a run", file=sys.stderr)
        for name, tiny in TEXT_TO_ANYTHING.items():
            pipe, place = tiny.build(), name.replace(", ", "-").replace(" ", "-")
            call_arguments = {**tiny.call, **tiny.unguided}
            found = abstaining_cost(pipe, PLANS["dpm"], Path(folder) / place, options.repeats, **call_arguments)
            details["pipelines"][f"{place}.{type(pipe.scheduler).__name__}"] = found
            print(f"{name}: {1000 * found['seconds']:.1f} ms a run", file=sys.stderr)
        torch.manual_seed(0)
        network = big_network()
        state = torch.randn(1, 4, 64, 64), torch.tensor(500), torch.randn(1, 77, 768)
        with torch.no_grad():
            call = min(seconds_of(lambda: network(*state), 2))
        looking = min(seconds_of(lambda: hash_weights(network), 3))
        print(f"Stable Diffusion 1.5's U-Net: {call:.2f} s a call, {1000 * looking:.1f} ms to look at", file=sys.stderr)
        pipe = big_pipeline(network)
        details["direct"] = abstaining_cost(
            pipe, DIRECT, Path(folder) / "direct", 4, guidance_scale=1.0, height=128, width=128
        )
        print(
            f"directly, on 16 x 16 latents: {statistics.median(details['direct']['seconds_plain']):.2f} s plain, "
            f"{1000 * details['direct']['seconds']:.0f} ms more if enabled",
            file=sys.stderr,
        )
        parameters = sum(weight.numel() for weight in network.parameters())
    details |= {"parameters": parameters, "seconds_of_a_call": call, "seconds_of_looking": looking}
    figures = [
        Figure(f"overhead.{name}", 100 * (found["seconds"] + looking) / found["calls"] / call, "<=1")
        for name, found in details["pipelines"].items()
    ]
    return tell(figures, options.out / "overhead.json", details)


if __name__ == "__main__":
    sys.exit(main())
