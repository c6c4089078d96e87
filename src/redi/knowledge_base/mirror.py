"""Owns the working copy of a base that is kept in a bucket: pull, change, publish; must not know what its files hold.

The bucket is the truth. The copy is an ordinary folder, made to hold what the bucket's list names before every change,
and every change becomes the bucket's whole, by one conditional PUT, or not at all: then somebody else was first, the
copy is made to hold theirs, and the change is made again. What was not published is taken back the same way, so a
process that is killed leaves nothing half done.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from uuid import uuid4

from redi.errors import KnowledgeBaseError, warn
from redi.knowledge_base.bucket import KEPT, Bucket, Head, StoredFile
from redi.knowledge_base.durable import replace_file, writing
from redi.knowledge_base.guard import hash_of, read_file
from redi.knowledge_base.hashes import FILE_NAME as HASHES
from redi.knowledge_base.hashes import FileHash, file_names, is_lasting
from redi.knowledge_base.ledger import BuilderLock, Ledger, LockedError
from redi.knowledge_base.manifest import FILE_NAME as MANIFEST
from redi.knowledge_base.turns import Turn
from redi.knowledge_base.versions import GRACE

LOOK_AGAIN = 30.0
"""Seconds after which a reader looks whether the bucket's list is another."""

A_MOMENT = 2.0
"""Seconds to wait for another reader of this machine that is putting in place what it has fetched."""

_OF_THIS_MACHINE = ("uses.jsonl", "calibration.json")
_STATE, _MAX_BYTES = "mirror.json", 1 << 28
_AT_ONCE, _TRIES, _WAIT = 8, 60, 600.0
_PATIENCE = 3
"""Times to come second before the others are asked to wait, since a long change would come second for ever."""
_VERSIONS, _LEDGER = "entries.lance/_versions/", "ledger/"
_READ_LATER = ("entries.lance/data/", "entries.lance/_deletions/")
"""What a reader that has opened an older version still reads; every file of these has a name of its own."""

Changed = TypeVar("Changed")


