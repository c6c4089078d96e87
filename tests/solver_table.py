"""Owns measuring every case and writing docs/solvers.md; run as a script it prints the page.

Must not know pytest: the tests compare what this module measures with its bars, and the page with what it prints.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import closed_form
from closed_form import distance
from redi.engine import Jump, run
from redi.solvers import MultistepFacts, facts_for, twin
from solver_cases import CASES, Case
from tiny import Watcher, noise

MEANS, X_T = (noise(*seeds, shape=closed_form.SHAPE) for seeds in ((101, 102), (1, 2)))

BAR = 1.5
"""How many errors of the uninterrupted run the error after a jump may be."""


@dataclass(frozen=True)
class Measured:
    """One case. Errors are relative to the exact solution, ``lost`` to the uninterrupted run; worst of the values."""

    calls: int
    calls_after: int
    restart: str
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
    pipe, facts, own = closed_form.loop(case.scheduler()), facts_for(case.scheduler()), Watcher()
    with run(pipe, own) as statistics:
        full = pipe(MEANS, X_T, case.steps)
    levels = closed_form.noise_levels(pipe.scheduler)
    start = X_T * getattr(pipe.scheduler, "init_noise_sigma", 1.0)
    exact = closed_form.solve(start, MEANS, levels[0], levels[-1])
    errors, lost, lost_by_euler, identical, exactly = [], [], [], [], []
    for value_step in case.value_steps:
        values = closed_form.solve(start, MEANS, levels[0], levels[facts.call_index(value_step)])
        errors.append(distance(jumped(pipe, case, value_step, values)[0], exact))
        again, calls_after = jumped(pipe, case, value_step, own.seen[value_step])
        lost.append(distance(again, full))
        identical.append(torch.equal(again, full))
        exactly.append(facts.loses_nothing(pipe.scheduler, value_step))
        lost_by_euler.append(distance(jumped(pipe, case, value_step, own.seen[value_step], retakes=False)[0], full))
    if all(exactly):
        restart = "at v, no history"
    else:
        restart = "first step again" if facts.restart(twin(pipe.scheduler), value_step).retakes else "Euler step"
    return Measured(
        calls=statistics.calls[0],
        calls_after=calls_after,
        restart=restart,
        error=distance(full, exact),
        error_after_jump=max(errors),
        lost=max(lost),
        lost_by_euler_step=max(lost_by_euler),
        bit_identical=all(identical),
        loses_nothing=all(exactly),
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


HEAD = (
    *("solver", "settings", "steps", "v", "calls", "restart", "error in full", "after a jump"),
    *("lost", "lost by an Euler step", "bit-identical"),
)
ALIGNED = ("---", "---", "---:", "---", "---:", "---", "---:", "---:", "---:", "---:", "---")


def row(case: Case, measured: Measured) -> tuple[str, ...]:
    """Return the cells of a case, as the page prints them."""
    taken_again = measured.restart == "first step again"
    return (
        case.kind,
        case.told,
        str(case.steps),
        ", ".join(map(str, case.value_steps)),
        f"{measured.calls} -> {measured.calls_after}",
        measured.restart,
        f"{measured.error:.1e}",
        f"{measured.ratio:.2f} x",
        "0" if measured.bit_identical else f"{measured.lost:.1e}",
        f"{measured.lost_by_euler_step:.1e}" if taken_again else "",
        "yes" if measured.bit_identical else "no",
    )


def page() -> str:
    """Return docs/solvers.md."""
    rows = [row(case, measure(place)) for place, case in enumerate(CASES)]
    words = (Path(__file__).parent / "solvers_page.md").read_text()
    return words.replace("<!-- table -->", "\n".join(map(_line, (HEAD, ALIGNED, *rows))))


def rows_of(page: str) -> list[list[str]]:
    """Return the cells of the rows of the page's table."""
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return [cells for cells in lines if len(cells) == len(HEAD)][2:]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(page(), end="")
