"""Owns getting between a user and a pipeline's ``__call__`` without leaving a trace on it; must not know why.

A pipeline object gets a subclass of its class, of the same name, whose ``__call__`` goes through ``around``. Nothing
is added to the object, it saves, reloads and copies as the stock class, and releasing it gives the class back.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from redi.errors import UnsupportedError
from redi.modular import bars_of
from redi.patching import patched

Around = Callable[..., Any]
"""Called as ``around(pipe, original_call, args, kwargs)`` in place of the pipeline's ``__call__``."""

NoiseSupplier = Callable[[tuple[int, ...], torch.dtype, torch.device], "Tensor | None"]
"""Returns unit noise of a shape ``(b, ...)``, or None to keep the pipeline's own draw."""


def intercept_calls(pipe: Any, around: Around) -> None:
    """Send every ``pipe(...)`` through ``around(pipe, original_call, args, kwargs)``; a second time replaces the first.

    ``original_call(*args, **kwargs)`` is the stock call. While one call runs, a second one of the same pipeline
    raises ``UnsupportedError``: a pipeline's scheduler holds the state of one loop.
    """
    release(pipe)
    stock: Any = type(pipe)
    busy = threading.Lock()

    @functools.wraps(stock.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not busy.acquire(blocking=False):
            raise UnsupportedError(
                f"a second call of a {stock.__name__} while one runs",
                expected="one call at a time: the scheduler holds the state of one loop",
                fix="call it in turn, or give each thread its own pipeline (from_pipe shares the weights)",
            )
        try:
            return around(self, functools.partial(stock.__call__, self), args, kwargs)
        finally:
            busy.release()

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        constructor, arguments, *state = stock.__reduce_ex__(self, protocol)
        return (constructor, tuple(stock if item is type(self) else item for item in arguments), *state)

    names = {name: getattr(stock, name) for name in ("__module__", "__qualname__", "__doc__")}
    methods = {"__call__": __call__, "__reduce_ex__": __reduce_ex__, "_redi_around": staticmethod(around)}
    object.__setattr__(pipe, "__class__", type(stock)(stock.__name__, (stock,), {**names, **methods}))


def release(pipe: Any) -> None:
    """Give an intercepted pipeline its stock class back; a stock pipeline stays as it is."""
    if interception_of(pipe) is not None:
        object.__setattr__(pipe, "__class__", type(pipe).__base__)


def interception_of(pipe: Any) -> Around | None:
    """Return the ``around`` that this pipeline's calls go through, None if it is a stock pipeline."""
    around = vars(type(pipe)).get("_redi_around")
    return None if around is None else around.__func__


def stock_class(pipe: Any) -> Any:
    """Return the class that the pipeline has, or had before it was intercepted."""
    return type(pipe) if interception_of(pipe) is None else type(pipe).__base__


def stock_call(pipe: Any) -> Callable[..., Any]:
    """Return the pipeline's own ``__call__``, bound, whether or not it is intercepted."""
    return functools.partial(stock_class(pipe).__call__, pipe)


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Hide the pipeline's own progress bar inside the block; afterwards the user's settings are back."""
    bars = [(bar, vars(bar).get("_progress_bar_config")) for bar in bars_of(pipe)]
    for bar, before in bars:
        bar.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        for bar, before in bars:
            if before is None:
                del bar._progress_bar_config
            else:
                bar._progress_bar_config = before


@contextmanager
def draw_noise_through(pipe: Any, supplier: NoiseSupplier) -> Iterator[None]:
    """Let ``supplier`` give the initial noise wherever the pipeline would draw it itself.

    The pipeline still makes its own draw first, which tells the shape and moves the user's generators on as without
    redi; then ``supplier(shape, dtype, device)`` replaces it by unit noise, which the pipeline scales. Latents given
    by the user, and calls that start from an image, are left alone; inpainting at full strength starts from noise.

    Raises:
        UnsupportedError: The pipeline has no ``prepare_latents``.
    """
    if not hasattr(pipe, "prepare_latents"):
        raise UnsupportedError(
            f"{type(pipe).__name__} has no prepare_latents",
            expected="a pipeline that draws its initial noise there",
            fix="pass latents= from the knowledge base's noise bank",
        )

    def prepare(prepare_latents: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        prepared = prepare_latents(*args, **kwargs)
        signature = inspect.signature(prepare_latents)
        call = signature.bind(*args, **kwargs)
        given = call.arguments
        from_picture = given.get("image") is not None and not given.get("is_strength_max")
        if "latents" not in signature.parameters or given.get("latents") is not None or from_picture:
            return prepared
        drawn = prepared[0] if isinstance(prepared, tuple) else prepared
        noise = supplier(tuple(drawn.shape), drawn.dtype, drawn.device)
        if noise is None:
            return prepared
        given["latents"] = noise
        return prepare_latents(*call.args, **call.kwargs)

    with patched(pipe, "prepare_latents", prepare):
        yield
