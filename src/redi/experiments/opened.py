"""Owns a subject's pipelines, whose networks are opened once; must not know samplings."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

from redi.experiments.paths import set_schedule
from redi.experiments.sampling import Solver
from redi.experiments.subjects import Subject
from redi.pipelines import SCHEDULERS


class Opened:
    """Pipelines of a subject: each has a scheduler of its own, and all have the same networks, which are slow to open.

    Args:
        subject: Opens the first.
        device: As torch names it.
    """

    def __init__(self, subject: Subject, device: str | None) -> None:
        self._subject, self._device = subject, device

    @cached_property
    def _own(self) -> Any:
        """The pipeline with the model's own scheduler, which no run uses."""
        return self._subject.pipeline(self._device)

    def pipeline(self, solver: Solver) -> Any:
        """Return a pipeline with the solver as scheduler."""
        pipe = copy.copy(self._own)
        pipe.scheduler = self._fresh(solver)
        return pipe

    def scheduler(self, solver: Solver) -> Any:
        """Return a scheduler as the solver's runs have it before their first step."""
        scheduler = self._fresh(solver)
        set_schedule(scheduler, {"num_inference_steps": solver.steps, **solver.timesteps})
        return scheduler

    def _fresh(self, solver: Solver) -> Any:
        scheduler = SCHEDULERS[solver.name].made_from(self._own.scheduler.config)
        return type(scheduler).from_config(scheduler.config, **solver.config)
