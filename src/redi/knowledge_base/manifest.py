"""Owns the manifest of a knowledge base and its comparison with a pipeline's; must not know tables or pipelines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from redi.errors import KnowledgeBaseError, PlanError
from redi.knowledge_base.codec import CODECS, FLOAT16
from redi.knowledge_base.durable import replace_file
from redi.knowledge_base.guard import check_depth, read_file, shortened
from redi.plan import Plan

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
MAX_BYTES = 4 * 1024 * 1024
MAX_SIZE = 1 << 27
_MAX_STEPS = 1000
NOISE_KINDS = ("shared", "independent")


def now() -> str:
    """Return the time as a manifest tells it: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _bad(got: str, expected: str, fix: str = "build the knowledge base again, or restore its manifest.json") -> Any:
    raise KnowledgeBaseError(got, expected=expected, fix=fix)


@dataclass(frozen=True)
class Manifest:
    """What a knowledge base was built with; written once and never changed.

    Args:
        plan: The recorded steps.
        identity: Everything that a pipeline must share with the base (model, scheduler, guidance, ...), as
            JSON values under string names. This package compares it and does not look inside.
        latent_shape: Shape of one latent, without the batch axis; ``(c, h, w)`` for images.
        noise: ``{"kind": "shared" | "independent", "seeds": [...]}``; seeds of the noise bank in order.
        library_versions: Versions that wrote the base, for information only.
        values: How values are kept: "float16", or a codec of fewer bits (then as differences to a reference).
        kb_id: 32 hexadecimal digits; by default a new one.
        created: ISO 8601 time; by default now.
        format_version: Version of the folder's format.

    Raises:
        KnowledgeBaseError: A field has the wrong type or value.
    """

    plan: Plan
    identity: dict[str, Any]
    latent_shape: tuple[int, ...]
    noise: dict[str, Any]
    library_versions: dict[str, str] = field(default_factory=dict)
    kb_id: str = field(default_factory=lambda: uuid4().hex)
    created: str = field(default_factory=now)
    format_version: int = FORMAT_VERSION
    values: str = FLOAT16.name

    def __post_init__(self) -> None:
        if type(self.format_version) is not int or self.format_version != FORMAT_VERSION:
            _bad(
                f"knowledge base of format version {shortened(self.format_version)}",
                f"version {FORMAT_VERSION}, the one that this redi reads",
                "use the redi that wrote it, or build the base again",
            )
        if not isinstance(self.plan, Plan):
            _bad(f"manifest: plan is a {type(self.plan).__name__}", "a redi.Plan")
        shape = self.latent_shape
        if (
            not isinstance(shape, (tuple, list))
            or not shape
            or any(type(size) is not int or size < 1 for size in shape)
        ):
            _bad(f"manifest: latent_shape {shortened(shape)}", "a list of positive whole numbers")
        if math.prod(shape) > MAX_SIZE or len(shape) > 8:
            _bad(f"manifest: latent_shape {shortened(shape)}", f"at most 8 axes and {MAX_SIZE} numbers")
        if len(self.plan.key_steps) + len(self.plan.value_steps) > _MAX_STEPS:
            _bad("manifest: a plan of very many steps", f"at most {_MAX_STEPS} key and value steps")
        object.__setattr__(self, "latent_shape", tuple(shape))
        if not _is_hex_id(self.kb_id):
            _bad(f"manifest: kb_id {shortened(self.kb_id)}", "32 hexadecimal digits")
        self._check_created()
        if not isinstance(self.values, str) or self.values not in CODECS:
            _bad(f"manifest: values {shortened(self.values)}", f"one of {', '.join(CODECS)}")
        for name in ("identity", "noise", "library_versions"):
            object.__setattr__(self, name, _plain_json(name, getattr(self, name)))
        self._check_noise()

    def _check_created(self) -> None:
        try:
            datetime.fromisoformat(self.created)
        except (TypeError, ValueError):
            _bad(f"manifest: created {shortened(self.created)}", "an ISO 8601 time")

    def _check_noise(self) -> None:
        kind, seeds = self.noise.get("kind"), self.noise.get("seeds", [])
        if not isinstance(kind, str) or kind not in NOISE_KINDS:
            _bad(f"manifest: noise kind {shortened(kind)}", f"one of {NOISE_KINDS}")
        if not isinstance(seeds, list) or any(type(seed) is not int or not 0 <= seed < 2**64 for seed in seeds):
            _bad(f"manifest: noise seeds {str(seeds)[:80]}", "a list of whole numbers from 0 to 2**64 - 1")
        if len(set(seeds)) != len(seeds):
            _bad("manifest: a noise seed occurs twice", "a different seed for every noise of the bank")
        if kind == "shared" and not seeds:
            _bad("manifest: shared noise without seeds", "at least one seed")

    @property
    def referenced_steps(self) -> tuple[int, ...]:
        """Steps whose latents are stored as differences to a reference of their noise."""
        fewer_bits = self.values != FLOAT16.name
        return (*self.plan.key_steps, *(self.plan.value_steps if fewer_bits else ()))

    @property
    def size(self) -> int:
        """Numbers in one latent (``d``)."""
        return math.prod(self.latent_shape)

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        fields = {
            "format_version": self.format_version,
            "kb_id": self.kb_id,
            "created": self.created,
            "plan": self.plan.to_dict(),
            "latent_shape": list(self.latent_shape),
            "values": self.values,
            "noise": self.noise,
            "identity": self.identity,
            "library_versions": self.library_versions,
        }
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what :meth:`to_json` wrote.

        Raises:
            KnowledgeBaseError: The text is cut off, of another format version, or a field is missing or wrong.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise KnowledgeBaseError(
                f"manifest cannot be parsed: {error}",
                expected="the JSON that redi wrote",
                fix="restore manifest.json, or build the base again",
            ) from error
        check_depth(fields, "manifest")
        if not isinstance(fields, dict):
            _bad(f"manifest is a JSON {type(fields).__name__}", "an object")
        version = fields.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            _bad(
                f"knowledge base of format version {shortened(version)}",
                f"version {FORMAT_VERSION}, the one that this redi reads",
                "use the redi that wrote it, or build the base again",
            )
        names = ("kb_id", "created", "plan", "latent_shape", "noise", "identity", "library_versions")
        missing = [name for name in names if name not in fields]
        if missing:
            _bad(f"manifest without {', '.join(missing)}", f"the fields {', '.join(names)}")
        if not isinstance(fields["plan"], dict):
            _bad(f"manifest: plan {shortened(fields['plan'])}", "an object")
        try:
            plan = Plan.from_dict(fields["plan"])
        except PlanError as error:
            raise KnowledgeBaseError(f"manifest: {str(error)[:400]}", expected="a plan that redi wrote") from error
        values = fields.get("values", FLOAT16.name)  # bases from before codecs do not say
        return cls(plan=plan, values=values, **{name: fields[name] for name in names if name != "plan"})

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``, whole or not at all, and flush it to the disk.

        Raises:
            KnowledgeBaseError: The disk is full or not writable, or the manifest is over 4 MB.
        """
        data = self.to_json().encode()
        if len(data) > MAX_BYTES:
            _bad(f"manifest of {len(data)} bytes", f"at most {MAX_BYTES}", "put less into the identity")
        replace_file(folder / FILE_NAME, data)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of the knowledge base in ``folder``.

        Raises:
            KnowledgeBaseError: There is none, or it is cut off, over 4 MB, of another version, or wrong.
        """
        path = folder / FILE_NAME
        try:
            text = read_file(path, MAX_BYTES).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise KnowledgeBaseError(
                f"no knowledge base at {folder}: {error}",
                expected=f"a folder with a {FILE_NAME}",
                fix="check the path, or build one with redi build",
            ) from error
        return cls.from_json(text)


