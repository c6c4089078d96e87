"""Owns capture and replay of what a pipeline sends its networks besides latents; must not know retrieval.

The prompt swap of the paper's section 4.3 for any pipeline: capture the second prompt's conditioning once, and let
the engine send it instead of the first one's in the tail.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redi.attachment import quiet, stock_call
from redi.errors import IncompatibleError, UnsupportedError
from redi.modular import free_hooks
from redi.patching import patched, patched_networks, siblings_of


@dataclass(frozen=True)
class CapturedCall:
    """What one network call got besides the latents: arguments by name, and how many rows its latents had."""

    arguments: Mapping[str, Any]
    rows: int | None


@dataclass(frozen=True)
class Conditioning:
    """What a pipeline sends its networks for some prompts: calls by network name, in their order within a step."""

    networks: Mapping[str, tuple[CapturedCall, ...]]

    def merge(
        self,
        name: str,
        position: int,
        network: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        batch: int,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call with this conditioning in place of their own.

        Args:
            name: Component name of the network.
            position: Position of the call among the network's calls of one step.
            network: The network's entry; its signature names positional arguments.
            args: Positional arguments of the call, of ``m * batch`` rows; the first one are the latents.
            kwargs: Keyword arguments of the call.
            batch: Images in the batch. The captured run had as many, or one, whose conditioning then serves all.

        Raises:
            IncompatibleError: The captured run made other calls, or had other rows, than this one.
        """
        calls = self.networks.get(name, ())
        if not calls:
            return args, kwargs
        latents = args[0] if args else next(iter(kwargs.values()))
        rows = latents.shape[0] if isinstance(latents, Tensor) else None
        if position >= len(calls):
            raise IncompatibleError(
                f"call {position + 1} of {name} in one step",
                expected=f"{len(calls)} calls, as in the captured run",
                fix="capture with the same guidance and settings as the run",
            )
        captured = _fit(calls[position], rows, batch)
        names = positional_names(network, len(args))
        replaced = tuple(captured.pop(key, value) for key, value in zip(names, args, strict=True))
        return replaced, {**kwargs, **captured}


class _Captured(BaseException):
    """Ends the capturing pipeline call; a BaseException so that no pipeline swallows it."""


def capture(pipe: Any, **call_kwargs: Any) -> Conditioning:
    """Return what ``pipe(**call_kwargs)`` would send its networks at its first step (section 4.3).

    The pipeline runs to its first ``scheduler.step`` and no network is evaluated, unless the pipeline cannot do
    without an answer (a ControlNet's, say). The global random state is left as it was.

    Args:
        pipe: A Diffusers pipeline with a ``scheduler``.
        call_kwargs: Arguments of the pipeline call: the prompt, and guidance as in the run that is to be continued.

    Raises:
        UnsupportedError: The pipeline never called its scheduler.
    """
    with _without_trace(pipe):
        try:
            return _run_to_first_step(pipe, functools.partial(stock_call(pipe), **call_kwargs), evaluate=False)
        except Exception:
            return _run_to_first_step(pipe, functools.partial(stock_call(pipe), **call_kwargs), evaluate=True)


def positional_names(network: Callable[..., Any], count: int) -> list[str]:
    """Return the names of a network's first ``count`` positional arguments, numbered where it hides them."""
    names = [
        parameter.name
        for parameter in inspect.signature(network).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return (names + [f"positional {place}" for place in range(len(names), count)])[:count]


def _run_to_first_step(pipe: Any, call: Callable[[], Any], *, evaluate: bool) -> Conditioning:
    """Run the call to its first scheduler step, recording what the networks get."""
    calls: dict[str, list[CapturedCall]] = {}
    thread = threading.get_ident()

    def record(name: str, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:  # another pipeline that shares the network
            return network(*args, **kwargs)
        calls.setdefault(name, []).append(_captured_call(network, args, kwargs))
        if evaluate:
            return network(*args, **kwargs)
        latents = args[0] if args else next(iter(kwargs.values()))
        return (torch.zeros_like(latents),)

    def stop(step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        raise _Captured

    with ExitStack() as patches:

        def start(set_timesteps: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            calls.clear()
            patches.enter_context(patched_networks(pipe, record))
            return set_timesteps(*args, **kwargs)

        patches.enter_context(patched(pipe.scheduler, "set_timesteps", start))
        patches.enter_context(patched(pipe.scheduler, "step", stop))
        try:
            call()
        except _Captured:
            return Conditioning(_with_siblings(pipe, {name: tuple(recorded) for name, recorded in calls.items()}))
    raise UnsupportedError(
        f"{type(pipe).__name__} ended without a scheduler step",
        expected="a pipeline that denoises with its scheduler",
    )


def _with_siblings(pipe: Any, captured: dict[str, tuple[CapturedCall, ...]]) -> dict[str, tuple[CapturedCall, ...]]:
    """Return the captured calls also under the names of networks of the same class that the first step does not reach:
    the second expert of Wan 2.2 gets what the first one does."""
    others = {other: calls for name, calls in captured.items() for other in siblings_of(pipe, name)}
    return {**others, **captured}


def _captured_call(network: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> CapturedCall:
    """Keep the conditioning of one call: everything but latents, timesteps and ControlNet's contributions."""
    named = {**dict(zip(positional_names(network, len(args)), args, strict=True)), **kwargs}
    (_, latents), *others = named.items()
    rows = latents.shape[0] if isinstance(latents, Tensor) else None
    return CapturedCall({name: value for name, value in others if _is_conditioning(name)}, rows)


def _is_conditioning(name: str) -> bool:
    if name in ("sample", "hidden_states", "return_dict") or name.startswith(("timestep", "controlnet_")):
        return False
    return "residual" not in name and name != "conditioning_scale"  # which ControlNet changes along the schedule


def _fit(call: CapturedCall, rows: int | None, batch: int) -> dict[str, Any]:
    """Return the captured arguments for ``rows = m * batch`` rows."""
    if rows is None or call.rows in (None, rows):
        return dict(call.arguments)
    stacked = rows // batch
    captured_batch = call.rows / stacked
    if captured_batch != 1:
        raise IncompatibleError(
            f"conditioning captured for {call.rows} rows",
            expected=f"{rows} rows (a batch of {batch}) or {stacked} (one prompt for all)",
            fix="capture with as many prompts as the run has images, or one, and with the same guidance",
        )
    index = [row // batch for row in range(rows)]
    return {name: _expand(value, index, call.rows) for name, value in call.arguments.items()}


def _expand(value: Any, index: list[int], captured_rows: int) -> Any:
    """Repeat the rows of nested tensors of ``captured_rows`` rows."""
    if isinstance(value, Tensor):
        fits = value.ndim > 0 and value.shape[0] == captured_rows
        return value[torch.as_tensor(index, device=value.device)] if fits else value
    if isinstance(value, dict):
        return {name: _expand(item, index, captured_rows) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_expand(item, index, captured_rows) for item in value)
    return value


@contextmanager
def _without_trace(pipe: Any) -> Iterator[None]:
    """Hide the progress bar, keep the global random state, and let offloading hooks start afresh afterwards."""
    devices = [pipe.device] if pipe.device.type == "cuda" else []
    try:
        with quiet(pipe), torch.random.fork_rng(devices=devices):
            yield
    finally:
        free_hooks(pipe)
