"""Owns the study of the gate: who is harmed by a jump, and whether calibration keeps its promise; must not know how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from redi.calibration import Measurements, reachable
from redi.experiments.bills import Route, Work
from redi.experiments.laboratory import Laboratory
from redi.experiments.sampling import Recording, Sampling, redi
from redi.experiments.studies import DPM
from redi.identity import library_versions
from redi.metrics import Interval, area_under_roc, mean_interval, rank_correlation, resampled_interval
from redi.results import write_json
from redi.retrieval.weights import combiner

_WEIGHTS = "kriging"
_SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
"""Losses to ask for, as shares of what jumping to the latest step costs."""

_SPLITS, _RESAMPLES = 20, 2000
_Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one replicate's prompts: losses and scores, and whose picture was right only in full.

    Attributes:
        measured: Of all prompts.
        harmed: By value step: (n) right in full and wrong after the jump; empty where nobody judges that.
    """

    measured: Measurements
    harmed: Mapping[int, NDArray[np.bool_]]


def run_gate(
    laboratory: Laboratory, results: Path, *, tell: Callable[[str], None], recording: Recording = DPM
) -> dict[str, Any]:
    """Measure what each score knows of the harm of a jump, and calibrate on half of the prompts for the other half.

    A loss is the distance of a picture's features to its run in full. Each replicate's prompts are split at random,
    many times; limits chosen on one half meet the other, so that every outcome is of prompts that its limits have not
    seen. The fixed plans are those of one value step for all; the rival at the same mean calls is the best mix of two
    of them, drawn by lot.

    Args:
        laboratory: Has the samples; those that are there from other studies are used again.
        results: Folder of the results.
        tell: Told the cost first, then each figure as it comes.
        recording: The base: its last key step, and its value steps.

    Returns:
        What the JSON file holds.
    """
    scale, solver = laboratory.scale, recording.solver
    tell(f"gate: {laboratory.bill(work(recording))}")
    found = [_outcome(laboratory, recording, replicate) for replicate in range(scale.replicates)]
    scores = _scores(found)
    for row in scores:
        tell(f"v={row['value_step']} {row['score']}: rank correlation with the loss {row['rank']:.2f}")
    latest = np.concatenate([each.measured.losses[max(recording.value_steps)] for each in found]).mean()
    asked = [float(f"{share * latest:.2g}") for share in _SHARES]
    fixed = _fixed(found)
    promises = _promises(found, asked)
    for row in promises:
        tell(f"asked {row['asked']}: {row['loss']['value']:.3f} at {row['calls']:.1f} calls, {row['verdict']}")
    result = {
        "study": "gate",
        "kind": "gate",
        "scale": asdict(scale),
        "subject": laboratory.subject.told(),
        "solver": f"{solver.name}-{solver.steps}",
        "key_step": recording.key_steps[-1],
        "weights": repr(combiner(_WEIGHTS)),
        "splits": _SPLITS,
        "full_calls": found[0].measured.full_calls,
        "versions": library_versions(),
        "scores": scores,
        "fixed": [{"calls": calls, "loss": loss} for calls, loss in fixed],
        "lots": lower_hull(fixed),
        "promises": promises,
    }
    write_json(results / scale.name / "gate.json", result)
    return result


def work(recording: Recording) -> Work:
    """Return what the study runs."""
    solver, key_step = recording.solver, recording.key_steps[-1]
    jumps = [redi(recording, key_step, step, weights=_WEIGHTS) for step in recording.value_steps]
    return Work((Sampling(solver), *jumps), recordings=(recording,), routes=(Route(solver, (key_step,)),))


def _outcome(laboratory: Laboratory, recording: Recording, replicate: int) -> Outcome:
    solver, key_step = recording.solver, recording.key_steps[-1]
    full = laboratory.sample(Sampling(solver), replicate)
    jumped = {
        step: laboratory.sample(redi(recording, key_step, step, weights=_WEIGHTS), replicate)
        for step in recording.value_steps
    }
    measured = Measurements(
        scores_at_key(laboratory, recording, replicate),
        {step: np.linalg.norm(made.features - full.features, axis=1) for step, made in jumped.items()},
        {step: float(made.calls[0]) for step, made in jumped.items()},
        float(full.calls[0]),
    )
    if not laboratory.subject.judges:
        return Outcome(measured, {})
    right = full.faithful["all"] == 1
    return Outcome(measured, {step: right & (made.faithful["all"] == 0) for step, made in jumped.items()})


def scores_at_key(laboratory: Laboratory, recording: Recording, replicate: int) -> dict[str, _Numbers]:
    """Return what a gate can look at for each prompt (n), as the engine would compute it."""
    base, rule = laboratory.base(recording, replicate), combiner(_WEIGHTS)
    key_step = recording.key_steps[-1]
    (queries,) = laboratory.latents(recording, replicate, (key_step,))
    neighbors = base.search(
        queries, laboratory.noise_ids(len(queries)), rule.default_neighbors, key_step, torch.device("cpu")
    )
    found: dict[str, list[float]] = {"distance": [], "residual": [], "variance": []}
    for query, rows, distances in zip(queries, neighbors.rows, neighbors.distances, strict=True):
        keys = base.keys(rows[rows >= 0], key_step)
        made = rule.combine(query, keys, keys)
        found["distance"].append(float(distances[0]))
        found["residual"].append(made.residual)
        found["variance"].append(made.variance if made.variance is not None else float("nan"))
    return {name: np.asarray(each) for name, each in found.items()}


