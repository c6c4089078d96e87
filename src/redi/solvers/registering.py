"""Owns admitting a scheduler of the user's, after trying what is promised of it; must not know the engine."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor

from redi.errors import InputError, UnsupportedError
from redi.solvers.admitted import admit, class_named
from redi.solvers.facts import Restart, SolverFacts, twin

_STEPS, _VALUE = 12, 8
_MOST_LOST = 0.05
"""Of a trial's latents, how much a restart may change; a stale or lagging history changes more than its size."""


def register(scheduler: Any, facts: SolverFacts) -> None:
    """Admit a scheduler class of yours, in this process.

    What you promise by it: ``step(model_output, timestep, sample, ...)`` and ``set_timesteps(n)`` are those of
    Diffusers; the sampler solves an ODE; a schedule of n steps has ``facts.total_calls(n)`` timesteps and calls; all
    that ``step`` remembers lies in attributes of the instance, and tensors there are replaced, not written into; and
    after ``facts.restart`` it goes on from v as if it had started there. All but the ODE is tried out here on a small
    linear problem before the class is admitted.

    Args:
        scheduler: An instance, with settings that you use.
        facts: ``SolverFacts`` for a solver without history, ``TwoCallFacts`` for one with two calls a step,
            ``MultistepFacts`` (with a ``reading`` of your own if it has no ``_sigma_to_alpha_sigma_t``) for one that
            remembers answers; or a subclass.

    Raises:
        InputError: The class is already admitted, or a name is taken.
        UnsupportedError: A promise does not hold; the message says which.
    """
    kind = type(scheduler)
    if not isinstance(facts, SolverFacts):
        raise InputError(f"facts of type {type(facts).__name__}", expected="redi.solvers.SolverFacts")
    if class_named(kind.__name__) is not None:
        raise InputError(f"{kind.__name__}, which is already admitted", expected="another class")
    _check_form(scheduler)
    try:
        _check_trial(copy.deepcopy(scheduler), facts)
    except UnsupportedError:
        raise
    except Exception as error:  # whatever a scheduler of the user's, or facts that do not fit it, may raise
        _break_promise(scheduler, f"fails in a trial run: {type(error).__name__}: {error}", "a run without errors")
    admit(kind, facts)


def _check_form(scheduler: Any) -> None:
    for method, needed in (("set_timesteps", 1), ("step", 3)):
        if not callable(getattr(scheduler, method, None)):
            _break_promise(scheduler, f"has no {method}", f"{method} as schedulers of Diffusers have it")
        parameters = list(inspect.signature(getattr(scheduler, method)).parameters)
        if len(parameters) < needed or (
            method == "step" and not {"model_output", "timestep", "sample"} <= {*parameters}
        ):
            _break_promise(scheduler, f"has {method}({', '.join(parameters)})", "step(model_output, timestep, sample)")
    if not hasattr(scheduler, "config"):
        _break_promise(scheduler, "has no config", "a SchedulerMixin with a ConfigMixin")


def _check_trial(scheduler: Any, facts: SolverFacts) -> None:
    """Run a linear problem in full and with a jump to its own value."""
    scheduler.set_timesteps(_STEPS)
    calls = facts.total_calls(_STEPS)
    if len(scheduler.timesteps) != calls:
        _break_promise(scheduler, f"has {len(scheduler.timesteps)} timesteps for {_STEPS} steps", f"{calls} of them")
    start = torch.linspace(-1, 1, 32).reshape(2, 4, 2, 2)
    full, again = _Trial(scheduler, facts), _Trial(scheduler, facts)
    own = full.run(start, 0, None)
    if not torch.equal(again.run(start, 0, None)[-1], own[-1]):
        _break_promise(scheduler, "gives another result the second time", "a sampler without noise or hidden state")
    value_call = facts.call_index(_VALUE)
    jumped = _Trial(scheduler, facts)
    restart = facts.restart(jumped.solver, _VALUE)
    ended = jumped.run(own[value_call], value_call, restart)[-1]
    lost = float((ended - own[-1]).norm() / own[-1].norm())
    if facts.loses_nothing(jumped.solver, _VALUE) and lost > 0:
        _break_promise(scheduler, f"loses {lost:.1e} by a jump to its own value", "facts that say it has a history")
    if not lost < _MOST_LOST:
        _break_promise(scheduler, f"loses {lost:.1e} by a jump to its own value", f"less than {_MOST_LOST}")


class _Trial:
    """One run of the linear problem, whose network answers with a tenth of what it is given."""

    def __init__(self, scheduler: Any, facts: SolverFacts) -> None:
        self.solver, self.facts = twin(scheduler), facts

    def run(self, latents: Tensor, first_call: int, restart: Restart | None) -> list[Tensor]:
        """Return the latents before every call (those before ``first_call`` are left as they are), and at the end."""
        seen = [latents] * (first_call + 1)
        for timestep in self.solver.timesteps[first_call:]:
            scale = getattr(self.solver, "scale_model_input", lambda latents, timestep: latents)
            answer = 0.1 * scale(latents, timestep)
            arguments = {"model_output": answer, "timestep": timestep, "sample": latents, "return_dict": False}
            latents = self.facts.step(self.solver, arguments, restart)[0]
            seen.append(latents)
        return seen


def _break_promise(scheduler: Any, got: str, expected: str) -> None:
    raise UnsupportedError(
        f"{type(scheduler).__name__} {got}", expected=expected, fix="see what redi.solvers.register asks for"
    )
