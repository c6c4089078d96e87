"""Owns what retrieval costs on a GPU: exact search against copying, all of it against one network call; knows no model.

Run from the repository on a machine with a GPU: ``python benchmarks/device.py [--out bench]``. Keys and weights are
made up. ``--device cpu --small`` tries the script where there is none; its figures mean nothing.

- ``device.search.bandwidth``: bytes of keys a second of exact search, one query, over those that a copy on the device
  reads and writes.
- ``device.retrieval.percent``: search, fetching the neighbours' keys and values, and weights, over one call of Stable
  Diffusion 1.5's U-Net with guidance (float16), in per cent.
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
from diffusers import UNet2DConditionModel
from figures import Figure, tell
from torch import Tensor

from redi.knowledge_base import EntryBatch, KnowledgeBase, Manifest, NoiseBank
from redi.knowledge_base.index import ExactIndex
from redi.plan import Plan
from redi.retrieval.weights import DEFAULT_WEIGHTS, combiner

PLAN = Plan(20, 5, (15,))
SHAPE = (4, 64, 64)
UNIT = 256


def seconds(work: Callable[[], Any], device: torch.device, repeats: int = 30) -> float:
    """Return the median seconds of a call, the device's own work included."""
    taken = []
    for _ in range(repeats + 3):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[3:])


def bandwidth(entries: int, device: torch.device) -> dict[str, float]:
    """Return bytes a second: of keys that are searched, and of a copy (read and written)."""
    keys = torch.randn(entries, torch.Size(SHAPE).numel(), device=device)
    query, copy = torch.randn_like(keys[:1]), torch.empty_like(keys)
    index = ExactIndex(keys)
    size = keys.numel() * keys.element_size()
    return {
        "search": size / seconds(lambda: index.search(query, 64), device),
        "copy": 2 * size / seconds(lambda: copy.copy_(keys), device),
    }


def made_up(folder: Path, entries: int) -> KnowledgeBase:
    """Return a base of one noise whose latents are Gaussian."""
    manifest = Manifest(PLAN, {}, SHAPE, {"kind": "shared", "seeds": [0]})
    base = KnowledgeBase.create(folder, manifest, NoiseBank.draw([0], SHAPE), {})
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> Tensor:
        return torch.randn(count, *SHAPE, generator=generator)

    with base.lock():
        for number, start in enumerate(range(0, entries, UNIT)):
            count = min(UNIT, entries - start)
            prompts = [f"picture {start + place}" for place in range(count)]
            ids = [0] * count
            base.add_unit(number, EntryBatch(prompts, ids, ids, {5: drawn(count)}, {15: drawn(count)}))
    return base


def retrieval(base: KnowledgeBase, device: torch.device) -> float:
    """Return the seconds of Algorithm 2's retrieval for one image, from x_k to x_v on the device."""
    rule = combiner(DEFAULT_WEIGHTS)
    query = torch.randn(1, *SHAPE, device=device)

    def retrieve() -> None:
        found = base.search(query, [0], rule.default_neighbors, PLAN.key_step, device)
        keys, values = base.pairs(found.rows[0], PLAN.key_step, PLAN.value_steps[0])
        rule.combine(query[0].cpu(), keys, values).values.to(device)

    return seconds(retrieve, device)


def network_call(device: torch.device, *, small: bool) -> float:
    """Return the seconds of a call for one image with guidance."""
    config: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
    if small:
        config |= {"block_out_channels": (32, 32, 32, 32), "norm_num_groups": 8, "attention_head_dim": 8}
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    with torch.device(device):
        network = UNet2DConditionModel(**config).to(dtype).eval()
        latents, text = torch.randn(2, *SHAPE, dtype=dtype), torch.randn(2, 77, 768, dtype=dtype)

    @torch.inference_mode()
    def call() -> None:
        network(latents, 500, encoder_hidden_states=text)

    return seconds(call, device, repeats=10)


def main() -> int:
    """Measure, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else None)
    parser.add_argument("--entries", type=int, default=20_000)
    parser.add_argument("--small", action="store_true", help="a small network and few entries")
    options = parser.parse_args()
    if options.device is None:
        print("no GPU here: nothing is measured", file=sys.stderr)
        return 0
    device = torch.device(options.device)
    entries = 512 if options.small else options.entries
    options.out.mkdir(parents=True, exist_ok=True)
    moved = bandwidth(entries, device)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        taken = retrieval(made_up(Path(folder) / "base", entries), device)
    call = network_call(device, small=options.small)
    figures = [
        Figure("device.search.bandwidth", moved["search"] / moved["copy"], ">=0.6"),
        Figure("device.retrieval.percent", 100 * taken / call, "<=5"),
    ]
    details = {"entries": entries, "bytes_a_second": moved, "seconds_retrieval": taken, "seconds_call": call}
    return tell(figures, options.out / "device.json", details)


if __name__ == "__main__":
    sys.exit(main())
