"""Owns a knowledge base as a whole: create, open, add units, keep in order, verify; must not know Diffusers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial, wraps
from os import PathLike
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from redi.errors import KnowledgeBaseError
from redi.knowledge_base import leave_one_out, sharing
from redi.knowledge_base.bucket import Bucket, is_address
from redi.knowledge_base.copying import files_by_value_step
from redi.knowledge_base.durable import JsonLines, writing
from redi.knowledge_base.entries import (
    EntryBatch,
    Refusal,
    VerifyReport,
    encode_unit,
    refusals_in,
    rows_of,
)
from redi.knowledge_base.guard import check_links
from redi.knowledge_base.hashes import drop_hashes, write_hashes
from redi.knowledge_base.index import ExactIndex, IndexFactory
from redi.knowledge_base.index_files import IndexFiles
from redi.knowledge_base.indexing import Indexer
from redi.knowledge_base.layout import INDEX, REFUSED, TABLE, check_free, columns_of, local_folder
from redi.knowledge_base.ledger import BuilderLock, Ledger, UnitRecord
from redi.knowledge_base.manifest import FILE_NAME, Manifest
from redi.knowledge_base.mirror import A_MOMENT, Mirror
from redi.knowledge_base.noise_bank import NoiseBank
from redi.knowledge_base.noises import Noises
from redi.knowledge_base.reader import Reader
from redi.knowledge_base.removal import Removal
from redi.knowledge_base.rows import TableRows, positions_of, unit_named
from redi.knowledge_base.searching import Searcher
from redi.knowledge_base.table import COMMITS_PER_COMPACTION, EntryTable
from redi.knowledge_base.verification import verified
from redi.knowledge_base.versions import GRACE

_Arguments = ParamSpec("_Arguments")
_Made = TypeVar("_Made")


def _published(
    method: Callable[Concatenate[KnowledgeBase, _Arguments], _Made],
) -> Callable[Concatenate[KnowledgeBase, _Arguments], _Made]:
    """Let a method change the base under the builder's lock; a base in a bucket as :meth:`Mirror.published` says."""

    @wraps(method)
    def changing(self: KnowledgeBase, /, *args: _Arguments.args, **options: _Arguments.kwargs) -> _Made:
        with self.lock():
            if self._mirror is None:
                return method(self, *args, **options)
            return self._mirror.published(partial(method, self, *args, **options), self._reload, self.check_files)

    return changing


