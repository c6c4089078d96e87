"""Owns fetching a base from the Hugging Face hub or a bucket and putting it there; must not know its use."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from redi.errors import InputError, KnowledgeBaseError, PlanError
from redi.knowledge_base.bucket import Bucket, is_address
from redi.knowledge_base.card import card_of
from redi.knowledge_base.copying import copy_base
from redi.knowledge_base.durable import replace_file
from redi.knowledge_base.guard import read_file
from redi.knowledge_base.hashes import FILE_NAME, MAX_BYTES, FileHashes, compare_files, differing_files, read_hashes
from redi.knowledge_base.layout import local_folder
from redi.knowledge_base.manifest import FILE_NAME as MANIFEST
from redi.knowledge_base.mirror import Mirror

if TYPE_CHECKING:
    from redi.knowledge_base.base import KnowledgeBase

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CARD = "README.md"
_LOCAL_ONLY = ["lock", "uses.jsonl", "previews/*", "*.torn", "*.tmp-*"]


def fetch(source: str | PathLike[str], revision: str | None = None) -> Path:
    """Return the folder of a base: the one named, or the cached download of a hub's dataset or a bucket.

    Args:
        source: A folder, ``s3://bucket/name``, or a hub id such as ``owner/name``.
        revision: Branch, tag or commit of the hub's dataset.

    Raises:
        InputError: It is none of these, or the hub does not give it.
        KnowledgeBaseError: The bucket does not give it.
    """
    if _is_place(source):
        if revision is not None:
            raise InputError(f"revision {revision!r} of {source}", expected="a revision of a hub id")
        if not is_address(source):
            return Path(source)
        mirror = Mirror(Bucket(source))
        mirror.update()
        return mirror.folder
    from huggingface_hub import snapshot_download

    repo_id = _hub_id(source)
    with _hub(f"cannot fetch {repo_id}"):
        folder = snapshot_download(repo_id, repo_type="dataset", revision=revision, ignore_patterns=_LOCAL_ONLY)
    return Path(folder)


def save(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    revision: str | None = None,
    value_steps: Collection[int] | None = None,
    values: str | None = None,
) -> FileHashes:
    """Copy a base, from a folder, a bucket or the hub, to a new place; of a hub's, fetch only value steps asked for.

    Whatever was fetched is compared with its ``hashes.json``, and every row is read and checked.

    Args:
        source: A folder, ``s3://bucket/name``, or a hub id such as ``owner/name``.
        target: A new or empty folder, or ``s3://bucket/name``, with room for a copy on this machine.
        revision: Branch, tag or commit of the hub's dataset.
        value_steps: Which value steps to keep; all by default.
        values: Name of the codec to keep values with: "float16", "int8" or "nf4"; by default as they are.

    Returns:
        The hashes of the copy.

    Raises:
        PlanError: A value step is not recorded, or the steps are no list.
        InputError: The source is no folder and no hub id, the hub does not give it, or there is no such codec.
        KnowledgeBaseError: A file was changed, the base is damaged, or the target is not free.
    """
    if not isinstance(value_steps, (Collection, NoneType)):
        raise PlanError(f"value_steps={value_steps!r}", expected="a list of value steps, such as [40]")
    if is_address(target):
        mirror = Mirror(Bucket(target))
        mirror.begin()
        hashes = save(source, mirror.folder, revision=revision, value_steps=value_steps, values=values)
        mirror.publish_new()
        return hashes
    if _is_place(source) or value_steps is None:
        folder = fetch(source, revision)
        _refuse(compare_files(folder), folder)
        return copy_base(folder, local_folder(target), value_steps, values)
    repo_id = _hub_id(source)
    folder, known = _first_files(repo_id, revision)
    wanted = {name: each for name, each in known.files.items() if each.value_step in (None, *value_steps)}
    from huggingface_hub import snapshot_download

    with _hub(f"cannot fetch {repo_id}"):
        snapshot_download(repo_id, repo_type="dataset", revision=folder.name, allow_patterns=sorted(wanted))
    _refuse(differing_files(folder, wanted), folder)
    return copy_base(folder, local_folder(target), value_steps, values)


def _first_files(repo_id: str, revision: str | None) -> tuple[Path, FileHashes]:
    """Fetch the list of a hub's dataset; return its folder, named by the commit, and the list."""
    from huggingface_hub import hf_hub_download

    with _hub(f"cannot fetch {repo_id}"):
        path = Path(hf_hub_download(repo_id, FILE_NAME, repo_type="dataset", revision=revision))
    return path.parent, FileHashes.from_json(read_file(path, MAX_BYTES).decode("utf-8", errors="replace"))


