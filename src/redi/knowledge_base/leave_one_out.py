"""Owns how far entries are from their nearest neighbour, measured and kept in a file; must not know what asks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.durable import replace_file, writing
from redi.knowledge_base.noise_bank import load_tensors, pack_tensors

if TYPE_CHECKING:
    from redi.knowledge_base.base import KnowledgeBase

_FILE = "index/leave_one_out.safetensors"
_MOST_BYTES = 1 << 30
_MOST_CHANGED = 8
"""Distances stand for the base until an eighth of its entries has come or gone: a sample's quantiles hardly move."""


def measure(base: KnowledgeBase, device: torch.device | str | None, sample: int) -> dict[int, Tensor]:
    """Search, at each key step, the nearest *other* entry of the same noise for a fixed random choice of entries.

    Returns:
        By key step, (m,) float32, m at most ``sample``, for the chosen entries that have a neighbour.
    """
    chosen = torch.randperm(len(base), generator=torch.Generator().manual_seed(0))[:sample].sort().values
    noise_ids = torch.from_numpy(base.noise_ids())[chosen]
    return {step: _distances(base, step, chosen, noise_ids, device) for step in base.plan.key_steps}


def _distances(
    base: KnowledgeBase, key_step: int, chosen: Tensor, noise_ids: Tensor, device: torch.device | str | None
) -> Tensor:
    parts = []
    for noise_id in np.unique(noise_ids.numpy()).tolist():
        for rows in torch.split(chosen[noise_ids == noise_id], 64):
            found = base.search(base.keys(rows, key_step), [noise_id] * len(rows), 2, key_step, device)
            own = found.rows == rows[:, None]
            parts.append(found.distances.masked_fill(own, torch.inf).amin(dim=1))
    distances = torch.cat(parts) if parts else torch.empty(0)
    return distances[distances.isfinite()]


def store(base: KnowledgeBase, found: dict[int, Tensor]) -> None:
    """Write what :func:`measure` found, with the base's id and number of entries.

    Raises:
        KnowledgeBaseError: The disk is full or not writable.
    """
    stamp = torch.tensor([*bytes.fromhex(base.manifest.kb_id), len(base)], dtype=torch.int64)
    path = _path(base)
    with writing(path):
        path.parent.mkdir(exist_ok=True)
    replace_file(path, pack_tensors({**{f"key_{step}": each for step, each in found.items()}, "stamp": stamp}))


def stored(base: KnowledgeBase, key_step: int) -> Tensor:
    """Return the distances of a key step.

    Raises:
        KnowledgeBaseError: There are none, or more than an eighth of the entries has changed since.
    """
    path = _path(base)
    fix = "finish the build (redi build with the same arguments, or KnowledgeBase.finish()), or redi compact"
    if not path.exists():
        raise KnowledgeBaseError(f"{base.path} has no leave-one-out distances", fix=fix)
    found = load_tensors(path, _MOST_BYTES)
    stamp, name = found.get("stamp"), f"key_{key_step}"
    if stamp is None or name not in found or not _holds(stamp, base):
        raise KnowledgeBaseError(f"{path} is older than the newest entries", fix=fix)
    distances = found[name]
    if distances.dtype != torch.float32 or distances.ndim != 1 or not bool(distances.isfinite().all()):
        raise KnowledgeBaseError(f"{path} holds {distances.dtype} {tuple(distances.shape)}", expected="finite float32s")
    return distances


def forget(folder: Path) -> None:
    """Delete the distances of the base in a folder, so that the next build measures them again.

    Raises:
        KnowledgeBaseError: The folder is not writable.
    """
    with writing(folder / _FILE):
        (folder / _FILE).unlink(missing_ok=True)


def _path(base: KnowledgeBase) -> Path:
    return base.path / _FILE


def _holds(stamp: Tensor, base: KnowledgeBase) -> bool:
    if stamp.dtype != torch.int64 or stamp.shape != (17,):
        return False
    *identifier, count = stamp.tolist()
    return identifier == [*bytes.fromhex(base.manifest.kb_id)] and _MOST_CHANGED * abs(count - len(base)) <= len(base)
