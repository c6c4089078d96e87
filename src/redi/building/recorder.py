"""Owns recording trajectories with a stock pipeline (Algorithm 1's inner loop); must not know knowledge bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from redi.attachment import quiet, stock_call
from redi.calls import parameters_of
from redi.engine import Jump, StopTrajectory, run
from redi.modular import samples_of


class Recorder:
    """An engine policy that never jumps and keeps x after each of ``steps`` completed steps (Algorithm 1).

    Args:
        steps: Completed steps to keep.
        stop: Whether to end the pipeline call after the last of them, by :class:`~redi.engine.StopTrajectory`.
    """

    key_step: int | None = None

    def __init__(self, steps: Sequence[int], *, stop: bool) -> None:
        self._steps, self._stop = tuple(sorted(set(steps))), stop
        self._seen: dict[int, Tensor] = {}

    def on_start(self, latents: Tensor) -> None:
        """Start with nothing seen."""
        self._seen.clear()

    def at_key(self, latents: Tensor) -> Sequence[Jump | None]:
        """Abstain."""
        return [None] * len(latents)

    def on_step(self, completed: int, latents: Tensor) -> None:
        """Keep a copy, on the run's device, if this step is wanted."""
        if completed not in self._steps:
            return
        self._seen[completed] = latents.clone()
        if self._stop and completed == self._steps[-1]:
            raise StopTrajectory

    def recorded(self) -> dict[int, Tensor]:
        """Return the latents (b, ...) by completed step, on the CPU, moved there in one transfer."""
        together = torch.stack([self._seen[step] for step in self._steps]).cpu()
        return dict(zip(self._steps, together, strict=True))


def record(
    pipe: Any,
    call: Mapping[str, Any],
    prompts: Sequence[str],
    noises: Tensor,
    steps: Sequence[int],
    *,
    stop: bool,
    outputs: bool,
    allow_stochastic: bool = False,
) -> tuple[dict[int, Tensor], list[Any]]:
    """Run the stock pipeline once for a batch and return what it passed through (Algorithm 1).

    Args:
        pipe: The pipeline; an enabled one records its full trajectories all the same.
        call: Arguments of the call, the same for all.
        prompts: b prompts.
        noises: (b, *shape) unit noise, not scaled, in the pipeline's dtype.
        steps: Completed steps to keep.
        stop: Whether to stop after the last of ``steps``; otherwise the trajectory is finished.
        outputs: Whether to decode the finished trajectories.
        allow_stochastic: Whether the sampler may add noise.

    Returns:
        Latents (b, *shape) by step, on the CPU in the pipeline's dtype; and b PIL images or lists of frames, or none.
    """
    recorder = Recorder(steps, stop=stop)
    made: list[Any] = []
    untupled = {"return_dict": False} if "return_dict" in parameters_of(pipe) else {}
    negative = {name: [text] * len(prompts) for name, text in call.items() if name.startswith("negative_prompt")}
    try:
        with quiet(pipe), run(pipe, recorder, allow_stochastic=allow_stochastic):
            result = stock_call(pipe)(
                **{**call, **negative},
                prompt=list(prompts),
                latents=noises,
                output_type="pil" if outputs else "latent",
                **untupled,
            )
            made = samples_of(result) if outputs else []
    except StopTrajectory:
        pass
    return recorder.recorded(), made
