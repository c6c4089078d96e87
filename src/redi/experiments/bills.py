"""Owns what work costs before it is done: network calls, hours, latents that are kept; must not know how it is done."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from redi.experiments.sampling import CHAINED, Recording, Sampling, Scale, Solver

_BYTES = 2


@dataclass(frozen=True)
class Speed:
    """How many network calls of one picture a second are reckoned with, and whose they are.

    Attributes:
        calls: A second.
        told: Where that is from, in words.
    """

    calls: float
    told: str


MINIATURE_SPEED = Speed(120.0, "measured on two CPU cores with nothing beside")
"""Rows of 200 pictures of DPM-Solver++: 120 with 10 steps, 125 with 20, decoding included."""
DIVERSE_CALLS = 100
"""Calls of a picture at most, for its diversity to be measured."""
SD15_SPEED = Speed(20.0, "assumed, as of one A100 at 512x512")
"""With guidance, in float16."""


@dataclass(frozen=True)
class Cost:
    """What a run still takes.

    Attributes:
        calls: Network calls of one picture.
        latents: Keys and values that bases will keep.
    """

    calls: int
    latents: int

    def gigabytes(self, numbers: int) -> float:
        """Return the gigabytes of the bases, of so many numbers a latent, in float16."""
        return self.latents * numbers * _BYTES / 1e9

    def hours(self, speed: Speed) -> float:
        """Return the hours of the calls."""
        return self.calls / speed.calls / 3600

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.calls + other.calls, self.latents + other.latents)

    def __mul__(self, count: int) -> Cost:
        return Cost(self.calls * count, self.latents * count)


@dataclass(frozen=True)
class Route:
    """All prompts of a replicate, run by a solver to the last of some steps, with their latents after each."""

    solver: Solver
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Drift:
    """A replicate's first queries and their nearest entries, measured on the way (:mod:`redi.experiments.divergence`).

    Attributes:
        recording: The base.
        queries: How many.
        calls: Of all of them.
    """

    recording: Recording
    queries: int
    calls: int


@dataclass(frozen=True)
class Work:
    """What an experiment runs at a scale: what it prints before it starts, and what ``docs/experiments.md`` tells.

    Attributes:
        samplings: Of all prompts.
        diversity: Those of them whose diversity is measured, where :func:`diverse` says so.
        at_value: Samplings whose jumps' distances at x_v are measured.
        recordings: Bases that are needed besides.
        routes: Latents on the way.
        drifts: Divergences.
        others: Other calls and latents of one replicate, by what they are: what has the same name is run once.
        frechets: Frechet distances of all pictures.
        kernels: Kernel distances of them.
    """

    samplings: tuple[Sampling, ...] = ()
    diversity: tuple[Sampling, ...] = ()
    at_value: tuple[Sampling, ...] = ()
    recordings: tuple[Recording, ...] = ()
    routes: tuple[Route, ...] = ()
    drifts: tuple[Drift, ...] = ()
    others: Mapping[str, Cost] = field(default_factory=dict)
    frechets: int = 0
    kernels: int = 0


What = Sampling | Recording | Route | Drift
There = Callable[[str, What, int], int]


def cost(work: Work, scale: Scale, *, there: There = lambda kind, what, replicate: 0) -> Cost:
    """Return what work and the bases that it needs take at a scale.

    Args:
        work: Each part is run once for every replicate, however often it is named.
        scale: How large the study is.
        there: How much of a replicate is there: pictures of a sampling's "samples" or "diversity", prompts of its
            "at_value" or of "routes", calls of "drifts", or entries of a recording's "bases" or "ends".
    """
    replicates = range(scale.replicates)
    calls, bases = 0, set(itertools.product(work.recordings, replicates))
    ends: set[tuple[Recording, int]] = set()
    asked, spread, apart = (set(each) for each in (work.samplings, work.diversity, work.at_value))
    for sampling, replicate in itertools.product(asked | spread | apart, replicates):
        jump = sampling.jump
        pictures = scale.prompts - there("samples", sampling, replicate) if sampling in asked else 0
        if sampling in spread and diverse(sampling):
            pictures += scale.spread - there("diversity", sampling, replicate)
        measured = scale.prompts - there("at_value", sampling, replicate) if jump and sampling in apart else 0
        calls += pictures * calls_of(sampling)
        if jump and measured:
            before = after(sampling.solver, jump.key_step) if jump.key == "trajectory" else 0
            calls += measured * (after(sampling.solver, jump.value_step) + before)
        if sampling.recording and (pictures or measured):
            bases.add((replace(sampling.recording, values="float16"), replicate))
        if sampling.chain and pictures:
            ends.add((sampling.chain.recording, replicate))
    for route, replicate in itertools.product(set(work.routes), replicates):
        calls += (scale.prompts - there("routes", route, replicate)) * after(route.solver, max(route.steps))
    for drift, replicate in itertools.product(set(work.drifts), replicates):
        missing = drift.calls - there("drifts", drift, replicate)
        calls += missing
        if missing:
            bases.add((drift.recording, replicate))
    latents = 0
    for recording, replicate in ends:
        calls += ends_of(recording, scale) - there("ends", recording, replicate)
    for recording, replicate in bases:
        entries = round(recording.share * scale.entries)
        missing = max(0, entries - there("bases", recording, replicate))
        calls += missing * after(recording.solver, max(recording.value_steps))
        latents += missing * (len(recording.key_steps) + len(recording.value_steps))
    return sum(work.others.values(), Cost(0, 0)) * scale.replicates + Cost(calls, latents)


def ends_of(recording: Recording, scale: Scale) -> int:
    """Return of how many entries of a replicate chains ask for the last latents, which a base does not keep."""
    return min(round(recording.share * scale.entries), CHAINED * scale.noises)


def diverse(sampling: Sampling) -> bool:
    """Return whether a sampling's diversity is measured: of the finest runs it would take as much as a whole table."""
    return calls_of(sampling) <= DIVERSE_CALLS


def after(solver: Solver, steps: int) -> int:
    """Return the network calls of the first steps: PNDM takes two for the first, Heun for each but the last."""
    if solver.name == "heun":
        return 2 * steps - (steps == solver.steps)
    return steps + (solver.name == "pndm" and steps > 0)


def going_on(solver: Solver, value_step: int) -> int:
    """Return the calls of a run that goes on from an x_v which somebody estimated: one step is run before it."""
    return after(solver, 1) + after(solver, solver.steps) - after(solver, value_step)


def calls_of(sampling: Sampling) -> int:
    """Return the network calls of one picture, at most; where a neighbour's picture is made again, with those."""
    solver, jump = sampling.solver, sampling.jump
    if sampling.chain is not None:
        return len(sampling.chain.stops)
    full = after(solver, solver.steps)
    if jump is None or jump.thresholds or jump.quantile is not None:
        return full
    before = after(solver, jump.key_step)
    calls = full - after(solver, jump.value_step) + before
    if jump.value == "picture":
        calls += full + (before if jump.key == "trajectory" and jump.value_step < solver.steps else 0)
    return calls
