"""Owns recording the entries of one unit, here or on a worker (Algorithm 1); must not know where they are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from redi.building.recorder import record
from redi.building.units import Unit
from redi.errors import RediError
from redi.knowledge_base import EntryBatch
from redi.plan import Plan


@dataclass(frozen=True)
class Recorded:
    """What recording a unit gave: its entries, and what can be shown of them by their place."""

    batch: EntryBatch
    outputs: Mapping[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitRecorder:
    """How trajectories are recorded.

    Attributes:
        pipe: The pipeline.
        call: Arguments of every call of it.
        plan: Which steps are kept.
        batch_size: Prompts of one call.
        stop_at_value: Whether the steps after the last value step are left out.
        previews: Whether trajectories are finished and decoded.
        allow_stochastic: Whether the sampler may add noise.
        dtype: Of the noises that the pipeline takes.
    """

    pipe: Any
    call: Mapping[str, Any]
    plan: Plan
    batch_size: int
    stop_at_value: bool
    previews: bool
    allow_stochastic: bool
    dtype: torch.dtype

    def unit(self, unit: Unit, noises: Tensor, tell: Callable[[int], object] = lambda count: None) -> Recorded:
        """Record a unit; a prompt that its pipeline raises an error for is left out, the others are not.

        Args:
            unit: n prompts.
            noises: (n, *shape) float32 unit noise.
            tell: Told the number of prompts that are done since.

        Raises:
            Exception: The pipeline raised one for a prompt, and for the empty prompt after it: the fault is not the
                prompt's.
        """
        plan = self.plan
        steps = (*plan.key_steps, *plan.value_steps)
        parts: list[dict[int, Tensor]] = []
        outputs: dict[int, Any] = {}
        failed: dict[int, Exception] = {}
        for batch in unit.batches(self.batch_size):
            for part in self._one_by_one_if_it_fails(unit.prompts, noises, batch, steps, failed):
                place, found, made = part
                finite = found[steps[-1]].flatten(1).isfinite().all(dim=1).tolist()
                outputs |= {place + slot: output for slot, output in enumerate(made) if finite[slot]}
                parts.append(found)
            tell(batch.stop - batch.start)
        latents = {step: torch.cat([part[step] for part in parts]) for step in steps}
        keys = {step: latents[step] for step in plan.key_steps}
        values = {step: latents[step] for step in plan.value_steps}
        reasons = {place: f"{type(error).__name__}: {error}" for place, error in failed.items()}
        return Recorded(EntryBatch(unit.prompts, unit.noise_ids, unit.seeds, keys, values, reasons), outputs)

    def latents(self, prompts: Sequence[str], noises: Tensor, steps: Sequence[int]) -> dict[int, Tensor]:
        """Return where prompts (b) come to after steps, from noises (b, *shape), and stop there."""
        return self._record(prompts, noises, steps, stop=True)[0]

    def _one_by_one_if_it_fails(
        self, prompts: Sequence[str], noises: Tensor, batch: slice, steps: Sequence[int], failed: dict[int, Exception]
    ) -> list[tuple[int, dict[int, Tensor], list[Any]]]:
        """Return place, latents by step and outputs of a batch, or of each of its prompts where it fails together."""
        try:
            return [(batch.start, *self._record(prompts[batch], noises[batch], steps, stop=self.stop_at_value))]
        except RediError:
            raise
        except Exception as error:
            if batch.stop - batch.start == 1:
                self._try_the_empty_prompt(noises[batch], steps[0], error)
                failed[batch.start] = error
                nothing = torch.full_like(noises[batch], torch.nan)
                return [(batch.start, dict.fromkeys(steps, nothing), [])]
        places = [slice(place, place + 1) for place in range(batch.start, batch.stop)]
        return [part for each in places for part in self._one_by_one_if_it_fails(prompts, noises, each, steps, failed)]

    def _try_the_empty_prompt(self, noise: Tensor, step: int, error: Exception) -> None:
        """Raise the error if the pipeline is at fault, not the prompt that it was raised for."""
        try:
            self.latents([""], noise, [step])
        except Exception:
            raise error from None

    def _record(
        self, prompts: Sequence[str], noises: Tensor, steps: Sequence[int], *, stop: bool
    ) -> tuple[dict[int, Tensor], list[Any]]:
        return record(
            self.pipe,
            self.call,
            prompts,
            noises.to(self.dtype),
            steps,
            stop=stop,
            outputs=self.previews and not stop,
            allow_stochastic=self.allow_stochastic,
        )
