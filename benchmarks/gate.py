"""Owns the measurement behind the default gate: how much a jump harms a picture as its nearest entry gets further.

Run from the repository: ``python benchmarks/gate.py [--out bench]``. Held-out prompts of the bundled model run in full
and, without any gate, with ReDi from the same noises. For every quantile of the base's own leave-one-out distances the
table tells how many pictures would abstain, the mean calls, the share of pictures with every object right, the mean
feature distance to the run in full, and how much further from it the pictures that abstain would have ended than the
average one (what a gate saves beyond abstaining at random), if the gate stood there.

- ``gate.rank_correlation``: of nearest distance and feature distance to the run in full; positive, or distance does
  not predict harm and a gate by distance is worth nothing.
- ``gate.abstaining_percent``: of held-out prompts at the default quantile.
- ``gate.saved_of_best``: what the default quantile saves for each picture that abstains, over the most that one of the
  quantiles saves; 1 means that the default is the best place for the gate.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, tell

import redi
from redi.enabling import DEFAULT_QUANTILE
from redi.generating import full, generate
from redi.miniature.evaluation import bundled_evaluator
from redi.miniature.quality import faithful
from redi.miniature.scenes import captions
from redi.pipelines import MINIATURE, default_guidance, load_pipeline, model_name

PLAN = redi.Plan(20, key_step=5, value_steps=(10, 15))
QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


def main() -> int:
    """Measure, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--entries", type=int, default=800)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--noises", type=int, default=4)
    options = parser.parse_args()
    pipe = load_pipeline(MINIATURE, scheduler="dpm")
    base = redi.build(
        pipe,
        list(captions(options.entries, seed=11, held_out=False)),
        options.out / "gate-base",
        plan=PLAN,
        noises=options.noises,
        guidance_scale=default_guidance(MINIATURE),
        batch_size=32,
        model_id=model_name(MINIATURE),
    )
    asked = captions(options.prompts, seed=22, held_out=True)
    prompts, descriptions = list(asked), list(asked.values())
    whole = full(pipe, base, prompts)
    jumped = generate(pipe, base, prompts, max_distance=float("inf"))

    evaluator = bundled_evaluator()
    right = {}
    features = {
        name: evaluator.features([each.image for each in made]) for name, made in (("full", whole), ("redi", jumped))
    }
    harm = np.linalg.norm(features["redi"] - features["full"], axis=1)
    for name, made in (("full", whole), ("redi", jumped)):
        readings = evaluator.read([each.image for each in made])
        right[name] = np.array([faithful(d, r).objects for d, r in zip(descriptions, readings, strict=True)])
    distance = np.array([each.report.neighbors[0].distance for each in jumped])
    calls = {"full": whole[0].report.calls, "redi": jumped[0].report.calls}
    own = base.leave_one_out(PLAN.key_step).numpy()

    rows: list[dict[str, Any]] = []
    for quantile in QUANTILES:
        jumps = distance <= np.quantile(own, quantile)
        rows.append(
            {
                "quantile": quantile,
                "max_distance": float(np.quantile(own, quantile)),
                "abstaining": float(np.mean(~jumps)),
                "calls": float(np.where(jumps, calls["redi"], calls["full"]).mean()),
                "objects_right": float(np.where(jumps, right["redi"], right["full"]).mean()),
                "distance_to_full": float(np.where(jumps, harm, 0.0).mean()),
                "saved_by_abstaining": float(harm[~jumps].mean() - harm.mean()) if (~jumps).sum() >= 5 else 0.0,
            }
        )
        print("  ".join(f"{name} {value:.3f}" for name, value in rows[-1].items()), file=sys.stderr)
    ranks = [np.argsort(np.argsort(values)) for values in (distance, harm)]
    most_saved = max(row["saved_by_abstaining"] for row in rows)
    default = next(row for row in rows if row["quantile"] == DEFAULT_QUANTILE)
    figures = [
        Figure("gate.rank_correlation", float(np.corrcoef(*ranks)[0, 1]), ">=0.1"),
        Figure("gate.abstaining_percent", 100 * default["abstaining"], "<=15"),
        Figure("gate.saved_of_best", default["saved_by_abstaining"] / most_saved, ">=0.8"),
    ]
    details = {
        "plan": PLAN.to_dict(),
        "entries": len(base),
        "noises": options.noises,
        "prompts": len(prompts),
        "objects_right_in_full": float(right["full"].mean()),
        "objects_right_no_gate": float(right["redi"].mean()),
        "quantiles": rows,
    }
    return tell(figures, options.out / "gate.json", details)


if __name__ == "__main__":
    sys.exit(main())
