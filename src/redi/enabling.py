"""Owns the two verbs that attach a knowledge base to a pipeline, and the one to look; must not know files or weights.

redi.enable(pipe, "my-base", value_step=6)
image = pipe("an astronaut riding a horse").images[0]
print(redi.summary(pipe))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from typing import Any, TypedDict

from redi.attachment import intercept_calls, interception_of, release
from redi.calibrations import Way, read
from redi.compatibility import check_pipeline, complete_call, pipeline_differences
from redi.errors import InputError, KnowledgeBaseError, RediError, RetrievalError, warn
from redi.growing import Grower, GrowingPolicy
from redi.jumping import JumpPolicy, JumpRule
from redi.knowledge_base import KnowledgeBase, describe_differences
from redi.knowledge_base.growth import Growth
from redi.reporting import reported_call
from redi.retrieval import (
    DEFAULT_WEIGHTS,
    SCORES,
    Combiner,
    Gate,
    Limit,
    Report,
    combiner,
    format_reports,
    gates_by_step,
)

DEFAULT_QUANTILE = 0.9
"""The gate that is used when none is named, as a quantile of the base's own leave-one-out distances."""


class JumpOptions(TypedDict, total=False):
    """The keyword arguments of :func:`enable`, as ``generate`` and ``stylize`` take them too."""

    key_step: int | None
    value_step: int | None
    neighbors: int | None
    weights: str | Combiner
    max_distance: Limit | None
    quantile: Limit | None
    max_loss: float | None
    strict: bool
    allow_stochastic: bool
    grow: bool | Growth


