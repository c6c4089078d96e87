"""Owns what differs between modular pipelines, made of blocks, and the others; must not know knowledge bases."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from redi.errors import UnsupportedError

_SAMPLES = ("images", "videos", "audio")
"""What modular pipelines call the samples in their state."""


def is_modular(pipe: Any) -> bool:
    """Say whether a pipeline is made of blocks."""
    return hasattr(pipe, "_blocks") and hasattr(pipe, "blocks")


def inputs_of(pipe: Any) -> dict[str, inspect.Parameter]:
    """Return the inputs of a modular pipeline's blocks, as parameters of a call."""
    return {
        each.name: inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default)
        for each in pipe._blocks.inputs
        if each.name is not None
    }


def bars_of(pipe: Any) -> Iterator[Any]:
    """Yield everything that draws a pipeline's progress bar: the pipeline itself, or blocks at any depth."""
    if not is_modular(pipe):
        yield pipe
        return
    waiting = [pipe._blocks]
    while waiting:
        block = waiting.pop()
        if hasattr(block, "set_progress_bar_config"):
            yield block
        waiting += getattr(block, "sub_blocks", {}).values()


def free_hooks(pipe: Any) -> None:
    """Let offloading hooks start afresh, where a pipeline has its own."""
    if hasattr(pipe, "maybe_free_model_hooks"):
        pipe.maybe_free_model_hooks()


def guider_of(pipe: Any) -> dict[str, Any] | None:
    """Return the class and settings of a pipeline's guider, which does what ``guidance_scale`` does elsewhere."""
    guider = getattr(pipe, "guider", None)
    if guider is None:
        return None
    names = sorted(name for name in guider.config if not name.startswith("_"))
    settings = {name: vars(guider).get(name, guider.config[name]) for name in names}  # also those set later
    return {"class": type(guider).__name__, **settings, "enabled": guider._enabled}


def refuse_momentum(pipe: Any) -> None:
    """Refuse a guider that adds up what the networks answered at every step: the steps that sleep have no answers.

    Raises:
        UnsupportedError: The pipeline has such a guider.
    """
    guider = getattr(pipe, "guider", None)
    momentum = getattr(guider, "adaptive_projected_guidance_momentum", None)
    if momentum is not None:
        raise UnsupportedError(
            f"{type(guider).__name__} with adaptive_projected_guidance_momentum={momentum}",
            expected="a guider that needs no answers of the steps that a jump leaves out",
            fix=f"{type(guider).__name__}(..., adaptive_projected_guidance_momentum=None)",
        )


def samples_of(output: Any) -> list[Any]:
    """Return the samples of what a call returned: a tuple, an output object, or the state of a modular pipeline."""
    if not hasattr(output, "get_by_kwargs"):
        return list(output[0])
    return list(next(made for name in _SAMPLES if (made := output.get(name)) is not None))
