"""Owns pictures among the arguments of a call: what a base writes down of one; must not know pipelines."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, new
from torch import Tensor

_WRITTEN = re.compile(r"(tensor|array|image) [0-9x]+ \S+ sha256:[0-9a-f]{64}")


def is_picture(value: Any) -> bool:
    """Say whether an argument is a picture (PIL, array or tensor of two axes or more), or a list of pictures."""
    if isinstance(value, list | tuple):
        return bool(value) and all(map(is_picture, value))
    return isinstance(value, Image) or (isinstance(value, Tensor | np.ndarray) and value.ndim >= 2)


def written(value: Any) -> Any:
    """Return a picture as JSON keeps it: its form, size and hash; a list for several. Other values are handed on."""
    if not is_picture(value):
        return value
    if isinstance(value, list | tuple):
        return [written(each) for each in value]
    if isinstance(value, Image):
        return _line("image", value.size, value.mode, value.tobytes())
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return _line("tensor", value.shape, kind, value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return _line("array", value.shape, str(value.dtype), np.ascontiguousarray(value).tobytes())


def is_written(value: Any) -> bool:
    """Say whether a value is what :func:`written` makes of a picture or several."""
    if isinstance(value, list | tuple):
        return bool(value) and all(map(is_written, value))
    return isinstance(value, str) and _WRITTEN.fullmatch(value) is not None


def stand_in(value: Any) -> Any:
    """Return a black picture in the place of one that was written down. Other values are handed on."""
    if not is_written(value):
        return value
    if isinstance(value, list | tuple):
        return [stand_in(each) for each in value]
    form, sides, kind, _ = value.split()
    size = tuple(map(int, sides.split("x")))
    if form == "image":
        width, height = size
        return new(kind, (width, height))
    return torch.zeros(size, dtype=getattr(torch, kind)) if form == "tensor" else np.zeros(size, kind)


def _line(form: str, size: Any, kind: str, data: bytes) -> str:
    return f"{form} {'x'.join(map(str, size))} {kind} sha256:{hashlib.sha256(data).hexdigest()}"