class KnowledgeBase(Reader):
    """Keys and values of recorded trajectories in a folder. Made by :meth:`create` or :meth:`open`.

    A base in a bucket (``s3://bucket/name``) is worked with in a copy on this machine; see :class:`Mirror`.

    Keys are stored in float16 as the difference to a *reference latent* of their noise and key step, so that the
    small differences of a very early key are not drowned; reading adds the reference back in float32.
    """

    def __init__(
        self, path: Path, manifest: Manifest, noises: Noises, index: IndexFactory, mirror: Mirror | None = None
    ) -> None:
        self._path, self._mirror = path, mirror
        self._ledger = Ledger(path / "ledger")
        self._refused = JsonLines(path / REFUSED)
        self._lock = BuilderLock(path / "lock")
        table = EntryTable(path / TABLE, manifest.kb_id, columns_of(manifest), self._ledger.version)
        self._files = IndexFiles(path / INDEX, table, manifest.kb_id, manifest.size)
        super().__init__(manifest, noises, table, Searcher(table, noises, manifest.latent_shape, index, self._files))
        self._removal = Removal(path, table, self._ledger)
        self._distances: dict[int, Tensor] = {}

    @classmethod
    def create(
        cls,
        path: str | PathLike[str],
        manifest: Manifest,
        noise_bank: NoiseBank,
        references: Mapping[int, Tensor],
        *,
        index: IndexFactory = ExactIndex,
    ) -> KnowledgeBase:
        """Make an empty knowledge base in a new or empty folder; the manifest is written last.

        Args:
            path: The folder, or an address.
            manifest: What the base is built with; checksums of the noise files are added to its ``noise``.
            noise_bank: The M noises (M=0 for independent noise).
            references: By step, (M, *shape) float32: a typical latent of each noise at that step (for instance of
                the empty prompt), for keys and for values of fewer bits. A missing step counts as zero.
            index: Makes an :class:`Index` of (n, d) keys.

        Raises:
            KnowledgeBaseError: The folder holds something already, the disk is full, or the parts don't fit.
        """
        mirror = _mirror_of(path)
        folder = mirror.folder if mirror else local_folder(path)
        zero = torch.zeros_like(noise_bank.latents)
        filled = {step: references.get(step, zero).detach().float().cpu() for step in manifest.referenced_steps}
        noises = Noises(noise_bank, {**references, **filled})
        noises.check(manifest)
        cls.check_free(path)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with BuilderLock(folder / "lock").held():
            check_free(folder)
            written = replace(manifest, noise={**manifest.noise, "sha256": noises.save(folder, manifest)})
            table = EntryTable.create(folder / TABLE, manifest.kb_id, columns_of(manifest))
            Ledger(folder / "ledger").flushed(table.version)
            written.write(folder)
            if mirror:
                mirror.publish_new()
        return cls.open(path, index=index)

    @classmethod
    def open(cls, path: str | PathLike[str], *, index: IndexFactory = ExactIndex) -> KnowledgeBase:
        """Open the knowledge base in a folder, in which nothing is written, or at an address.

        Raises:
            KnowledgeBaseError: There is none, it is damaged, or of an unknown version.
        """
        mirror = _mirror_of(path)
        folder = mirror.folder if mirror else local_folder(path)
        if mirror:
            mirror.update()
        check_links(folder)
        manifest = Manifest.read(folder)
        return cls(folder, manifest, Noises.load(folder, manifest), index, mirror)

    @staticmethod
    def check_free(path: str | PathLike[str]) -> None:
        """Refuse a place where no new base can be made; a copy that others left of the address is emptied.

        Raises:
            KnowledgeBaseError: The folder holds something, or the bucket a base; or the bucket cannot be used.
        """
        mirror = _mirror_of(path)
        return mirror.begin() if mirror else check_free(local_folder(path))

    @staticmethod
    def exists(path: str | PathLike[str]) -> bool:
        """Whether there is a knowledge base, whole or not, in a folder or at an address."""
        mirror = _mirror_of(path)
        return mirror.exists() if mirror else (local_folder(path) / FILE_NAME).exists()

    @classmethod
    def from_pretrained(
        cls, source: str | PathLike[str], *, revision: str | None = None, index: IndexFactory = ExactIndex
    ) -> KnowledgeBase:
        """Open the base in a folder, a bucket or the Hugging Face hub, fetched once; see :func:`sharing.fetch`."""
        if is_address(source) and revision is None:
            return cls.open(source, index=index)
        return cls.open(sharing.fetch(source, revision), index=index)

    def save_pretrained(self, folder: str | PathLike[str], **options: Any) -> None:
        """Copy this base, whole, with fewer value steps or fewer bits, into a new folder; see :func:`sharing.save`."""
        sharing.save(self._path, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Put this base on the Hugging Face hub as a dataset; options and errors as of :func:`sharing.push`."""
        return sharing.push(self, repo_id, **options)

    @property
    def path(self) -> Path:
        """The folder; of a base in a bucket, that of the copy on this machine."""
        return self._path

    @property
    def address(self) -> str:
        """What opens this base again: the folder, or the address."""
        return self._mirror.bucket.address if self._mirror else str(self._path)

    def check_files(self) -> None:
        """Raise KnowledgeBaseError if a file of the table is missing or cut; :meth:`verify` reads what is in them."""
        self._table.check_files()

    def __repr__(self) -> str:
        return f"KnowledgeBase({self.address!r}, {len(self)} entries, {self.plan})"

    @contextmanager
    def lock(self, wait: float = 0.0) -> Iterator[None]:
        """Be the only builder; what an earlier one left behind when it was killed is put in order first.

        Args:
            wait: Seconds to wait for another builder to end; for a base in a bucket at least :data:`A_MOMENT`.

        Raises:
            KnowledgeBaseError: Another builder works on this base.
        """
        with self._lock.held(max(wait, A_MOMENT) if self._mirror else wait) as taken:
            if taken:
                if self._mirror:
                    self._mirror.pull()
                    self._check_same()
                    if not self._table.is_current:
                        self._forget()
                self._ledger.reload()
                self._recover()
                if self._removal.pending:
                    self._removal.end()
                    self._forget()
            yield

    def current(self) -> KnowledgeBase:
        """Return the base as it is on the disk now: this object, or a new one if somebody has written since.

        Rows keep their meaning for the object that named them. The new one goes on with this one's indexes.
        """
        if self._mirror:
            self._mirror.look_again()
        if self._table.is_current:
            return self
        self._check_same()
        fresh = type(self)(self._path, self._manifest, self._noises, self._searcher.make, self._mirror)
        fresh._searcher.take_over(self._searcher)
        fresh._distances = dict(self._distances)
        return fresh

    def _recover(self) -> None:
        known = self._ledger.records
        before = len(self)
        for unit in self._table.recover(set(known), self._ledger.version):
            drop_hashes(self._path)
            rows, refused = self._table.rows_by_unit()[unit], sum(each.unit == unit for each in self.refused())
            self._ledger.acknowledge(UnitRecord(unit, rows, refused, self._table.version))
        if len(self) != before:
            self._forget()

    def _check_same(self) -> None:
        """Refuse to go on where another base has been put in the place of this one."""
        if Manifest.read(self._path).kb_id != self._manifest.kb_id:
            raise KnowledgeBaseError(
                f"another knowledge base is at {self.address} now", expected=self._manifest.kb_id, fix="open it again"
            )

    def _reload(self) -> None:
        self._check_same()
        self._ledger.reload()
        self._table.refresh()
        self._forget()

    def _forget(self) -> None:
        self._searcher.forget()
        self._distances.clear()

    def completed_units(self) -> set[int]:
        """Return the units that need not be done again."""
        return set(self._ledger.records) | set(self._table.rows_by_unit())

    @_published
    def add_unit(self, unit: int, batch: EntryBatch) -> UnitRecord:
        """Store the entries of one unit in one commit, flushed to the disk; a unit that is there is left as it is.

        Entries with a NaN, an infinity or a number beyond float16 are refused: named in ``refused.jsonl`` and
        counted, the others are stored.

        Raises:
            KnowledgeBaseError: Shapes, steps or noises don't fit the manifest; another builder has the lock; the
                disk is full (then nothing of the unit is stored and it can be added again).
        """
        if unit < 0:
            raise KnowledgeBaseError(f"unit {unit}", expected="a unit number of at least 0")
        if unit in self._ledger.records:
            return self._ledger.records[unit]
        drop_hashes(self._path)
        rows, refusals = encode_unit(unit, batch, self._manifest, self._noises)
        if any(refusal.unit == unit for refusal in self.refused()):  # of an attempt that was killed
            self._refused.rewrite(line for line in self._refused.read() if line["unit"] != unit)
        if refusals:
            self._refused.append([vars(refusal) for refusal in refusals])
        if rows.slots:
            self._table.append_unit(rows)
        stored = self._table.rows_by_unit().get(unit, 0)
        record = UnitRecord(unit, stored, len(refusals), self._table.version)
        self._ledger.acknowledge(record)
        self._forget()
        self._compact()
        return record

    def stored(self, rows: Tensor | Sequence[int]) -> TableRows:
        """Return rows as they are stored, for :meth:`add_rows` of a base that is built alike; errors as of keys."""
        names = columns_of(self._manifest).names
        latents = self._table.latents(positions_of(rows), *names)
        return rows_of(self.entries(rows), dict(zip(names, latents, strict=True)))

    @_published
    def add_rows(self, rows: TableRows) -> UnitRecord | None:
        """Store rows in one commit, flushed to the disk, without those whose noise, seed and prompt are there already.

        They become a unit whose number follows from what it holds, so that doing it again stores nothing twice.

        Returns:
            The new unit; None if there was nothing new.

        Raises:
            KnowledgeBaseError: Another builder has the lock, or the disk is full (then nothing is stored).
        """
        known, places = self._table.present(rows), []
        for place, each in enumerate(zip(rows.prompts, rows.noise_ids, rows.seeds, strict=True)):
            if each not in known:
                places.append(place)
                known.add(each)
        if not places:
            return None
        drop_hashes(self._path)
        new = rows.chosen(places, -1)
        unit = unit_named(new, self.completed_units())
        self._table.append_unit(replace(new, unit=unit))
        record = UnitRecord(unit, len(places), 0, self._table.version)
        self._ledger.acknowledge(record)
        self._forget()
        self._compact()
        return record

    @_published
    def remove(self, entries: Collection[tuple[int, int]]) -> None:
        """Take entries out for good, by unit and slot; those that are not there are passed over.

        Killed on the way, whoever writes next ends it. What they hold on the disk is given back once they are many,
        and once no version that had them can still be read; :meth:`compact` does it now. Errors as of add_rows.
        """
        if not set(entries).isdisjoint(self.names()):
            drop_hashes(self._path)
            self._removal.begin(entries)
            self._removal.end()
            self._compact(grace=GRACE)
            self._table.drop_old_versions(GRACE)
            self._removal.tidy(COMMITS_PER_COMPACTION)
            self._forget()

    def _compact(self, *, least: int | None = None, grace: timedelta = GRACE) -> None:
        if self._table.compact(least=least):
            self._ledger.flushed(self._table.version)
            self._table.drop_old_versions(grace)

    def compact(self, *, grace: timedelta = GRACE) -> None:
        """Put the table in few large files without removed rows, the ledger in one line a unit, and measure again.

        Arguments and errors as of :meth:`finish`.
        """
        self._tidy(grace)
        if self._mirror:
            self._mirror.drop_unused()

    @_published
    def _tidy(self, grace: timedelta) -> None:
        drop_hashes(self._path)
        self._removal.tidy()
        self._finish(grace=grace)
        self._table.drop_old_versions(grace)
        self.sign()

    def refused(self) -> list[Refusal]:
        """Return the entries that were not stored, each once."""
        return refusals_in(self._refused.read(), self._refused.path)

    @_published
    def finish(
        self,
        *,
        device: torch.device | str | None = None,
        sample: int = 4096,
        grace: timedelta = timedelta(0),
    ) -> None:
        """After a build: tidy the table, index it where that pays, store leave-one-out distances of each key step, and
        sign the base.

        Args:
            device: Where to search; the CPU by default.
            sample: At most so many entries (a fixed random choice) are measured for each key step.
            grace: How long versions of the table stay that other processes may still read.

        Raises:
            KnowledgeBaseError: Another builder works on this base, or the disk is full.
        """
        self._finish(device=device, sample=sample, grace=grace)
        self.sign()

    def _finish(
        self, *, device: torch.device | str | None = None, sample: int = 4096, grace: timedelta = timedelta(0)
    ) -> None:
        drop_hashes(self._path)
        self._compact(least=1, grace=grace)
        if self.indexer.pays(device=device):
            self.indexer.update()
        self._forget()
        self.measure(device=device, sample=sample)

    @_published
    def measure(self, *, device: torch.device | str | None = None, sample: int = 4096) -> None:
        """Store leave-one-out distances of each key step; arguments and errors as of :meth:`finish`."""
        drop_hashes(self._path)
        self._distances = leave_one_out.measure(self, device, sample)
        leave_one_out.store(self, self._distances)

    def sign(self) -> None:
        """Write ``hashes.json``, which the next change takes away; the list of a base in a bucket is ``head.json``.

        Raises:
            KnowledgeBaseError: Another builder works on this base, a file cannot be read, or the disk is full.
        """
        if self._mirror is None:
            with self.lock():
                write_hashes(self._path, files_by_value_step(self._table))

    @property
    def indexer(self) -> Indexer:
        """What makes and updates the index of this base."""
        columns = columns_of(self._manifest)
        return Indexer(self._path / INDEX, self._table, columns, self._manifest.kb_id, self.plan.key_steps)

    def leave_one_out(self, key_step: int) -> Tensor:
        """Return distances of entries to the nearest *other* entry of the same noise, as :meth:`finish` stored them.

        Returns:
            (m,) float32, for the entries that :meth:`finish` chose and that have a neighbour.

        Raises:
            PlanError: The key step is not recorded.
            KnowledgeBaseError: :meth:`finish` has not run since an eighth of the entries was added.
        """
        self.plan.choose(key_step)
        if key_step not in self._distances:
            self._distances[key_step] = leave_one_out.stored(self, key_step)
        return self._distances[key_step]

    def verify(self) -> VerifyReport:
        """Read every row again: checksums, finite numbers, shapes, ids; compare with the ledger; read the index."""
        return verified(self._table, self._ledger, len(self.noise_bank), len(self.refused()), self._files)


def _mirror_of(path: str | PathLike[str]) -> Mirror | None:
    return Mirror(Bucket(path)) if is_address(path) else None
