"""Owns what a knowledge base asks of a pipeline and of its calls; must not know retrieval."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from redi.calls import arguments_from, is_free, is_same, left_out, parameters_of, same_as_none, written_arguments
from redi.errors import IncompatibleError, InputError, KnowledgeBaseError, UnsupportedError
from redi.identity import called_identity, compared, standing_identity
from redi.knowledge_base import Difference, KnowledgeBase, describe_differences, differences
from redi.pictures import is_written, written
from redi.solvers import facts_for

_FIX = "give the pipeline and its call what the base was built with, or build a base for what you have"


def call_arguments(base: KnowledgeBase, pipe: Any) -> dict[str, Any]:
    """Return the arguments of every pipeline call that the base was built with, those at their defaults left out.

    Raises:
        KnowledgeBaseError: Its manifest does not tell them.
    """
    return arguments_from(pipe, _recorded(base))


def _recorded(base: KnowledgeBase) -> dict[str, Any]:
    recorded = base.manifest.identity.get("call")
    if not isinstance(recorded, dict):
        raise KnowledgeBaseError(
            f"the manifest of {base.path} does not say how the pipeline was called",
            expected="call, the arguments of every call",
            fix="build the base with redi.build, or make its identity with redi.identity.identity_of",
        )
    return {**recorded, "num_inference_steps": base.plan.num_inference_steps}


def pipeline_differences(base: KnowledgeBase, pipe: Any) -> list[Difference]:
    """Return everything in which a pipeline is not the one that the base was built with.

    Raises:
        KnowledgeBaseError: The manifest does not tell how the pipeline was called.
        UnsupportedError: The pipeline's identity cannot be read.
    """
    recorded, built = _recorded(base), compared(base.manifest.identity)
    standing = standing_identity(pipe)
    found = differences({name: value for name, value in built.items() if name in standing}, standing)
    if found:  # such a pipeline may not even take the arguments
        return found
    called = called_identity(pipe, standing, written_arguments(pipe, recorded))
    called["call"] = {
        name: value
        for name, value in called["call"].items()
        if name in recorded or not is_same(value, parameters_of(pipe)[name].default)
    }  # what a later Diffusers added does not matter as long as it is at its default
    return differences(built, {**standing, **called})


def check_pipeline(base: KnowledgeBase, pipe: Any, *, allow_stochastic: bool = False) -> None:
    """Refuse a pipeline that is not the one that the base was built with.

    Raises:
        UnsupportedError: It is no pipeline, or redi has not been tested with its scheduler.
        IncompatibleError: It differs; the message prints both sides of everything.
    """
    if not hasattr(pipe, "scheduler"):
        raise UnsupportedError(f"a {type(pipe).__name__} to run with a base", expected="a Diffusers pipeline")
    facts_for(pipe.scheduler, allow_stochastic=allow_stochastic)
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
        InputError: A picture that the base was built with is missing.
    """
    signature = inspect.signature(call)
    bound = signature.bind(*args, **kwargs)
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        named = signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD
        given.update({name: value} if named else value)
    recorded, parameters = _recorded(base), parameters_of(pipe)
    found = [
        Difference(name, recorded.get(name), _plain(written(value)))
        for name, value in given.items()
        if name in parameters
        and not is_free(name)
        and not left_out(parameters[name], value)
        and not _agrees(pipe, name, value, recorded)
    ]
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
    missing = [name for name, value in recorded.items() if is_written(value) and given.get(name) is None]
    if missing:
        raise InputError(
            f"a call without {', '.join(missing)}",
            expected=f"the pictures that {base.path} was built with: it holds their hashes",
            fix=f"enable the base and pass them: pipe(prompt, {', '.join(f'{name}=...' for name in missing)})",
        )
    required = arguments_from(pipe, recorded)
    texts = {name: _spread(text, given) for name, text in required.items() if name.startswith("negative_prompt")}
    return {**given, **{name: value for name, value in {**required, **texts}.items() if given.get(name) is None}}


def _spread(negative_prompt: str, given: Mapping[str, Any]) -> str | list[str]:
    """Return the negative prompt in the form of the prompt: pipelines take two texts or two lists of a length."""
    prompts = given.get("prompt_embeds") if given.get("prompt") is None else given["prompt"]
    if prompts is None or isinstance(prompts, str):
        return negative_prompt
    return [negative_prompt] * len(prompts)


def _agrees(pipe: Any, name: str, value: Any, recorded: Mapping[str, Any]) -> bool:
    """Say whether an argument of a call is the base's."""
    value = written(value)
    wanted = recorded[name] if name in recorded else same_as_none(pipe, name, parameters_of(pipe)[name].default)
    each = value if name.startswith("negative_prompt") and isinstance(value, list | tuple) else [value]
    return all(is_same(same_as_none(pipe, name, one), wanted) for one in each)


def _plain(value: Any) -> Any:
    """Return a value that JSON can show."""
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return list(value)
    return value if value is None or isinstance(value, bool | int | float | str) else f"a {type(value).__name__}"
