"""Owns a base's place in an S3 bucket: a list of files and the objects it names; must not know copies or contents.

``head.json`` names every file of the base with its size, SHA-256 and object. It alone ever changes, and only by a
conditional PUT: who has not seen the newest list cannot replace it. Objects are written once, under names that nobody
else uses, and deleted when they are a day old and the list does not name them. ``turn.json``, where there is one, asks
all but its maker to wait: nothing but fairness hangs on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from os import PathLike, environ
from pathlib import Path
from typing import Any
from uuid import uuid4

from redi.errors import KnowledgeBaseError
from redi.knowledge_base.durable import fsync_file, writing
from redi.knowledge_base.guard import check_depth, shortened
from redi.knowledge_base.hashes import MAX_BYTES, FileHash, checked_hash, checked_name, hash_fields

HEAD, _TURN = "head.json", "turn.json"
KEPT = timedelta(days=1)
"""How long an object that no list names is kept: somebody may still be reading the list before, or writing the next."""

_VERSION = 1
_FOLDER = r"(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f]+"
_ADDRESS = re.compile(  # pathlib makes one slash of two
    rf"s3:/{{1,2}}(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]*)/(?P<name>{_FOLDER}(?:/{_FOLDER})*)/*"
)
_ENDPOINT = re.compile(r"https?://[^\s/]+(/\S*)?")
_OBJECT = re.compile(r"[0-9a-f]{32}")
_KEY = re.compile(r"objects/([0-9a-f]{32})")
_PART_BYTES, _MAX_TOKEN = 1 << 24, 64
_RETRIES, _SECONDS, _BULK_SECONDS = 5, 15, 600


@dataclass(frozen=True)
class StoredFile:
    """A file of the base as the bucket keeps it: its size and hash, and the name of its object."""

    hash: FileHash
    object: str


@dataclass(frozen=True)
class Head:
    """A list of files by name, and the tag by which the store knows it."""

    tag: str
    files: Mapping[str, StoredFile]


def is_address(path: str | PathLike[str]) -> bool:
    """Whether this names a base in a bucket (``s3://bucket/name``) and not a folder."""
    return str(path).startswith("s3:/") or str(path) == "s3:"  # what pathlib makes of "s3://"


def as_written(place: str | PathLike[str]) -> str:
    """Return a folder or an address as its user writes it: ``pathlib`` makes one slash of two."""
    return re.sub("^s3:/*", "s3://", str(place)) if is_address(place) else str(place)


class Bucket:
    """A base at an address. Keys, region and endpoint come from the environment, as other tools read them
    (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``).

    Args:
        address: ``s3://bucket/name``; the name may have folders.

    Raises:
        KnowledgeBaseError: It is no such address, or ``obstore`` is not installed.
    """

    def __init__(self, address: str | PathLike[str]) -> None:
        found = _ADDRESS.fullmatch(str(address))
        if not found:
            raise KnowledgeBaseError(f"the address {as_written(address)!r}", expected="s3://bucket/name-of-the-base")
        self.name, self.endpoint = found["name"], environ.get("AWS_ENDPOINT_URL", "")
        self.address = f"s3://{found['bucket']}/{self.name}"
        if "AWS_ENDPOINT_URL" in environ and not _ENDPOINT.fullmatch(self.endpoint):
            raise KnowledgeBaseError(
                f"AWS_ENDPOINT_URL {self.endpoint!r}",
                expected="an address such as https://store.example:9000",
                fix="correct it, or unset it for AWS itself",
            )
        try:
            from obstore.store import S3Store
        except ImportError as error:
            raise KnowledgeBaseError(
                f"{self.address} without obstore", expected="obstore", fix="pip install 'redi[s3]'"
            ) from error
        with self._reaching("use"):
            self._store, self._bulk = (
                S3Store(
                    found["bucket"],
                    prefix=self.name,
                    client_options={
                        "allow_http": self.endpoint.startswith("http://"),
                        "connect_timeout": "10 seconds",
                        "timeout": f"{seconds} seconds",
                    },
                    retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=2 * seconds)},
                )
                for seconds in (_SECONDS, _BULK_SECONDS)
            )

    def head(self, known: Head | None = None) -> Head | None:
        """Return the newest list (``known`` itself if it still is), or None if there is no base.

        Raises:
            KnowledgeBaseError: The bucket cannot be reached, or the list is damaged or of an unknown version.
        """
        from obstore.exceptions import NotModifiedError

        with self._reaching("read"):
            try:
                found = self._store.get(HEAD, options={"if_none_match": known.tag} if known else {})
                size, tag = found.meta["size"], found.meta["e_tag"]
                text = bytes(found.bytes()) if size <= MAX_BYTES else b""
            except NotModifiedError:
                return known
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None
        if size > MAX_BYTES or not tag:
            raise self._damaged(f"{size} bytes, tag {tag}")
        return Head(tag, self._files(text))

    def _files(self, text: bytes) -> dict[str, StoredFile]:
        try:
            fields = json.loads(text)
            check_depth(fields, HEAD)
            if not isinstance(fields, dict) or not isinstance(fields.get("files"), dict):
                raise ValueError("no files")
            if fields.get("version") != _VERSION:
                raise ValueError(f"version {shortened(fields.get('version'))}, not {_VERSION}")
            files = {}
            for name, each in fields["files"].items():
                stored = each.get("object") if isinstance(each, dict) else None
                if not isinstance(stored, str) or not _OBJECT.fullmatch(stored):
                    raise ValueError(f"the object of {shortened(name)}")
                files[checked_name(name)] = StoredFile(checked_hash(name, each), stored)
        except (ValueError, RecursionError) as error:
            raise self._damaged(str(error)[:300]) from error
        return files

    def _damaged(self, what: str) -> KnowledgeBaseError:
        return KnowledgeBaseError(
            f"{self.address}/{HEAD} cannot be read: {what}",
            expected="the list that redi wrote",
            fix="restore an earlier version of that object, or another copy of the base",
        )

    def swap(self, files: Mapping[str, StoredFile], known: Head | None) -> Head | None:
        """Put a list in the place of the one that is known (of none), or return None if that is not the newest.

        Raises:
            KnowledgeBaseError: The bucket cannot be reached or does not take it; then either list may be there.
        """
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        listed = {name: {**hash_fields(each.hash), "object": each.object} for name, each in sorted(files.items())}
        text = json.dumps({"version": _VERSION, "files": listed}, indent=1) + "\n"
        with self._reaching("write"):
            try:
                put = self._store.put(HEAD, text.encode(), mode={"e_tag": known.tag} if known else "create")
            except (AlreadyExistsError, PreconditionError):
                return None
        return Head(str(put["e_tag"]), dict(files))

    def turn(self) -> str | None:
        """Return the token of who has asked the others to wait, None if nobody has.

        Raises:
            KnowledgeBaseError: The bucket cannot be reached.
        """
        with self._reaching("read"):
            try:
                found = self._store.get(_TURN)
                return bytes(found.bytes()).decode(errors="replace") if found.meta["size"] <= _MAX_TOKEN else "?"
            except FileNotFoundError:
                return None

    def ask_turn(self, token: str) -> None:
        """Ask the others to wait; in vain if somebody else has asked before, which :meth:`turn` tells.

        Raises:
            KnowledgeBaseError: The bucket cannot be reached or written to.
        """
        from obstore.exceptions import AlreadyExistsError

        with self._reaching("write"), suppress(AlreadyExistsError):
            self._store.put(_TURN, token.encode(), mode="create")

    def end_turn(self) -> None:
        """Let the others go on.

        Raises:
            KnowledgeBaseError: The bucket cannot be reached.
        """
        with self._reaching("tidy"), suppress(FileNotFoundError):
            self._store.delete(_TURN)

    def check_conditional(self) -> None:
        """Try whether the store refuses to overwrite when it is told to; one that does not would lose entries.

        Raises:
            KnowledgeBaseError: It overwrites all the same, or the bucket cannot be reached or written to.
        """
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        trial = f"objects/{uuid4().hex}"
        modes: dict[str, Any] = {"If-None-Match": "create", "If-Match": {"e_tag": f'"{uuid4().hex}"'}}
        with self._reaching("write"):
            self._store.put(trial, b"redi")
            try:
                for condition, mode in modes.items():
                    with suppress(AlreadyExistsError, PreconditionError):
                        self._store.put(trial, b"overwritten", mode=mode)
                        raise KnowledgeBaseError(
                            f"the store of {self.address} overwrites an object in spite of {condition}",
                            expected="one that keeps conditional PUT, as AWS S3, MinIO and Cloudflare R2 do",
                            fix="build in a folder, and copy it there when it is finished",
                        )
            finally:
                with suppress(BaseError):  # :meth:`drop_unused` takes it otherwise
                    self._store.delete(trial)

    def upload(self, path: Path) -> str:
        """Store a file and return the name of its new object.

        Raises:
            KnowledgeBaseError: The bucket cannot be reached or does not take it.
        """
        name = uuid4().hex
        with self._reaching("write"):
            self._bulk.put(f"objects/{name}", path)
        return name

    def download(self, file: StoredFile, path: Path) -> None:
        """Fetch an object into a file, flushed to the disk.

        Raises:
            KnowledgeBaseError: It is missing or not what the list says, the bucket cannot be reached, or the disk is
                full.
        """
        digest, size = sha256(), file.hash.size
        with writing(path), open(path, "wb") as copy:
            for start in range(0, size, _PART_BYTES):
                length = min(_PART_BYTES, size - start)
                with self._reaching("read"):
                    part = bytes(self._bulk.get_range(f"objects/{file.object}", start=start, length=length))
                digest.update(part)
                copy.write(part)
        if path.stat().st_size != size or digest.hexdigest() != file.hash.sha256:
            raise KnowledgeBaseError(
                f"{self.address}/objects/{file.object} was changed: it is not what {HEAD} names",
                expected=f"{size} bytes with SHA-256 {file.hash.sha256}",
                fix="restore that object, or another copy of the base",
            )
        fsync_file(path)

    def drop_unused(self, kept: timedelta = KEPT) -> int:
        """Delete objects older than this that the newest list does not name; return how many.

        Raises:
            KnowledgeBaseError: The bucket cannot be reached.
        """
        before = datetime.now(UTC) - kept
        with self._reaching("tidy"):
            listed = [each for part in self._store.list("objects") for each in part]
        ours = ((_KEY.fullmatch(each["path"]), each["last_modified"]) for each in listed)
        old = {key[1] for key, at in ours if key and at <= before}
        head = self.head()
        unused = sorted(old - {each.object for each in head.files.values()}) if head else []
        with self._reaching("tidy"):
            self._store.delete([f"objects/{name}" for name in unused])
        return len(unused)

    @contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        """Tell what the store, or the way to it, answers."""
        from obstore.exceptions import AlreadyExistsError, BaseError, NotModifiedError, PreconditionError

        try:
            yield
        except (AlreadyExistsError, NotModifiedError, PreconditionError):
            raise
        except (BaseError, FileNotFoundError, PermissionError) as error:
            raise KnowledgeBaseError(
                f"cannot {what} {self.address}: {_told(error)}",
                expected="a bucket that is there, can be reached, and takes the keys in the environment",
                fix="check the name, AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            ) from error


def _told(error: Any) -> str:
    code = re.search(r"<Code>([^<]+)</Code>", str(error))
    return code[1] if code else (str(error).strip() or type(error).__name__).splitlines()[0][:300]
