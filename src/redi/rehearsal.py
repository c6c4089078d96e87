"""Owns asking a pipeline what a call of it would do, without evaluating what denoises; must not know identities.

Pipelines compute their own schedules: Flux passes sigmas and a shift that depends on the size, others timesteps. So
the pipeline itself runs, up to the first network call of its loop, and what it has set up by then is read.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from redi.attachment import quiet, stock_call
from redi.errors import InputError, RediError, UnsupportedError
from redi.modular import free_hooks
from redi.patching import patched


@dataclass(frozen=True)
class Rehearsal:
    """What a pipeline sets up for a call.

    Attributes:
        shape: Of one latent as the scheduler steps it, without the batch axis: ``(c, h, w)`` for most pictures,
            ``(tokens, channels)`` where a pipeline packs them (Flux), ``(c, frames, h, w)`` for video, ``(c, length)``
            for audio.
        dtype: Of the latents.
        num_inference_steps: Of the schedule.
        timesteps: Of the schedule, one per call.
        sigmas: Of the schedule; None if its scheduler has none.
        checked: Numbers that the pipeline handed to its own ``check_inputs``, by argument: sizes that were left to
            it are filled in.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    num_inference_steps: int
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...] | None
    checked: Mapping[str, float]


def rehearse(pipe: Any, arguments: Mapping[str, Any]) -> Rehearsal:
    """Return what ``pipe("", **arguments)`` sets up before its first step.

    Text encoders are evaluated, on an empty prompt; what denoises is not. Pipeline, scheduler, networks and the global
    random state stay as they are.

    Args:
        pipe: A text-to-anything pipeline.
        arguments: Of the call, without prompt and latents.

    Raises:
        InputError: The pipeline refuses the arguments.
        UnsupportedError: Its scheduler refuses them, or it does not prepare its loop as others do.
    """
    watch = _Watch(pipe)
    generator = torch.Generator().manual_seed(0)  # so that nothing is drawn from the user's
    with _without_trace(pipe), ExitStack() as patches:
        patches.enter_context(quiet(pipe))
        patches.enter_context(patched(pipe.scheduler, "set_timesteps", watch.schedule))
        if hasattr(pipe, "prepare_latents"):
            patches.enter_context(patched(pipe, "prepare_latents", watch.latents))
        else:  # a modular one, whose blocks do it
            patches.enter_context(patched(pipe.scheduler, "step", watch.step))
        if hasattr(pipe, "check_inputs"):
            patches.enter_context(patched(pipe, "check_inputs", watch.inputs))
        for network in {id(part): part for part in pipe.components.values() if isinstance(part, nn.Module)}.values():
            # Outside of the user's hooks, which would count a call that is none.
            entry = "_call_impl" if network._compiled_call_impl is None else "_compiled_call_impl"
            patches.enter_context(patched(network, entry, watch.network))
        try:
            stock_call(pipe)(prompt="", **arguments, generator=generator)
        except _Ready:
            return watch.rehearsal()
        except RediError:
            raise
        except Exception as error:  # a pipeline may raise anything
            shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise InputError(
                f"{type(pipe).__name__} cannot be called with {shown:.300}: {str(error) or type(error).__name__}",
                expected="arguments that the pipeline takes",
            ) from error
    raise UnsupportedError(
        f"{type(pipe).__name__} made no schedule and no latents before its networks ran",
        expected="a pipeline that calls scheduler.set_timesteps and prepare_latents, and then denoises",
    )


class _Ready(BaseException):
    """Ends the rehearsing call; a BaseException so that no pipeline swallows it."""


class _Watch:
    """What one rehearsing call has set up so far."""

    def __init__(self, pipe: Any) -> None:
        self.scheduler, self.thread = pipe.scheduler, threading.get_ident()
        self.scheduled, self.by_step = False, not hasattr(pipe, "prepare_latents")
        self.prepared: Tensor | None = None
        self.checked: dict[str, float] = {}

    def schedule(self, set_timesteps: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See the schedule being made."""
        try:
            result = set_timesteps(*args, **kwargs)
        except Exception as error:  # a scheduler may raise anything
            raise UnsupportedError(
                f"{type(self.scheduler).__name__} cannot make the schedule that the pipeline asks for: {error}",
                expected="a number of steps, and sigmas or timesteps if any, that the scheduler takes",
            ) from error
        self.scheduled = True
        return result

    def latents(self, prepare_latents: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See the initial latents."""
        result = prepare_latents(*args, **kwargs)
        self.prepared = result[0] if isinstance(result, tuple) else result
        return result

    def inputs(self, check_inputs: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See the arguments that the pipeline has filled in."""
        bound = inspect.signature(check_inputs).bind(*args, **kwargs).arguments
        self.checked = {
            name: value for name, value in bound.items() if type(value) in (int, float) and name != "callback_steps"
        }
        return check_inputs(*args, **kwargs)

    def network(self, evaluate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stop at the first network of the loop."""
        if threading.get_ident() != self.thread:  # another pipeline that shares the network
            return evaluate(*args, **kwargs)
        if self.scheduled and self.prepared is not None:
            raise _Ready
        if self.scheduled and self.by_step:
            return (torch.zeros_like(args[0] if args else next(iter(kwargs.values()))),)
        return evaluate(*args, **kwargs)

    def step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See the latents at the first step, and stop there."""
        self.prepared = inspect.signature(step).bind(*args, **kwargs).arguments["sample"]
        raise _Ready

    def rehearsal(self) -> Rehearsal:
        """Return what was set up."""
        if self.prepared is None:
            raise UnsupportedError("a rehearsal without latents")
        sigmas = getattr(self.scheduler, "sigmas", None)
        return Rehearsal(
            tuple(self.prepared.shape[1:]),
            self.prepared.dtype,
            int(self.scheduler.num_inference_steps),
            _numbers(self.scheduler.timesteps),
            None if sigmas is None else _numbers(sigmas),
            self.checked,
        )


def _numbers(values: Any) -> tuple[float, ...]:
    """Return numbers to six digits, so that they do not depend on where they were computed."""
    return tuple(float(f"{value:.6g}") for value in torch.as_tensor(values).flatten().tolist())


@contextmanager
def _without_trace(pipe: Any) -> Iterator[None]:
    """Put back what a call leaves on the pipeline and its scheduler, and let offloading hooks start afresh."""
    kept = [(owner, dict(vars(owner))) for owner in (pipe, pipe.scheduler)]
    try:
        yield
    finally:
        free_hooks(pipe)
        for owner, attributes in kept:
            vars(owner).clear()
            vars(owner).update(attributes)
