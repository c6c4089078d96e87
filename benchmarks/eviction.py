"""Owns comparing rules of eviction on one stream of requests, replayed; must not know how they are written down.

Run from the repository: ``python benchmarks/eviction.py [--out bench]``. Every request asks for a scene, popular ones
far more often than others (Zipf), in one of several wordings, and what is popular drifts. The trajectories of all
wordings are recorded once with the bundled model; the replay runs no network. A request whose nearest key is near
enough is a hit and jumps; any other runs in full and is added. Per rule:

- ``<rule>.hit_rate``: share of requests that jump; ``<rule>.calls_saved``: share of the calls of all requests.
- ``<rule>.error``: mean distance of a hit's x_v to that of the request's own run, over that of the mean of all values
  (1: no better than knowing nothing).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from figures import Figure, tell
from tqdm import tqdm

import redi
from redi.knowledge_base import EntryBatch, KnowledgeBase
from redi.knowledge_base.growth import Growth, add_grown
from redi.miniature.scenes import caption, descriptions
from redi.pipelines import MINIATURE, default_guidance, load_pipeline
from redi.retrieval import DEFAULT_WEIGHTS, combiner

PLAN = redi.Plan(10, key_step=3, value_steps=(7,))
RULES = ("none", "fifo", "lru", "nirvana", "aged")
_SEED, _ZIPF, _DRIFTS, _GROUP, _QUANTILE = 5, 1.1, 4, 16, 0.75
_SECONDS = 60.0
"""Between two requests, on the clock that eviction sees."""


def recorded(out: Path, scenes: int, wordings: int) -> tuple[KnowledgeBase, list[list[int]]]:
    """Return a base of every wording from one noise, and its rows by scene."""
    rng, texts = np.random.default_rng(_SEED), dict[str, int]()
    for scene, description in zip(range(scenes), descriptions(_SEED, held_out=False), strict=False):
        for _ in range(wordings):
            texts.setdefault(caption(description, rng), scene)
    pipe = load_pipeline(MINIATURE, scheduler="dpm")
    call = {"guidance_scale": default_guidance(MINIATURE)}
    base = redi.build(
        pipe, list(texts), out / "eviction-base", plan=PLAN, noises=1, batch_size=32, model_id=MINIATURE, **call
    )
    rows: list[list[int]] = [[] for _ in range(scenes)]
    for row, prompt in enumerate(base.prompts(range(len(base)))):
        rows[texts[prompt]].append(row)
    return base, rows


def stream(rows: list[list[int]], requests: int) -> list[int]:
    """Return the row that each request asks for."""
    rng = np.random.default_rng(_SEED)
    weight = 1 / np.arange(1, len(rows) + 1) ** _ZIPF
    asked = []
    for part in np.array_split(np.arange(requests), _DRIFTS):
        order = rng.permutation(len(rows))
        asked += [
            int(rng.choice(rows[order[each]])) for each in rng.choice(len(rows), len(part), p=weight / weight.sum())
        ]
    return asked


def replay(library: KnowledgeBase, asked: list[int], rule: str, capacity: int, limit: float) -> dict[str, float]:
    """Return hit rate, calls saved and error of one rule."""
    everything = range(len(library))
    keys, values = library.keys(everything, PLAN.key_step), library.values(everything, PLAN.value_steps[0])
    prompts, saved = library.prompts(everything), PLAN.value_steps[0] - PLAN.key_step
    unit = float((values - values.mean(0)).flatten(1).norm(dim=1).mean())
    weights, growth = combiner(DEFAULT_WEIGHTS), Growth(capacity=capacity, eviction=rule, half_life=200 * _SECONDS)
    hits, errors = 0, []
    with tempfile.TemporaryDirectory() as folder:
        base = KnowledgeBase.create(Path(folder) / "kb", library.manifest, library.noise_bank, library.references)
        for start in tqdm(range(0, len(asked), _GROUP), desc=rule, unit="group"):
            used: dict[tuple[int, int], tuple[int, float]] = {}
            missed: list[int] = []
            for row in asked[start : start + _GROUP]:
                found = (
                    base.search(keys[row : row + 1], [0], weights.default_neighbors, PLAN.key_step)
                    if len(base)
                    else None
                )
                if found is None or float(found.distances[0, 0]) > limit:
                    missed.append(row)
                    continue
                near = found.rows[0][found.rows[0] >= 0]
                pairs = base.pairs(near, PLAN.key_step, PLAN.value_steps[0])
                estimate = weights.combine(keys[row], *pairs).values
                errors.append(float((estimate - values[row]).norm()) / unit)
                nearest = base.entries([int(near[0])])[0]
                count, calls = used.get((nearest.unit, nearest.slot), (0, 0.0))
                used[nearest.unit, nearest.slot] = count + 1, calls + saved
                hits += 1
            missed = list(dict.fromkeys(missed))
            batch = EntryBatch(
                [prompts[row] for row in missed],
                [0] * len(missed),
                [library.manifest.noise["seeds"][0]] * len(missed),
                {PLAN.key_step: keys[missed]},
                {PLAN.value_steps[0]: values[missed]},
            )
            add_grown(base, batch if missed else None, growth, used, saved, now=_SECONDS * (start + _GROUP))
            base = KnowledgeBase.open(base.path)
    share = hits / len(asked)
    calls_saved = share * saved / PLAN.num_inference_steps
    return {"hit_rate": share, "calls_saved": calls_saved, "error": float(np.mean(errors)) if errors else float("nan")}


def main() -> int:
    """Measure, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--wordings", type=int, default=3)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--capacity", type=int, default=100)
    options = parser.parse_args()
    library, rows = recorded(options.out, options.scenes, options.wordings)
    asked = stream(rows, options.requests)
    limit = float(torch.quantile(library.leave_one_out(PLAN.key_step), _QUANTILE))
    told = {rule: replay(library, asked, rule, options.capacity, limit) for rule in RULES}
    figures = [Figure(f"{rule}.{name}", value, ">=0") for rule, found in told.items() for name, value in found.items()]
    best = max(found["calls_saved"] for found in told.values())
    figures.append(Figure("aged.calls_saved_of_best", told["aged"]["calls_saved"] / best, ">=0.97"))
    details = {**vars(options), "out": str(options.out), "limit": limit, "rules": told}
    return tell(figures, options.out / "eviction.json", details)


if __name__ == "__main__":
    sys.exit(main())
