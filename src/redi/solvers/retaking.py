"""Owns taking the first step after a jump again, once the next call is known; must not know engine or pipelines.

A multistep solver has no history at x_v, so its first step there is an Euler step, whose error stays to the end. The
second call answers what that step had to guess. With both answers the step from x_v is taken again, to second order,
and the solver goes on from there: not a call more, and usually 2 to 7 times nearer (docs/solvers.md). Only what
was evaluated after the jump is used, so it does not matter how far the neighbour was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """What a call's latents and the network's answer say of the data.

    Latents are ``scale * data + noise * eps``, and ``data = of_latents * latents + of_answer * answer``.
    """

    scale: float
    noise: float
    of_latents: float
    of_answer: float

    def data(self, latents: Tensor, answer: Tensor) -> Tensor:
        """Return the prediction of x_0 (b, ...), in float32."""
        return self.of_latents * latents.float() + self.of_answer * answer.float()


def reading(prediction_type: str, scale: float, noise: float) -> Reading:
    """Return how an answer of a prediction type is read at a noise level (all that Diffusers has but EDM's)."""
    size = math.hypot(scale, noise)
    of_latents, of_answer = {
        "epsilon": lambda: (1 / scale, -noise / scale),
        "sample": lambda: (0.0, 1.0),
        "v_prediction": lambda: (scale / size**2, -noise / size),
        "flow_prediction": lambda: (1.0, -noise),
    }[prediction_type]()
    return Reading(scale, noise, of_latents, of_answer)


def edm_reading(scheduler: Any, sigma: float) -> Reading:
    """Return how an answer is read where the scheduler preconditions it (EDM, table 1)."""
    return Reading(
        1.0, sigma, scheduler.precondition_outputs(1.0, 0.0, sigma), scheduler.precondition_outputs(0.0, 1.0, sigma)
    )


def retake(before: Reading, latents: Tensor, data: Tensor, after: Reading, data_after: Tensor) -> Tensor:
    """Take the step from ``latents`` (b, ...) again: the ODE with x_0 linear in lambda = log(scale / noise).

    ``d(x / noise) = x_0 d(e^lambda)``, from ``before`` with x_0 = ``data`` to ``after`` with x_0 = ``data_after``.
    """
    start, end = before.scale / before.noise, after.scale / after.noise
    rise = math.log(end / start)
    of_change = end - (end - start) / rise
    whole = latents.float() / before.noise + (end - start) * data + of_change * (data_after - data)
    return after.noise * whole


def reworded(answer: Tensor, at: Reading, change: Tensor) -> Tensor:
    """Return the answer that says the same noise at latents that have changed by ``change`` (b, ...)."""
    rate = (1 / at.scale - at.of_latents) / at.of_answer
    return (answer.float() + rate * change.float()).to(answer.dtype)
