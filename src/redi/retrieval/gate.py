"""Owns the rule that decides jump or abstain, and which value step; must not know files or pipelines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real

import torch
from torch import Tensor

from redi.errors import InputError, RetrievalError
from redi.retrieval.weights import Combination

Limit = float | Mapping[int, float]
"""One limit for one value step, or a limit for each of several value steps."""

SCORES = ("distance", "residual", "variance")
"""What a gate can look at before an image jumps; the last two come of the weights."""


@dataclass(frozen=True)
class Gate:
    """How near the nearest neighbour must be for an image to jump, or how well its neighbours must explain it.

    Args:
        max_distance: Largest L2 distance, in the units of the latents; beyond it the image abstains.
        quantile: The same as a quantile (0 to 1) of the base's own leave-one-out distances: 0.9 lets pass what is as
            near as nine tenths of the base's entries are to each other. Resolve it with :meth:`resolve` first.
        max_residual: Largest residual (what the weights leave of the query, see ``Combination.residual``).
        max_variance: Largest variance, of weights that have one (kriging).
            Name one of the four; with none, every image that has a neighbour jumps.

    Raises:
        RetrievalError: Two are given, or one is out of range.
    """

    max_distance: float | None = None
    quantile: float | None = None
    max_residual: float | None = None
    max_variance: float | None = None

    def __post_init__(self) -> None:
        given = {name: limit for name, limit in vars(self).items() if limit is not None}
        if len(given) > 1:
            raise RetrievalError(
                " and ".join(f"{name}={limit!r}" for name, limit in given.items()), expected="one of them"
            )
        for name in given.keys() - {"quantile"}:
            if not (_is_number(given[name]) and given[name] >= 0):
                raise RetrievalError(f"{name}={given[name]!r}", expected=f"a {name.removeprefix('max_')} of at least 0")
        if self.quantile is not None and not (_is_number(self.quantile) and 0 <= self.quantile <= 1):
            raise RetrievalError(f"quantile={self.quantile!r}", expected="a number from 0 to 1")

    def threshold(self, leave_one_out: Tensor | None = None) -> float:
        """Return the largest distance that jumps; infinity if there is no limit.

        Args:
            leave_one_out: (n) distance of every entry to its nearest other entry of the same noise; infinite for an
                entry that has none, which is left out. Needed for a quantile only.

        Raises:
            RetrievalError: A quantile is asked of a base that has no leave-one-out distances.
        """
        if self.max_distance is not None:
            return self.max_distance
        if self.quantile is None:
            return math.inf
        known = torch.empty(0) if leave_one_out is None else leave_one_out.detach().flatten().cpu()
        known = known[torch.isfinite(known)].double()
        if len(known) == 0:
            raise RetrievalError(
                f"quantile={self.quantile} of a knowledge base without leave-one-out distances",
                expected="a finished base in which two entries share a noise",
                fix="finish the build, or give max_distance as a number",
            )
        # numpy's "linear" quantile; torch.quantile refuses more than 16M elements
        ordered = known.sort().values
        position = self.quantile * (len(ordered) - 1)
        below = math.floor(position)
        above = min(below + 1, len(ordered) - 1)
        return float(torch.lerp(ordered[below], ordered[above], position - below))

    @property
    def needs_weights(self) -> bool:
        """Whether it looks at what only the weights tell."""
        return self.max_residual is not None or self.max_variance is not None

    def resolve(self, leave_one_out: Tensor | None = None) -> Gate:
        """Return the gate with its quantile replaced by the distance that it means for one base."""
        return self if self.quantile is None else Gate(max_distance=self.threshold(leave_one_out))

    def decide(self, distance: float, made: Combination | None = None) -> str | None:
        """Return why an image whose nearest neighbour is this far abstains, or None if it jumps.

        Args:
            distance: L2 to the nearest neighbour; infinity if there is none.
            made: What its neighbours make of it; asked by a limit of residual or variance.

        Raises:
            RetrievalError: The gate's quantile has not been resolved, or weights that were not made are needed.
        """
        if self.quantile is not None:
            raise RetrievalError(
                f"a gate of quantile={self.quantile} that has no distance yet", fix="call resolve(leave_one_out) first"
            )
        if math.isnan(distance):
            return "the distance to the nearest neighbour is not a number"
        if math.isinf(distance):
            return "no neighbour"
        if self.max_distance is not None and distance > self.max_distance:
            return f"too far: nearest neighbour at {distance:.4g}, limit {self.max_distance:.4g}"
        for what, limit in (("residual", self.max_residual), ("variance", self.max_variance)):
            if limit is None:
                continue
            found = getattr(made, what, None)
            if found is None:
                raise RetrievalError(f"a gate of {what} without one", expected="weights that tell it")
            if not found <= limit:
                return f"not explained: the neighbours' {what} is {found:.4g}, limit {limit:.4g}"
        return None


def choose_step(
    gates: Mapping[int, Gate], distance: float, made: Combination | None = None
) -> tuple[int | None, str | None]:
    """Return the latest value step whose gate lets an image jump, or None and why it abstains at all of them.

    Args:
        gates: By value step; resolved.
        distance: L2 to the nearest neighbour; infinity if there is none.
        made: As of :meth:`Gate.decide`.

    Raises:
        RetrievalError: As of :meth:`Gate.decide`.
    """
    reason = None
    for value_step in sorted(gates, reverse=True):
        reason = gates[value_step].decide(distance, made)
        if reason is None:
            return value_step, None
    return None, reason


def gates_by_step(name: str, limits: Mapping[int, float]) -> Mapping[int, Gate]:
    """Return the gate of each value step.

    Args:
        name: "max_distance" or "quantile", what the limits are.
        limits: By value step.

    Raises:
        InputError: There are no steps, or a later step's limit is as loose as an earlier one's or looser.
        RetrievalError: A limit is out of range.
    """
    if not limits or any(isinstance(step, bool) or not isinstance(step, int) for step in limits):
        raise InputError(f"{name}={dict(limits)!r}", expected="a limit for each of some value steps, as {30: 9, 40: 4}")
    if any(limit is None for limit in limits.values()):
        raise InputError(f"{name}={dict(limits)!r}", expected="a number for each value step")
    gates = {step: Gate(**{name: limit}) for step, limit in sorted(limits.items())}
    by_step = [limits[step] for step in gates]
    if any(later >= earlier for earlier, later in pairwise(by_step)):
        raise InputError(
            f"{name}={dict(limits)!r}",
            expected="a smaller limit for each later value step: the nearer the neighbour, the later the step",
            fix="leave out the earlier step, or give the later one a smaller limit",
        )
    return gates


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