def _scores(found: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return how well each score tells harm, by value step, over all replicates."""
    rows = []
    for step in found[0].measured.losses:
        harmed = np.concatenate([each.harmed[step] for each in found]) if found[0].harmed else None
        losses = np.concatenate([each.measured.losses[step] for each in found])
        for name in found[0].measured.scores:
            numbers = np.concatenate([each.measured.scores[name] for each in found])
            rows.append(
                {
                    "value_step": step,
                    "score": name,
                    "harmed": None if harmed is None else float(harmed.mean()),
                    "area": _area(numbers, harmed),
                    "rank": rank_correlation(numbers, losses),
                }
            )
    return rows


def _area(numbers: _Numbers, harmed: NDArray[np.bool_] | None) -> float | None:
    return None if harmed is None or not 0 < harmed.sum() < len(harmed) else area_under_roc(numbers, harmed)


def _fixed(found: Sequence[Outcome]) -> list[tuple[float, float]]:
    """Return calls and mean loss of the run in full and of each value step for all."""
    first = found[0].measured
    points = [
        (first.calls[step], float(np.concatenate([each.measured.losses[step] for each in found]).mean()))
        for step in first.losses
    ]
    return sorted([*points, (first.full_calls, 0.0)])


def _promises(found: Sequence[Outcome], asked: Sequence[float]) -> list[dict[str, Any]]:
    """Return, for each loss asked for, what halves that the limits were not chosen on came to."""
    size = len(found[0].measured)
    losses, calls, times = (np.zeros((len(found), size, len(asked))) for _ in range(3))
    broken, took = np.zeros(len(asked)), [Counter[str]() for _ in asked]
    draw = np.random.default_rng(0)
    for place, each in enumerate(found):
        for _ in range(_SPLITS):
            order = draw.permutation(size)
            seen, fresh = order[: size // 2], order[size // 2 :]
            held = part(each.measured, fresh)
            for at, (loss, choice) in enumerate(reachable(part(each.measured, seen), asked)):
                full = np.zeros(len(fresh)), np.full(len(fresh), each.measured.full_calls)
                came, cost = full if choice is None else held.outcomes(choice)
                took[at].update([choice.score] if choice else [])
                losses[place, fresh, at] += came
                calls[place, fresh, at] += cost
                times[place, fresh, at] += 1
                broken[at] += came.mean() > loss
    steps = sorted(found[0].measured.losses, key=lambda step: found[0].measured.calls[step])
    everybody = np.asarray([[each.measured.losses[step] for step in steps] for each in found]).transpose(0, 2, 1)
    costs = [found[0].measured.calls[step] for step in steps]
    rows = []
    for at, loss in enumerate(asked):
        told = times[:, :, at] > 0
        own, spent = (each[:, :, at][told] / times[:, :, at][told] for each in (losses, calls))
        delivered = mean_interval(own)
        apart = _against_fixed(own, spent, everybody[told], (*costs, found[0].measured.full_calls))
        worse, better = apart.low > 0, apart.high < 0
        rows.append(
            {
                "asked": loss,
                "loss": asdict(delivered),
                "calls": float(spent.mean()),
                "verdict": "broken" if delivered.low > loss else "kept",
                "broken_splits": float(broken[at] / (_SPLITS * len(found))),
                "fixed_loss": delivered.value - apart.value,
                "difference": asdict(apart),
                "scores": dict(took[at]),
                "against_fixed": "worse" if worse else "better" if better else "no difference",
            }
        )
    return rows


def _against_fixed(own: _Numbers, spent: _Numbers, everybody: _Numbers, calls: Sequence[float]) -> Interval:
    """Return by how much the mean loss (n) is above that of the best lot between two fixed plans with as many calls.

    Args:
        own: Losses (n).
        spent: Calls (n).
        everybody: Losses (n, m) of the same prompts under each fixed plan.
        calls: Of each fixed plan and, last, of the run in full; rising.
    """

    def apart(places: NDArray[np.intp]) -> float:
        points = [*zip(calls, everybody[places].mean(0), strict=False), (calls[-1], 0.0)]
        return float(own[places].mean() - np.interp(spent[places].mean(), calls, lower_hull(points)))

    return resampled_interval(apart, len(own), resamples=_RESAMPLES)


def part(measured: Measurements, places: NDArray[np.intp]) -> Measurements:
    """Return the measurements of the prompts at some places."""
    return Measurements(
        {name: each[places] for name, each in measured.scores.items()},
        {step: each[places] for step, each in measured.losses.items()},
        measured.calls,
        measured.full_calls,
    )


def lower_hull(points: Sequence[tuple[float, float]]) -> list[float]:
    """Return the losses of ``points`` (calls, loss; by rising calls) where a lot between two others does no better."""
    calls, losses = ([point[axis] for point in points] for axis in (0, 1))
    best = list(losses)
    for left in range(len(points)):
        for right in range(left + 1, len(points)):
            for between in range(left + 1, right):
                share = (calls[between] - calls[left]) / (calls[right] - calls[left])
                best[between] = min(best[between], losses[left] + share * (losses[right] - losses[left]))
    return best
