"""Owns figure 6 of the paper: what base size, value step, key step and neighbours do; must not know how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redi.experiments.bills import Cost, Route, Work, going_on
from redi.experiments.laboratory import Laboratory
from redi.experiments.quality import difference, figures
from redi.experiments.sampling import Recording, Sampling, Scale, Solver, redi
from redi.experiments.studies import COMPARED, SHORT
from redi.identity import library_versions
from redi.metrics import mean_interval
from redi.results import write_json
from redi.retrieval import combiner

QUERIES = 32
"""Prompts of each replicate that become pictures; distances at v are measured on all of them."""

NEIGHBORS = (1, 2, 3, 4, 5)
_RESAMPLES = 200
_WEIGHTS = "least-squares"


@dataclass(frozen=True)
class Point:
    """One place on an axis of the figure: the share of the base's entries, and the way through its trajectories."""

    share: float
    key_step: int
    value_step: int


@dataclass(frozen=True)
class Figure6:
    """What is varied.

    Attributes:
        title: Of its section.
        recording: One base for all: its keys in one pass; smaller bases are its first entries of each noise.
        panels: By name ("size", "value", "key"), the points of an axis.
    """

    title: str
    recording: Recording
    panels: Mapping[str, tuple[Point, ...]]

    @property
    def points(self) -> tuple[Point, ...]:
        """Every point once."""
        return tuple(dict.fromkeys(point for points in self.panels.values() for point in points))

    def sampling(self, point: Point, neighbors: int) -> Sampling:
        """Return what a point with so many neighbours is, as any other study would name it."""
        recording = replace(self.recording, share=point.share)
        return redi(recording, point.key_step, point.value_step, neighbors=neighbors, weights=_WEIGHTS)


_SIZES = (0.125, 0.25, 0.5, 1.0)


def _figure(recording: Recording, title: str, middle: tuple[int, int], values: Sequence[int], keys: int) -> Figure6:
    """Return a figure with sizes at a way through the trajectories, value steps from its key step, and other ways of
    the same length from the recording's first so many key steps."""
    key_step, value_step = middle
    apart = value_step - key_step
    return Figure6(
        title,
        recording,
        {
            "size": tuple(Point(share, key_step, value_step) for share in _SIZES),
            "value": tuple(Point(1.0, key_step, each) for each in values),
            "key": tuple(Point(1.0, each, each + apart) for each in recording.key_steps[:keys]),
        },
    )


FIGURES: Mapping[str, Figure6] = {
    "figure6-short": _figure(SHORT, "DPM-Solver++(2M), 10 steps", (2, 6), (4, 6, 8), 3),
    "figure6": _figure(
        Recording(Solver("dpm", 20), (3, 5, 8), (10, 12, 15)), "DPM-Solver++(2M), 20 steps", (5, 12), (10, 12, 15), 3
    ),
    "figure6-pndm": _figure(
        Recording(Solver("pndm", 50), (10, 15, 20), (25, 30, 35)), "PNDM, 50 steps", (10, 25), (25, 30, 35), 3
    ),
}
"""By the name of the experiment: the schedule on which the library's plans are best, and the paper's two solvers."""


