"""Owns the study of estimators of x_v at the same calls; must not know how an estimator works."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redi.experiments.bills import Cost, Route, Work, going_on
from redi.experiments.estimators import ESTIMATORS, NO_NEIGHBOURS, Estimator
from redi.experiments.laboratory import Laboratory
from redi.experiments.predictions import last_prediction
from redi.experiments.quality import difference, figures
from redi.experiments.sample_files import Samples
from redi.experiments.sampling import Recording, Sampling, Scale, redi
from redi.experiments.studies import COMPARED, SHORT
from redi.experiments.wider_estimators import WIDER, Seen
from redi.identity import library_versions
from redi.knowledge_base import KnowledgeBase
from redi.metrics import mean_interval
from redi.results import write_json

_UNIT, *_OTHERS = ESTIMATORS
DEFAULT = "kriging, H=64"
_POOLED = "one kriging for all noises (entries minus their noise's mean)"
_MOST_PICTURES = 6
_AHEAD = "kriging, H=64, keys one step ahead"
_PREDICTED = "kriging, H=64, predictions of x_0 for keys"


def run_estimates(
    laboratory: Laboratory, results: Path, *, tell: Callable[[str], None], recording: Recording = SHORT
) -> dict[str, Any]:
    """Measure how far each estimate of x_v is from the x_v of the query's own run, for each key step.

    Errors are told as a share of the unit: the distance of the mean of the noise's values, which knows no prompt.

    Args:
        laboratory: Has the base and the prompts.
        results: Folder of the results.
        tell: Told the cost first, then each figure as it comes.
        recording: The base: all its key steps and its value steps are looked at.

    Returns:
        What the JSON file holds.
    """
    scale = laboratory.scale
    values = _values(recording)
    tell(f"estimates: at most {laboratory.bill(work(scale, recording))}")
    errors: dict[tuple[int, int, str], list[NDArray[np.float64]]] = {}
    for replicate in range(scale.replicates):
        texts = laboratory.texts(recording, replicate)
        for key_step in recording.key_steps:
            for value_step in values:
                found, truth = _estimated(laboratory, recording, replicate, key_step, value_step, texts)
                for name, each in found.items():
                    apart = (each - truth).norm(dim=1).double().numpy()
                    errors.setdefault((key_step, value_step, name), []).append(apart)
    rows = []
    for (key_step, value_step, name), parts in errors.items():
        unit = np.concatenate(errors[key_step, value_step, _UNIT])
        best = np.concatenate(errors[key_step, value_step, DEFAULT])
        error = np.concatenate(parts)
        told = mean_interval(error / unit.mean())
        against = mean_interval((error - best) / unit.mean())
        row = {"key_step": key_step, "value_step": value_step, "estimator": name}
        rows.append({**row, "error": asdict(told), "against_default": asdict(against)})
        tell(f"key {key_step}, v={value_step}, {name}: {told.value:.3f}")
    place = recording.key_steps[-1], values[0]
    pictures = _pictures(laboratory, recording, place, _promising(rows), tell)
    result = {
        "study": "estimates",
        "kind": "estimates",
        "scale": asdict(scale),
        "subject": laboratory.subject.told(),
        "solver": f"{recording.solver.name}-{recording.solver.steps}",
        "default": DEFAULT,
        "versions": library_versions(),
        "rows": rows,
        "place": place,
        "pictures": pictures,
    }
    write_json(results / scale.name / "estimates.json", result)
    return result


def _promising(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the default, what needs no neighbours, and what is nearer than the default at most places and farther at
    none, the nearest few."""
    apart: dict[str, list[Mapping[str, float]]] = {}
    for row in rows:
        apart.setdefault(row["estimator"], []).append(row["against_default"])
    nearer = [
        name
        for name, each in apart.items()
        if sum(e["high"] < 0 for e in each) > len(each) / 2 and not any(e["low"] > 0 for e in each)
    ]
    mean = {name: np.mean([row["error"]["value"] for row in rows if row["estimator"] == name]) for name in nearer}
    return list(dict.fromkeys([DEFAULT, NO_NEIGHBOURS, *sorted(nearer, key=mean.__getitem__)[:_MOST_PICTURES]]))


