"""Owns the measurement of batches whose images disagree: a mixed batch against its halves, on the bundled model.

Run from the repository: ``python benchmarks/batches.py [--out bench]``. Half of a batch of 16 asks for prompts of the
base, which jump, half for held-out ones, which the gate lets run in full. The batch and its halves, each a batch of 8
of its own, take turns; each one's least disturbed (fastest) run counts, all runs are in the JSON.

- ``batch.ratio``: seconds of the mixed batch over the sum of its halves' seconds.
- ``batch.rows_ratio``: rows that the network evaluated for the mixed batch, over those of the halves: exactly 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from figures import Figure, tell

import redi
from redi.miniature.scenes import captions
from redi.pipelines import MINIATURE, default_guidance, load_pipeline, model_name

HALF = 8
PLANS = {"pndm": redi.Plan(50, key_step=10, value_steps=(40,)), "dpm": redi.Plan(20, key_step=5, value_steps=(15,))}


def compare(scheduler: str, out: Path, entries: int, repeats: int, model: str) -> tuple[list[Figure], dict[str, Any]]:
    """Measure one sampler."""
    pipe = load_pipeline(model, scheduler=scheduler)
    prompts = list(captions(entries, seed=1, held_out=False))
    base = redi.build(
        pipe,
        prompts,
        out / f"batches-{scheduler}",
        plan=PLANS[scheduler],
        noises=1,
        guidance_scale=default_guidance(model),
        batch_size=2 * HALF,
        model_id=model_name(model),
    )
    known, new = prompts[:HALF], list(captions(HALF, seed=2, held_out=True))
    mixed = [prompt for pair in zip(known, new, strict=True) for prompt in pair]  # no slice is a half
    ways = {"mixed": mixed, "jumping": known, "abstaining": new}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rows = dict.fromkeys(ways, 0)
    counting: list[int] = []
    hook = pipe.unet.conv_in.register_forward_hook(lambda module, inputs, output: counting.append(len(output)))
    for repeat in range(repeats + 1):  # the first is a warm-up
        for name, asked in list(ways.items())[:: 1 if repeat % 2 else -1]:
            counting.clear()
            started = time.perf_counter()
            made = redi.generate(
                pipe, base, asked, noise_ids=[0] * len(asked), max_distance=limit(base), progress=False
            )
            if repeat:
                seconds[name].append(time.perf_counter() - started)
            rows[name] = sum(counting)
            jumped = sum(each.report.jumped for each in made)
            if jumped != sum(prompt in known for prompt in asked):
                raise SystemExit(f"{scheduler}, {name}: {jumped} of {len(asked)} pictures jumped")
    hook.remove()
    fastest = {name: min(found) for name, found in seconds.items()}
    print(f"{scheduler}: " + ", ".join(f"{name} {found:.2f} s" for name, found in fastest.items()), file=sys.stderr)
    figures = [
        Figure(f"batch.{scheduler}.ratio", fastest["mixed"] / (fastest["jumping"] + fastest["abstaining"]), "<=1.1"),
        Figure(f"batch.{scheduler}.rows_ratio", rows["mixed"] / (rows["jumping"] + rows["abstaining"]), "=1"),
    ]
    return figures, {"plan": PLANS[scheduler].to_dict(), "seconds": seconds, "rows": rows}


def limit(base: redi.KnowledgeBase) -> float:
    """Return a distance that an entry's own query meets and that no other entry's does."""
    return float(base.leave_one_out(base.plan.key_step).min()) / 4


def main() -> int:
    """Measure, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--model", default=MINIATURE)
    parser.add_argument("--entries", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    figures: list[Figure] = []
    details: dict[str, Any] = {"model": options.model}
    try:
        for scheduler in PLANS:
            found, details[scheduler] = compare(scheduler, options.out, options.entries, options.repeats, options.model)
            figures += found
    except redi.RediError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return tell(figures, options.out / "batches.json", details)


if __name__ == "__main__":
    sys.exit(main())
