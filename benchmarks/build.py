"""Owns killing workers and drivers of a build on a cluster and checking what is left; must not know how it is stored.

Run from the repository: ``python benchmarks/build.py [--kills 20] [--out bench]``. A Ray cluster of two nodes runs on
this machine, real processes are killed with SIGKILL at random moments, and what they left is compared, entry for entry,
with a build of one process that nobody disturbed. Prints ``name value bar ok|MISS`` lines, writes the same as JSON, and
exits 1 if a bar is missed. What a build costs beside plain generation is a figure of ``make bench``.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from figures import Figure, tell

from ray_build import ADDRESS, differing, load, ray_cluster, workers_of
from redi.building.cluster import Cluster
from redi.knowledge_base import KnowledgeBase
from tiny import tiny_pipeline
from tiny_build import build_tiny, many_prompts

_DRIVER = str(Path(__file__).parents[1] / "tests" / "ray_build.py")


def disturbed(folder: Path, cluster: Any, kills: int, prompts: int, seed: int) -> tuple[KnowledgeBase, dict[str, int]]:
    """Build while workers and drivers are killed; return the base and how many of each were."""
    moments, done = random.Random(seed), {"workers": 0, "drivers": 0}
    path = folder / "kb"
    command = [sys.executable, _DRIVER, str(folder), str(path), str(prompts)]
    driver = subprocess.Popen(command, env={**os.environ, ADDRESS: cluster.address})
    held = 0
    while sum(done.values()) < kills:
        while held == (held := _held(path)) or not held:  # it works again
            time.sleep(0.2)
            if driver.poll() is not None:
                raise RuntimeError("the build finished before every kill was done: more --prompts")
        time.sleep(moments.uniform(0, 2))
        workers = workers_of(cluster)
        if workers and moments.random() < 0.7:
            os.kill(moments.choice(workers), signal.SIGKILL)
            done["workers"] += 1
        elif workers:
            driver.kill()
            driver.wait()
            done["drivers"] += 1
            driver = subprocess.Popen(command, env={**os.environ, ADDRESS: cluster.address})
        print(f"killed {done['workers']} workers, {done['drivers']} drivers: {held} of {prompts}", file=sys.stderr)
    driver.kill()
    driver.wait()
    finish = Cluster(partial(load, str(folder / "model")), address=cluster.address)
    return build_tiny(tiny_pipeline(folder / "own"), path, many_prompts(prompts), cluster=finish), done


def _held(path: Path) -> int:
    return len(KnowledgeBase.open(path)) if (path / "manifest.json").exists() else 0


def main() -> int:
    """Run, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--out", type=Path, default=Path("bench"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, ray_cluster() as cluster:
        folder = Path(temporary)
        undisturbed = build_tiny(tiny_pipeline(folder / "own"), folder / "undisturbed", many_prompts(options.prompts))
        kb, done = disturbed(folder, cluster, options.kills, options.prompts, options.seed)
        report = kb.verify()
        found = [
            Figure("kills", sum(done.values()), f">={options.kills}"),
            Figure("entries", len(kb), f"={options.prompts}"),
            Figure("entries_lost_doubled_or_other", differing(kb, undisturbed), "=0"),
            Figure("entries_torn", len(report.damaged), "=0"),
            Figure("entries_refused", len(kb.refused()), "=0"),
        ]
    return tell(found, options.out / "build.json", {"seed": options.seed, **done})


if __name__ == "__main__":
    sys.exit(main())