def run_figure6(
    laboratory: Laboratory, results: Path, *, tell: Callable[[str], None], name: str, figure: Figure6
) -> dict[str, Any]:
    """Measure every point of every panel with every number of neighbours, by the paper's least squares.

    Args:
        laboratory: Has the base and the prompts.
        results: Folder of the results.
        tell: Told the cost first, then each figure as it comes.
        name: Of the experiment.
        figure: What to vary.

    Returns:
        What the JSON file holds.
    """
    scale, recording, replicates = laboratory.scale, figure.recording, range(laboratory.scale.replicates)
    count, solver = min(QUERIES, scale.prompts), recording.solver
    alone = Sampling(solver)
    tell(f"{name}: at most {laboratory.bill(work(scale, name, figure))}")
    estimated = [_estimated(laboratory, figure, replicate) for replicate in replicates]
    full = [laboratory.sample(alone, each) for each in replicates]
    full = [each.first(count) for each in full]
    resamples = min(_RESAMPLES, scale.resamples)
    rows, pictures, distances = [], {}, {}
    for point in figure.points:
        for neighbors in NEIGHBORS:
            values = [each[point, neighbors] for each in estimated]
            made = [
                laboratory.going_on(figure.sampling(point, neighbors), replicate, values[replicate][0][:count])
                for replicate in replicates
            ]
            apart = np.concatenate([each for _, each in values])
            pictures[point, neighbors], distances[point, neighbors] = made, apart
            row = {
                **asdict(point),
                "entries": round(point.share * scale.entries),
                "neighbors": neighbors,
                "at_value": asdict(mean_interval(apart)),
                **figures(made, full, laboratory.reference, resamples=resamples),
            }
            rows.append(row)
            tell(
                f"{row['entries']} entries, {point.key_step}->{point.value_step}, H={neighbors}: "
                f"{row['calls']:.0f} calls, Frechet {row['frechet']['value']:.2f}, from the full run "
                f"{row['closeness']['value']:.2f}, x_v apart {row['at_value']['value']:.2f}"
            )

    def ends_apart(first: Point, last: Point) -> dict[str, Any]:
        one, other = (first, max(NEIGHBORS)), (last, max(NEIGHBORS))
        found = {
            measure: asdict(
                difference(
                    measure, pictures[other], pictures[one], full, laboratory.reference, resamples=scale.resamples
                )
            )
            for measure in COMPARED
        }
        return {**found, "at_value": asdict(mean_interval(distances[other] - distances[one]))}

    result = {
        "study": name,
        "kind": "figure6",
        "title": figure.title,
        "scale": asdict(scale),
        "subject": laboratory.subject.told(),
        "solver": f"{solver.name}-{solver.steps}",
        "queries": count * scale.replicates,
        "full": figures(full, full, laboratory.reference, resamples=resamples),
        "panels": {name: [asdict(point) for point in points] for name, points in figure.panels.items()},
        "ends": {panel: ends_apart(points[0], points[-1]) for panel, points in figure.panels.items()},
        "versions": library_versions(),
        "rows": rows,
    }
    write_json(results / scale.name / f"{name}.json", result)
    return result


def work(scale: Scale, name: str, figure: Figure6) -> Work:
    """Return what an experiment of that name runs, at most: pictures from their x_v on, with the call before a jump."""
    recording, count = figure.recording, min(QUERIES, scale.prompts)
    solver = recording.solver
    pictures = count * len(NEIGHBORS) * sum(going_on(solver, point.value_step) for point in figure.points)
    routes, others = (Route(solver, _path(recording)),), {name: Cost(pictures, 0)}
    return Work((Sampling(solver),), recordings=(recording,), routes=routes, others=others)


def _path(recording: Recording) -> tuple[int, ...]:
    return (*recording.key_steps, *recording.value_steps)


Estimated = dict[tuple[Point, int], tuple[Tensor, NDArray[np.float64]]]


def _estimated(laboratory: Laboratory, figure: Figure6, replicate: int) -> Estimated:
    """Return x_v (n, ...) of a replicate's prompts and its distance to that of their own runs (n), by point and H."""
    recording = figure.recording
    steps = _path(recording)
    paths = dict(zip(steps, laboratory.latents(recording, replicate, steps), strict=True))
    base, rule = laboratory.base(recording, replicate), combiner(_WEIGHTS)
    of_entry = base.noise_ids()
    of_query = np.asarray(laboratory.noise_ids(laboratory.scale.prompts))
    found: Estimated = {}
    latents = {step: base.keys(range(len(base)), step) for step in recording.key_steps}
    latents |= {step: base.values(range(len(base)), step) for step in recording.value_steps}
    for point in figure.points:
        queries = paths[point.key_step]
        truth = paths[point.value_step]
        values = {neighbors: torch.empty_like(truth) for neighbors in NEIGHBORS}
        for noise_id in np.unique(of_query):
            rows = np.flatnonzero(of_entry == noise_id)
            rows = rows[: max(1, round(point.share * len(rows)))]
            keys, kept = latents[point.key_step][rows], latents[point.value_step][rows]
            asked = np.flatnonzero(of_query == noise_id)
            apart = torch.cdist(queries[asked].flatten(1), keys.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
            for place, near in zip(asked, apart.argsort(1)[:, : max(NEIGHBORS)], strict=True):
                for neighbors in NEIGHBORS:
                    few = near[:neighbors]
                    values[neighbors][place] = rule.combine(queries[place], keys[few], kept[few]).values
        for neighbors, estimate in values.items():
            found[point, neighbors] = estimate, (estimate - truth).flatten(1).norm(dim=1).double().numpy()
    return found
