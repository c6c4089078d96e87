"""Owns what a knowledge base asks of a pipeline and of its calls; must not know retrieval."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from redi.errors import IncompatibleError, KnowledgeBaseError, UnsupportedError
from redi.identity import compared, identity_of
from redi.knowledge_base import Difference, KnowledgeBase, describe_differences, differences
from redi.solvers import facts_for

_FREE = frozenset(
    {
        "prompt",
        "num_images_per_prompt",
        "eta",  # refused by the engine where it adds noise
        "generator",
        "latents",
        "prompt_embeds",
        "output_type",
        "return_dict",
        "callback",
        "callback_steps",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
    }
)
"""Arguments of a pipeline call that may differ from those that the base was built with."""

_FIX = "give the pipeline and its call what the base was built with, or build a base for what you have"


def call_arguments(base: KnowledgeBase, pipe: Any) -> dict[str, Any]:
    """Return the arguments of every pipeline call that the base was built with.

    Raises:
        KnowledgeBaseError: Its manifest does not tell them.
    """
    try:
        guidance = base.manifest.identity["guidance"]
        scale, negative_prompt = guidance["scale"], guidance["negative_prompt"]
        *_, height, width = base.manifest.latent_shape
    except (KeyError, TypeError, ValueError) as error:
        raise KnowledgeBaseError(
            f"the manifest of {base.path} does not say how the pipeline was called: {error}",
            expected="guidance (scale, negative_prompt) and latents of height and width",
            fix="build the base with redi.build, or make its identity with redi.identity.identity_of",
        ) from error
    factor = int(getattr(pipe, "vae_scale_factor", 8))
    return {
        "num_inference_steps": base.plan.num_inference_steps,
        "guidance_scale": scale,
        "negative_prompt": negative_prompt or None,
        "height": height * factor,
        "width": width * factor,
    }


def pipeline_differences(base: KnowledgeBase, pipe: Any) -> list[Difference]:
    """Return everything in which a pipeline is not the one that the base was built with.

    Raises:
        UnsupportedError: The pipeline's identity cannot be read.
    """
    identity = identity_of(pipe, **call_arguments(base, pipe))
    return differences(compared(base.manifest.identity), compared(identity))


def check_pipeline(base: KnowledgeBase, pipe: Any) -> None:
    """Refuse a pipeline that is not the one that the base was built with.

    Raises:
        UnsupportedError: It is no pipeline, or redi has not been tested with its scheduler.
        IncompatibleError: It differs; the message prints both sides of everything.
    """
    if not hasattr(pipe, "scheduler"):
        raise UnsupportedError(f"a {type(pipe).__name__} to run with a base", expected="a Diffusers pipeline")
    facts_for(pipe.scheduler)
    found = pipeline_differences(base, pipe)
    if found:
        raise IncompatibleError(
            f"the pipeline differs from the one that {base.path} was built with\n{describe_differences(found)}",
            expected="the same model, adapters, scheduler and settings",
            fix=_FIX,
        )


def complete_call(
    base: KnowledgeBase, pipe: Any, call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a pipeline call by name, those that the base decides filled in.

    Args:
        base: The knowledge base.
        pipe: The pipeline.
        call: Its stock ``__call__``, bound.
        args: Positional arguments as the user gave them.
        kwargs: Keyword arguments as the user gave them.

    Raises:
        TypeError: The arguments do not fit the call.
        IncompatibleError: One was given that is not what the base was built with.
    """
    signature = inspect.signature(call)
    bound = signature.bind(*args, **kwargs)
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        named = signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD
        given.update({name: value} if named else value)
    required = call_arguments(base, pipe)
    found = [
        Difference(name, required[name], _plain(value))
        for name, value in given.items()
        if name in required and value is not None and not _same_argument(name, value, required[name])
    ]
    for name, value in given.items():
        parameter = signature.parameters.get(name)
        if name not in _FREE and name not in required and parameter is not None:
            default = parameter.default
            if not (_is_same(value, default) or (default is None and isinstance(value, dict) and not value)):
                found.append(Difference(name, default, _plain(value)))
    latents = given.get("latents")
    if isinstance(latents, Tensor) and tuple(latents.shape[1:]) != base.manifest.latent_shape:
        shape = list(base.manifest.latent_shape)
        found.append(Difference("shape of latents", ["b", *shape], list(latents.shape)))
    if found:
        raise IncompatibleError(
            f"arguments of this call are not those that {base.path} was built with\n"
            + describe_differences(found).replace("    pipeline:       ", "    this call:      "),
            expected="arguments that are left out (the base's are used) or the same",
            fix="leave them out, call redi.disable(pipe) first, or build a base with them",
        )
    required["negative_prompt"] = _spread(required["negative_prompt"], given)
    return {**given, **{name: value for name, value in required.items() if name in signature.parameters}}


def _spread(negative_prompt: str | None, given: Mapping[str, Any]) -> str | list[str] | None:
    """Return the negative prompt in the form of the prompt: pipelines take two texts or two lists of a length."""
    prompts = given.get("prompt_embeds") if given.get("prompt") is None else given["prompt"]
    if negative_prompt is None or prompts is None or isinstance(prompts, str):
        return negative_prompt
    return [negative_prompt] * len(prompts)


def _same_argument(name: str, value: Any, required: Any) -> bool:
    if name == "negative_prompt" and isinstance(value, list | tuple):
        return all((each or None) == required for each in value)
    return _is_same(value or None, required) if name == "negative_prompt" else _is_same(value, required)


def _is_same(value: Any, other: Any) -> bool:
    return value is other or (isinstance(value, Real | str) and bool(value == other))


def _plain(value: Any) -> Any:
    """Return a value that JSON can show."""
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return list(value)
    return value if value is None or isinstance(value, bool | int | float | str) else f"a {type(value).__name__}"