def cache_folder() -> Path:
    """Return where working copies are: ``REDI_CACHE``, or ``redi`` in the user's cache folder."""
    named = os.environ.get("REDI_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "redi"


class Mirror:
    """A bucket's base and its working copy on this machine; all but :meth:`update` only under the folder's lock.

    Args:
        bucket: Where the base is.
    """

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        place = sha256(f"{bucket.endpoint}\n{bucket.address}".encode()).hexdigest()[:16]
        self._root = cache_folder() / place
        self.folder = self._root / "copy" / bucket.name.rsplit("/", 1)[-1]
        self._head: Head | None = None
        self._hashes: dict[str, tuple[tuple[int, int, int], FileHash]] = {}
        self._parked: dict[str, float] = {}
        """When files were taken out of the copy that stay a while longer."""
        self._read_state()
        self._fetched = self._root / "fetched"
        self._looked, self._within = 0.0, False
        self._looking = threading.Lock()
        self._failed: Exception | None = None

    def exists(self) -> bool:
        """Whether the bucket holds a base at the address."""
        return self.bucket.head() is not None

    def begin(self) -> None:
        """Empty the working copy for a new base; entries that only it holds are set aside, with a warning.

        Raises:
            KnowledgeBaseError: The bucket holds one already, cannot be written to, or does not keep conditional PUT.
        """
        if self.exists():
            raise self._taken()
        self.bucket.check_conditional()
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with BuilderLock(self.folder / "lock").held():
                if (self.folder / MANIFEST).exists() and Ledger(self.folder / "ledger").records:
                    aside = self.folder.with_name(f"{self.folder.name}-{uuid4().hex[:8]}")
                    os.rename(self.folder, aside)
                    warn(f"{self.bucket.address} is empty, but the copy of it here held entries: they are in {aside}")
                    self.folder.mkdir()
                for left in self.folder.iterdir():
                    if left.is_dir():
                        shutil.rmtree(left)
                    elif left.name != "lock":
                        left.unlink()

    def publish_new(self) -> None:
        """Publish the first state of a new base.

        Raises:
            KnowledgeBaseError: Somebody else has published one meanwhile.
        """
        if not self._push():
            raise self._taken()

    def _taken(self) -> KnowledgeBaseError:
        return KnowledgeBaseError(
            f"{self.bucket.address} holds a knowledge base already",
            expected="an address without one",
            fix="open it to go on building, or choose another address",
        )

    def look_again(self) -> None:
        """Begin to look in the background, every :data:`LOOK_AGAIN` seconds at most, so that no picture waits for a
        download; warn if the last look failed, since the copy is whole without it."""
        failed, self._failed = self._failed, None
        if time.monotonic() - self._looked >= LOOK_AGAIN and self._looking.acquire(blocking=False):
            try:
                threading.Thread(target=self._look, name="redi-mirror", daemon=True).start()
            except RuntimeError:  # the interpreter ends
                self._looking.release()
        if failed:
            warn(f"going on with the copy of {self.bucket.address} that is here\n  {failed}")

    def _look(self) -> None:
        """Fetch what is new without the folder's lock, which is then held for a moment only."""
        try:
            known, head = self._head, self.bucket.head(self._head)
            if head is None or head is not known:
                if head and known:
                    self._fetch([each for name, each in _shared(head).items() if known.files.get(name) != each])
                self.update()
        except Exception as error:
            self._failed = error
        finally:
            self._looked = time.monotonic()
            self._looking.release()

    def _fetch(self, files: list[StoredFile]) -> None:
        with writing(self._fetched):
            self._fetched.mkdir(exist_ok=True)
            for file in files:
                if not (self._fetched / file.object).exists():
                    part = self._fetched / f"{file.object}-{uuid4().hex[:8]}"
                    self.bucket.download(file, part)
                    os.replace(part, self._fetched / file.object)

    def update(self) -> None:
        """Pull, unless a builder of this machine is at work, who keeps the copy up to date.

        Raises:
            KnowledgeBaseError: There is no base, it is damaged, or the bucket cannot be reached.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        first = not (self.folder / MANIFEST).exists()
        try:
            with BuilderLock(self.folder / "lock").held(_WAIT if first else A_MOMENT):
                self.pull()
        except LockedError:
            if first:
                raise
        self._looked = time.monotonic()

    def drop_unused(self) -> None:
        """Delete what the bucket's list does not name any more, or warn that it could not be."""
        try:
            self.bucket.drop_unused()
        except KnowledgeBaseError as error:
            warn(f"objects of {self.bucket.address} that nobody needs are still there\n  {error}")

    def published(
        self, change: Callable[[], Changed], reload: Callable[[], None], check: Callable[[], None]
    ) -> Changed:
        """Make a change to the newest state and publish it; again, where somebody else was first.

        Args:
            change: Changes files of the folder; must be right to do again.
            reload: Called when the folder has changed beneath the caller.
            check: Raises if files are missing, which must not be published as if they had been deleted.

        Raises:
            KnowledgeBaseError: As of the change, or the bucket cannot be reached; nothing is published then. Or others
                were first every time.
        """
        if self._within:
            return change()
        with Turn(self.bucket) as turn:
            for attempt in range(_TRIES):
                turn.wait(ask=attempt >= _PATIENCE)
                published, made = self._tried(change, reload, check)
                if published:
                    return made
                time.sleep(0.0 if turn.ours else random.uniform(0, min(5.0, 0.05 * 2**attempt)))
        raise KnowledgeBaseError(
            f"{self.bucket.address} was changed by others {_TRIES} times in a row",
            expected="fewer who write at once",
            fix="try again; nothing is lost",
        )

    def _tried(
        self, change: Callable[[], Changed], reload: Callable[[], None], check: Callable[[], None]
    ) -> tuple[bool, Changed]:
        """Return whether a change to the newest state could be published, and what it returned."""
        if self.pull():
            reload()
        self._within = True
        try:
            made = change()
        finally:
            self._within = False
        check()
        try:
            return self._push(), made
        except KnowledgeBaseError:
            with suppress(KnowledgeBaseError):
                if self.pull():
                    reload()
            raise

    def pull(self) -> bool:
        """Make the folder hold what the bucket's list names; return whether that changed it. A no-op in a change.

        Raises:
            KnowledgeBaseError: There is no base, it is damaged, the bucket cannot be reached, or the disk is full.
        """
        if self._within:
            return False
        head = self.bucket.head(self._head)
        if head is None:
            raise KnowledgeBaseError(
                f"no knowledge base at {self.bucket.address}",
                expected="one that redi put there",
                fix="check the address, or build it (redi build --out with that address)",
            )
        here, files = self._hashed(), _shared(head)
        wanted = sorted((name for name in files if here.get(name) != files[name].hash), key=_late)
        stale = sorted(here.keys() - files.keys(), key=_late, reverse=True)
        if wanted or stale:
            self._replace({name: files[name] for name in wanted}, stale)
        self._drop_parked()
        self._head = head
        return bool(wanted or stale)

    def _replace(self, wanted: dict[str, StoredFile], stale: list[str]) -> None:
        """Fetch everything first, then put it in place so that a list of versions never names what is not there."""
        for left in self._root.glob("incoming-*"):
            shutil.rmtree(left)
        with writing(self.folder), TemporaryDirectory(dir=self._root, prefix="incoming-") as place:
            incoming = {name: Path(place) / str(number) for number, name in enumerate(wanted)}
            _at_once(lambda name: self._get(wanted[name], incoming[name]), wanted)
            for name, path in incoming.items():
                target = self.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
                self._hashes[name] = (_stamp(target), wanted[name].hash)
                self._parked.pop(name, None)
            for name in (*stale, HASHES):
                if name.startswith(_READ_LATER):
                    self._parked[name] = time.time()
                else:
                    (self.folder / name).unlink(missing_ok=True)
            for left in self._fetched.glob("*"):
                if time.time() - left.stat().st_mtime >= GRACE.total_seconds():
                    left.unlink(missing_ok=True)
        self._write_state()

    def _get(self, file: StoredFile, path: Path) -> None:
        """Download a file, unless a look has fetched it (and compared it with its hash)."""
        fetched = self._fetched / file.object
        if fetched.exists():
            os.replace(fetched, path)
        else:
            self.bucket.download(file, path)

    def _drop_parked(self) -> None:
        over = [name for name, since in self._parked.items() if time.time() - since >= GRACE.total_seconds()]
        for name in over:
            (self.folder / name).unlink(missing_ok=True)
            del self._parked[name]
        if over:
            self._write_state()

    def _push(self) -> bool:
        """Publish the folder as it is; False if the bucket's list is not the one that was pulled.

        Raises:
            KnowledgeBaseError: Files that every state of a base has are missing, or the bucket cannot be reached.
        """
        begun = time.time()
        here, known = self._hashed(), self._head.files if self._head else {}
        lasting = {MANIFEST, *(name for name in known if name.startswith("noise/"))}
        if lasting - here.keys():
            raise KnowledgeBaseError(
                f"{self.folder} lacks {', '.join(sorted(lasting - here.keys())[:5])}",
                expected="the working copy of a base",
                fix="do it again; the copy is made whole from the bucket first",
            )
        files = {name: known[name] for name in here if name in known and known[name].hash == here[name]}
        new = sorted(here.keys() - files.keys())
        if not new and files.keys() == known.keys():
            return True
        if self._head and self.bucket.head(self._head) is not self._head:
            return False
        objects = _at_once(lambda name: self.bucket.upload(self.folder / name), new)
        files |= {name: StoredFile(here[name], object) for name, object in zip(new, objects, strict=True)}
        if time.time() - begun > KEPT.total_seconds() / 2:  # what was uploaded first may be taken for unused
            return False
        head = self.bucket.swap(files, self._head)
        if head is None:
            return False
        self._head = head
        self._write_state()
        return True

    def _hashed(self) -> dict[str, FileHash]:
        """Return the hash of every file that the bucket shares, reading only those that have changed."""
        found = {}
        with writing(self.folder):
            for name in filter(_is_shared, file_names(self.folder)):
                if name in self._parked:
                    continue
                path = self.folder / name
                stamp, known = _stamp(path), self._hashes.get(name)
                if known is None or known[0] != stamp:
                    self._hashes[name] = known = (stamp, FileHash(stamp[0], hash_of(path)))
                found[name] = known[1]
        self._hashes = {name: self._hashes[name] for name in found}
        return found

    def _write_state(self) -> None:
        files = {name: [*stamp, each.sha256] for name, (stamp, each) in self._hashes.items()}
        replace_file(self._root / _STATE, json.dumps({"files": files, "parked": self._parked}).encode())

    def _read_state(self) -> None:
        with suppress(OSError, ValueError, TypeError, AttributeError, KeyError, KnowledgeBaseError):  # it saves reading
            known = json.loads(read_file(self._root / _STATE, _MAX_BYTES))
            parked = {name: float(since) for name, since in known["parked"].items()}
            self._parked = {name: since for name, since in parked.items() if name.startswith(_READ_LATER)}
            self._hashes = {
                name: ((size, at, file), FileHash(size, sha)) for name, (size, at, file, sha) in known["files"].items()
            }


def _at_once(work: Callable[[str], Changed], names: Collection[str]) -> list[Changed]:
    """Work on several names at a time; one by one when the interpreter ends, which starts no more threads."""
    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(work, names))
    except RuntimeError:
        return [work(name) for name in names]


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _shared(head: Head) -> dict[str, StoredFile]:
    return {name: each for name, each in head.files.items() if _is_shared(name)}


def _is_shared(name: str) -> bool:
    return is_lasting(name) and name not in _OF_THIS_MACHINE and ".tmp-" not in name


def _late(name: str) -> int:
    """Order files so that what names others comes after them."""
    return 3 if name == MANIFEST else 2 if name.startswith(_LEDGER) else 1 if name.startswith(_VERSIONS) else 0
