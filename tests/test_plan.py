"""Claims about the arithmetic of steps: what a plan refuses, and the paper's clocks."""

from __future__ import annotations

from typing import Any

import pytest

from redi.errors import PlanError
from redi.plan import Plan, from_paper_clock


def test_steps_are_sorted_without_repeats_and_one_value_may_stand_alone() -> None:
    plan = Plan(50, 3, (40, 20, 40), more_key_steps=(10, 1, 3))
    assert (plan.value_steps, plan.key_steps, plan.more_key_steps) == ((20, 40), (1, 3, 10), (1, 10))
    assert Plan(50, 10, 40) == Plan(50, 10, (40,))  # type: ignore[arg-type]


def test_a_plan_comes_back_from_json() -> None:
    plan = Plan(50, 3, (20, 40), more_key_steps=(1, 10))
    assert Plan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((50, 40, (40,)), "key step 40 is not before value step 40"),
        ((50, 10, (20, 30), (25,)), "key step 25 is not before value step 20"),
        ((50, 10, (50,)), "value step 50 of a schedule of 50"),
        ((50, 10, ()), "value_steps is empty"),
        ((50, 0, (20,)), "key_step=0"),
        ((1, 1, (2,)), "num_inference_steps=1"),
        ((50, 10, (20, "30")), "step '30' is a str"),
        ((50, 10, "20"), "step '20' is a str"),
        ((50, 10, 20.0), "step 20.0 is a float"),
        ((50, 10, None), "step None is a NoneType"),
        ((50, True, (20,)), "step True is a bool"),
        ((50, 10, (20,), (1, "3")), "step '3' is a str"),
    ],
)
def test_steps_that_make_no_plan_are_refused(arguments: Any, said: str) -> None:
    with pytest.raises(PlanError, match=f"{said}(?s:.*)Expected: "):
        Plan(*arguments)


@pytest.mark.parametrize("fields", [{}, {"num_inference_steps": 50, "key_step": 10, "value_steps": 3}])
def test_a_damaged_plan_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="Expected: "):
        Plan.from_dict(fields)


def test_the_last_value_is_the_default_and_other_steps_are_refused() -> None:
    plan = Plan(50, 10, (20, 40), more_key_steps=(3,))
    assert plan.choose() == (10, 40)
    assert plan.choose(3, 20) == (3, 20)
    for choice in ((5, None), (None, 30)):
        with pytest.raises(PlanError, match="Expected: one of the recorded"):
            plan.choose(*choice)


def test_the_papers_clocks_count_down_for_pndm_and_up_for_dpm() -> None:
    assert from_paper_clock("pndm", 50, 40, (30, 20, 10)) == Plan(50, 10, (20, 30, 40))
    assert from_paper_clock("pndm", 50, 47, (40,)) == Plan(50, 3, (10,))
    assert from_paper_clock("dpm", 20, 5, (8, 15)) == Plan(20, 5, (8, 15))
    with pytest.raises(PlanError, match="'pndm' or 'dpm'"):
        from_paper_clock("heun", 50, 40, (10,))
