"""Claims about schedulers that nobody listed: refused, until their user has them admitted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, LMSDiscreteScheduler
from torch import Tensor

import closed_form
import redi
from redi.engine import Jump, run
from redi.errors import InputError, UnsupportedError
from redi.solvers import MultistepFacts, SolverFacts, TwoCallFacts, admitted, facts_for, register
from solver_cases import SD
from solver_table import MEANS, X_T
from tiny import Watcher

PAGE = Path(__file__).parents[1] / "docs/solvers.md"


@pytest.fixture(autouse=True)
def _as_if_nothing_were_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admitted, "_FACTS", dict(admitted._FACTS))
    monkeypatch.setattr(admitted, "_REGISTERED", {})


class MyEuler(EulerDiscreteScheduler):
    """A single-step solver of a user's."""


class MyMultistep(DPMSolverMultistepScheduler):
    """A multistep solver of a user's, with the history of its parent."""


class HiddenState(EulerDiscreteScheduler):
    """Remembers outside of the instance what another run of it did."""

    steps_made: ClassVar = [0]

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **more: Any) -> Any:
        self.steps_made[0] += 1
        return super().step(model_output * (1 + 0.01 * self.steps_made[0]), timestep, sample, **more)


class Headless(EulerDiscreteScheduler):
    """Takes its arguments by other names."""

    def step(self, prediction: Tensor, time: Any, latents: Tensor) -> Any:  # type: ignore[override]
        return super().step(prediction, time, latents)


def test_a_scheduler_that_nobody_listed_is_refused_with_the_test_that_would_admit_it() -> None:
    with pytest.raises(UnsupportedError) as refused:
        facts_for(MyEuler())
    path, test = re.search(r"(tests/\w+\.py)::(\w+)", str(refused.value)).groups()  # type: ignore[union-attr]
    assert f"def {test}(" in (Path(__file__).parents[1] / path).read_text()
    assert "redi.solvers.register" in str(refused.value)


def test_a_setting_that_nobody_measured_is_refused_with_the_same_test() -> None:
    with pytest.raises(UnsupportedError, match=r"timestep_type='continuous'(?s:.*)test_solver_table.py::"):
        facts_for(EulerDiscreteScheduler(**SD, timestep_type="continuous", prediction_type="v_prediction"))


def test_a_registered_scheduler_jumps_like_any_other() -> None:
    register(MyMultistep(**SD), MultistepFacts(settings=dict.fromkeys(SD)))
    pipe, own = closed_form.loop(MyMultistep(**SD)), Watcher()
    with run(pipe, own):
        full = pipe(MEANS, X_T, 20)
    with run(pipe, Watcher(5, lambda latents: [Jump(12, value) for value in own.seen[12]])) as statistics:
        jumped = pipe(MEANS, X_T, 20)
    assert statistics.calls == [13, 13]
    assert closed_form.distance(jumped, full) < 1e-3


def test_a_registered_scheduler_without_history_loses_nothing() -> None:
    register(MyEuler(**SD), SolverFacts(settings=dict.fromkeys(SD)))
    pipe, own = closed_form.loop(MyEuler(**SD)), Watcher()
    with run(pipe, own):
        full = pipe(MEANS, X_T, 20)
    with run(pipe, Watcher(5, lambda latents: [Jump(12, value) for value in own.seen[12]])):
        assert torch.equal(pipe(MEANS, X_T, 20), full)


def test_settings_of_a_registered_scheduler_that_were_not_named_are_refused() -> None:
    register(MyEuler(), SolverFacts())
    with pytest.raises(UnsupportedError, match="use_karras_sigmas=True"):
        facts_for(MyEuler(use_karras_sigmas=True))


@pytest.mark.parametrize(
    ("scheduler", "facts", "promise"),
    [
        (HiddenState(), SolverFacts(), "the second time"),
        (Headless(), SolverFacts(), r"step\(prediction, time, latents\)"),
        (MyMultistep(), SolverFacts(), "by a jump to its own value"),
        (MyEuler(), TwoCallFacts(), "12 timesteps for 12 steps"),
        (type("MyHeun", (HeunDiscreteScheduler,), {})(), SolverFacts(), "23 timesteps for 12 steps"),
        (object(), SolverFacts(), "has no set_timesteps"),
        (
            type("MyLMS", (LMSDiscreteScheduler,), {})(),
            MultistepFacts(),
            "fails in a trial run: (?s:.*)_sigma_to_alpha",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_promise_is_told(scheduler: object, facts: SolverFacts, promise: str) -> None:
    with pytest.raises(UnsupportedError, match=promise):
        register(scheduler, facts)
    with pytest.raises(UnsupportedError, match="a scheduler that has passed"):
        facts_for(scheduler)


def test_what_is_admitted_already_is_not_admitted_twice() -> None:
    with pytest.raises(InputError, match="already admitted"):
        register(EulerDiscreteScheduler(), SolverFacts())
    with pytest.raises(InputError, match="facts of type str"):
        register(MyEuler(), "euler")  # type: ignore[arg-type]


def test_another_class_of_a_registered_name_is_not_the_registered_one() -> None:
    register(MyEuler(), SolverFacts())
    namesake = type("MyEuler", (EulerDiscreteScheduler,), {})
    with pytest.raises(UnsupportedError, match="a scheduler that has passed"):
        facts_for(namesake())


def test_the_example_of_the_page_of_solvers_admits_its_scheduler() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, str(PAGE), "exec"), names)
    assert facts_for(names["HalfwayScheduler"](use_karras_sigmas=True)).settings


def test_register_is_reached_from_redi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(redi, "solvers")  # as if nobody had imported it yet
    assert redi.solvers.register is register
