"""Owns the files of an index: versions that are swapped whole, mapped, and believed only while they fit the table.

``index/CURRENT`` names a version; ``index/v-*/`` holds what it is made of: ``index.json`` (what was chosen, what was
measured, SHA-256 of the other files), ``rows.safetensors`` (which entries it was made of), and for each part, which is
one noise at one key step, a coder's tensors and codes. ``index/rows-*/`` holds copies of latents for several versions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from redi.errors import KnowledgeBaseError, warn
from redi.knowledge_base.guard import check_depth, hash_of, read_file
from redi.knowledge_base.index import Index, Measured
from redi.knowledge_base.noise_bank import read_tensor_file, unpack_tensors
from redi.knowledge_base.packed_rows import PackedRows
from redi.knowledge_base.table import EntryTable

CURRENT, FACTS, ROWS = "CURRENT", "index.json", "rows.safetensors"
FORMAT = 1
STALE = 8
"""An index is of no use any more once more than an eighth of its entries has been removed."""
_NAME = re.compile(r"(v|rows)-[0-9a-f]{16}")
_MOST_JSON = 1 << 26
_MOST_GONE = 8
"""Entries of an index for each that the table holds; an index of more would take memory for what is not there."""
_MOST_HEAD = 1 << 16
"""Bytes of a tensor file beside its large tensors: names, shapes, a scale for each axis."""
_MOST_AXES = 1 << 10
"""Bytes that a coder may keep for each number of a latent: an axis has one."""
_AT_ONCE = 512
_FIX = "redi index --rebuild"
_CHECKSUM = "checksum"


@dataclass(frozen=True)
class Part:
    """How the entries of one noise are searched at one key step, and why.

    Attributes:
        key_step: The step.
        noise_id: The noise.
        count: Entries.
        method: The coder's name, or ``exact scan``.
        queries: Held-out keys that the recall was measured on.
        measured_at: Entries that there were then.
        measured: By number of neighbours, fewest first; more neighbours than the last are searched exactly.
    """

    key_step: int
    noise_id: int
    count: int
    method: str
    queries: int
    measured_at: int
    measured: tuple[Measured, ...]

    @property
    def file(self) -> str:
        """Start of the names of its files."""
        return f"key_{self.key_step}_noise_{self.noise_id}"

    @property
    def codes(self) -> str:
        """Name of the first file of its codes."""
        return f"{self.file}.codes"


@dataclass(frozen=True)
class Facts:
    """What one version says of itself: of which base, which copies of rows, how many entries (n), parts, hashes."""

    kb_id: str
    rows: str
    count: int
    parts: tuple[Part, ...]
    sha256: Mapping[str, str]

    def to_json(self) -> str:
        """Return the text of ``index.json``."""
        fields = json.loads(json.dumps({"format": FORMAT, **asdict(self)}))
        return json.dumps({**fields, _CHECKSUM: _checksum(fields)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: bytes) -> Facts:
        """Read what :meth:`to_json` wrote.

        Raises:
            KnowledgeBaseError: It is something else.
        """
        try:
            fields = json.loads(text)
            check_depth(fields, FACTS)
            checksum = fields.pop(_CHECKSUM, None)
            if checksum is not None and checksum != _checksum(fields):
                raise ValueError("it does not match its checksum")
            if fields.pop("format") != FORMAT:
                raise ValueError("another format")
            parts = tuple(
                Part(**{**each, "measured": tuple(Measured(**one) for one in each["measured"])})
                for each in fields.pop("parts")
            )
            found = cls(**fields, parts=parts)
            texts = [found.kb_id, *(p.method for p in parts), *found.sha256, *found.sha256.values()]
            least = [(found.count, 0)]
            least += [pair for p in parts for pair in ((p.key_step, 0), (p.noise_id, -1), (p.count, 0))]
            least += [pair for p in parts for pair in ((p.queries, 0), (p.measured_at, 0))]
            least += [pair for p in parts for m in p.measured for pair in ((m.neighbors, 1), (m.reranked, m.neighbors))]
            shares = [share for p in parts for m in p.measured for share in (m.recall, m.lower)]
            if (
                not all(type(each) is int and each >= limit for each, limit in least)
                or not all(type(each) in (int, float) and 0 <= each <= 1 for each in shares)
                or not all(type(each) is str for each in texts)
                or not _NAME.fullmatch(found.rows)
            ):
                raise ValueError("not the fields of an index")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise KnowledgeBaseError(f"{FACTS} cannot be read: {str(error)[:200]}", fix=_FIX) from error
        return found


def _checksum(fields: Mapping[str, Any]) -> str:
    return sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def read_facts(folder: Path) -> tuple[Path, Facts] | None:
    """Return the current version's folder and what it says; None if there is no index.

    Raises:
        KnowledgeBaseError: It is damaged.
    """
    try:
        name = read_file(folder / CURRENT, 64).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KnowledgeBaseError(f"cannot read {folder / CURRENT}: {error}", fix=_FIX) from error
    if not _NAME.fullmatch(name):
        raise KnowledgeBaseError(f"{folder / CURRENT} names {name[:60]!r}", expected="a version of the index", fix=_FIX)
    try:
        return folder / name, Facts.from_json(read_file(folder / name / FACTS, _MOST_JSON))
    except OSError as error:
        raise KnowledgeBaseError(f"cannot read {folder / name}: {error}", fix=_FIX) from error


class View:
    """One version of the index, opened beside the table that it is compared with.

    Args:
        folder: ``index/``.
        version: Folder of the version.
        facts: Of the version.
        table: The entries as they are now.
        kb_id: Of the base.
        size: Numbers in one latent.

    Raises:
        KnowledgeBaseError: A file is missing, damaged, or of another base.
    """

    def __init__(self, folder: Path, version: Path, facts: Facts, table: EntryTable, kb_id: str, size: int) -> None:
        if facts.kb_id != kb_id:
            raise KnowledgeBaseError(f"an index of {facts.kb_id[:60]}", expected=f"one of {kb_id}", fix=_FIX)
        self.facts, self._version, self._size = facts, version, size
        count, here = facts.count, len(table.directory.unit)
        if count > _MOST_GONE * here:
            raise KnowledgeBaseError(f"an index of {count} entries", expected=f"one of the {here} there are", fix=_FIX)
        rows = self._tensors(ROWS, 8 * count * (3 + len(table.columns)) + _MOST_HEAD)
        self.columns = tuple(sorted(set(rows) - {"unit", "slot", "noise_id"}))
        if any(each.shape != (count,) or each.dtype != torch.int64 for each in rows.values()):
            raise KnowledgeBaseError(f"{version / ROWS} is not of {count} entries", fix=_FIX)
        checksums = {column: rows[column].numpy().astype(np.uint32) for column in self.columns}
        self.noise_id = rows["noise_id"].numpy()
        self.row_of = _aligned(rows, self.columns, table)
        """(n) int64: the table's row of each entry of the index, -1 where it has gone."""
        self.place_of = np.full(here, -1, dtype=np.int64)
        """By row of the table: its place in the index, -1 if it came later."""
        alive = np.flatnonzero(self.row_of >= 0)
        self.place_of[self.row_of[alive]] = alive
        self.packed = PackedRows(folder / facts.rows, size, checksums)

    def has(self, rows: npt.NDArray[np.int64]) -> bool:
        """Say whether all of these rows of the table are in the index."""
        known = rows.size and rows.min() >= 0 and rows.max() < len(self.place_of)
        return bool(known and self.place_of[rows].min() >= 0)

    def part(self, key_step: int, noise_id: int) -> Part | None:
        """Return the part of a noise, if the index still stands for it."""
        for part in self.facts.parts:
            if (part.key_step, part.noise_id) == (key_step, noise_id):
                places = self.places(noise_id)
                gone = int((self.row_of[places] < 0).sum())
                return part if len(places) == part.count and STALE * gone <= part.count else None
        return None

    def places(self, noise_id: int) -> npt.NDArray[np.int64]:
        """Return the places of a noise's entries in the index."""
        return np.flatnonzero(self.noise_id == noise_id)

    def coder(self, part: Part) -> Any:
        """Return the part's coder.

        Raises:
            KnowledgeBaseError: It is damaged.
        """
        from redi.knowledge_base.codes import coder_of

        return coder_of(self._tensors(f"{part.file}.safetensors", _MOST_AXES * self._size + _MOST_HEAD), self._size)

    def codes(self, part: Part, coder: Any) -> Any:
        """Return the part's codes: (n, bytes) uint8.

        Raises:
            KnowledgeBaseError: They are damaged.
        """
        from redi.knowledge_base.codes import read_codes

        return read_codes(self._version / part.codes, coder, part.count)

    def index(self, part: Part, names: npt.NDArray[np.int64]) -> Index:
        """Return the search of a part's entries; answers are ``names`` (count) of them, those below 0 left out.

        Raises:
            KnowledgeBaseError: A file is damaged.
        """
        from redi.knowledge_base.coded_index import CodedIndex, ScanIndex
        from redi.knowledge_base.codes import code_files, open_codes

        rows, column = torch.from_numpy(self.places(part.noise_id)), f"key_{part.key_step}"
        packed, called = self.packed, torch.from_numpy(names)

        def read(places: Tensor) -> Tensor:
            return packed.keys(column, rows[places])

        if not part.measured:
            return ScanIndex(read, called, read(torch.arange(min(256, part.count))).mean(dim=0))
        coder = self.coder(part)
        path = self._version / part.codes
        for file in code_files(path, coder):
            self._check(file.name)
        codes = open_codes(path, coder, part.count)
        return CodedIndex(coder, codes, read, called, part.measured)

    def problems(self) -> Iterator[str]:
        """Read every file of the version again; say what is damaged."""
        checks: list[Callable[[], object]] = [partial(self._check, name) for name in self.facts.sha256]
        for column in self.columns:
            for start in range(0, self.facts.count, _AT_ONCE):
                rows = np.arange(start, min(start + _AT_ONCE, self.facts.count))
                checks.append(partial(self.packed.latents, rows, column))
        for check in checks:
            try:
                check()
            except KnowledgeBaseError as error:
                yield error.got

    def _tensors(self, name: str, limit: int) -> dict[str, Tensor]:
        """Return what is in a file; one of more than ``limit`` bytes is not read."""
        data = read_tensor_file(self._version / name, limit)
        self._compare(name, sha256(data).hexdigest())
        return unpack_tensors(data, self._version / name)

    def _check(self, name: str) -> None:
        try:
            found = hash_of(self._version / name)
        except OSError as error:
            raise KnowledgeBaseError(f"cannot read {self._version / name}: {error}", fix=_FIX) from error
        self._compare(name, found)

    def _compare(self, name: str, found: str) -> None:
        if found != self.facts.sha256.get(name):
            raise KnowledgeBaseError(f"{self._version / name} does not match its checksum", fix=_FIX)


