"""Owns taking and putting the rows of some images in nested tensors; must not know what the tensors mean.

Rows of a batch: a tensor of ``m * b`` rows belongs to ``b`` images, row ``r`` to image ``r % b`` (how pipelines stack
unconditional and conditional rows for classifier-free guidance).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def rows_of_images(images: Sequence[int], batch: int, total: int) -> list[int]:
    """Return the rows, of ``total = m * batch``, that belong to these images."""
    chosen = set(images)
    return [row for row in range(total) if row % batch in chosen]


def take_rows_of_call(arguments: dict[str, Any], rows: Sequence[int], total: int) -> dict[str, Any]:
    """Return the named arguments of a network's call cut to ``rows``, as :func:`take_rows` does it.

    What names the places of tokens (Flux's ``img_ids``, rotary embeddings) is handed on where it has no batch axis,
    also if there happen to be as many tokens as rows.
    """
    return {
        name: value if _names_places(name, value) else take_rows(value, rows, total)
        for name, value in arguments.items()
    }


def _names_places(name: str, value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_names_places(name, item) for item in value)
    about_places = name.endswith(("img_ids", "txt_ids")) or "rotary" in name or "rope" in name
    return about_places and isinstance(value, Tensor) and value.ndim <= 2


def take_rows(tree: Any, rows: Sequence[int], total: int) -> Any:
    """Return ``tree`` with every tensor of ``total`` rows cut to ``rows``; everything else is handed on."""
    if len(rows) == total:
        return tree
    if isinstance(tree, Tensor):
        if tree.ndim == 0 or tree.shape[0] != total:
            return tree
        return tree[torch.as_tensor(rows, device=tree.device)]
    if isinstance(tree, dict):
        return _like(tree, {name: take_rows(item, rows, total) for name, item in tree.items()})
    if isinstance(tree, (list, tuple)):
        return _like(tree, [take_rows(item, rows, total) for item in tree])
    return tree


def put_rows(whole: Any, part: Any, rows: Sequence[int], total: int) -> Any:
    """Return a copy of ``whole`` in which ``rows`` of every tensor of ``total`` rows come from ``part``."""
    if len(rows) == total:
        return part
    if isinstance(whole, Tensor):
        if whole.ndim == 0 or whole.shape[0] != total:
            return part
        whole = whole.clone()
        whole[torch.as_tensor(rows, device=whole.device)] = part.to(whole.dtype)
        return whole
    if isinstance(whole, dict):
        return _like(whole, {name: put_rows(item, part[name], rows, total) for name, item in whole.items()})
    if isinstance(whole, (list, tuple)):
        return _like(whole, [put_rows(old, new, rows, total) for old, new in zip(whole, part, strict=True)])
    return part


def _like(container: Any, items: Any) -> Any:
    """Build a container of the same type: plain containers, named tuples, Diffusers' output dataclasses."""
    kind = type(container)
    if isinstance(container, dict) and kind is not dict:
        return kind(**items)
    if isinstance(container, tuple) and hasattr(container, "_fields"):
        return kind(*items)
    return kind(items)
