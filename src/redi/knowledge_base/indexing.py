"""Owns making an index of a base and keeping it up as the base grows; must not know how a search is answered."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from redi.errors import KnowledgeBaseError, warn
from redi.knowledge_base.codec import FLOAT16, Columns
from redi.knowledge_base.durable import fsync_file, replace_file, writing
from redi.knowledge_base.guard import hash_of
from redi.knowledge_base.index import MOST_KEPT
from redi.knowledge_base.index_files import CURRENT, FACTS, ROWS, STALE, Facts, Part, View, read_facts
from redi.knowledge_base.ledger import BuilderLock
from redi.knowledge_base.noise_bank import pack_tensors
from redi.knowledge_base.packed_rows import PackedRows, pack
from redi.knowledge_base.table import EntryTable

if TYPE_CHECKING:
    from redi.knowledge_base.codes import Coder, Codes

LEAST_ENTRIES = 2000
LEAST_BYTES = 256 << 20
"""Keys of one noise, in float32, below which an exact scan takes some milliseconds, and no index is made."""
_ROWS_AT_ONCE = 64 << 20
_KEPT_VERSIONS = 2

Told = Callable[[Part], None]


@dataclass(frozen=True)
class Indexer:
    """Makes the index of a table.

    Attributes:
        folder: ``index/`` of the base.
        table: Its entries.
        columns: Its latent columns.
        kb_id: Its id.
        key_steps: Its key steps.
    """

    folder: Path
    table: EntryTable
    columns: Columns
    kb_id: str
    key_steps: tuple[int, ...]

    def pays(self, least_bytes: int = LEAST_BYTES, device: torch.device | str | None = None) -> list[tuple[int, int]]:
        """Return (key step, noise id) of the parts that are large enough; on a device those that don't fit there."""
        if torch.device(device or "cpu").type != "cpu":
            least_bytes = MOST_KEPT
        noises, counts = np.unique(self.table.directory.noise_id, return_counts=True)
        large = [
            int(noise)
            for noise, count in zip(noises, counts, strict=True)
            if count >= LEAST_ENTRIES and 4 * int(count) * self.columns.size >= least_bytes
        ]
        return [(step, noise) for step in self.key_steps for noise in large]

    def update(self, *, rebuild: bool = False, least_bytes: int = LEAST_BYTES, told: Told = lambda part: None) -> Facts:
        """Make the index fit the table, and swap it in. What is there is kept where it can be.

        A part that has grown keeps its coder, and gets codes of the new entries. After an eighth more entries its
        recall is measured again on held-out keys; if it has fallen below the bar, the part is made anew.

        Args:
            rebuild: Keep nothing of the old one.
            least_bytes: Parts whose float32 keys are smaller get no index.
            told: Called with each part that is done.

        Raises:
            KnowledgeBaseError: Another process is at it, the table is damaged, or the disk is full.
        """
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
        with BuilderLock(self.folder / "lock").held():
            old = None if rebuild else self._old()
            names = [name for name in self.columns.names if self.columns.codec(name) == FLOAT16]
            rows = self._rows(names)
            parts = self.pays(least_bytes)
            version = self.folder / f"v-{secrets.token_hex(8)}"
            with writing(version):
                version.mkdir()
            generation, packed = self._packed(old, names, rows)
            replace_file(version / ROWS, pack_tensors(rows))
            made = []
            for key_step, noise_id in parts:
                made.append(self._part(old, packed, version, key_step, noise_id))
                told(made[-1])
            with writing(version):
                digests = {file.name: hash_of(file) for file in sorted(version.iterdir())}
            facts = Facts(self.kb_id, generation, len(rows["unit"]), tuple(made), digests)
            replace_file(version / FACTS, facts.to_json().encode())
            replace_file(self.folder / CURRENT, version.name.encode() + b"\n")
            self._clean(facts)
            return facts

    def _old(self) -> View | None:
        try:
            found = read_facts(self.folder)
            return View(self.folder, *found, self.table, self.kb_id, self.columns.size) if found else None
        except KnowledgeBaseError as error:
            warn(f"the old index is damaged, and made again: {error}")
            return None

    def _rows(self, names: list[str]) -> dict[str, Tensor]:
        directory = self.table.directory
        found: dict[str, npt.NDArray[Any]] = {
            "unit": directory.unit,
            "slot": directory.slot,
            "noise_id": directory.noise_id,
        }
        found |= {name: self.table.checksums(name) for name in names}
        return {name: torch.from_numpy(each.astype(np.int64)) for name, each in found.items()}

    def _packed(self, old: View | None, names: list[str], rows: dict[str, Tensor]) -> tuple[str, PackedRows]:
        """Copy the latents that are not copied yet; all of them if the rows of the table have moved."""
        count, start, generation = len(rows["unit"]), 0, f"rows-{secrets.token_hex(8)}"
        if old and set(old.columns) == set(names) and np.array_equal(old.row_of, np.arange(len(old.row_of))):
            start, generation = len(old.row_of), old.facts.rows
        folder = self.folder / generation
        with writing(folder):
            folder.mkdir(exist_ok=True)
        for name in names:
            pack(folder, name, start, self._latents(name, start, count), self.columns.size)
        with writing(folder):
            fsync_file(folder)
        checksums = {name: rows[name].numpy().astype(np.uint32) for name in names}
        return generation, PackedRows(folder, self.columns.size, checksums)

    def _latents(self, name: str, start: int, stop: int) -> Iterator[npt.NDArray[np.float16]]:
        step = max(1, _ROWS_AT_ONCE // (2 * self.columns.size))
        for first in range(start, stop, step):
            yield self.table.latents(range(first, min(stop, first + step)), name)[0]

    def _part(self, old: View | None, packed: PackedRows, version: Path, key_step: int, noise_id: int) -> Part:
        rows = torch.from_numpy(np.flatnonzero(self.table.directory.noise_id == noise_id))

        def read(places: Tensor) -> Tensor:
            return packed.keys(f"key_{key_step}", rows[places])

        from redi.knowledge_base.recall import BAR, choose

        before = old.part(key_step, noise_id) if old else None
        if old and before:
            grown = self._grown(old, before, version, rows.numpy(), read)
            if grown:
                return grown
        choice = choose(read, len(rows), self.columns.size)
        method = choice.coder.name if choice.coder else "exact scan"
        part = Part(key_step, noise_id, len(rows), method, choice.queries, len(rows), choice.measured)
        if choice.coder is None or choice.codes is None:
            warn(
                f"key step {key_step}, noise {noise_id}: no index finds {BAR:.0%} of the nearest among {len(rows)} "
                "entries; they are searched exactly"
            )
        else:
            _write(version, part, choice.coder, choice.codes)
        return part

    def _grown(self, old: View, before: Part, version: Path, rows: npt.NDArray[np.int64], read: Any) -> Part | None:
        """Return the part with codes of the new entries added, or None if it has to be made anew."""
        from redi.knowledge_base.recall import QUERIES, encode_all

        grown = len(rows) - before.measured_at
        if not before.measured:
            return replace(before, count=len(rows)) if STALE * abs(grown) <= before.measured_at else None
        try:
            coder = old.coder(before)
            known = old.codes(before, coder)
        except KnowledgeBaseError:
            return None
        places = np.searchsorted(old.places(before.noise_id), old.place_of[rows])
        is_new = old.place_of[rows] < 0
        codes: Codes = np.empty((len(rows), known.shape[1]), dtype=np.uint8)
        codes[~is_new] = known[places[~is_new]]
        codes[is_new] = encode_all(coder, read, np.flatnonzero(is_new).tolist())
        part = replace(before, count=len(rows))
        if STALE * abs(grown) > before.measured_at:
            measured = _measured_again(coder, codes, read, np.flatnonzero(is_new))
            if len(measured) < len(before.measured):
                return None
            part = replace(part, measured=measured, measured_at=len(rows), queries=min(QUERIES, len(rows)))
        _write(version, part, coder, codes)
        return part

    def _clean(self, facts: Facts) -> None:
        """Delete what no version needs that a reader may still be opening: all but the newest two."""
        versions = sorted(self.folder.glob("v-*"), key=lambda path: path.stat().st_mtime_ns)
        needed = {facts.rows}
        for version in versions[-_KEPT_VERSIONS:]:
            try:
                needed.add(Facts.from_json((version / FACTS).read_bytes()).rows)
            except (OSError, KnowledgeBaseError):  # what a killed update left
                shutil.rmtree(version, ignore_errors=True)
        unneeded = [path for path in self.folder.glob("rows-*") if path.name not in needed]
        for path in [*versions[:-_KEPT_VERSIONS], *unneeded]:
            shutil.rmtree(path, ignore_errors=True)


def _measured_again(coder: Coder, codes: Codes, read: Any, new: npt.NDArray[np.int64]) -> Any:
    """Measure a coder on keys that it has not seen, new ones first."""
    from redi.knowledge_base.recall import QUERIES, measure, true_neighbors

    generator = torch.Generator().manual_seed(len(codes))
    newest = torch.from_numpy(new)[torch.randperm(len(new), generator=generator)][:QUERIES]
    others = torch.randperm(len(codes), generator=generator)
    own = torch.cat([newest, others[~torch.isin(others, newest)]])[:QUERIES]
    queries = read(own)
    return measure(coder, codes, queries, own, true_neighbors(read, len(codes), queries, own))


def _write(version: Path, part: Part, coder: Coder, codes: Codes) -> None:
    from redi.knowledge_base.codes import code_files, write_codes

    replace_file(version / f"{part.file}.safetensors", pack_tensors(coder.tensors()))
    path = version / part.codes
    with writing(path):
        write_codes(path, coder, codes)
        for file in code_files(path, coder):
            fsync_file(file)
        fsync_file(version)
