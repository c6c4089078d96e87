"""Owns the images of a batch that take the same way, with a solver state of their own; must not know networks.

A batch whose images disagree is split into lanes: those that abstain go on with their history, those that jump to the
same value step sleep until their call and then restart there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from redi.rows import take_rows
from redi.solvers import Restart, SolverFacts, twin


@dataclass
class Lane:
    """Images of a batch that go on together.

    Args:
        images: Their places in the batch, sorted.
        scheduler: Their own scheduler, stepped by nobody else.
        wakes_at: The call index from which on they are evaluated.
        restart: How their solver goes on after a jump; None if they have not jumped.
    """

    images: Sequence[int]
    scheduler: Any
    wakes_at: int
    restart: Restart | None

    @classmethod
    def going_on(cls, images: Sequence[int], scheduler: Any, latents: Tensor) -> Lane:
        """Let these images of ``latents (b, ...)`` go on from the scheduler's present state."""
        own = twin(scheduler)
        for name, value in vars(own).items():
            vars(own)[name] = _rows_of_history(value, images, latents)
        return cls(images, own, wakes_at=0, restart=None)

    @classmethod
    def jumping(cls, images: Sequence[int], pristine: Any, facts: SolverFacts, value_step: int) -> Lane:
        """Let these images sleep until ``value_step`` and restart there; ``pristine`` has not made a step."""
        own = twin(pristine)
        restart = facts.restart(own, value_step)
        return cls(images, own, wakes_at=restart.call_index, restart=restart)

    def step(self, facts: SolverFacts, arguments: Mapping[str, Any], batch: int) -> Any:
        """Step these images; ``arguments`` are those of the whole batch, the output has the lane's rows."""
        own = {name: take_rows(value, self.images, batch) for name, value in arguments.items()}
        generators = own.get("generator")
        if isinstance(generators, list) and len(generators) == batch:
            own["generator"] = [generators[image] for image in self.images]
        return facts.step(self.scheduler, own, self.restart)


def _rows_of_history(value: Any, images: Sequence[int], latents: Tensor) -> Any:
    """Cut what a solver remembers per image: tensors of the latents' shape, alone or in a list."""
    if isinstance(value, Tensor) and value.shape == latents.shape:
        return take_rows(value, images, len(latents))
    if type(value) is list:
        return [_rows_of_history(item, images, latents) for item in value]
    return value