def push(
    base: KnowledgeBase,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    license: str | None = None,
    quality: Mapping[str, Any] | None = None,
) -> str:
    """Put a base on the hub as a dataset with a card; returns its address.

    A base that :func:`save` wrote is sent as it is. Another one is first copied beside itself, which needs as much
    room again. Previews stay at home.

    Args:
        base: The base.
        repo_id: ``owner/name``; the dataset is made if there is none.
        private: Whether a new dataset is private.
        revision: Branch to put it on; the main one by default.
        license: As the hub names licences ("apache-2.0", "openrail", ...).
        quality: Measured figures for the card, by name.

    Raises:
        InputError: The name is no hub id, or the hub does not take it.
        KnowledgeBaseError: A file of the base was changed, or the disk is full.
    """
    if not _is_hub_id(repo_id):
        raise InputError(f"{repo_id!r} is no hub id", expected="owner/name, such as me/my-base")
    hashes = read_hashes(base.path)
    if hashes is not None and any(each.value_step is not None for each in hashes.files.values()):
        _refuse(compare_files(base.path), base.path)
        return _upload(base, base.path, repo_id, hashes, private, revision, license, quality)
    with tempfile.TemporaryDirectory(dir=base.path.parent, prefix=f".{base.path.name}-") as folder:
        copied = copy_base(base.path, Path(folder) / "base")
        return _upload(base, Path(folder) / "base", repo_id, copied, private, revision, license, quality)


def _upload(
    base: KnowledgeBase,
    folder: Path,
    repo_id: str,
    hashes: FileHashes,
    private: bool,
    revision: str | None,
    license: str | None,
    quality: Mapping[str, Any] | None,
) -> str:
    from huggingface_hub import HfApi

    card = card_of(base, repo_id, hashes, license=license, quality=quality)
    replace_file(folder / _CARD, card.encode())
    hub = HfApi()
    with _hub(f"cannot put {folder} on {repo_id}"):
        address = hub.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=folder,
            revision=revision,
            ignore_patterns=_LOCAL_ONLY,
            delete_patterns=["entries.lance/*", "index/*"],  # files of an earlier push have other names
            commit_message=f"redi knowledge base {base.manifest.kb_id}, {len(base)} entries",
            commit_description=f"signature {hashes.signature}",
        )
    return str(address)


def _is_place(source: object) -> bool:
    return isinstance(source, (str, PathLike)) and (Path(source).is_dir() or is_address(source))


def _is_hub_id(name: object) -> bool:
    return bool(_HUB_ID.fullmatch(str(name))) and ".." not in str(name)


def _hub_id(source: str | PathLike[str]) -> str:
    if not _is_hub_id(source):
        raise InputError(
            f"{source!r} is no folder and no hub id",
            expected=f"a folder with a {MANIFEST}, s3://bucket/name, or a hub id such as owner/name",
        )
    return str(source)


@contextmanager
def _hub(what: str) -> Iterator[None]:
    """Tell what the hub, or the way to it, answers."""
    try:
        yield
    except (InputError, KnowledgeBaseError):
        raise
    except Exception as error:  # the client raises its own, httpx's and the system's errors
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{what}: {first[:300]}",
            expected="a dataset of the Hugging Face hub that can be reached",
            fix="check the name, the network (HF_HUB_OFFLINE) and your login (hf auth login)",
        ) from error


def _refuse(changed: list[str], folder: Path) -> None:
    if changed:
        raise KnowledgeBaseError(
            f"{folder}: {'; '.join(changed[:5])}",
            expected=f"the files whose hashes are in {FILE_NAME}",
            fix="fetch it again from a place that you trust",
        )
