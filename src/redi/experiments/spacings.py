"""Owns spacings of steps that a scheduler has no setting for: their timesteps; must not know how they are run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

_LAST, _QUADRATIC_SHARE = 999, 0.8
_ALIGNED = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24)


def quadratic(steps: int) -> list[int]:
    """Return timesteps (descending) at even distances of their square roots, up to 0.8 of all (DDIM, appendix D.2)."""
    most = math.sqrt(_QUADRATIC_SHARE * (_LAST + 1))
    return [round((most * place / steps) ** 2) for place in range(steps, 0, -1)]


def aligned(steps: int) -> list[int]:
    """Return timesteps (descending) like the ten that Sabour et al. (2024) found for Stable Diffusion.

    Another number of steps is interpolated between them; the authors do that with noise levels.
    """
    places = np.linspace(0, len(_ALIGNED) - 1, steps)
    return [round(float(timestep)) for timestep in np.interp(places, range(len(_ALIGNED)), _ALIGNED)]


TIMESTEPS: Mapping[str, Callable[[int], list[int]]] = {"quadratic": quadratic, "align-your-steps": aligned}
"""By name, the timesteps of so many steps (at least 2)."""
