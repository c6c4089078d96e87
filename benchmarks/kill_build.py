"""Owns killing a build twenty times at random moments and checking what is left; must not know how entries are stored.

Run from the repository: ``python benchmarks/kill_build.py [--kills 20] [--json FILE]``. Real processes are killed with
SIGKILL while they build with the tests' tiny pipeline; one last build finishes. Prints ``name value bar ok|MISS``
lines, writes the same as JSON, and exits 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from figures import Figure, tell

from redi.knowledge_base import KnowledgeBase
from tiny import tiny_pipeline
from tiny_build import build_tiny, kill_build, many_prompts, server, undisturbed_seconds


def kill_and_finish(folder: Path, kills: int, prompts: int, seed: int) -> list[tuple[str, int, str]]:
    """Return the figures, each with its bar: ``=n``, ``>=n``."""
    context, moments = server(), random.Random(seed)
    unfinished, lost, held = 0, 0, 0
    longest = 1.2 * undisturbed_seconds(folder, prompts) / kills  # all kills together: less than one whole build
    for kill in range(kills):
        seconds = moments.uniform(0, longest)
        unfinished += kill_build(context, folder / "model", folder / "kb", prompts, seconds)
        entries = len(KnowledgeBase.open(folder / "kb")) if (folder / "kb" / "manifest.json").exists() else 0
        lost += max(0, held - entries)
        held = entries
        print(f"kill {kill + 1} of {kills} after {seconds:.2f} s: {entries} of {prompts} entries", file=sys.stderr)
    kb = build_tiny(tiny_pipeline(folder / "model"), folder / "kb", many_prompts(prompts))
    again, report = KnowledgeBase.open(folder / "kb"), kb.verify()
    stored = again.prompts(range(len(again)))
    return [
        ("kills_while_building", unfinished, f">={kills}"),
        ("entries_after_finishing", len(again), f"={prompts}"),
        ("entries_lost", lost + len(set(many_prompts(prompts)) - set(stored)), "=0"),
        ("entries_doubled", report.duplicates + len(stored) - len(set(stored)), "=0"),
        ("verify_problems", len(report.damaged), "=0"),
    ]


def main() -> int:
    """Run, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path, default=Path("bench/kill_build.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = kill_and_finish(Path(folder), options.kills, options.prompts, options.seed)
    return tell([Figure(*figure) for figure in figures], options.json, {"seed": options.seed})


if __name__ == "__main__":
    sys.exit(main())
