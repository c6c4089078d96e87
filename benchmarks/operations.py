"""Owns what docs/operations.md says of bytes and milliseconds, measured; must not know what a base is used for.

Run from the repository: ``python benchmarks/operations.py [--entries 10000] [--size 16384] [--many 1000000]``. It
builds a base of made-up latents of Stable Diffusion 1.5's size (one key and three value steps; 1.3 GB, and twice that
for copies), asks it for everything that an operator does, and does the same for a base of many very small entries.
Prints ``name value bar ok|MISS`` lines, writes the same as JSON, and exits 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import Figure, tell

from redi.knowledge_base import EntryBatch, KnowledgeBase, Manifest, NoiseBank, compare_files, write_hashes
from redi.plan import Plan

PLAN = Plan(50, 10, (20, 30, 40))
NOISES = 16


def made_up(folder: Path, entries: int, size: int, unit: int) -> tuple[KnowledgeBase, float]:
    """Return a base of Gaussian latents that share most of what their noise is, and the seconds of its commits."""
    shape = (4, size // 4, 1)
    seeds = list(range(NOISES))
    bank = NoiseBank.draw(seeds, shape)
    references = {PLAN.key_step: bank.latents * 0.9}
    manifest = Manifest(PLAN, {}, shape, {"kind": "shared", "seeds": seeds})
    base = KnowledgeBase.create(folder, manifest, bank, references)
    generator, seconds = torch.Generator().manual_seed(0), 0.0
    with base.lock():
        for number, start in enumerate(range(0, entries, unit)):
            count = min(unit, entries - start)
            ids = [(start + place) % NOISES for place in range(count)]
            noises = bank.latents[ids]

            def drawn(common: float, noises: torch.Tensor = noises) -> torch.Tensor:
                return common * noises + (1 - common**2) ** 0.5 * torch.randn(noises.shape, generator=generator)

            batch = EntryBatch(
                [f"a picture of thing {start + place} in a place" for place in range(count)],
                ids,
                ids,
                {PLAN.key_step: drawn(0.95)},
                {step: drawn(common) for step, common in zip(PLAN.value_steps, (0.9, 0.8, 0.6), strict=True)},
            )
            started = time.perf_counter()
            base.add_unit(number, batch)
            seconds += time.perf_counter() - started
    return base, seconds


def timed(do: Callable[[], Any], repeats: int = 1) -> float:
    """Return the seconds of the fastest call."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        do()
        best = min(best, time.perf_counter() - started)
    return best


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def large_entries(folder: Path, entries: int, size: int) -> list[Figure]:
    """Return the figures of a base with latents of ``size`` numbers."""
    base, seconds = made_up(folder / "base", entries, size, 256)
    found = [
        Figure("commit_entries_per_second", entries / seconds, ">=100"),
        Figure("finish_seconds", timed(base.finish), ">=0"),
    ]
    whole = size_of(base.path)
    latent = 2 * size
    rows = np.random.default_rng(0).permutation(entries)[:64].tolist()

    def opened() -> KnowledgeBase:
        again = KnowledgeBase.open(base.path)
        len(again.noise_ids())
        return again

    found += [
        Figure("bytes_per_entry", whole / entries, f"<={1.02 * 4 * latent + 1000:.0f}"),
        Figure("open_milliseconds", 1000 * timed(opened, 5), "<=1000"),
        Figure("fetch_64_pairs_milliseconds", 1000 * timed(lambda: base.pairs(rows, 10, 40), 5), "<=1000"),
        Figure("fetch_2_pairs_milliseconds", 1000 * timed(lambda: base.pairs(rows[:2], 10, 40), 20), "<=100"),
        Figure("verify_megabytes_per_second", whole / 1e6 / timed(base.verify), ">=50"),
        Figure("hash_megabytes_per_second", whole / 1e6 / timed(lambda: write_hashes(base.path)), ">=50"),
    ]
    for codec in ("float16", "int8", "nf4"):
        copied = folder / codec
        seconds = timed(lambda copied=copied, codec=codec: base.save_pretrained(copied, values=codec))
        small = KnowledgeBase.open(copied)
        fetch = timed(lambda small=small: small.pairs(rows, 10, 40), 5)
        found += [
            Figure(f"copy_{codec}_megabytes_per_second", whole / 1e6 / seconds, ">=5"),
            Figure(f"copy_{codec}_bytes_per_entry", size_of(copied) / entries, f"<={1.02 * 4 * latent + 1000:.0f}"),
            Figure(f"copy_{codec}_fetch_64_pairs_milliseconds", 1000 * fetch, "<=1000"),
            Figure(f"copy_{codec}_changed_files", len(compare_files(copied)), "=0"),
        ]
    return found


def many_entries(folder: Path, entries: int) -> list[Figure]:
    """Return the figures of what grows with the number of entries, whatever their size."""
    base, _ = made_up(folder / "many", entries, 16, 4096)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    opened = timed(lambda: KnowledgeBase.open(base.path).noise_ids())
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return [
        Figure("many_entries", entries, ">=1"),
        Figure("many_open_milliseconds", 1000 * opened, "<=60000"),
        Figure("many_directory_bytes_per_entry", 1024 * max(0, grown) / entries, "<=200"),
    ]


def main() -> int:
    """Run, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=16_384)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        found = many_entries(Path(folder), options.many) + large_entries(Path(folder), options.entries, options.size)
    return tell(found, options.out / "operations.json", {"entries": options.entries, "size": options.size})


if __name__ == "__main__":
    sys.exit(main())
