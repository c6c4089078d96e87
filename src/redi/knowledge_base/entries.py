"""Owns what goes into a knowledge base and what comes out: batches, entries, refusals, reports; must not know files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.guard import shortened
from redi.knowledge_base.manifest import Manifest
from redi.knowledge_base.noises import Noises
from redi.knowledge_base.rows import TableRows


@dataclass(frozen=True, eq=False)
class EntryBatch:
    """The entries of one unit of work (n of them), as the engine recorded them.

    Args:
        prompts: n prompts.
        noise_ids: n indices into the noise bank; -1 for independent noise.
        seeds: n seeds of the initial noise.
        keys: By key step, (n, *shape) float: x after that many completed steps.
        values: By value step, (n, *shape) float.
        failed: Why some could not be recorded, by their place; their latents are of no account.
    """

    prompts: Sequence[str]
    noise_ids: Sequence[int]
    seeds: Sequence[int]
    keys: Mapping[int, Tensor]
    values: Mapping[int, Tensor]
    failed: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Neighbors:
    """Nearest entries of b queries: rows (b, h) int64 and distances (b, h) float32, nearest first, on the CPU.

    ``h`` is at most the number asked for; a query with fewer entries is filled up with row -1, distance inf.
    """

    rows: Tensor
    distances: Tensor


@dataclass(frozen=True)
class Entry:
    """What is known of one entry, apart from its latents."""

    entry_id: bytes
    unit: int
    slot: int
    prompt: str
    noise_id: int
    seed: int


@dataclass(frozen=True)
class Refusal:
    """An entry that was not stored: its place in the build, its prompt, and why."""

    unit: int
    slot: int
    prompt: str
    reason: str


def refusals_in(lines: Iterable[Mapping[str, Any]], path: Path) -> list[Refusal]:
    """Read the lines of ``refused.jsonl``: every entry once, as it was refused last; errors name ``path``.

    Raises:
        KnowledgeBaseError: A line does not say what was refused.
    """
    found: dict[tuple[int, int], Refusal] = {}
    for line in lines:
        try:
            refusal = Refusal(int(line["unit"]), int(line["slot"]), str(line["prompt"]), str(line["reason"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise KnowledgeBaseError(f"{path}: line {shortened(line)}", expected="a refused entry") from error
        found[refusal.unit, refusal.slot] = refusal
    return list(found.values())


@dataclass(frozen=True)
class VerifyReport:
    """What reading every row again found: entries, rows that repeat another, and sentences about damage."""

    entries: int
    duplicates: int
    refused: int
    damaged: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damaged and not self.duplicates


def rows_of(entries: Sequence[Entry], latents: Mapping[str, Any]) -> TableRows:
    """Return entries with their stored latents, (n, d) by column, as rows of no unit yet."""
    return TableRows(
        unit=-1,
        slots=[entry.slot for entry in entries],
        prompts=[entry.prompt for entry in entries],
        noise_ids=[entry.noise_id for entry in entries],
        seeds=[entry.seed for entry in entries],
        latents=latents,
    )


def encode_unit(unit: int, batch: EntryBatch, manifest: Manifest, noises: Noises) -> tuple[TableRows, list[Refusal]]:
    """Return the rows of a unit to store and the entries to refuse (not finite, or beyond float16).

    Raises:
        KnowledgeBaseError: Shapes, steps or noises don't fit the manifest.
    """
    count = len(batch.prompts)
    _check_batch(batch, count, manifest)
    latents: dict[str, Any] = {}
    ids = torch.tensor(list(batch.noise_ids), dtype=torch.int64)
    for kind, given in (("key", batch.keys), ("value", batch.values)):
        for step, tensor in given.items():
            wide = tensor.detach().cpu().float()
            referenced = step in manifest.referenced_steps
            latents[f"{kind}_{step}"] = wide - noises.reference(step, ids) if referenced else wide
    reasons: dict[int, str] = dict(batch.failed)
    for column, tensor in latents.items():
        half = tensor.half().reshape(count, -1).numpy()
        for slot in np.flatnonzero(~np.isfinite(half).all(axis=1)).tolist():
            finite = bool(tensor[slot].isfinite().all())
            reasons.setdefault(slot, f"{column} is {'beyond float16' if finite else 'not finite'}")
        latents[column] = half
    kept = [slot for slot in range(count) if slot not in reasons]
    rows = TableRows(
        unit=unit,
        slots=kept,
        prompts=[batch.prompts[slot] for slot in kept],
        noise_ids=[int(batch.noise_ids[slot]) for slot in kept],
        seeds=[int(batch.seeds[slot]) for slot in kept],
        latents={column: half[kept] for column, half in latents.items()},
    )
    return rows, [Refusal(unit, slot, batch.prompts[slot], reasons[slot]) for slot in sorted(reasons)]


def _check_batch(batch: EntryBatch, count: int, manifest: Manifest) -> None:
    if len(batch.noise_ids) != count or len(batch.seeds) != count or not count:
        raise KnowledgeBaseError(
            f"{count} prompts, {len(batch.noise_ids)} noise ids, {len(batch.seeds)} seeds",
            expected="the same number of each, at least one",
        )
    shape = (count, *manifest.latent_shape)
    for kind, given, steps in (
        ("key", batch.keys, manifest.plan.key_steps),
        ("value", batch.values, manifest.plan.value_steps),
    ):
        if set(given) != set(steps):
            raise KnowledgeBaseError(f"{kind}s of steps {sorted(given)}", expected=f"steps {list(steps)}")
        for step, tensor in given.items():
            if tuple(tensor.shape) != shape or not tensor.is_floating_point():
                raise KnowledgeBaseError(
                    f"{kind} of step {step}: {tensor.dtype} of shape {tuple(tensor.shape)}",
                    expected=f"floats of shape {shape}",
                    fix="build with the latent size that the manifest names",
                )
    allowed = range(len(manifest.noise["seeds"])) if manifest.noise["kind"] == "shared" else range(-1, 0)
    for noise_id, seed in zip(batch.noise_ids, batch.seeds, strict=True):
        if int(noise_id) not in allowed:
            raise KnowledgeBaseError(f"noise id {noise_id}", expected=f"{allowed.start} to {allowed.stop - 1}")
        if not 0 <= int(seed) < 2**64:
            raise KnowledgeBaseError(f"seed {seed}", expected="0 to 2**64 - 1")
