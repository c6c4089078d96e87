"""Owns the measurement of how busy a build on a cluster keeps its worker; must not know how units are handed out.

Run from the repository: ``python benchmarks/cluster_rate.py [--out bench]``. One worker of a Ray cluster here
records with the bundled model, this process commits; the same prompts run through the plain pipeline here, to the same
step, on as many threads. What starting takes is left out: builds of two sizes are timed, and their difference counts.

- ``build.cluster_rate``: entries a second of the worker over those of plain generation, best of the turns.
- ``build.stopping_saves``: calls that stopping at the last value step saves, over those after it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from bench import BATCH, build, seconds_of
from figures import Figure, tell

import redi
from redi.building.cluster import Cluster
from redi.miniature.scenes import captions
from redi.pipelines import MINIATURE, default_guidance, load_pipeline

PLAN = redi.Plan(20, key_step=5, value_steps=(10,))
UNIT = 2 * BATCH


def built(pipe: Any, folder: Path, prompts: list[str], **more: Any) -> float:
    """Return the seconds that a build takes."""
    return seconds_of(lambda: build(pipe, MINIATURE, prompts, folder, PLAN, unit_size=UNIT, progress=False, **more))[0]


def generated(pipe: Any, prompts: list[str]) -> float:
    """Return the seconds that plain generation takes up to the last value step."""

    def stop(pipe: Any, step: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step + 1 >= PLAN.value_steps[-1]
        return kept

    def run() -> None:
        for start in range(0, len(prompts), BATCH):
            pipe(
                prompts[start : start + BATCH],
                num_inference_steps=PLAN.num_inference_steps,
                guidance_scale=default_guidance(MINIATURE),
                output_type="latent",
                callback_on_step_end=stop,
            )

    return seconds_of(run)[0]


def stopping(pipe: Any, folder: Path) -> Figure:
    """Count calls of a build that stops at the last value step, and of one that does not."""
    counted: list[int] = []
    hook = pipe.unet.register_forward_pre_hook(lambda *_: counted.append(1))
    calls = []
    for stop in (True, False):
        counted.clear()
        prompts = list(captions(UNIT, seed=4, held_out=False))
        built(pipe, folder / f"stop-{stop}", prompts, stop_at_value=stop)
        calls.append(len(counted))
    hook.remove()
    after = (PLAN.num_inference_steps - PLAN.value_steps[-1]) * UNIT // BATCH
    return Figure("build.stopping_saves", (calls[1] - calls[0]) / after, ">=1")


def main() -> int:
    """Measure, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--entries", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    import ray
    import torch

    torch.set_num_threads(1)
    load = partial(load_pipeline, MINIATURE, scheduler="dpm")
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    prompts = list(captions(UNIT + options.entries, seed=3, held_out=False))
    turns: list[tuple[float, float]] = []
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        for turn in range(options.repeats):
            cluster = Cluster(load, workers=1)
            few = built(pipe, Path(folder) / f"few-{turn}", prompts[:UNIT], cluster=cluster)
            many = built(pipe, Path(folder) / f"many-{turn}", prompts, cluster=cluster)
            turns.append((generated(pipe, prompts[UNIT:]), many - few))
            print(f"  plain {turns[-1][0]:.1f} s, on the cluster {turns[-1][1]:.1f} s", file=sys.stderr)
        saved = stopping(pipe, Path(folder))
    ray.shutdown()
    rate = min(plain for plain, _ in turns) / min(recorded for _, recorded in turns)
    figures = [Figure("build.cluster_rate", rate, ">=0.95"), saved]
    return tell(figures, options.out / "cluster_rate.json", {"seconds": turns})


if __name__ == "__main__":
    sys.exit(main())
