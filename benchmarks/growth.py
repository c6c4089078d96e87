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

from bench import NOISES, build, in_turns, plain
from figures import Figure, tell

import redi
from redi.knowledge_base import KnowledgeBase
from redi.miniature.scenes import captions
from redi.pipelines import MINIATURE, load_pipeline

PLAN = redi.Plan(20, key_step=5, value_steps=(10, 15))
PICTURES, ENTRIES, DELAY = 8, 64, 1.0


def made_in_full(grow: bool | redi.Growth, folder: Path) -> tuple[Any, Any]:
    """Return a pipeline that is enabled and whose images all abstain, and its handle."""
    pipe = load_pipeline(MINIATURE, scheduler="dpm")
    pipe.set_progress_bar_config(disable=True)
    base = build(pipe, MINIATURE, list(captions(ENTRIES, seed=1, held_out=False)), folder, PLAN)
    return pipe, redi.enable(pipe, base, max_distance=0.0, grow=grow)


def made(side: tuple[Any, Any], prompts: list[str]) -> None:
    """Make one call of a pipeline, from the bank's noises in turn."""
    pipe, enabled = side
    plain(pipe, enabled.base, prompts, [place % NOISES for place in range(len(prompts))])


def cost(folder: Path, repeats: int) -> tuple[Figure, dict[str, Any]]:
    """Compare enabled pipelines with and without growth, in turns."""
    sides = [made_in_full(False, folder / "plain"), made_in_full(redi.Growth(delay=DELAY), folder / "growing")]
    new = [_batches(captions((repeats + 1) * PICTURES, seed=2, held_out=True)) for _ in sides]
    runs = in_turns(repeats, lambda: made(sides[0], next(new[0])), lambda: made(sides[1], next(new[1])))
    grower = sides[1][1].grower
    grower.flush()
    added = grower.added
    for pipe, _ in sides:
        redi.disable(pipe)
    ratios = [after / before for before, after, _ in runs]
    found = KnowledgeBase.open(folder / "growing")
    if added < repeats * PICTURES * 0.9 or len(found) != ENTRIES + added:
        raise SystemExit(f"{added} images added, {len(found)} entries: growth did not run")
    return Figure("growing.cost", statistics.median(ratios), "<=1.01"), {"ratios": ratios, "added": added}


def delay(folder: Path, repeats: int) -> tuple[Figure, dict[str, Any]]:
    """Wait for an image, as a reader that looks at the base again and again."""
    side = made_in_full(redi.Growth(delay=DELAY), folder)
    found = []
    for prompts in _batches(captions(repeats * PICTURES, seed=3, held_out=True)):
        reader = KnowledgeBase.open(folder)
        made(side, prompts)
        done = time.perf_counter()
        before = len(reader)
        while len(reader := reader.current()) == before:
            if time.perf_counter() - done > 60:
                raise SystemExit("an image was not found within a minute")
            time.sleep(0.005)
        found.append(time.perf_counter() - done - DELAY)
    redi.disable(side[0])
    return Figure("growing.delay", max(found), "<=1"), {"seconds_beyond": found}


def _batches(prompts: Any) -> Iterator[list[str]]:
    told = list(prompts)
    return (told[start : start + PICTURES] for start in range(0, len(told), PICTURES))


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
