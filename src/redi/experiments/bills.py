"""Owns what samplings cost before they are run: network calls, hours, latents that are kept; must not know how they
run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from redi.experiments.sampling import CHAINED, Recording, Sampling, Scale, Solver

There = Callable[[str, Sampling | Recording, int], int]

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


def cost(
    samplings: Sequence[Sampling],
    scale: Scale,
    *,
    diversity: bool = False,
    at_value: bool = False,
    recordings: Sequence[Recording] = (),
    there: There = lambda kind, what, replicate: 0,
) -> Cost:
    """Return what the samplings and the bases that they need take at a scale.

    Args:
        samplings: Each is run once for every replicate, however often it is named.
        scale: How large the study is.
        diversity: Whether that is measured too.
        at_value: Whether jumps' distances at x_v are.
        recordings: Bases that are needed besides.
        there: How much of a replicate is there: pictures of a sampling's "samples" or "diversity", prompts of its
            "at_value", or entries of a recording's "bases" or "ends".
    """
    calls, bases = 0, {(each, replicate) for each in recordings for replicate in range(scale.replicates)}
    ends: set[tuple[Recording, int]] = set()
    for sampling in dict.fromkeys(samplings):
        for replicate in range(scale.replicates):
            jump = sampling.jump
            pictures = scale.prompts - there("samples", sampling, replicate)
            if diversity and diverse(sampling):
                pictures += scale.spread - there("diversity", sampling, replicate)
            measured = scale.prompts - there("at_value", sampling, replicate) if at_value and jump else 0
            calls += pictures * calls_of(sampling)
            if jump and measured:
                before = jump.key_step if jump.key == "trajectory" else 0
                calls += measured * (after(sampling.solver, jump.value_step) + before)
            if sampling.recording and (pictures or measured):
                bases.add((replace(sampling.recording, values="float16"), replicate))
            if sampling.chain and pictures:
                ends.add((sampling.chain.recording, replicate))
    latents = 0
    for recording, replicate in ends:
        calls += ends_of(recording, scale) - there("ends", recording, replicate)
    for recording, replicate in bases:
        entries = round(recording.share * scale.entries)
        missing = max(0, entries - there("bases", recording, replicate))
        calls += missing * after(recording.solver, max(recording.value_steps))
        latents += missing * (len(recording.key_steps) + len(recording.value_steps))
    return Cost(calls, latents)


def ends_of(recording: Recording, scale: Scale) -> int:
    """Return of how many entries of a replicate chains ask for the last latents, which a base does not keep."""
    return min(round(recording.share * scale.entries), CHAINED * scale.noises)


def diverse(sampling: Sampling) -> bool:
    """Return whether a sampling's diversity is measured: of the finest runs it would take as much as a whole table."""
    return calls_of(sampling) <= DIVERSE_CALLS


def after(solver: Solver, steps: int) -> int:
    """Return the network calls of so many steps: PNDM repeats one, Heun takes two for each but the last."""
    if solver.name == "heun":
        return 2 * steps - (steps == solver.steps)
    return steps + (solver.name == "pndm" and steps > 1)


def calls_of(sampling: Sampling) -> int:
    """Return the network calls of one picture, at most; where a neighbour's picture is made again, with those."""
    solver, jump = sampling.solver, sampling.jump
    if sampling.chain is not None:
        return len(sampling.chain.stops)
    full = after(solver, solver.steps)
    if jump is None or jump.thresholds or jump.quantile is not None:
        return full
    calls = full - (jump.value_step - jump.key_step)
    if jump.value == "picture":
        calls += full + (jump.key_step if jump.key == "trajectory" and jump.value_step < solver.steps else 0)
    return calls
