"""Every admitted solver with every admitted setting, held against the closed form: the test that admits a solver."""

from __future__ import annotations

from pathlib import Path

import pytest

from redi.solvers import SolverFacts, TwoCallFacts, facts_for
from redi.solvers.admitted import admitted_names, class_named
from solver_cases import CASES
from solver_table import BAR, measure, page, rows_of

ALL = pytest.mark.parametrize("place", range(len(CASES)), ids=[f"{case.name}-{case.steps}" for case in CASES])
KINDS = [name for name in admitted_names() if class_named(name).__module__.startswith("diffusers")]


@ALL
def test_a_jump_costs_at_most_half_of_the_full_runs_error_more(place: int) -> None:
    """With the exact x_v."""
    assert measure(place).ratio <= BAR


@ALL
def test_a_solver_without_history_ends_bit_identical_after_a_jump_to_its_own_value(place: int) -> None:
    measured = measure(place)
    assert measured.bit_identical == measured.loses_nothing


@ALL
def test_taking_the_first_step_again_never_loses_more_than_an_euler_step(place: int) -> None:
    measured = measure(place)
    assert measured.lost <= measured.lost_by_euler_step


@ALL
def test_a_jump_pays_for_the_steps_before_k_and_after_v_and_not_a_call_more(place: int) -> None:
    case = CASES[place]
    facts, value_step = facts_for(case.scheduler()), case.value_steps[-1]
    whole = facts.total_calls(case.steps)
    paid = facts.call_index(case.key_step) + whole - facts.call_index(value_step)
    assert (measure(place).calls, measure(place).calls_after) == (whole, paid)


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_that_is_admitted_is_measured(kind: str) -> None:
    """A setting is admitted by a case that passes the tests of this file, not by a line in a table."""
    schedulers = [case.scheduler() for case in CASES if f"{case.kind}Scheduler" == kind]
    admitted = {name: values for name, values in facts_for(schedulers[0]).settings.items() if values}
    measured = {name: {scheduler.config.get(name) for scheduler in schedulers} for name in admitted}
    assert {
        name: set(values) - measured[name] for name, values in admitted.items() if set(values) - measured[name]
    } == {}


def test_a_solver_of_one_evaluation_a_step_or_two_is_said_to_lose_nothing() -> None:
    single = [
        place for place, case in enumerate(CASES) if type(facts_for(case.scheduler())) in (SolverFacts, TwoCallFacts)
    ]
    assert single
    assert all(measure(place).loses_nothing for place in single)


@pytest.mark.parametrize(("kind", "steps", "bound"), [("PNDM", 50, 5e-5), ("UniPCMultistep", 20, 1e-4)])
def test_the_restart_of_the_papers_sampler_and_of_unipc_is_nearer_than_one_with_a_call_more(
    kind: str, steps: int, bound: float
) -> None:
    """PLMS' own repeated first step, a call more, comes within 1e-4; an Euler step within 5e-4."""
    place = next(place for place, case in enumerate(CASES) if (case.kind, case.steps) == (kind, steps))
    assert measure(place).lost < bound < measure(place).lost_by_euler_step


def test_the_page_of_solvers_says_what_is_measured() -> None:
    """Words must be equal; numbers may differ by what another processor's rounding makes of them."""
    committed = (Path(__file__).parents[1] / "docs/solvers.md").read_text()
    measured = page()
    assert _words(committed) == _words(measured), "make docs writes it again"
    for old, new in zip(rows_of(committed), rows_of(measured), strict=True):
        assert [_number(cell) for cell in old] == pytest.approx([_number(cell) for cell in new], rel=0.15, abs=3e-6), (
            f"make docs writes it again: {old[:2]}"
        )


def _number(cell: str) -> float:
    try:
        return float(cell.split(" ")[0])
    except (ValueError, IndexError):
        return 0.0


def _words(text: str) -> list[list[str]]:
    """Return the page without the numbers that are measured."""
    kept = [0, 1, 2, 3, 4, 5, 10]
    lines = [line.split(" | ") for line in text.splitlines()]
    return [
        [cells[place] for place in kept] + cells[7].split(" ")[2:] if len(cells) == 11 else cells for cells in lines
    ]