class Enabled:
    """A pipeline's calls going through a knowledge base; what :func:`enable` returns. As a context manager it
    disables at the end of the block.

    Attributes:
        pipe: The pipeline.
        base: The knowledge base.
        rule: How images jump.
        grower: Adds images that run in full to the base; None if it does not grow.
        reports: One per image of the latest call.
    """

    def __init__(self, pipe: Any, base: KnowledgeBase, rule: JumpRule, grower: Grower | None = None) -> None:
        self.pipe, self.base, self.rule, self.grower = pipe, base, rule, grower
        self.reports: list[Report] = []

    def policy(self) -> JumpPolicy:
        """Return what decides the images of one call, with the base as it is on the disk now."""
        with suppress(KnowledgeBaseError):  # what was read of a base that vanished serves as far as it goes
            self.base = self.base.current()
        if self.grower is None:
            return JumpPolicy(self.base, self.pipe.scheduler, self.rule)
        return GrowingPolicy(self.base, self.pipe.scheduler, self.rule, self.grower)

    def close(self) -> None:
        """Store what waits to be added to the base."""
        if self.grower is not None:
            self.grower.close()

    def __call__(self, pipe: Any, call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Make one call of the pipeline (Algorithm 2); returns what the pipeline returns."""
        self.reports = []
        arguments = complete_call(self.base, pipe, call, args, kwargs)
        check_pipeline(self.base, pipe, allow_stochastic=self.rule.allow_stochastic)
        output, self.reports = reported_call(pipe, call, arguments, self.policy())
        return output

    def __enter__(self) -> Enabled:
        return self

    def __exit__(self, *exception: object) -> None:
        if _enabled(self.pipe) is self:
            release(self.pipe)
        self.close()

    def __repr__(self) -> str:
        rule, last = self.rule, self.base.plan.num_inference_steps
        gates = sorted(rule.gates.items(), reverse=True)
        steps = " or ".join(str(step) for step, _ in gates)
        limit = ", ".join(f"{step} {_told(gate)}" if len(gates) > 1 else _told(gate) for step, gate in gates)
        return (
            f"{self.base.path}: {len(self.base)} entries, {len(self.base.noise_bank)} noises; "
            f"step {rule.key_step} -> {steps} of {last}, "
            f"{rule.neighbors} neighbours, {type(rule.combiner).__name__}, {limit}"
        )


def enable(
    pipe: Any,
    kb: KnowledgeBase | str | PathLike[str],
    *,
    key_step: int | None = None,
    value_step: int | None = None,
    neighbors: int | None = None,
    weights: str | Combiner = DEFAULT_WEIGHTS,
    max_distance: Limit | None = None,
    quantile: Limit | None = None,
    max_loss: float | None = None,
    strict: bool = False,
    allow_stochastic: bool = False,
    grow: bool | Growth = False,
) -> Enabled:
    """Let every ``pipe(...)`` jump by the trajectories of a knowledge base (Algorithm 2), until :func:`disable`.

    Settings that the base was built with (steps, guidance scale, negative prompt, size) need not be repeated in the
    call, and may not contradict it. Noises come from the base's bank, chosen by the call's ``generator``. A second
    time replaces the first. What the pipeline returns is what the pipeline made: images, latents, a tuple.

    Args:
        pipe: A Diffusers pipeline.
        kb: A knowledge base, or its folder.
        key_step: Completed steps after which the base is asked; by default the plan's.
        value_step: Completed steps to go on from; by default the plan's last (the fewest calls).
        neighbors: Entries to combine (H); by default what ``weights`` likes (kriging 64, the paper's 2).
        weights: "kriging", "least-squares" (the paper's), "affine", "nearest", or an object of your own.
        max_distance: An image whose nearest neighbour is further away runs in full; infinity for no limit. Or a limit
            for each of several value steps, in place of ``value_step``: with ``{30: 9.0, 40: 4.0}`` an image goes on
            from the latest step whose limit its nearest neighbour meets, and beyond all of them it runs in full.
        quantile: The same as a quantile of the base's own leave-one-out distances; DEFAULT_QUANTILE if you name
            neither and the base is finished.
        max_loss: In place of ``value_step`` and a limit: let each image choose its own step so that the mean loss stays
            below this, at the fewest calls. Needs :func:`redi.calibrate`, whose unit it is in.
        strict: Raise where an image would run in full because its noise is foreign or its retrieval failed; by
            default it warns.
        allow_stochastic: Run samplers that add noise (ancestral, SDE, ``eta``), with a warning: the theory is of ODEs.
        grow: Add images that run in full to the base, in the background; a ``Growth`` says how far and what goes then.

    Returns:
        What is enabled; use it in a ``with`` statement to disable at its end.

    Raises:
        PlanError: The base does not hold that key or value step.
        InputError: ``neighbors`` is not a number of at least 1; or limits of several value steps do not shrink from
            step to step, or stand beside ``value_step``.
        RetrievalError: ``weights`` is unknown, or the gate is out of range.
        KnowledgeBaseError: The base is missing, damaged or empty, or a quantile is asked of an unfinished one, or
            ``max_loss`` of one that is not calibrated for this key step and these weights, or has grown since.
        UnsupportedError: redi has not been tested with this pipeline or scheduler.
        IncompatibleError: The pipeline is not the one that the base was built with; both sides are printed.
    """
    enabled = prepare(
        pipe,
        kb,
        key_step=key_step,
        value_step=value_step,
        neighbors=neighbors,
        weights=weights,
        max_distance=max_distance,
        quantile=quantile,
        max_loss=max_loss,
        strict=strict,
        allow_stochastic=allow_stochastic,
        grow=grow,
    )
    disable(pipe)
    intercept_calls(pipe, enabled)
    return enabled


def prepare(
    pipe: Any,
    kb: KnowledgeBase | str | PathLike[str],
    *,
    key_step: int | None = None,
    value_step: int | None = None,
    neighbors: int | None = None,
    weights: str | Combiner = DEFAULT_WEIGHTS,
    max_distance: Limit | None = None,
    quantile: Limit | None = None,
    max_loss: float | None = None,
    strict: bool = False,
    allow_stochastic: bool = False,
    grow: bool | Growth = False,
) -> Enabled:
    """Check everything that :func:`enable` checks, and leave the pipeline as it is."""
    base = open_base(kb)
    gates = _asked(base, value_step, max_distance, quantile) if max_loss is None else {}
    key_step, _ = base.plan.choose(key_step)
    rule = combiner(weights)
    neighbors = rule.default_neighbors if neighbors is None else neighbors
    if isinstance(neighbors, bool) or not isinstance(neighbors, int) or neighbors < 1:
        raise InputError(f"neighbors={neighbors!r}", expected="a whole number of at least 1")
    check_pipeline(base, pipe, allow_stochastic=allow_stochastic)
    resolved = {step: _resolved(base, gate, key_step) for step, gate in gates.items()}
    if max_loss is not None:
        beside = {"value_step": value_step, "max_distance": max_distance, "quantile": quantile}
        resolved = _promised(base, max_loss, Way.of(key_step, neighbors, rule), beside)
    grower = None
    if grow is not False:
        if allow_stochastic:
            raise InputError("grow beside allow_stochastic", expected="entries that follow from prompt and noise alone")
        grower = Grower(base, Growth() if grow is True else grow)
    return Enabled(pipe, base, JumpRule(key_step, resolved, neighbors, rule, strict, allow_stochastic), grower)


def open_base(kb: KnowledgeBase | str | PathLike[str]) -> KnowledgeBase:
    """Return a knowledge base that has entries, opened if it is a path.

    Raises:
        KnowledgeBaseError: It is missing, damaged or empty.
    """
    base = kb if isinstance(kb, KnowledgeBase) else KnowledgeBase.open(kb)
    if len(base) == 0:
        raise KnowledgeBaseError(f"{base.path} has no entries", fix="build it first (redi build)")
    base.check_files()
    return base


def disable(pipe: Any) -> None:
    """Give a pipeline its own call back, and store what waits to be added; one that is not enabled stays as it is."""
    enabled = _enabled(pipe)
    release(pipe)
    if enabled is not None:
        enabled.close()


def reports(pipe: Any) -> list[Report]:
    """Return one report per image of the latest call since :func:`enable`; empty if there is none."""
    enabled = _enabled(pipe)
    return list(enabled.reports) if enabled else []


def summary(pipe: Any) -> str:
    """Return what is enabled on a pipeline, what happened to the images of its latest call, and what has changed."""
    enabled = _enabled(pipe)
    if enabled is None:
        return f"redi is not enabled on this {type(pipe).__name__}. Enable it: redi.enable(pipe, kb)"
    parts = [f"redi is enabled with {enabled!r}", *_changes(enabled)]
    parts.append(format_reports(enabled.reports) if enabled.reports else "no image has been generated yet")
    return "\n".join(parts)


def _changes(enabled: Enabled) -> list[str]:
    """Say what was replaced on the pipeline since it was enabled."""
    try:
        found = pipeline_differences(enabled.base, enabled.pipe)
    except RediError as error:
        return [f"the pipeline has changed, its next call will be refused: {error}"]
    if not found:
        return []
    replaced = any(difference.field.startswith(("scheduler.", "prediction_type")) for difference in found)
    what = "pipe.scheduler was replaced" if replaced else "the pipeline has changed"
    more = f"\nand {len(found) - 3} more differences" if len(found) > 3 else ""
    return [f"{what}; the next call will be refused:\n{describe_differences(found[:3])}{more}"]


def _enabled(pipe: Any) -> Enabled | None:
    around = interception_of(pipe)
    return around if isinstance(around, Enabled) else None


def _asked(
    base: KnowledgeBase, value_step: int | None, max_distance: Limit | None, quantile: Limit | None
) -> Mapping[int, Gate]:
    """Return the gate of each value step that was asked for, not yet resolved."""
    if not isinstance(max_distance, Mapping) and not isinstance(quantile, Mapping):
        _, step = base.plan.choose(None, value_step)
        return {step: Gate(max_distance, quantile)}
    if max_distance is not None and quantile is not None:
        raise RetrievalError(f"max_distance={max_distance!r} and quantile={quantile!r}", expected="one of the two")
    if value_step is not None:
        raise InputError(
            f"value_step={value_step!r} beside a limit for each of several steps",
            expected="the value steps named once",
            fix="leave value_step out, or give one limit",
        )
    name, limits = ("max_distance", max_distance) if isinstance(max_distance, Mapping) else ("quantile", quantile)
    gates = gates_by_step(name, limits if isinstance(limits, Mapping) else {})
    for step in gates:
        base.plan.choose(None, step)
    return gates


def _promised(base: KnowledgeBase, max_loss: float, way: Way, beside: Mapping[str, Any]) -> dict[int, Gate]:
    """Return the gates that keep a base's mean loss below ``max_loss``, by its calibration."""
    given = {name: value for name, value in beside.items() if value is not None}
    if given:
        raise InputError(
            f"max_loss={max_loss!r} beside {', '.join(f'{name}={value!r}' for name, value in given.items())}",
            expected="max_loss alone: it chooses value steps and limits",
        )
    return read(base, way).choose(max_loss).gates


def _told(gate: Gate) -> str:
    for what in SCORES:
        limit = getattr(gate, f"max_{what}")
        if limit is not None and not math.isinf(limit):
            return f"up to {what} {limit:.4g}"
    return "no gate"


def _resolved(base: KnowledgeBase, asked: Gate, key_step: int) -> Gate:
    """Return the gate as a distance; the default one is left out where the base has no distances to take it from."""
    if asked.max_distance is not None:
        return asked
    if asked.quantile is not None:
        return asked.resolve(base.leave_one_out(key_step))
    try:
        return Gate(quantile=DEFAULT_QUANTILE).resolve(base.leave_one_out(key_step))
    except RediError as error:
        warn(f"no gate: every image that has a neighbour jumps, however far it is, because {error}")
        return Gate()
