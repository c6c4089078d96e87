"""Owns the study of how many noises a bank has and how many entries each noise needs; must not know how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redi.experiments.bills import Cost, Work, after, going_on
from redi.experiments.laboratory import Laboratory
from redi.experiments.quality import figures
from redi.experiments.sampling import Recording, Sampling, Scale, Solver, redi
from redi.identity import library_versions
from redi.metrics import mean_interval, resampled_interval
from redi.results import write_json
from redi.retrieval import DEFAULT_WEIGHTS, combiner

NOISES = (1, 4, 16, 64)
RECORDING = Recording(Solver("dpm", 10), (3,), (7,))
_FEWEST = 8
_QUERIES = 100
"""Of each replicate, where pictures are made."""

_RESAMPLES = 100
_LOSSES = (0.4, 0.3, 0.2)
"""Of the unit: what the rule is asked for."""

_Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Point:
    """What estimates of one replicate's queries (n) came to with some entries of each noise.

    Attributes:
        noises: Of the bank.
        entries: Of each noise; with ``alien``, of all other noises together.
        alien: Whether only entries of other noises were looked at: what independent noise leaves.
        values: x_v (n, ...).
        nearest: (n) distance of the key to the nearest.
        apart: (n) distance of the estimate to the x_v of the query's own run.
        unit: Mean distance of the mean of a noise's values, which knows no prompt, to those x_v.
    """

    noises: int
    entries: int
    alien: bool
    values: Tensor
    nearest: _Numbers
    apart: _Numbers
    unit: float


def run_bank(
    laboratory: Laboratory, results: Path, *, tell: Callable[[str], None], recording: Recording = RECORDING
) -> dict[str, Any]:
    """Measure distance at x_v and quality over entries per noise, for banks of several sizes, and fit a rule.

    The rule is ``loss = a * n ** -b``, n entries of each noise, by least squares of logarithms over all points, loss
    the distance at x_v as a share of the unit of :class:`Point`.

    Args:
        laboratory: Has the prompts; its scale's own number of noises is not used.
        results: Folder of the results.
        tell: Told the cost first, then each figure as it comes.
        recording: The bases: their only key and value step.

    Returns:
        What the JSON file holds.
    """
    scale, solver = laboratory.scale, recording.solver
    ((key_step,), (value_step,)) = recording.key_steps, recording.value_steps
    jump = redi(recording, key_step, value_step, weights=DEFAULT_WEIGHTS)
    full = Sampling(solver)
    banks = _banks(scale)
    tell(f"bank: at most {laboratory.bill(work(scale, recording))}")
    rows = []
    fits: list[list[Point]] = []
    for noises in banks:
        own = replace(laboratory, scale=replace(scale, noises=noises))
        alien = noises == max(banks) > 1
        found = [_points(own, recording, replicate, alien=alien) for replicate in range(scale.replicates)]
        for points in zip(*found, strict=True):
            rows.append(_row(own, points, jump, full))
            tell(
                f"{noises} noises, {rows[-1]['entries']} entries: loss {rows[-1]['loss']['value']:.3f}, from the full "
                f"run {rows[-1]['closeness']['value']:.2f}"
            )
            if not points[0].alien:
                fits.append(list(points))
    result = {
        "study": "bank",
        "kind": "bank",
        "scale": asdict(scale),
        "subject": laboratory.subject.told(),
        "jump": jump.label,
        "rule": repr(combiner(DEFAULT_WEIGHTS)),
        "queries": min(_QUERIES, scale.prompts) * scale.replicates,
        "versions": library_versions(),
        "rows": rows,
        "fit": fit(fits),
    }
    write_json(results / scale.name / "bank.json", result)
    return result


def _banks(scale: Scale) -> list[int]:
    return [each for each in NOISES if _FEWEST * each <= scale.entries]


def work(scale: Scale, recording: Recording) -> Work:
    """Return what the study runs with nothing there yet: each bank has a base, paths, runs in full and jumps."""
    solver, ((value_step,), banks) = recording.solver, (recording.value_steps, _banks(scale))
    points = sum(len(list(_counts(scale.entries // each))) for each in banks) + (max(banks) > 1)
    built = len(banks) * (scale.entries + scale.prompts) * after(solver, value_step)
    alone = len(banks) * scale.prompts * after(solver, solver.steps)
    jumps = points * min(_QUERIES, scale.prompts) * going_on(solver, value_step)
    return Work(others={"bank": Cost(built + alone + jumps, 2 * len(banks) * scale.entries)})


def _points(laboratory: Laboratory, recording: Recording, replicate: int, *, alien: bool = False) -> list[Point]:
    """Return the replicate's points, by rising entries, and last, if wanted, that of alien noises."""
    noises, ((key_step,), (value_step,)) = laboratory.scale.noises, (recording.key_steps, recording.value_steps)
    queries, truth = (each.flatten(1) for each in laboratory.latents(recording, replicate, (key_step, value_step)))
    base = laboratory.base(recording, replicate)
    of_entry, of_query = base.noise_ids(), np.asarray(laboratory.noise_ids(len(queries)))
    keys, values = (of(range(len(base)), step) for of, step in ((base.keys, key_step), (base.values, value_step)))
    own = [np.flatnonzero(of_entry == noise) for noise in range(noises)]
    means = torch.stack([values[rows].flatten(1).mean(0) for rows in own])
    unit = float((means[of_query] - truth).norm(dim=1).mean())
    rows_of = [(count, False, [rows[:count] for rows in own]) for count in _counts(min(map(len, own)))]
    if alien:
        others = [np.flatnonzero(of_entry != noise) for noise in range(noises)]
        rows_of.append((min(map(len, others)), True, others))
    rule = combiner(DEFAULT_WEIGHTS)
    found = []
    for count, of_others, rows in rows_of:
        estimate, nearest = torch.empty(len(queries), *values.shape[1:]), np.empty(len(queries))
        for place, query in enumerate(queries):
            few = rows[of_query[place]]
            apart = (keys[few].flatten(1) - query).norm(dim=1)
            near = few[apart.argsort()[: rule.default_neighbors].numpy()]
            nearest[place] = float(apart.min())
            estimate[place] = rule.combine(query.view(keys.shape[1:]), keys[near], values[near]).values
        distances = (estimate.flatten(1) - truth).norm(dim=1).double().numpy()
        found.append(Point(noises, count, of_others, estimate, nearest, distances, unit))
    return found


