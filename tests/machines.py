"""Owns a real S3-compatible server for a module's tests, and machines: working copies of what is in its bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

import object_store

OnMachine = Callable[[str], None]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with object_store.serving(tmp_path_factory.mktemp("server") / "log") as environment:
        yield environment


@pytest.fixture
def on(store: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnMachine:
    """Go on as another machine: what is opened from now on has its working copy there."""
    for name, value in store.items():
        monkeypatch.setenv(name, value)

    def machine(name: str) -> None:
        monkeypatch.setenv("REDI_CACHE", str(tmp_path / name))

    machine("first")
    return machine


@pytest.fixture
def address(on: OnMachine) -> str:
    return f"s3://{object_store.BUCKET}/folder/{uuid4().hex}"