def _aligned(rows: Mapping[str, Tensor], columns: tuple[str, ...], table: EntryTable) -> npt.NDArray[np.int64]:
    """Return the table's row of each entry of an index, -1 where the table holds it no more or with other latents."""
    directory = table.directory
    now: dict[str, npt.NDArray[Any]] = {"unit": directory.unit, "slot": directory.slot, "noise_id": directory.noise_id}
    now |= {column: table.checksums(column) for column in columns}
    before: dict[str, npt.NDArray[Any]] = {name: each.numpy() for name, each in rows.items()}
    count = len(before["unit"])
    if count <= len(now["unit"]) and all(np.array_equal(now[name][:count], each) for name, each in before.items()):
        return np.arange(count)
    pairs = np.concatenate([np.stack([each["unit"], each["slot"]], axis=1).astype(np.int64) for each in (now, before)])
    _, number = np.unique(pairs, axis=0, return_inverse=True)
    row_of_number = np.full(int(number.max(initial=-1)) + 1, -1, dtype=np.int64)
    here = len(now["unit"])
    row_of_number[number[:here]] = np.arange(here)
    found = row_of_number[number[here:]]
    alive = np.flatnonzero(found >= 0)
    for name, each in before.items():
        alive = alive[now[name][found[alive]] == each[alive]]
    row_of = np.full(count, -1, dtype=np.int64)
    row_of[alive] = found[alive]
    return row_of


