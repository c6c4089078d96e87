"""Owns ``calibration.json`` beside a base: what was measured on calibration prompts, by the way images jump; must not
know pipelines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from redi.calibration import Choice, Measurements
from redi.errors import InputError, KnowledgeBaseError
from redi.knowledge_base import KnowledgeBase
from redi.knowledge_base.durable import replace_file
from redi.knowledge_base.guard import read_file
from redi.knowledge_base.hashes import signed_again
from redi.knowledge_base.manifest import FILE_NAME as MANIFEST
from redi.knowledge_base.upkeep import WAIT
from redi.retrieval import Combiner

FILE_NAME = "calibration.json"
FORMAT_VERSION = 1
_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Way:
    """What a calibration holds for; another key step, other weights or another number of neighbours lose otherwise.

    Attributes:
        key_step: Completed steps at the key.
        neighbors: Entries to retrieve (H).
        weights: The combiner, with its settings, as ``repr`` tells it.
    """

    key_step: int
    neighbors: int
    weights: str

    @classmethod
    def of(cls, key_step: int, neighbors: int, rule: Combiner) -> Way:
        """Return the way of a combiner."""
        return cls(key_step, neighbors, repr(rule))

    def __str__(self) -> str:
        return f"key step {self.key_step}, {self.neighbors} neighbours, {self.weights}"


@dataclass(frozen=True, eq=False)
class Calibration:
    """What calibration prompts showed of one way to jump by a base.

    Attributes:
        way: How they jumped.
        measure: What a loss is, such as "closeness".
        measured: What happened to them.
    """

    way: Way
    measure: str
    measured: Measurements

    def choose(self, max_loss: float) -> Choice:
        """Return the gate for a loss; as :meth:`redi.calibration.Measurements.choose`."""
        return self.measured.choose(max_loss)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form; numbers keep five digits."""
        found = self.measured
        return {
            "way": vars(self.way),
            "measure": self.measure,
            "full_calls": found.full_calls,
            "calls": {str(step): calls for step, calls in found.calls.items()},
            "scores": {name: _rounded(column) for name, column in found.scores.items()},
            "losses": {str(step): _rounded(column) for step, column in found.losses.items()},
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Calibration:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InputError: Numbers do not fit each other.
            KeyError, TypeError, ValueError, AttributeError: It is something else.
        """
        way = fields["way"]
        return cls(
            Way(int(way["key_step"]), int(way["neighbors"]), str(way["weights"])),
            str(fields["measure"]),
            Measurements(
                {name: np.asarray(column, np.float64) for name, column in fields["scores"].items()},
                {int(step): np.asarray(column, np.float64) for step, column in fields["losses"].items()},
                {int(step): float(calls) for step, calls in fields["calls"].items()},
                float(fields["full_calls"]),
            ),
        )


def read(base: KnowledgeBase, way: Way) -> Calibration:
    """Return a base's calibration for a way to jump.

    Raises:
        KnowledgeBaseError: There is none, it is damaged or of another version, or the base has changed since.
    """
    path, fix = base.path / FILE_NAME, f"redi calibrate {base.path} (or redi.calibrate)"
    found = _all(base)
    if found is None:
        raise KnowledgeBaseError(f"{base.path} is not calibrated", expected=f"a {FILE_NAME} in it", fix=fix)
    for each in found:
        if each.way == way:
            return each
    raise KnowledgeBaseError(
        f"{path} tells nothing of {way}",
        expected=" or ".join(f"({each.way})" for each in found),
        fix=f"jump in one of these ways, or {fix}",
    )


def write(base: KnowledgeBase, calibration: Calibration) -> None:
    """Keep a calibration beside its base, in the place of an older one for the same way; whole or not at all.

    Raises:
        KnowledgeBaseError: The disk is full or not writable, or another process goes on writing for a minute; the old
            file stays.
    """
    try:
        kept = [each for each in _all(base) or () if each.way != calibration.way]
    except KnowledgeBaseError:
        kept = []  # stale or damaged: nothing of it holds any more
    content = {
        "format_version": FORMAT_VERSION,
        "kb_id": base.manifest.kb_id,
        "entries": len(base),
        "calibrations": [each.to_dict() for each in (*kept, calibration)],
    }
    linked = (base.path / MANIFEST).is_symlink()  # a download in the hub's cache, which no builder writes to
    alone = nullcontext() if linked or base.address != str(base.path) else base.lock(WAIT)
    with alone, signed_again(base.path, FILE_NAME):
        replace_file(base.path / FILE_NAME, (json.dumps(content, allow_nan=False) + "\n").encode())


def _all(base: KnowledgeBase) -> list[Calibration] | None:
    """Return every calibration of a base; None if it has no file."""
    path = base.path / FILE_NAME
    fix = f"redi calibrate {base.path} (or redi.calibrate)"
    try:
        content = json.loads(read_file(path, _MAX_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise KnowledgeBaseError(f"{path} cannot be read: {error}", expected="what redi wrote", fix=fix) from error
    try:
        version, stamp = content["format_version"], (content["kb_id"], content["entries"])
        if version != FORMAT_VERSION:
            raise KnowledgeBaseError(
                f"{path} of format version {version!r}", expected=f"version {FORMAT_VERSION}", fix=fix
            )
        if stamp != (base.manifest.kb_id, len(base)):
            raise KnowledgeBaseError(
                f"{path} was measured on {stamp[1]} entries",
                expected=f"the {len(base)} that the base holds now: its losses are others",
                fix=fix,
            )
        return [Calibration.from_dict(each) for each in content["calibrations"]]
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise KnowledgeBaseError(f"{path} is damaged: {error}", expected="what redi wrote", fix=fix) from error


def _rounded(column: Sequence[float] | Any) -> list[float]:
    return [float(f"{each:.5g}") for each in column]