def _pictures(
    laboratory: Laboratory,
    recording: Recording,
    place: tuple[int, int],
    names: Sequence[str],
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Return what becomes of the pictures that go on from some estimates, and how they differ from the default's."""
    replicates = range(laboratory.scale.replicates)
    jump = redi(recording, *place, weights="kriging")
    full = [laboratory.sample(Sampling(recording.solver), each) for each in replicates]
    made: dict[str, list[Samples]] = {name: [] for name in names}
    for replicate in replicates:
        found, truth = _estimated(laboratory, recording, replicate, *place, laboratory.texts(recording, replicate))
        shape = (len(truth), *laboratory.subject.latent_shape)
        for name in names:
            made[name].append(laboratory.going_on(jump, replicate, found[name].reshape(shape)))
    rows = []
    for name, samples in made.items():
        apart = {
            each: asdict(
                difference(
                    each, samples, made[DEFAULT], full, laboratory.reference, resamples=laboratory.scale.resamples
                )
            )
            for each in COMPARED
        }
        rows.append({"estimator": name, **figures(samples, full, laboratory.reference), "against_default": apart})
        tell(f"pictures of {name}: {rows[-1]['faithfulness']['value']:.1%} faithful")
    return rows


def _values(recording: Recording) -> tuple[int, ...]:
    return recording.value_steps[len(recording.value_steps) // 2 :: 2]


def work(scale: Scale, recording: Recording) -> Work:
    """Return what the study runs, at most: of pictures those of the best estimates."""
    solver = recording.solver
    pictures = (2 + _MOST_PICTURES) * going_on(solver, _values(recording)[0]) * scale.prompts
    routes, others = (Route(solver, _path(recording)),), {"estimates": Cost(pictures, 0)}
    return Work((Sampling(solver),), recordings=(recording,), routes=routes, others=others)


def _path(recording: Recording) -> tuple[int, ...]:
    """Return the steps whose latents the study takes of all prompts."""
    return tuple(sorted({*range(1, max(recording.key_steps) + 1), *_values(recording)}))


def _estimated(
    laboratory: Laboratory,
    recording: Recording,
    replicate: int,
    key_step: int,
    value_step: int,
    texts: tuple[Tensor, Tensor],
) -> tuple[dict[str, Tensor], Tensor]:
    """Return each estimator's x_v (n, d), and the query's own; ``texts`` of entries and of queries."""
    steps = _path(recording)
    reached = {
        step: each.flatten(1) for step, each in zip(steps, laboratory.latents(recording, replicate, steps), strict=True)
    }
    base = laboratory.base(recording, replicate)
    of_entry = torch.from_numpy(base.noise_ids())
    of_query = torch.tensor(laboratory.noise_ids(len(reached[value_step])))
    truth = reached[value_step]
    every = {step: base.keys(range(len(base)), step).flatten(1) for step in recording.key_steps}
    values = base.values(range(len(base)), value_step).flatten(1)
    default: Estimator = ESTIMATORS[DEFAULT]
    center, middle = (_noise_means(each, of_entry) for each in (every[key_step], values))
    pooled = default(
        reached[key_step] - center[of_query], every[key_step] - center[of_entry], values - middle[of_entry]
    )
    found = {_POOLED: pooled + middle[of_query]}
    others = _other_keys(laboratory.scheduler(recording.solver), base, every, reached, key_step, of_query)
    for noise_id in sorted(set(of_query.tolist())):
        rows, asked = of_entry == noise_id, of_query == noise_id
        keys, queries = every[key_step][rows], reached[key_step][asked]
        made = {name: estimator(queries, keys, values[rows]) for name, estimator in ESTIMATORS.items()}
        entries, seen = (
            Seen(
                of[key_step][some], _at(of, key_step - 1, some), text[some], _at(of, 1, some) if key_step > 1 else None
            )
            for of, some, text in ((every, rows, texts[0]), (reached, asked, texts[1]))
        )
        made |= {name: wider(entries, seen, values[rows]) for name, wider in WIDER.items()}
        made |= {name: default(ours[asked], theirs[rows], values[rows]) for name, (theirs, ours) in others.items()}
        for name, each in made.items():
            found.setdefault(name, torch.empty_like(truth))[asked] = each
    return {name: found[name] for name in (*ESTIMATORS, _POOLED, *WIDER, *others)}, truth


def _at(latents: Mapping[int, Tensor], step: int, some: Tensor) -> Tensor | None:
    return latents[step][some] if step in latents else None


def _other_keys(
    scheduler: Any,
    base: KnowledgeBase,
    every: Mapping[int, Tensor],
    reached: Mapping[int, Tensor],
    key_step: int,
    of_query: Tensor,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return keys of entries and of queries that are made of more steps than one, where the base has these."""
    found = {}
    if key_step - 1 in every:
        theirs, ours = (2 * of[key_step] - of[key_step - 1] for of in (every, reached))
        found[_AHEAD] = theirs, ours
    steps = range(1, key_step + 1)
    if every.keys() >= set(steps):
        start = (base.noise_bank.latents * scheduler.init_noise_sigma).flatten(1)
        theirs, ours = (
            last_prediction(scheduler, [start[noises], *(of[step] for step in steps)]).float()
            for of, noises in ((every, torch.from_numpy(base.noise_ids())), (reached, of_query))
        )
        found[_PREDICTED] = theirs, ours
    return found


def _noise_means(latents: Tensor, of_entry: Tensor) -> Tensor:
    """Return the mean (M, d) of each noise's entries."""
    return torch.stack([latents[of_entry == noise_id].mean(0) for noise_id in range(int(of_entry.max()) + 1)])
