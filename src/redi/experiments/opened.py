"""Owns opening a subject's pipelines, with networks that are read once; must not know samplings."""

from __future__ import annotations

import copy
from typing import Any

from redi.experiments.paths import set_schedule
from redi.experiments.sampling import Solver
from redi.experiments.subjects import Subject


class Opened:
    """Pipelines of a subject: each has a scheduler of its own, and all have the same networks, which are slow to open.

    Args:
        subject: Opens them.
        device: As torch names it.
    """

    def __init__(self, subject: Subject, device: str | None) -> None:
        self._subject, self._device = subject, device
        self._first: Any = None
        self._stock: dict[str, Any] = {}

    def pipeline(self, solver: Solver) -> Any:
        """Return a pipeline with the solver as scheduler."""
        scheduler = self._fresh(solver)
        pipe = copy.copy(self._first)
        pipe.scheduler = scheduler
        return pipe

    def scheduler(self, solver: Solver) -> Any:
        """Return a scheduler as the solver's runs have it before their first step."""
        scheduler = self._fresh(solver)
        set_schedule(scheduler, {"num_inference_steps": solver.steps, **solver.timesteps})
        return scheduler

    def _fresh(self, solver: Solver) -> Any:
        """Return a scheduler that no run has used."""
        if solver.name not in self._stock:
            # Opened again for each name: the first pipeline no longer has the model's own config to make another from.
            pipe = self._subject.pipeline(solver.name, self._device)
            self._first = self._first or pipe
            self._stock[solver.name] = pipe.scheduler
        stock = self._stock[solver.name]
        return type(stock).from_config(stock.config, **solver.config)
