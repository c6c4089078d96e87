"""Owns measuring what jumps cost a base's pictures: prompts run in full and to each value step; must not know gates.

redi.calibrate(pipe, kb, prompts)
redi.enable(pipe, kb, max_loss=0.5)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redi.calibration import LEAST_PROMPTS, Measurements
from redi.calibrations import Calibration, Way, write
from redi.enabling import prepare
from redi.errors import InputError, warn
from redi.generating import Base, Generation, full, generate
from redi.knowledge_base import KnowledgeBase
from redi.knowledge_base.upkeep import parts
from redi.pipelines import MINIATURE
from redi.retrieval import DEFAULT_WEIGHTS, Combiner, Report
from redi.samples import numbers

Loss = Callable[[Sequence[Any], Sequence[Any]], NDArray[np.float64]]
"""Tells how far samples (n), as the pipeline returns them, are from their runs in full (n): (n) numbers from 0."""


@dataclass(frozen=True, eq=False)
class Trials:
    """The same prompts from the same noises, in full and jumped to each value step, whatever their distance."""

    full: list[Generation]
    jumped: Mapping[int, list[Generation]]

    def measured(self, losses: Mapping[int, NDArray[np.float64]]) -> Measurements:
        """Return what a calibration is made of, of the images that jumped.

        Args:
            losses: By value step: (n).

        Raises:
            InputError: Too few images jumped, or a loss is not a number of at least 0.
        """
        reports = {step: [each.report for each in made] for step, made in self.jumped.items()}
        first = next(iter(reports.values()))
        places = np.flatnonzero([all(rows[i].jumped for rows in reports.values()) for i in range(len(first))])
        if len(places) < len(first):
            why = next(rows[i].reason for i in range(len(first)) for rows in reports.values() if not rows[i].jumped)
            warn(f"{len(first) - len(places)} of {len(first)} calibration prompts did not jump and do not count: {why}")
        if len(places) < LEAST_PROMPTS:
            raise InputError(f"{len(places)} calibration prompts that jumped", expected=f"at least {LEAST_PROMPTS}")
        counted = [first[place] for place in places]
        return Measurements(
            _scores(counted),
            {step: np.asarray(losses[step], np.float64)[places] for step in reports},
            {step: float(rows[places[0]].calls) for step, rows in reports.items()},
            float(self.full[0].report.calls),
        )


def calibrate(
    pipe: Any,
    kb: Base,
    prompts: Sequence[str],
    *,
    measure: str | Loss | None = None,
    key_step: int | None = None,
    neighbors: int | None = None,
    weights: str | Combiner = DEFAULT_WEIGHTS,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
    allow_stochastic: bool = False,
) -> Calibration:
    """Measure what jumps cost on this base, and keep it beside the base for ``enable(..., max_loss=x)``.

    Every prompt runs in full, and from the same noise to each of the base's value steps. Prompts that the base holds
    word for word are left out: they would end nearer than new ones do.

    Args:
        pipe: A Diffusers pipeline, left as it is.
        kb: A knowledge base, or its folder.
        prompts: Like those that will be asked for, at least 20; with a few hundred the promise is tight.
        measure: How far two samples are apart: "closeness" (L2 in the features of redi's own evaluator: pictures of the
            bundled model), "pixels" (root mean square difference, pixels of 0 to 1), or a function of yours. By default
            "closeness" on a base of the bundled model, else "pixels".
        key_step: As of :func:`redi.enable`, as the following.
        neighbors: Entries to combine (H).
        weights: How they are combined.
        seed: Chooses the noises.
        batch_size: Pictures per pipeline call.
        progress: Show a progress bar.
        allow_stochastic: Run samplers that add noise.

    Raises:
        InputError: There are too few prompts, or the measure is unknown or does not fit what the pipeline makes.
        RediError: As :func:`redi.generate`.
    """
    enabled = prepare(
        pipe,
        kb,
        key_step=key_step,
        neighbors=neighbors,
        weights=weights,
        max_distance=float("inf"),
        allow_stochastic=allow_stochastic,
    )
    base, rule = enabled.base, enabled.rule
    name, loss = _loss(base, measure)
    texts = _fresh(base, prompts)
    tried = trials(
        pipe,
        base,
        texts,
        key_step=rule.key_step,
        neighbors=rule.neighbors,
        weights=rule.combiner,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
        allow_stochastic=allow_stochastic,
    )
    in_full = [each.output for each in tried.full]
    losses = {step: loss([each.output for each in made], in_full) for step, made in tried.jumped.items()}
    way = Way.of(rule.key_step, rule.neighbors, rule.combiner)
    calibration = Calibration(way, name, tried.measured(losses))
    write(base, calibration)
    return calibration


def trials(
    pipe: Any,
    base: KnowledgeBase,
    prompts: Sequence[str],
    *,
    key_step: int,
    neighbors: int | None = None,
    weights: str | Combiner,
    allow_stochastic: bool = False,
    **common: Any,
) -> Trials:
    """Run prompts in full and to each value step; ``common`` as of :func:`redi.generating.full`."""
    common["allow_stochastic"] = allow_stochastic
    in_full = full(pipe, base, prompts, **common)
    rule: dict[str, Any] = {"key_step": key_step, "neighbors": neighbors, "weights": weights}
    jumped = {
        step: generate(pipe, base, prompts, value_step=step, max_distance=float("inf"), **rule, **common)
        for step in base.plan.value_steps
    }
    return Trials(in_full, jumped)


def calls_to_make(base: KnowledgeBase, prompts: int, key_step: int | None = None) -> int:
    """Return how many steps of one picture a calibration runs."""
    plan = base.plan
    key, _ = plan.choose(key_step)
    steps = plan.num_inference_steps
    return prompts * (steps + sum(steps - (value - key) for value in plan.value_steps))


def _scores(reports: Sequence[Report]) -> dict[str, NDArray[np.float64]]:
    scores: dict[str, list[float | None]] = {
        "distance": [each.neighbors[0].distance for each in reports],
        "residual": [each.residual for each in reports],
        "variance": [each.variance for each in reports],
    }
    return {name: np.asarray(found, np.float64) for name, found in scores.items() if None not in found}


def _fresh(base: KnowledgeBase, prompts: Sequence[str]) -> list[str]:
    """Leave out prompts that the base holds, and repeats."""
    held = {prompt for rows in parts(base) for prompt in base.prompts(rows)}
    asked = list(dict.fromkeys([prompts] if isinstance(prompts, str) else prompts))
    texts = [text for text in asked if text not in held]
    if len(texts) < len(asked):
        warn(f"{len(asked) - len(texts)} of {len(asked)} calibration prompts are in the base and do not count")
    if len(texts) < LEAST_PROMPTS:
        raise InputError(
            f"{len(texts)} calibration prompts that the base does not hold",
            expected=f"at least {LEAST_PROMPTS} different ones; a few hundred make the promise tight",
        )
    return texts


def _loss(base: KnowledgeBase, measure: str | Loss | None) -> tuple[str, Loss]:
    if measure is not None and not isinstance(measure, str):
        return getattr(measure, "__name__", type(measure).__name__), measure
    of_miniature = base.manifest.identity.get("information", {}).get("model") == MINIATURE
    name = measure or ("closeness" if of_miniature else "pixels")
    if name not in MEASURES:
        raise InputError(f"measure {name!r}", expected=f"one of {', '.join(MEASURES)}, or a function of two lists")
    return name, MEASURES[name]


def _closeness(samples: Sequence[Any], in_full: Sequence[Any]) -> NDArray[np.float64]:
    """Return L2 in the features of the bundled evaluator, (n)."""
    from redi.miniature.evaluation import bundled_evaluator

    evaluator = bundled_evaluator()
    return np.asarray(np.linalg.norm(evaluator.features(samples) - evaluator.features(in_full), axis=1), np.float64)


def _pixels(samples: Sequence[Any], in_full: Sequence[Any]) -> NDArray[np.float64]:
    """Return the root mean square difference of pictures, frames or waveforms, (n)."""
    pairs = zip(samples, in_full, strict=True)
    return np.asarray([float(np.sqrt(((numbers(one) - numbers(other)) ** 2).mean())) for one, other in pairs])


MEASURES: Mapping[str, Loss] = {"closeness": _closeness, "pixels": _pixels}
"""Losses by name."""