def _counts(most: int) -> Iterator[int]:
    """Yield entries of a noise, doubling, and all at the end."""
    count = _FEWEST
    while count < most:
        yield count
        count *= 2
    yield most


def _row(laboratory: Laboratory, points: Sequence[Point], jump: Sampling, full: Sampling) -> dict[str, Any]:
    count = min(_QUERIES, laboratory.scale.prompts)
    made = [laboratory.going_on(jump, replicate, each.values[:count]) for replicate, each in enumerate(points)]
    alone = [laboratory.sample(full, replicate).first(count) for replicate in range(len(points))]
    told = figures(made, alone, laboratory.reference, resamples=min(_RESAMPLES, laboratory.scale.resamples))
    return {
        "noises": points[0].noises,
        "entries": min(each.entries for each in points),
        "alien": points[0].alien,
        "nearest": asdict(mean_interval(np.concatenate([each.nearest for each in points]))),
        "loss": asdict(mean_interval(np.concatenate([each.apart / each.unit for each in points]))),
        **{name: told[name] for name in ("faithfulness", "closeness", "frechet")},
    }


def fit(points: Sequence[Sequence[Point]]) -> dict[str, Any]:
    """Return the rule through points, each of all replicates: ``a``, ``b`` with its interval over queries, how far the
    points are from it at most (a share of their loss), and the entries of a noise for some losses."""
    counts = np.log([each[0].entries for each in points])
    losses = np.stack([np.concatenate([each.apart / each.unit for each in replicates]) for replicates in points])

    def line(places: NDArray[np.intp]) -> tuple[float, float]:
        slope, start = np.polyfit(counts, np.log(losses[:, places].mean(1)), 1)
        return float(np.exp(start)), float(-slope)

    everyone = np.arange(losses.shape[1])
    a, b = line(everyone)
    off = np.abs(a * np.exp(counts) ** -b / losses.mean(1) - 1)
    needed = {}
    for loss in _LOSSES:

        def log_count_for(places: NDArray[np.intp], loss: float = loss) -> float:
            return _log_needed(line(places), loss)

        logarithm = resampled_interval(log_count_for, len(everyone), resamples=_RESAMPLES)
        needed[f"{loss:g}"] = {name: float(np.exp(value)) for name, value in asdict(logarithm).items()}
    exponent = resampled_interval(lambda places: line(places)[1], len(everyone), resamples=_RESAMPLES)
    return {"a": a, "b": asdict(exponent), "off": float(off.max()), "needed": needed}


def _log_needed(rule: tuple[float, float], loss: float) -> float:
    a, b = rule
    return float(np.log(a / loss) / b) if b > 0 else float("inf")
