"""Owns finding out from a run's latents what its last call predicted; must not know bases or estimators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from redi.errors import UnsupportedError
from redi.solvers import MultistepFacts, facts_for, latents_of, twin


def last_prediction(scheduler: Any, latents: Sequence[Tensor]) -> Tensor:
    """Return the prediction of x_0 (n, ...) of the call that led to the last of the latents, in float64.

    A solver's step is affine in the network's answer, coordinate by coordinate: what it makes of 0 and of 1 tells which
    answer led from one latent to the next. So a base of latents alone has these predictions as well.

    Args:
        scheduler: Of the run, with its schedule, before the first step; stays as it is.
        latents: (n, ...) each: x_T as it was stepped, and after every step since.

    Raises:
        UnsupportedError: The scheduler is no multistep solver of one call a step.
    """
    facts, steps = facts_for(scheduler), len(latents) - 1
    if not isinstance(facts, MultistepFacts) or facts.call_index(steps) != steps:
        raise UnsupportedError(
            f"the predictions of a {type(scheduler).__name__}", expected="a multistep solver of one call a step"
        )
    own = twin(scheduler)
    for timestep, before, after in zip(own.timesteps[:steps], latents[:-1], latents[1:], strict=True):
        start = before.double()
        nothing, one = (
            latents_of(twin(own).step(torch.full_like(start, each), timestep, start)) for each in (0.0, 1.0)
        )
        answer = (after.double() - nothing) / (one - nothing)
        own.step(answer, timestep, start)
    at = facts.reading(own, steps - 1)
    return at.of_latents * latents[-2].double() + at.of_answer * answer
