"""Owns what an operator does with whole bases: remove, merge, split; must not know how rows are kept."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from redi.errors import IncompatibleError, InputError, KnowledgeBaseError
from redi.knowledge_base.base import KnowledgeBase
from redi.knowledge_base.entries import Entry
from redi.knowledge_base.manifest import Difference, Manifest, describe_differences, differences, now
from redi.knowledge_base.noises import Noises
from redi.knowledge_base.rows import TableRows

WAIT = 60.0
"""Seconds that upkeep waits for another process that writes."""
_AT_ONCE = 512
_INFORMATION = "information"
_ROUNDING = 0.05
"""Share of itself by which the reference of a noise may differ that two machines made alike: batches, threads and half
precision change last bits, which a run carries on."""


@dataclass(frozen=True)
class Where:
    """Which entries: those for which everything holds that is named.

    Args:
        prompt: Pattern of the whole prompt with ``*`` and ``?``, capitals or not.
        noises: Noise ids, first and last.
        units: Unit numbers, first and last.
        entry: Start of the id, in hexadecimal digits.
    """

    prompt: str | None = None
    noises: tuple[int, int] | None = None
    units: tuple[int, int] | None = None
    entry: str | None = None

    @classmethod
    def parse(cls, conditions: list[str]) -> Where:
        """Read conditions such as ``prompt=*dog*``, ``noise=3``, ``unit=0-9``, ``entry=04af``; all must hold.

        Raises:
            InputError: A condition is none of these, or there is none.
        """
        made = cls()
        for text in conditions:
            name, equals, value = text.partition("=")
            if not equals or not value or name not in ("prompt", "noise", "unit", "entry"):
                raise InputError(f"condition {text!r}", expected="prompt=*dog*, noise=3, unit=0-9 or entry=04af")
            field = {"noise": "noises", "unit": "units"}.get(name, name)
            if getattr(made, field) is not None:
                raise InputError(f"two conditions about {name}", expected="one")
            read: Any = _range(text, value) if field != name else value.lower() if name == "entry" else value
            made = replace(made, **{field: read})
        if made == cls():
            raise InputError("no condition", expected="at least one, such as prompt=*dog*")
        return made

    def holds(self, entry: Entry) -> bool:
        """Say whether an entry is meant."""
        return (
            (self.prompt is None or fnmatch.fnmatchcase(entry.prompt.lower(), self.prompt.lower()))
            and (self.noises is None or self.noises[0] <= entry.noise_id <= self.noises[1])
            and (self.units is None or self.units[0] <= entry.unit <= self.units[1])
            and (self.entry is None or entry.entry_id.hex().startswith(self.entry))
        )


def _range(text: str, value: str) -> tuple[int, int]:
    found = re.fullmatch(r"(-?\d+)(?:-(\d+))?", value)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
    if first > last:
        raise InputError(f"condition {text!r}", expected="a number or a range such as 0-9")
    return first, last


def matching(base: KnowledgeBase, where: Where) -> list[tuple[int, Entry]]:
    """Return rows and entries for which the conditions hold."""
    return [each for rows in parts(base) for each in zip(rows, base.entries(rows), strict=True) if where.holds(each[1])]


def parts(base: KnowledgeBase) -> Iterator[range]:
    """Return every row, in order, as many at once as fit in memory whatever the latents."""
    count = len(base)
    for start in range(0, count, _AT_ONCE):
        yield range(start, min(start + _AT_ONCE, count))


def remove(base: KnowledgeBase, where: Where) -> list[Entry]:
    """Remove entries and return them. Killed on the way, all or none are removed once somebody writes next.

    Raises:
        KnowledgeBaseError: Another process goes on writing for a minute, or the disk is full.
    """
    with base.lock(WAIT):
        found = [entry for _, entry in matching(base, where)]
        if found:
            base.remove([(entry.unit, entry.slot) for entry in found])
            base.sign()
    return found


def merge(target: KnowledgeBase, source: KnowledgeBase) -> int:
    """Add to a base what another one holds and it does not (by noise, seed and prompt); return how many entries came.

    Entries read the same in both, up to float16, though what they are kept as differences to may differ in last bits.
    Killed on the way, doing it again adds the rest.

    Raises:
        IncompatibleError: They differ in what makes trajectories; the message prints both sides.
        KnowledgeBaseError: A base is damaged, another process goes on writing, or the disk is full.
    """
    check_mergeable(target, source)
    if target.path.resolve() == source.path.resolve():
        return 0
    added, apart = 0, _apart(target, source)
    with target.lock(WAIT):
        for rows in parts(source):
            record = target.add_rows(_moved(source.stored(rows), apart))
            added += record.rows if record else 0
        if added:
            target.finish()
    return added


def check_mergeable(target: KnowledgeBase, source: KnowledgeBase) -> None:
    """Refuse bases whose entries do not belong together.

    Raises:
        IncompatibleError: See above.
    """
    found = differences(_what_makes_entries(target.manifest), _what_makes_entries(source.manifest))
    if found:
        told = describe_differences([Difference(each.field, each.base, each.pipeline) for each in found])
        width = max(len(str(target.path)), len(str(source.path))) + 1
        told = told.replace("knowledge base:", f"{target.path}:".ljust(width)).replace(
            "pipeline:      ", f"{source.path}:".ljust(width)
        )
        raise IncompatibleError(
            f"{source.path} cannot be merged into {target.path}\n{told}",
            expected="the same model, sampler, call, plan and noises",
            fix="merge bases that were built alike; keep the others apart",
        )
    pairs = {"noises": (target.noise_bank.latents, source.noise_bank.latents)}
    pairs |= {
        f"references of step {step}": (target.references[step], source.references[step])
        for step in target.plan.key_steps
    }
    for name, (ours, theirs) in pairs.items():
        share = max(map(_share, ours, theirs), default=0.0)
        if not share <= _ROUNDING:
            raise IncompatibleError(
                f"{source.path} cannot be merged into {target.path}: {name} differ by up to {share:.2g} of themselves",
                expected=f"at most {_ROUNDING:g}, as rounding on another machine leaves",
                fix="merge bases that were built alike; keep the others apart",
            )


def _share(ours: Tensor, theirs: Tensor) -> float:
    return float((theirs - ours).norm() / ours.norm().clamp_min(1e-12))


def _apart(target: KnowledgeBase, source: KnowledgeBase) -> Noises:
    """Return by how much the source's references are above the target's; nothing for steps where they are the same."""
    apart = {step: source.references[step] - ours for step, ours in target.references.items()}
    return Noises(target.noise_bank, {step: above for step, above in apart.items() if bool(above.any())})


def _moved(rows: TableRows, apart: Noises) -> TableRows:
    """Return rows as differences to the target's references; as they are where those are the source's too."""
    ids, moved = torch.tensor(rows.noise_ids), {}
    for column, offsets in rows.latents.items():
        step = int(column.rpartition("_")[2])
        if step in apart.references:
            above = apart.reference(step, ids).flatten(1)
            moved[column] = (torch.from_numpy(offsets).float() + above).half().numpy()
    return replace(rows, latents={**rows.latents, **moved})


def _what_makes_entries(manifest: Manifest) -> dict[str, Any]:
    identity = {name: value for name, value in manifest.identity.items() if name != _INFORMATION}
    return {
        **identity,
        "plan": manifest.plan.to_dict(),
        "latent_shape": list(manifest.latent_shape),
        "noise": {name: value for name, value in manifest.noise.items() if name != "sha256"},
        "values": manifest.values,
    }


def like(base: KnowledgeBase, folder: str | PathLike[str], origin: Mapping[str, Any]) -> KnowledgeBase:
    """Return an empty base that is built alike, with an id of its own, or the one that this began earlier.

    Args:
        base: The pattern.
        folder: New or empty, or begun with the same ``origin``.
        origin: Where its entries come from, written into its manifest.

    Raises:
        KnowledgeBaseError: The folder holds something else.
    """
    if KnowledgeBase.exists(folder):
        found = KnowledgeBase.open(folder)
        if found.manifest.identity.get(_INFORMATION, {}).get("origin") != dict(origin):
            raise KnowledgeBaseError(
                f"{folder} holds another knowledge base",
                expected="a new or empty folder, or one that the same command began",
                fix="choose another folder",
            )
        return found
    information = {**base.manifest.identity.get(_INFORMATION, {}), "origin": dict(origin)}
    information.pop("prompts", None)  # it holds others: no build is half done here, and none goes on
    identity = {**base.manifest.identity, _INFORMATION: information}
    manifest = replace(base.manifest, kb_id=uuid4().hex, created=now(), identity=identity)
    return KnowledgeBase.create(folder, manifest, base.noise_bank, base.references)


def merge_into(folder: str | PathLike[str], sources: list[KnowledgeBase]) -> KnowledgeBase:
    """Make a new base of all entries of several; errors as of :func:`merge` and :func:`like`."""
    for source in sources[1:]:
        check_mergeable(sources[0], source)
    made = like(sources[0], folder, {"merged": [source.manifest.kb_id for source in sources]})
    for source in sources:
        merge(made, source)
    return made


def split(base: KnowledgeBase, where: Where, folder: str | PathLike[str]) -> tuple[KnowledgeBase, int]:
    """Move entries to a base of their own; return it and how many were moved.

    They are removed from the first base once they are on the disk in the second. Killed on the way nothing is lost,
    and doing it again ends it.

    Raises:
        InputError: No entry is meant, or all are.
        KnowledgeBaseError: Another process goes on writing, the folder holds something else, or the disk is full.
    """
    with base.lock(WAIT):
        found = matching(base, where)
        begun = KnowledgeBase.exists(folder)
        if len(found) == len(base) or not (found or begun):
            raise InputError(f"a split with {len(found)} of {len(base)} entries", expected="some, not all")
        made = like(base, folder, {"split from": base.manifest.kb_id, "where": repr(where)})
        with made.lock(WAIT):
            for start in range(0, len(found), _AT_ONCE):
                made.add_rows(base.stored([row for row, _ in found[start : start + _AT_ONCE]]))
            made.finish()
        if found:
            base.remove([(entry.unit, entry.slot) for _, entry in found])
            base.sign()
    return made, len(found)
