"""Claims about bases in a bucket that is damaged, hostile, careless or out of reach. A real server, real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import object_store
from machines import OnMachine
from redi.errors import KnowledgeBaseError
from redi.knowledge_base import KnowledgeBase
from redi.knowledge_base.bucket import Bucket
from small_base import check_contents, create, filled, unit_batch
from tiny import tiny_pipeline
from tiny_build import build_tiny


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda head: head.update(version=7), "version 7"),
        (lambda head: head.pop("files"), "no files"),
        (lambda head: head["files"].update({"../../x": head["files"]["manifest.json"]}), "the name"),
        (lambda head: head["files"].update({"/x": head["files"]["manifest.json"]}), "the name"),
        (lambda head: head["files"]["manifest.json"].update(object="../../secret"), "the object"),
        (lambda head: head["files"]["manifest.json"].update(object=None), "the object"),
        (lambda head: head["files"]["manifest.json"].update(size=-1), "the size"),
        (lambda head: head["files"]["manifest.json"].update(sha256="00"), "the hash"),
        (lambda head: head["files"]["manifest.json"].update(sha256="0" * 64), "was changed"),
        (lambda head: head["files"]["manifest.json"].update(size=2**60), "cannot read"),
        (lambda head: head["files"].update({"noise": head["files"]["manifest.json"]}), "cannot write"),
        (lambda head: head["files"].update({"lock": head["files"]["manifest.json"]}), None),
    ],
)
def test_a_strangers_list_ends_in_an_error_and_touches_nothing_else(
    address: str, on: OnMachine, tmp_path: Path, change: Callable[[Any], Any], message: str | None
) -> None:
    filled(address)
    store = Bucket(address)._store
    head = json.loads(bytes(store.get("head.json").bytes()))
    change(head)
    store.put("head.json", json.dumps(head).encode())
    on("second")
    before = {path for path in tmp_path.rglob("*") if (tmp_path / "second") not in path.parents}
    if message is None:
        check_contents(KnowledgeBase.open(address), 4)
    else:
        with pytest.raises(KnowledgeBaseError, match=message):
            KnowledgeBase.open(address)
    assert {path for path in tmp_path.rglob("*") if (tmp_path / "second") not in path.parents} - before <= {
        tmp_path / "second"
    }


def test_a_list_that_is_no_json_is_an_error(address: str, on: OnMachine) -> None:
    filled(address)
    for text in (b"", b"[]", b"{", b"[" * 100_000, b"\xff\xfe"):
        Bucket(address)._store.put("head.json", text)
        on(uuid4().hex)
        with pytest.raises(KnowledgeBaseError, match=r"head.json cannot be read"):
            KnowledgeBase.open(address)


def test_what_cannot_be_reached_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KnowledgeBaseError, match="no knowledge base at"):
        KnowledgeBase.open(address)
    with pytest.raises(KnowledgeBaseError, match="NoSuchBucket"):
        KnowledgeBase.open("s3://nobody/base")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("redi.knowledge_base.bucket._RETRIES", 0)
    with pytest.raises(KnowledgeBaseError, match="AWS_ENDPOINT_URL"):
        KnowledgeBase.open(address)


@pytest.mark.parametrize("endpoint", ["", "nonsense", "http://", "http://a b", "ftp://store"])
def test_an_endpoint_that_is_none_is_told(address: str, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(KnowledgeBaseError, match="AWS_ENDPOINT_URL '"):
        KnowledgeBase.open(address)


_NO_NAMES = ("", "..", "../x", "a/..", "a/../b", "./x", "a/.", "a//b", "a\nb", "a\0b")


@pytest.mark.parametrize(
    "wrong",
    [
        *("s3:/", "s3://", "s3://bucket", "s3://../x", "s3://a b/x", "s3://a\0b/x", "s3://a#/x", "s3://ä/x"),
        *(f"s3://bucket/{name}" for name in _NO_NAMES),
    ],
)
def test_what_is_no_address_is_refused(wrong: str) -> None:
    for use in (KnowledgeBase.open, KnowledgeBase.exists, create):
        with pytest.raises(KnowledgeBaseError, match="s3://bucket/name-of-the-base"):
            use(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["...", ".hidden", "a/..b/c.d", "ein Name/für Bäume", "a%2e?#*"])
def test_a_base_in_a_bucket_may_have_any_other_name(on: OnMachine, name: str) -> None:
    check_contents(filled(f"s3://{object_store.BUCKET}/{uuid4().hex}/{name}"), 4)  # type: ignore[arg-type]


def test_a_store_that_overwrites_in_spite_of_a_condition_is_refused_before_any_call(
    on: OnMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tiny_pipeline(tmp_path / "model")
    monkeypatch.setattr(pipe.unet, "forward", None)
    with object_store.careless() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(KnowledgeBaseError, match="overwrites an object in spite of If-None-Match"):
            build_tiny(pipe, "s3://bases/base")  # type: ignore[arg-type]


def test_a_build_whose_network_breaks_goes_on_when_it_is_back(
    address: str, on: OnMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = create(address)
    base.add_unit(0, unit_batch(0))

    def broken(*_: Any) -> None:
        raise KnowledgeBaseError("cannot write: the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "swap", broken)
        with pytest.raises(KnowledgeBaseError, match="the network is down"):
            base.add_unit(1, unit_batch(1))
    base.add_unit(2, unit_batch(2))
    assert base.completed_units() == {0, 2}
    base.add_unit(1, unit_batch(1))
    on("second")
    other = KnowledgeBase.open(address)
    assert sorted(other.completed_units()) == [0, 1, 2]
    assert other.verify().clean
