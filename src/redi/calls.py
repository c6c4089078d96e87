"""Owns the arguments of a pipeline's call: which decide its trajectories, as JSON and back; must not know bases."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch

from redi.attachment import stock_class
from redi.errors import InputError
from redi.modular import inputs_of, is_modular
from redi.pictures import is_picture, is_written, written

_FREE = frozenset(
    {
        "attention_mask",  # of prompt_embeds
        "eta",  # refused by the engine where it adds noise
        "generator",
        "latents",
        "output_type",
        "pooled_prompt_embeds",
        "return_dict",
    }
)

_EMPTY_IS_NONE = ("StableDiffusionPipeline", "StableDiffusion3Pipeline", "WanPipeline")
"""Pipelines that read no negative prompt as an empty one; for others (SDXL, Flux, StableAudio) the two differ."""


def is_free(name: str) -> bool:
    """Say whether an argument may differ from image to image: prompts, noise, callbacks, the form of the output."""
    per_prompt = name.startswith("num_") and name.endswith("_per_prompt")
    return name in _FREE or name.startswith(("prompt", "callback")) or per_prompt


def parameters_of(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """Return the named parameters of the pipeline's stock call."""
    return inputs_of(pipe) if is_modular(pipe) else _parameters(stock_class(pipe))


@functools.cache
def _parameters(kind: Any) -> Mapping[str, inspect.Parameter]:
    _, *parameters = inspect.signature(kind.__call__).parameters.values()
    return {each.name: each for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}


def checked_arguments(pipe: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments that can be recorded, without those that leave it to the pipeline.

    Raises:
        InputError: One is unknown, differs from image to image, or cannot be written down.
    """
    parameters = parameters_of(pipe)
    usable = [name for name in parameters if not is_free(name)]
    for name, value in given.items():
        if name not in usable:
            raise InputError(
                f"{name} as an argument of every call of {stock_class(pipe).__name__}",
                expected=f"one of {', '.join(usable)}",
                fix="leave it out" if name in parameters else "look for its name in the pipeline's documentation",
            )
        _check(name, value, parameters[name].default)
    return {name: value for name, value in given.items() if not left_out(parameters[name], value)}


def left_out(parameter: inspect.Parameter, value: Any) -> bool:
    """Say whether a value leaves an argument to the pipeline: None, but where None switches a list of texts off."""
    return value is None and not isinstance(parameter.default, list)


def _check(name: str, value: Any, default: Any) -> None:
    if value is None:
        return
    if name.startswith("negative_prompt") and not isinstance(value, str):
        raise InputError(f"{name} of type {type(value).__name__}", expected="one text for all prompts")
    number = isinstance(value, int | float)
    if isinstance(default, int | float) and isinstance(default, bool) is not isinstance(value, bool):
        raise InputError(f"{name}={value!r}", expected="yes or no" if isinstance(default, bool) else "a number")
    if isinstance(default, int | float) and not number:
        raise InputError(f"{name}={value!r}", expected="a number")
    if number and not math.isfinite(value):
        raise InputError(f"{name}={value!r}", expected="a finite number")
    if not _is_plain(value) and not is_picture(value):
        raise InputError(
            f"{name} of type {type(value).__name__}",
            expected="numbers, text, pictures, and lists of them: a base writes down what its pipeline was called with",
        )


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def recorded_call(pipe: Any, given: Mapping[str, Any], checked: Mapping[str, float]) -> dict[str, Any]:
    """Return every argument that decides trajectories, as JSON: as given, as the pipeline's default, or as checked.

    Args:
        pipe: The pipeline.
        given: As of :func:`checked_arguments`.
        checked: What the pipeline filled in (``Rehearsal.checked``).
    """
    recorded = {}
    for name, parameter in parameters_of(pipe).items():
        if is_free(name):
            continue
        default = None if parameter.default is parameter.empty else parameter.default
        value = same_as_none(pipe, name, given.get(name, default))
        if value is None:
            value = checked.get(name)
        if value is not None or given.get(name, ...) is None:
            recorded[name] = json_value(written(value))
    return recorded


def same_as_none(pipe: Any, name: str, value: Any) -> Any:
    """Return an argument, or None where the pipeline makes the same of it as of None."""
    if name.startswith("negative_prompt") and stock_class(pipe).__name__ in _EMPTY_IS_NONE and value == "":
        return None
    return None if isinstance(value, Mapping) and not value else value


def arguments_from(pipe: Any, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments to call a pipeline with, from JSON; those that are the pipeline's defaults are left out, and
    pictures, of which JSON holds a hash."""
    return {name: value for name, value in written_arguments(pipe, recorded).items() if not is_written(value)}


def written_arguments(pipe: Any, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same arguments, also the pictures, as they are written down."""
    found = {}
    for name, parameter in parameters_of(pipe).items():
        if name in recorded and not is_same(recorded[name], parameter.default):
            value = recorded[name]
            is_tuple = isinstance(value, list) and "tuple" in str(parameter.annotation).lower()
            found[name] = tuple(value) if is_tuple else value
    return found


def is_same(value: Any, other: Any) -> bool:
    """Say whether two plain values are equal as JSON has them, where a tuple is a list."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return len(value) == len(other) and all(map(is_same, value, other))
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return value.keys() == other.keys() and all(is_same(value[name], other[name]) for name in value)
    return value is other or (isinstance(value, int | float | str) and bool(value == other))


def json_value(value: Any) -> Any:
    """Return a config value as JSON keeps it; numbers that JSON has no word for become text."""
    if isinstance(value, Mapping):
        return {str(name): json_value(item) for name, item in value.items()}
    if hasattr(value, "tolist"):  # arrays and tensors
        value = value.tolist()
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value) if isinstance(value, torch.dtype | torch.device) else type(value).__name__
