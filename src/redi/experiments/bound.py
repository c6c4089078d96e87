"""Owns the study of the paper's error bound (section 5) against what is observed; must not know how it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redi.experiments.bills import Drift, Work, after
from redi.experiments.divergence import ITERATIONS, Divergence
from redi.experiments.laboratory import Laboratory
from redi.experiments.sampling import Recording, Scale
from redi.experiments.studies import DPM
from redi.identity import library_versions
from redi.metrics import rank_correlation, resampled_interval
from redi.results import write_json
from redi.theory import chained_bound

QUERIES = 16
"""Of each replicate: L costs two dozen passes of the network for each step of each query."""

_Numbers = NDArray[np.float64]


def run_bound(
    laboratory: Laboratory, results: Path, *, tell: Callable[[str], None], recording: Recording = DPM
) -> dict[str, Any]:
    """Compare distance at the key and the Gronwall bounds of :mod:`redi.theory` with the distance at each value step.

    Five predictors: the distance at the key; the bound of theorem 5.3 with one L (the largest on the way); the same
    chained over steps, each with its own L; chained with mu (theorem A.2 with g not 0); and, no bound, the
    distance and mu as if L were 0.
    Each step takes the larger L and mu of its two ends. L is measured on the two trajectories, from below, so it is
    a little less than the theorem asks for.

    Args:
        laboratory: Has the base and the prompts.
        results: Folder of the results.
        tell: Told the cost first, then each figure as it comes.
        recording: The base: its key step, and the value steps to look at.

    Returns:
        What the JSON file holds.
    """
    scale = laboratory.scale
    count = min(QUERIES, scale.prompts)
    tell(f"bound: {laboratory.bill(work(scale, recording))}, a derivative counted as two calls")
    found = [laboratory.divergence(recording, replicate, count) for replicate in range(scale.replicates)]
    key_step = recording.key_steps[-1]
    rows = []
    for value_step in recording.value_steps:
        observed = np.concatenate([each.apart[value_step - key_step] for each in found])
        predicted = [predictions(each, value_step - key_step) for each in found]
        predicted_by_key = np.concatenate([each.apart[0] for each in found])
        for name in predicted[0]:
            numbers = np.concatenate([each[name] for each in predicted])
            rows.append({"value_step": value_step, "predictor": name, **_against(numbers, observed, predicted_by_key)})
            tell(
                f"v={value_step} {name}: rank correlation {rows[-1]['correlation']['value']:.2f}, "
                f"{rows[-1]['ratio']:.3g} times the distance"
            )
    result = {
        "study": "bound",
        "kind": "bound",
        "scale": asdict(scale),
        "subject": laboratory.subject.told(),
        "queries": count * scale.replicates,
        "key_step": key_step,
        "solver": f"{recording.solver.name}-{recording.solver.steps}",
        "rate": [
            float(np.median(np.concatenate([each.rates[at] for each in found]))) for at in range(len(found[0].rates))
        ],
        "gap": [
            float(np.median(np.concatenate([each.gaps[at] for each in found]))) for at in range(len(found[0].gaps))
        ],
        "clock": found[0].clock.tolist(),
        "versions": library_versions(),
        "rows": rows,
    }
    write_json(results / scale.name / "bound.json", result)
    return result


def work(scale: Scale, recording: Recording) -> Work:
    """Return what the study runs."""
    return Work(drifts=(Drift(recording, min(QUERIES, scale.prompts), network_calls(scale, recording)),))


def network_calls(scale: Scale, recording: Recording) -> int:
    """Return the network calls of one replicate's queries, each pass of a derivative counted as two."""
    last = max(recording.value_steps)
    points = last - recording.key_steps[-1] + 1
    of_rate = 2 * (1 + 2 * 2 * ITERATIONS)  # of the query's and of the neighbour's latents
    return min(QUERIES, scale.prompts) * (points * (2 + of_rate) + 2 * after(recording.solver, last))


def predictions(found: Divergence, pieces: int) -> dict[str, _Numbers]:
    """Return each predictor (b) of the distance that many steps after the key, in latent units, by name."""
    times = np.diff(found.clock[: pieces + 1])
    rates, gaps = (np.maximum(each[:pieces], each[1 : pieces + 1]) for each in (found.rates, found.gaps))
    start, nothing = found.apart[0], np.zeros_like(gaps)
    return {
        "distance at the key": start,
        "theorem 5.3, one L": chained_bound(start, np.broadcast_to(rates.max(0), rates.shape), nothing, times),
        "L of each step": chained_bound(start, rates, nothing, times),
        "L of each step, and mu": chained_bound(start, rates, gaps, times),
        "distance and mu, L = 0": chained_bound(start, nothing, gaps, times),
    }


def _against(predicted: _Numbers, observed: _Numbers, key: _Numbers) -> dict[str, Any]:
    """Return how a predictor (b) fits, also against the distance at the key: paired, over the same resamples."""

    def correlation(places: NDArray[np.intp]) -> float:
        return rank_correlation(predicted[places], observed[places])

    def gain(places: NDArray[np.intp]) -> float:
        return correlation(places) - rank_correlation(key[places], observed[places])

    return {
        "correlation": asdict(resampled_interval(correlation, len(observed))),
        "gain": asdict(resampled_interval(gain, len(observed))),
        "ratio": float(np.median(predicted / observed)),
        "broken": float((observed > predicted).mean()),
        "predicted": [float(f"{each:.5g}") for each in predicted],
        "observed": [float(f"{each:.5g}") for each in observed],
    }
