"""Owns the measurement of what growing costs an image and how soon it is found; must not know how entries are stored.

Run from the repository: ``python benchmarks/growth.py [--out bench]``. Two pipelines with the bundled model make the
same new prompts in turns, every image running in full: one as it is enabled, one that adds what it makes to its base.

- ``growing.cost``: median over the turns of time with growth over time without it.
- ``growing.delay``: seconds beyond the delay that was asked for until another reader of the base finds an image.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figures import Figure, tell

import redi
from redi.knowledge_base import KnowledgeBase
from redi.miniature.scenes import captions
from redi.pipelines import MINIATURE, default_guidance, load_pipeline

PLAN = redi.Plan(20, key_step=5, value_steps=(10, 15))
NOISES, BATCH, ENTRIES, DELAY = 4, 8, 64, 1.0


def made_in_full(grow: bool | redi.Growth, folder: Path) -> tuple[Any, Any]:
    """Return a pipeline that is enabled and whose images all abstain, and its handle."""
    pipe = load_pipeline(MINIATURE, scheduler="dpm")
    pipe.set_progress_bar_config(disable=True)
    call = {"guidance_scale": default_guidance(MINIATURE)}
    known = list(captions(ENTRIES, seed=1, held_out=False))
    base = redi.build(pipe, known, folder, plan=PLAN, noises=NOISES, batch_size=16, model_id=MINIATURE, **call)
    return pipe, redi.enable(pipe, base, max_distance=0.0, grow=grow)


def seconds_of(pipe: Any, base: KnowledgeBase, prompts: list[str]) -> float:
    """Return how long one call of the pipeline takes, from the bank's noises in turn."""
    latents = base.noise_bank.latents[[place % NOISES for place in range(len(prompts))]]
    started = time.perf_counter()
    pipe(
        prompts,
        latents=latents,
        num_inference_steps=PLAN.num_inference_steps,
        guidance_scale=default_guidance(MINIATURE),
    )
    return time.perf_counter() - started


def cost(folder: Path, repeats: int) -> tuple[Figure, dict[str, Any]]:
    """Compare enabled pipelines with and without growth, in turns."""
    sides = [made_in_full(False, folder / "plain"), made_in_full(redi.Growth(delay=DELAY), folder / "growing")]
    new = _batches(captions((repeats + 1) * BATCH, seed=2, held_out=True))
    seconds: list[list[float]] = [[], []]
    for repeat, prompts in enumerate(new):
        for which in (0, 1) if repeat % 2 else (1, 0):
            pipe, enabled = sides[which]
            seconds[which].append(seconds_of(pipe, enabled.base, prompts))
    grower = sides[1][1].grower
    grower.flush()
    added = grower.added
    for pipe, _ in sides:
        redi.disable(pipe)
    ratios = [grown / plain for plain, grown in list(zip(*seconds, strict=True))[1:]]  # the first turn warms up
    found = KnowledgeBase.open(folder / "growing")
    if added < repeats * BATCH * 0.9 or len(found) != ENTRIES + added:
        raise SystemExit(f"{added} images added, {len(found)} entries: growth did not run")
    return Figure("growing.cost", statistics.median(ratios), "<=1.01"), {"ratios": ratios, "added": added}


def delay(folder: Path, repeats: int) -> tuple[Figure, dict[str, Any]]:
    """Wait for an image, as a reader that looks at the base again and again."""
    pipe, enabled = made_in_full(redi.Growth(delay=DELAY), folder)
    found = []
    for prompts in _batches(captions(repeats * BATCH, seed=3, held_out=True)):
        reader = KnowledgeBase.open(folder)
        seconds_of(pipe, enabled.base, prompts)
        made = time.perf_counter()
        before = len(reader)
        while len(reader := reader.current()) == before:
            if time.perf_counter() - made > 60:
                raise SystemExit("an image was not found within a minute")
            time.sleep(0.005)
        found.append(time.perf_counter() - made - DELAY)
    redi.disable(pipe)
    return Figure("growing.delay", max(found), "<=1"), {"seconds_beyond": found}


def _batches(prompts: Any) -> Iterator[list[str]]:
    told = list(prompts)
    return (told[start : start + BATCH] for start in range(0, len(told), BATCH))


def main() -> int:
    """Measure, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        costs, of_cost = cost(Path(folder), options.repeats)
        delays, of_delay = delay(Path(folder) / "delay", 5)
    return tell([costs, delays], options.out / "growth.json", {"cost": of_cost, "delay": of_delay})


if __name__ == "__main__":
    sys.exit(main())
