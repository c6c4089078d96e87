"""Claims about who writes next to a base in a bucket. A real server, real processes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import object_store
from redi.errors import KnowledgeBaseError
from redi.knowledge_base import KnowledgeBase, mirror, turns
from redi.knowledge_base.bucket import Bucket
from redi.knowledge_base.table import EntryTable
from redi.knowledge_base.turns import Turn
from small_base import ROWS, create, filled, unit_batch
from tiny_build import server


def test_a_long_change_comes_through_while_another_machine_writes_without_a_pause(
    address: str, store: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, context = filled(address), server()
    enough, tries, stock = context.Event(), [], EntryTable.compact

    def long(table: EntryTable, **options: Any) -> bool:
        tries.append(table.count())
        time.sleep(1.5)
        return stock(table, **options)

    monkeypatch.setattr(EntryTable, "compact", long)
    monkeypatch.setattr(mirror, "_TRIES", 12)
    environment = {**store, "REDI_CACHE": str(tmp_path / "second")}
    other = context.Process(target=object_store.write_on, args=(environment, address, enough))
    other.start()
    try:
        while len(KnowledgeBase.open(address)) == 4 * ROWS:
            time.sleep(0.2)
        base.compact()
        behind = len(KnowledgeBase.open(address))
        assert len(tries) > 1, "the other has to have been in the way"
        while len(KnowledgeBase.open(address)) <= behind:
            time.sleep(0.2)
    finally:
        enough.set()
        other.join()
    assert other.exitcode == 0
    after = KnowledgeBase.open(address)
    assert set(base.prompts(range(len(base)))) <= set(after.prompts(range(len(after))))
    assert after.verify().clean


def test_the_turn_of_who_has_died_runs_out(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, bucket = create(address), Bucket(address)
    monkeypatch.setattr(turns, "LONGEST", 1.0)
    bucket.ask_turn("first")
    bucket.ask_turn("second")
    assert bucket.turn() == "first", "one at a time"
    started = time.monotonic()
    assert base.add_unit(0, unit_batch(0))
    assert time.monotonic() - started >= 1.0
    assert bucket.turn() is None


def test_a_turn_ends_with_its_writer_and_takes_nobody_elses(address: str) -> None:
    create(address)
    bucket = Bucket(address)
    with Turn(bucket) as turn:
        turn.wait(ask=False)
        assert not turn.ours
        turn.wait(ask=True)
        assert turn.ours
    assert bucket.turn() is None
    with Turn(bucket) as turn:
        turn.wait(ask=True)
        bucket.end_turn()  # it took too long
        bucket.ask_turn("another")
    assert bucket.turn() == "another"


def test_a_store_that_knows_no_turns_is_written_to_all_the_same(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = create(address)

    def refused(*_: Any) -> None:
        raise KnowledgeBaseError("AccessDenied")

    for name in ("turn", "ask_turn", "end_turn"):
        monkeypatch.setattr(Bucket, name, refused)
    monkeypatch.setattr(mirror, "_PATIENCE", 0)
    assert base.add_unit(0, unit_batch(0))
