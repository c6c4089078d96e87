"""Owns measuring every case and writing docs/solvers.md; run as a script it prints the page.

Must not know pytest: the tests compare what this module measures with its bars, and the page with what it prints.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

import closed_form
from closed_form import distance
from redi.engine import Jump, run
from redi.solvers import MultistepFacts, facts_for
from solver_cases import CASES, Case
from tiny import Watcher, noise

MEANS, X_T = (noise(*seeds, shape=closed_form.SHAPE) for seeds in ((101, 102), (1, 2)))


@dataclass(frozen=True)
class Measured:
    """One case; errors are relative to the exact solution, ``lost`` to the uninterrupted run; worst of the values."""

    calls: int
    calls_after: int
    rule: str
    error: float
    error_after_jump: float
    lost: float
    lost_by_euler_step: float
    bit_identical: bool
    loses_nothing: bool

    @property
    def ratio(self) -> float:
        """The error after a jump with the exact value, in errors of the uninterrupted run."""
        return self.error_after_jump / self.error


@functools.cache
def measure(place: int) -> Measured:
    """Run case number ``place`` in full and with jumps through the real engine."""
    case = CASES[place]
    pipe = closed_form.loop(case.scheduler())
    facts, own = facts_for(pipe.scheduler), Watcher()
    with run(pipe, own) as statistics:
        full = pipe(MEANS, X_T, case.steps)
    levels = closed_form.noise_levels(pipe.scheduler)
    start = X_T * getattr(pipe.scheduler, "init_noise_sigma", 1.0)
    exact = closed_form.solve(start, MEANS, levels[0], levels[-1])
    errors, lost, lost_by_euler, identical, calls_after, nothing = [], [], [], [], 0, []
    for value_step in case.value_steps:
        here = levels[facts.call_index(value_step)]
        values = closed_form.solve(start, MEANS, levels[0], here)
        errors.append(distance(jumped(pipe, case, value_step, values)[0], exact))
        again, calls_after = jumped(pipe, case, value_step, own.seen[value_step])
        lost.append(distance(again, full))
        identical.append(torch.equal(again, full))
        nothing.append(facts.loses_nothing(pipe.scheduler, value_step))
        lost_by_euler.append(distance(jumped(pipe, case, value_step, own.seen[value_step], retakes=False)[0], full))
    return Measured(
        statistics.calls[0],
        calls_after,
        facts.rule if not all(nothing) else "index at v",
        distance(full, exact),
        max(errors),
        max(lost),
        max(lost_by_euler),
        all(identical),
        all(nothing),
    )


def jumped(
    pipe: closed_form.Loop, case: Case, value_step: int, values: Tensor, retakes: bool = True, means: Tensor = MEANS
) -> tuple[Tensor, int]:
    """Return the latents of a run in which every image jumps to these values, and its calls."""
    watcher = Watcher(case.key_step, lambda latents: [Jump(value_step, value) for value in values])
    with run(pipe, watcher) as statistics, nullcontext() if retakes else euler_steps():
        latents = pipe(means, X_T, case.steps)
    return latents, statistics.calls[0]


@contextmanager
def euler_steps() -> Iterator[None]:
    """Leave the first step after a jump as it is, to see what taking it again brings."""
    retaken = MultistepFacts._retaken
    MultistepFacts._retaken = lambda self, scheduler, arguments, restart, first: arguments
    try:
        yield
    finally:
        MultistepFacts._retaken = retaken
