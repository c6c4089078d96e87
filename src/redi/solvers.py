"""Owns what redi knows about each Diffusers scheduler; must not know pipelines, policies or knowledge bases.

For every admitted scheduler: how many ``step()`` calls a completed step takes, how its multistep history is
restarted at a jump, and which settings and arguments are refused. A restart means: solver state as before the first
step, index at v. Measured against the uninterrupted run, it is the best treatment that needs no stored history
(a neighbour's history is worse as soon as the neighbour differs from the query).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from redi.errors import UnsupportedError


@dataclass(frozen=True)
class SolverFacts:
    """What the engine must know about one scheduler class. Steps are counted completed, calls are ``step()`` calls.

    Args:
        name: Short name, as in ``redi build --scheduler``.
        settings: Config values that were tested, by name; anything else is refused.
        stochastic_arguments: Arguments of ``step`` that add noise when they are greater than zero.
    """

    name: str
    settings: Mapping[str, tuple[Any, ...]]
    stochastic_arguments: tuple[str, ...] = ()

    def call_index(self, completed_steps: int) -> int:
        """Return how many calls are done after ``completed_steps`` steps."""
        return completed_steps

    def completed_steps(self, call_index: int) -> int | None:
        """Return how many steps are completed after ``call_index`` calls, None inside a step."""
        return call_index

    def total_calls(self, num_inference_steps: int) -> int:
        """Return how many calls a whole schedule makes."""
        return self.call_index(num_inference_steps)

    def restart(self, scheduler: Any, completed_steps: int) -> None:
        """Make ``scheduler``, in its state before the first step, go on after ``completed_steps`` steps."""
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(self.call_index(completed_steps))
            scheduler._step_index = None

    def step(self, scheduler: Any, arguments: Mapping[str, Any], *, made_jump: bool) -> Any:
        """Call ``scheduler.step``; ``made_jump`` marks the first call after a restart."""
        return scheduler.step(**arguments)

    def refuse_noise(self, arguments: Mapping[str, Any]) -> None:
        """Refuse ``step`` arguments that make the sampler stochastic.

        Raises:
            UnsupportedError: Such an argument is greater than zero.
        """
        for name in self.stochastic_arguments:
            if arguments.get(name):
                raise UnsupportedError(
                    f"{self.name} with {name}={arguments[name]}",
                    expected=f"a deterministic sampler ({name}=0): trajectories of an ODE can be retrieved, noise not",
                    fix=f"drop {name} from the pipeline call",
                )


class _PNDMFacts(SolverFacts):
    """PNDM in its PLMS form: its first step takes two calls, the second one at a repeated timestep."""

    def call_index(self, completed_steps: int) -> int:
        return completed_steps + 1 if completed_steps else 0

    def completed_steps(self, call_index: int) -> int | None:
        if call_index == 1:
            return None
        return max(call_index - 1, 0)

    def step(self, scheduler: Any, arguments: Mapping[str, Any], *, made_jump: bool) -> Any:
        """After a jump take one Euler step and then skip the repetition of the first step.

        With an empty history PLMS runs only at ``counter=0``, an Euler step, and would repeat that step at
        ``counter=1``, which leaves the rest of the run one timestep behind (27 times the error).
        """
        output = scheduler.step(**arguments)
        if made_jump:
            scheduler.counter = 2
            scheduler.cur_sample = None
        return output


_EPSILON_OR_V = ("epsilon", "v_prediction")
_EPSILON_V_OR_FLOW = (*_EPSILON_OR_V, "flow_prediction")

_FACTS: dict[type, SolverFacts] = {
    DDIMScheduler: SolverFacts(
        "ddim", {"prediction_type": _EPSILON_OR_V, "thresholding": (False,)}, stochastic_arguments=("eta",)
    ),
    PNDMScheduler: _PNDMFacts("pndm", {"skip_prk_steps": (True,), "prediction_type": _EPSILON_OR_V}),
    DPMSolverMultistepScheduler: SolverFacts(
        "dpm",
        {
            "algorithm_type": ("dpmsolver++", "dpmsolver"),
            "solver_order": (1, 2, 3),
            "thresholding": (False,),
            "prediction_type": _EPSILON_V_OR_FLOW,
        },
    ),
    UniPCMultistepScheduler: SolverFacts(
        "unipc",
        {
            "solver_p": (None,),
            "thresholding": (False,),
            "prediction_type": _EPSILON_V_OR_FLOW,
        },
    ),
    EulerDiscreteScheduler: SolverFacts(
        "euler",
        {"prediction_type": _EPSILON_OR_V, "timestep_type": ("discrete",)},
        stochastic_arguments=("s_churn",),
    ),
    FlowMatchEulerDiscreteScheduler: SolverFacts(
        "flow-euler",
        {"stochastic_sampling": (False,), "invert_sigmas": (False,)},
        stochastic_arguments=("s_churn",),
    ),
}


def facts_for(scheduler: Any) -> SolverFacts:
    """Return the facts of a Diffusers scheduler instance.

    Raises:
        UnsupportedError: The class, or one of its settings, has not been tested with redi.
    """
    facts = _FACTS.get(type(scheduler))
    if facts is None:
        raise UnsupportedError(
            f"scheduler {type(scheduler).__name__}",
            expected=f"one of {', '.join(kind.__name__ for kind in _FACTS)}",
            fix="pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)",
        )
    for setting, tested in facts.settings.items():
        value = scheduler.config.get(setting, tested[0])
        if value not in tested:
            raise UnsupportedError(
                f"{type(scheduler).__name__} with {setting}={value!r}",
                expected=f"{setting} in {tested}",
                fix=f"{type(scheduler).__name__}.from_config(pipe.scheduler.config, {setting}={tested[0]!r})",
            )
    return facts


def twin(scheduler: Any) -> Any:
    """Return a scheduler of the same class and state that can be stepped without touching this one.

    Lists are copied, tensors shared (the admitted schedulers replace tensors and never write into them), and methods
    that someone put on the instance stay behind.
    """
    other = object.__new__(type(scheduler))
    for name, value in vars(scheduler).items():
        if not callable(value):
            vars(other)[name] = list(value) if type(value) is list else value
    return other