class IndexFiles:
    """The reading side of ``index/``: always the newest version, or None where there is none that can be believed."""

    def __init__(self, folder: Path, table: EntryTable, kb_id: str, size: int) -> None:
        self._folder, self._table, self._kb_id, self._size = folder, table, kb_id, size
        self._stamp: tuple[int, ...] | None = None
        self._view: View | None = None

    def view(self) -> View | None:
        """Return the current version; read again when another process has swapped it. Damage is told in a warning."""
        try:
            status = (self._folder / CURRENT).stat()
            stamp: tuple[int, ...] = (status.st_mtime_ns, status.st_ino)
        except OSError:
            stamp = ()
        if stamp != self._stamp:
            self._view, self._stamp = None, stamp
            try:
                found = read_facts(self._folder)
                if found:
                    self._view = View(self._folder, *found, self._table, self._kb_id, self._size)
            except KnowledgeBaseError as error:
                self.distrust(error)
        return self._view

    def problems(self) -> Iterator[str]:
        """Read every file of the current version again, copies of latents too; say what is damaged."""
        try:
            found = read_facts(self._folder)
            if found:
                yield from View(self._folder, *found, self._table, self._kb_id, self._size).problems()
        except KnowledgeBaseError as error:
            yield error.got

    def distrust(self, error: KnowledgeBaseError) -> None:
        """Do without this version from now on."""
        warn(f"the index of the knowledge base is not used, search is exact: {error}")
        self._view = None

    def forget(self) -> None:
        """Compare with the table again, which has changed."""
        self._stamp, self._view = None, None
