"""Owns the measurement of styles that a base does not hold (section 4.3 of the paper), on the bundled model.

Run from the repository: ``python benchmarks/style.py [--out bench]``. A base of captions without a style; held-out
content in every style, with ``redi.stylize`` and in full with prompt and style from the first step on. The evaluator
reads the style. Leaves ``style.png`` for a person to judge.

- ``style.share_right``: of stylised pictures that jumped or abstained, those in the style that was asked for.
- ``style.share_of_full``: the same share over that of the full run.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
from figures import Figure, tell

import redi
from redi.comparison import Column, page
from redi.generating import Generation, generate, stylize
from redi.miniature.evaluation import bundled_evaluator
from redi.miniature.scenes import caption, descriptions
from redi.miniature.vocabulary import STYLES
from redi.pipelines import MINIATURE, default_guidance, load_pipeline, model_name

PLAN = redi.Plan(20, key_step=2, value_steps=(5,))
"""Early, as in the paper (3 and 10 of 50): style is decided before detail."""


def contents(count: int, *, seed: int, held_out: bool) -> list[str]:
    """Return captions that say nothing of a style."""
    plain = (each for each in descriptions(seed, held_out=held_out) if each.style is None)
    rng = np.random.default_rng(seed)
    return [caption(each, rng) for each in itertools.islice(plain, count)]


def main() -> int:
    """Measure, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--entries", type=int, default=400)
    parser.add_argument("--prompts", type=int, default=24, help="in each style")
    options = parser.parse_args()
    pipe = load_pipeline(MINIATURE, scheduler="dpm")
    base = redi.build(
        pipe,
        contents(options.entries, seed=31, held_out=False),
        options.out / "style-base",
        plan=PLAN,
        noises=4,
        guidance_scale=default_guidance(MINIATURE),
        batch_size=32,
        model_id=model_name(MINIATURE),
    )
    prompts = contents(options.prompts, seed=32, held_out=True)
    plain = generate(pipe, base, prompts)
    made: dict[str, list[Generation]] = {
        style: stylize(pipe, base, prompts, suffix, compare=True) for style, suffix in STYLES.items()
    }

    evaluator = bundled_evaluator()
    right: dict[str, list[bool]] = {"redi": [], "full": []}
    for style, found in made.items():
        right["redi"] += [reading.style == style for reading in evaluator.read([each.image for each in found])]
        whole = [each.full_image for each in found if each.full_image is not None]
        right["full"] += [reading.style == style for reading in evaluator.read(whole)]
    columns = [
        Column(
            prompt, tuple(each.image for each in (plain[place], *(found[place] for found in made.values()))), ("",) * 4
        )
        for place, prompt in enumerate(prompts[:8])
    ]
    page(columns, ["no style", *made], per_band=8).save(options.out / "style.png")
    shares = {name: float(np.mean(found)) for name, found in right.items()}
    figures = [
        Figure("style.share_right", shares["redi"], ">=0.85"),
        Figure("style.share_of_full", shares["redi"] / max(shares["full"], 1e-9), ">=0.95"),
    ]
    reports = [each.report for found in made.values() for each in found]
    details = {
        "plan": PLAN.to_dict(),
        "entries": len(base),
        "pictures": len(reports),
        "jumped": sum(report.jumped for report in reports),
        "calls": [reports[0].full_calls, min(report.calls for report in reports)],
        "share_right": shares,
    }
    return tell(figures, options.out / "style.json", details)


if __name__ == "__main__":
    sys.exit(main())