def _is_hex_id(value: object) -> bool:
    return isinstance(value, str) and len(value) == 32 and all(digit in "0123456789abcdef" for digit in value)


def _plain_json(name: str, value: object) -> dict[str, Any]:
    """Return ``value`` as the plain JSON that reading it back would give (tuples become lists)."""
    if not isinstance(value, Mapping):
        _bad(f"manifest: {name} is a {type(value).__name__}", "an object")
    check_depth(value, f"manifest: {name}")
    try:
        plain = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise KnowledgeBaseError(f"manifest: {name}: {error}", expected="finite JSON values") from error
    if not isinstance(plain, dict):
        _bad(f"manifest: {name} {plain!r}", "an object")
    return dict(plain)


class _Missing:
    """A field that one side does not have."""

    def __repr__(self) -> str:
        return "(not there)"


MISSING = _Missing()


@dataclass(frozen=True)
class Difference:
    """One field that differs: its dotted name, the base's value and the pipeline's (:data:`MISSING` if absent)."""

    field: str
    base: Any
    pipeline: Any


def differences(base: Mapping[str, Any], pipeline: Mapping[str, Any]) -> list[Difference]:
    """Return every field in which two identities differ, sorted by name; nested fields as ``scheduler.config.beta``.

    Both sides are compared as the JSON that they would be stored as, so a tuple equals a list; ``1`` equals
    ``1.0`` but not ``True``.
    """
    found: list[Difference] = []
    _compare("", _plain_json("identity", base), _plain_json("identity", pipeline), found)
    return sorted(found, key=lambda difference: difference.field)


def _compare(prefix: str, base: Any, pipeline: Any, found: list[Difference]) -> None:
    if isinstance(base, dict) and isinstance(pipeline, dict):
        for name in base.keys() | pipeline.keys():
            below = f"{prefix}.{name}" if prefix else name
            _compare(below, base.get(name, MISSING), pipeline.get(name, MISSING), found)
        return
    if not _same(base, pipeline):
        found.append(Difference(prefix, base, pipeline))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    return bool(one == other)


def describe_differences(found: Iterable[Difference]) -> str:
    """Return one block of text that prints both sides of every difference."""
    lines = []
    for difference in found:
        lines.append(f"{difference.field}:")
        lines.append(f"    knowledge base: {_short(difference.base)}")
        lines.append(f"    pipeline:       {_short(difference.pipeline)}")
    return "\n".join(lines)


def _short(value: Any, limit: int = 160) -> str:
    text = repr(value) if isinstance(value, _Missing) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[: limit - 1]}… ({len(text)} characters)"
