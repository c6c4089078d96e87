"""Owns docs/benchmarks.md: what the benchmarks measured, from their JSON; must not know how anything is measured.

Run from the repository: ``python benchmarks/page.py [--keep bench]`` after benchmarks. What they left in ``bench/`` is
kept in ``results/bench/``, and the page is written from that folder alone, so that it can be written again anywhere; so
are the numbers of docs/operations.md (:mod:`expectations`).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import expectations

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "results" / "bench"
SECTIONS = {
    "growth": ("make bench-growth", "What growing costs an image that runs in full, and how soon the image is found"),
    "eviction": ("make bench-eviction", "What a full base lets go, on a replayed stream of requests"),
    "soak": ("make soak", "One base grown, read and compacted while processes are killed"),
    "build": ("make bench-build", "A build on a cluster whose workers and drivers are killed"),
    "cluster_rate": ("make bench-build", "How busy a build on a cluster keeps its worker"),
    "search": ("make bench-search", "Search in large bases, against an exact scan"),
    "operations": ("make bench-operations", "Bytes and milliseconds of what an operator does"),
    "fuzz": ("make bench-fuzz", "A reader that is fed damaged files"),
    "device": ("make bench-device", "Retrieval on a GPU, against copying and a network call"),
}
"""By the name of a benchmark's file, the command and what it measures."""


def page(folder: Path) -> str:
    """Return the page of the results in a folder."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench-page` from `results/bench/`; no number here is typed. Each benchmark says in its first",
        "lines what its figures mean. *Bar* is what a figure has to reach; `>=0` where it is only told.",
        "",
    ]
    missing = []
    for name, (command, what) in SECTIONS.items():
        if (folder / f"{name}.json").exists():
            lines += _section(json.loads((folder / f"{name}.json").read_text()), command, what, name)
        else:
            missing.append(f"- {what}: `{command}`.")
    return "\n".join([*lines, *(["## Not measured yet", "", *missing, ""] if missing else [])])


def _section(result: dict[str, Any], command: str, what: str, name: str) -> list[str]:
    machine = result["machine"]
    where = machine["gpu"] or f"{machine['cores']} cores ({machine['processor']}), {machine['threads']} threads"
    return [
        f"## {what}",
        "",
        f"`{command}` ([benchmarks/{name}.py](../benchmarks/{name}.py)), on {where}.",
        "",
        "| figure | value | bar | |",
        "| --- | ---: | ---: | --- |",
        *(
            f"| `{each['name']}` | {_number(each['value'])} | {each['bar']} | {'ok' if each['ok'] else '**MISS**'} |"
            for each in result["figures"]
        ),
        "",
    ]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def main() -> int:
    """Keep new results and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--keep", type=Path, default=Path("bench"), help="folder of new results")
    options = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in SECTIONS:
        if (options.keep / f"{name}.json").exists():
            shutil.copyfile(options.keep / f"{name}.json", KEPT / f"{name}.json")
    (ROOT / "docs" / "benchmarks.md").write_text(page(KEPT))
    expectations.main()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
