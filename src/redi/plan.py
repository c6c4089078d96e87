"""Owns the arithmetic of steps (which steps are key and values, the paper's clocks); knows no models and no files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redi.errors import PlanError


@dataclass(frozen=True)
class Plan:
    """Which steps of a schedule are recorded as key and values (k and v of Algorithms 1 and 2).

    Steps are counted **completed**: ``key_step=10`` is the latent after ten steps.

    Args:
        num_inference_steps: Steps of the sampler's schedule, at least 2.
        key_step: Completed steps of the key, at least 1.
        value_steps: Completed steps of the values; each one greater than every key step and less than
            ``num_inference_steps``. Stored sorted, without repeats.
        more_key_steps: Further key steps to record in the same pass, so that plans can be compared
            without a rebuild.

    Raises:
        PlanError: A step is not an integer, is out of range, or does not fit the others.
    """

    num_inference_steps: int
    key_step: int
    value_steps: tuple[int, ...]
    more_key_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        values, others = _listed(self.value_steps), _listed(self.more_key_steps)
        for step in (self.num_inference_steps, self.key_step, *values, *others):
            if isinstance(step, bool) or not isinstance(step, int):
                raise PlanError(f"step {step!r} is a {type(step).__name__}", expected="whole numbers of steps")
        object.__setattr__(self, "value_steps", tuple(sorted(set(values))))
        object.__setattr__(self, "more_key_steps", tuple(sorted(set(others) - {self.key_step})))
        if self.num_inference_steps < 2:
            raise PlanError(f"num_inference_steps={self.num_inference_steps}", expected="at least 2 steps")
        if min(self.key_steps) < 1:
            raise PlanError(f"key_step={min(self.key_steps)}", expected="at least 1 completed step")
        if not self.value_steps:
            raise PlanError("value_steps is empty", expected="at least one step after the key step")
        if self.value_steps[0] <= self.key_steps[-1]:
            raise PlanError(
                f"key step {self.key_steps[-1]} is not before value step {self.value_steps[0]}",
                expected="key steps < value steps",
                fix="steps are counted completed (the paper's PNDM k=40, v=10 is key_step=10, value_steps=40)",
            )
        if self.value_steps[-1] >= self.num_inference_steps:
            raise PlanError(
                f"value step {self.value_steps[-1]} of a schedule of {self.num_inference_steps} steps",
                expected=f"value steps of at most {self.num_inference_steps - 1}, so that a tail remains",
            )

    @property
    def key_steps(self) -> tuple[int, ...]:
        """Every recorded key step, sorted."""
        return tuple(sorted((self.key_step, *self.more_key_steps)))

    def choose(self, key_step: int | None = None, value_step: int | None = None) -> tuple[int, int]:
        """Return (key_step, value_step) to use; by default the plan's key and its last value (fewest calls).

        Raises:
            PlanError: The plan does not record the step asked for.
        """
        key = self.key_step if key_step is None else key_step
        value = self.value_steps[-1] if value_step is None else value_step
        if key not in self.key_steps:
            raise PlanError(f"key_step={key!r}", expected=f"one of the recorded key steps {self.key_steps}")
        if value not in self.value_steps:
            raise PlanError(f"value_step={value!r}", expected=f"one of the recorded value steps {self.value_steps}")
        return key, value

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return {
            "num_inference_steps": self.num_inference_steps,
            "key_step": self.key_step,
            "value_steps": list(self.value_steps),
            "more_key_steps": list(self.more_key_steps),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Plan:
        """Read what :meth:`to_dict` wrote.

        Raises:
            PlanError: A field is missing or wrong.
        """
        try:
            return cls(
                fields["num_inference_steps"],
                fields["key_step"],
                tuple(fields["value_steps"]),
                tuple(fields.get("more_key_steps", ())),
            )
        except (KeyError, TypeError) as error:
            raise PlanError(f"plan {fields!r}", expected="the four fields that Plan.to_dict writes") from error


def _listed(steps: Any) -> tuple[Any, ...]:
    """Return steps as a tuple, a single one as well; anything that is no collection stands for itself."""
    return tuple(steps) if isinstance(steps, Iterable) and not isinstance(steps, str) else (steps,)


def from_paper_clock(sampler: str, num_inference_steps: int, key_step: int, value_steps: Sequence[int]) -> Plan:
    """Convert the paper's step numbers (section 6.1) into completed steps; for experiments only.

    Args:
        sampler: ``"pndm"`` (the paper counts down: k=40 of 50 is after 10 steps) or ``"dpm"`` (it counts up).
        num_inference_steps: Steps of the schedule.
        key_step: The paper's k.
        value_steps: The paper's v's.

    Raises:
        PlanError: The sampler has no clock in the paper.
    """
    if sampler == "dpm":
        return Plan(num_inference_steps, key_step, tuple(value_steps))
    if sampler == "pndm":
        completed = tuple(num_inference_steps - step for step in value_steps)
        return Plan(num_inference_steps, num_inference_steps - key_step, completed)
    raise PlanError(f"sampler {sampler!r}", expected="'pndm' or 'dpm'")


DEFAULT_PLAN, PAPER_PLAN = Plan(24, key_step=2, value_steps=(4, 6)), Plan(50, key_step=10, value_steps=(20, 30, 40))
"""What ``redi build`` records unless told otherwise: of the plans with half the calls of a usual run, the one that was
no worse than it (docs/results.md). The paper's own, of PNDM, was."""
