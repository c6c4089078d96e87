"""Owns replacing a method on one object and putting it back; must not know what the replacement does."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from redi.errors import UnsupportedError

_ABSENT = object()


class _Patch(functools.partial[Any]):
    """``around(original, ...)`` standing in for ``original``; a type of its own so that it can be recognised."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        owner = type(getattr(self.args[0], "__self__", None)).__name__
        raise UnsupportedError(
            f"the pipeline copies its {owner} while redi runs it",
            expected="a pipeline whose one loop steps one scheduler (LTX 2, SkyReels 2 and others have one per track)",
            fix="run this pipeline without redi",
        )


@contextmanager
def patched(owner: object, name: str, around: Callable[..., Any]) -> Iterator[None]:
    """Let ``owner.name(...)`` call ``around(original, ...)`` inside the block.

    Only ``vars(owner)`` is written, so class, attributes and ``inspect.signature`` stay as they were, and after the
    block (also after an exception) the entry is what it was before, unless someone else replaced it meanwhile.

    Raises:
        UnsupportedError: redi has already replaced this method.
    """
    original = getattr(owner, name)
    if isinstance(original, _Patch):
        raise UnsupportedError(
            f"{type(owner).__name__}.{name} is already run by redi",
            expected="one run of a pipeline at a time",
            fix="leave the first `run` before entering the next",
        )
    attributes = vars(owner)
    before = attributes.get(name, _ABSENT)
    patch = functools.update_wrapper(_Patch(around, original), original, updated=())
    attributes[name] = patch
    try:
        yield
    finally:
        if attributes.get(name) is patch:
            del attributes[name]
            if before is not _ABSENT:
                attributes[name] = before


@contextmanager
def patched_networks(pipe: Any, around: Callable[..., Any]) -> Iterator[None]:
    """Let every call of a network component of ``pipe`` go to ``around(name, original, ...)`` inside the block.

    The method replaced lies outside of what ``torch.compile`` compiled and of accelerate's hooks: a call that
    ``around`` answers itself costs neither a graph nor a transfer.
    """
    with ExitStack() as patches:
        seen: set[int] = set()
        for name, component in pipe.components.items():
            if not isinstance(component, nn.Module) or id(component) in seen:
                continue
            seen.add(id(component))
            entry = "forward" if component._compiled_call_impl is None else "_compiled_call_impl"
            names = _hidden_signature(component, entry)
            patches.enter_context(patched(component, entry, functools.partial(_call_named, around, name, names)))
        yield


def siblings_of(pipe: Any, name: str) -> list[str]:
    """Return the names of the other network components of the same class, such as the two experts of Wan 2.2."""
    kind = _class_of(pipe.components[name])
    return [
        other
        for other, part in pipe.components.items()
        if other != name and isinstance(part, nn.Module) and _class_of(part) is kind
    ]


def _class_of(network: nn.Module) -> Any:
    """Return a network's class, past the wrapper of ``torch.compile(network)``."""
    return type(getattr(network, "_orig_mod", network))


def _call_named(
    around: Callable[..., Any],
    name: str,
    names: inspect.Signature | None,
    original: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call ``around(name, original, ...)``, ``original`` telling the names of its arguments where it hides them."""
    if names is not None:
        original = functools.partial(original)
        original.__signature__ = names  # type: ignore[attr-defined]
    return around(name, original, *args, **kwargs)


def _hidden_signature(network: nn.Module, entry: str) -> inspect.Signature | None:
    """Return the signature of a network's class where what stands in for ``entry`` (compiled code, DeepCache) is only
    ``(*args, **kwargs)``; None where it tells the names itself."""
    shown = inspect.signature(getattr(network, entry)).parameters.values()
    if all(parameter.kind is not parameter.VAR_POSITIONAL for parameter in shown):
        return None
    whole = inspect.signature(_class_of(network).forward)
    return whole.replace(parameters=list(whole.parameters.values())[1:])
