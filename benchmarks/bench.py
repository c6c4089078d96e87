"""Owns the figures behind ``make bench``: what ReDi saves and what building costs, on the bundled model.

Run from the repository: ``python benchmarks/bench.py [--out bench]``. Everything is counted but opening the model.
Other work on the machine disturbs one run more than another, so the ways that are compared take turns, and each one's
least disturbed (fastest) run counts; all runs are in the JSON.

- ``pndm.speedup_of_calls``: how many times faster ``redi.generate`` is than the plain pipeline, over how many times
  fewer calls it makes (1 is all that can be had); PNDM, 50 steps, key 10, value 40, 64 pictures in batches of 16.
- ``pndm.retrieval_percent``: the part of the ReDi run that is search and weights.
- ``dpm.*``: the same for DPM-Solver++, 20 steps, key 5, value 15.
- ``build.cost_per_call``: seconds per network call of ``redi.build``, everything included, over those of the plain
  pipeline that makes the same calls and keeps nothing.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import Figure, tell

import redi
from redi.compatibility import call_arguments
from redi.generating import generate
from redi.knowledge_base import KnowledgeBase
from redi.miniature.scenes import captions
from redi.pipelines import MINIATURE, default_guidance, load_pipeline, model_name

BATCH = 16
PICTURES = 4 * BATCH
NOISES = 16


@dataclass(frozen=True)
class Setting:
    """One sampler and plan of the paper."""

    scheduler: str
    plan: redi.Plan


SETTINGS = (
    Setting("pndm", redi.Plan(50, key_step=10, value_steps=(40,))),
    Setting("dpm", redi.Plan(20, key_step=5, value_steps=(15,))),
)


def seconds_of(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long some work took, and what it returned."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def in_turns(repeats: int, one: Callable[[], Any], other: Callable[[], Any]) -> list[tuple[float, float, Any]]:
    """Return (seconds of one, seconds of the other, what the other returned) for every repeat, after a warm-up."""
    one(), other()
    found = []
    for repeat in range(repeats):
        if repeat % 2:
            after, result = seconds_of(other)
            before, _ = seconds_of(one)
        else:
            before, _ = seconds_of(one)
            after, result = seconds_of(other)
        found.append((before, after, result))
        print(f"  repeat {repeat + 1} of {repeats}: {before:.2f} s, {after:.2f} s", file=sys.stderr)
    return found


def plain(pipe: Any, base: KnowledgeBase, prompts: Sequence[str], noise_ids: Sequence[int], **more: Any) -> Any:
    """Make one call of the stock pipeline, without redi, from the same noises."""
    latents = base.noise_bank.latents[list(noise_ids)].to(pipe.device, pipe.unet.dtype)
    return pipe(prompt=list(prompts), latents=latents, **call_arguments(base, pipe), **more)


def speed(model: str, setting: Setting, out: Path, entries: int, repeats: int) -> tuple[list[Figure], dict[str, Any]]:
    """Compare ``redi.generate`` with the plain pipeline."""
    name, plan = setting.scheduler, setting.plan
    pipe = load_pipeline(model, scheduler=name)
    pipe.set_progress_bar_config(disable=True)
    base = build(pipe, model, list(captions(entries, seed=1, held_out=False)), out / name, plan)
    prompts = list(captions(PICTURES, seed=2, held_out=True))
    noise_ids = [place % NOISES for place in range(PICTURES)]

    def in_full() -> None:
        for start in range(0, PICTURES, BATCH):
            batch = slice(start, start + BATCH)
            plain(pipe, base, prompts[batch], noise_ids[batch])

    def jump() -> list[redi.Report]:
        made = generate(
            pipe, base, prompts, noise_ids=noise_ids, batch_size=BATCH, max_distance=float("inf"), progress=False
        )
        return [each.report for each in made]

    print(f"{name}: plain pipeline, redi.generate", file=sys.stderr)
    runs = in_turns(repeats, in_full, jump)
    faster = min(before for before, _, _ in runs) / min(after for _, after, _ in runs)
    reports = runs[0][2]
    if not all(report.jumped for report in reports):
        raise SystemExit(f"{name}: a picture abstained: {next(r.reason for r in reports if not r.jumped)}")
    fewer = sum(report.full_calls for report in reports) / sum(report.calls for report in reports)
    shares = [100 * sum(report.retrieval_ms for report in found[::BATCH]) / (1000 * after) for _, after, found in runs]
    details = {
        "plan": plan.to_dict(),
        "entries": len(base),
        "calls": [reports[0].full_calls, reports[0].calls],
        "speedup": faster,
        "seconds_plain": [before for before, _, _ in runs],
        "seconds_redi": [after for _, after, _ in runs],
        "retrieval_percent": shares,
    }
    figures = [
        Figure(f"{name}.speedup_of_calls", faster / fewer, ">=0.95"),
        Figure(f"{name}.retrieval_percent", statistics.median(shares), "<=3"),
    ]
    return figures, details


def build(pipe: Any, model: str, prompts: list[str], path: Path, plan: redi.Plan, **more: Any) -> KnowledgeBase:
    """Build a base as ``redi build`` does."""
    return redi.build(
        pipe,
        prompts,
        path,
        plan=plan,
        noises=NOISES,
        guidance_scale=default_guidance(model),
        batch_size=BATCH,
        model_id=model_name(model),
        **more,
    )


def building_cost(model: str, out: Path, entries: int, repeats: int) -> tuple[list[Figure], dict[str, Any]]:
    """Compare recording with running the same calls; the reference trajectories of the noises count as calls too."""
    setting = SETTINGS[0]
    pipe = load_pipeline(model, scheduler=setting.scheduler)
    pipe.set_progress_bar_config(disable=True)
    prompts = list(captions(entries, seed=3, held_out=False))
    base = KnowledgeBase.open(out / setting.scheduler)
    batches = [prompts[start : start + BATCH] for start in range(0, entries, BATCH)]
    counted: list[int] = []
    hook = pipe.unet.register_forward_pre_hook(lambda *_: counted.append(1))

    def record() -> int:
        folder = Path(tempfile.mkdtemp(dir=out, prefix="cost-"))
        counted.clear()
        build(pipe, model, prompts, folder / "base", setting.plan, stop_at_value=False, progress=False)
        shutil.rmtree(folder)
        return len(counted)

    def run() -> int:
        counted.clear()
        for batch in batches:
            plain(pipe, base, batch, [place % NOISES for place in range(len(batch))], output_type="latent")
        return len(counted)

    print("building: plain pipeline, redi.build", file=sys.stderr)
    plain_calls = run()
    runs = in_turns(repeats, run, record)
    hook.remove()
    per_call = min(before for before, _, _ in runs) / plain_calls
    per_recorded_call = min(after / calls for _, after, calls in runs)
    details = {
        "plan": setting.plan.to_dict(),
        "entries": entries,
        "calls": [plain_calls, runs[0][2]],
        "seconds_plain": [before for before, _, _ in runs],
        "seconds_build": [after for _, after, _ in runs],
    }
    return [Figure("build.cost_per_call", per_recorded_call / per_call, "<=1.05")], details


def main() -> int:
    """Measure, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--model", default=MINIATURE)
    parser.add_argument("--entries", type=int, default=320, help="of the bases that pictures are made with")
    parser.add_argument("--built", type=int, default=96, help="entries built to measure building")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    figures: list[Figure] = []
    details: dict[str, Any] = {"model": options.model}
    try:
        for setting in SETTINGS:
            found, told = speed(options.model, setting, options.out, options.entries, options.repeats)
            figures += found
            details[setting.scheduler] = told
        found, details["build"] = building_cost(options.model, options.out, options.built, max(3, options.repeats // 2))
    except redi.RediError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return tell(figures + found, options.out / "results.json", details)


if __name__ == "__main__":
    sys.exit(main())
