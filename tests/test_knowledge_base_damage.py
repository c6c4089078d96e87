"""Claims about damage and crashes: no entry lost, none doubled, none foreign, whatever happens to process or disk."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from redi.errors import KnowledgeBaseError
from redi.knowledge_base import KnowledgeBase
from redi.plan import Plan
from small_base import (
    ROWS,
    SEEDS,
    SHAPE,
    bank,
    build,
    build_on_full_disk,
    check_contents,
    create,
    filled,
    hold_lock,
    manifest,
    unit_batch,
)

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch"])  # Lance is not fork-safe; it is imported in the child


@pytest.fixture
def base(tmp_path: Path) -> KnowledgeBase:
    return filled(tmp_path / "base")


# Damage


@pytest.mark.parametrize("file", ["noise/bank.safetensors", "noise/references.safetensors"])
def test_noises_that_changed_are_refused(base: KnowledgeBase, file: str) -> None:
    data = bytearray((base.path / file).read_bytes())
    data[-1] ^= 1
    (base.path / file).write_bytes(data)
    with pytest.raises(KnowledgeBaseError, match="does not match the checksum"):
        KnowledgeBase.open(base.path)
    (base.path / file).unlink()
    with pytest.raises(KnowledgeBaseError, match="cannot read"):
        KnowledgeBase.open(base.path)


def test_a_truncated_table_file_is_reported_and_the_rest_is_readable(base: KnowledgeBase) -> None:
    victim = sorted((base.path / "entries.lance/data").iterdir(), key=lambda file: file.stat().st_mtime_ns)[1]
    os.truncate(victim, victim.stat().st_size // 2)
    report = KnowledgeBase.open(base.path).verify()
    assert len(report.damaged) >= 1
    assert "rows 6 to 11 cannot be read" in report.damaged[0]
    with pytest.raises(KnowledgeBaseError, match="cannot read"):
        KnowledgeBase.open(base.path).values([7], 7)


@pytest.mark.parametrize("left", [None, 0.5, 1.5])
def test_a_missing_cut_or_grown_table_file_is_found_without_reading_it(base: KnowledgeBase, left: float | None) -> None:
    base.check_files()
    victim = next((base.path / "entries.lance/data").iterdir())
    if left is None:
        victim.unlink()
    else:
        os.truncate(victim, int(victim.stat().st_size * left))
    with pytest.raises(KnowledgeBaseError, match=f"{victim.name} has .* bytes"):
        KnowledgeBase.open(base.path).check_files()


def test_a_changed_number_is_noticed(base: KnowledgeBase) -> None:
    stored = base.values([3], 7).half().numpy().astype("<f2").tobytes()
    for file in (base.path / "entries.lance/data").iterdir():
        data = bytearray(file.read_bytes())
        at = data.find(stored)
        if at >= 0:
            data[at] ^= 1
            file.write_bytes(data)
    report = KnowledgeBase.open(base.path).verify()
    assert report.damaged == ("row 3: value_7 does not match its checksum",)
    with pytest.raises(KnowledgeBaseError, match="value_7 of row 3"):
        KnowledgeBase.open(base.path).values([2, 3], 7)
    assert KnowledgeBase.open(base.path).values([2], 7).shape == (1, *SHAPE)


def test_a_table_on_which_lance_panics_is_refused_like_any_other(base: KnowledgeBase) -> None:
    """Rust's panics are no ``Exception`` in Python."""
    newest = min((base.path / "entries.lance/_versions").glob("*.manifest"))  # versions count down
    whole = newest.read_bytes()
    assert b"halffloat" in whole
    newest.write_bytes(whole.replace(b"halffloat", b"halffl\x15at", 1))
    with pytest.raises(KnowledgeBaseError, match="cannot read"):
        KnowledgeBase.open(base.path)


def test_a_missing_table_is_refused(base: KnowledgeBase) -> None:
    shutil.rmtree(base.path / "entries.lance")
    with pytest.raises(KnowledgeBaseError, match="no table"):
        KnowledgeBase.open(base.path)


def test_entries_of_another_base_are_never_served(base: KnowledgeBase, tmp_path: Path) -> None:
    other = create(tmp_path / "other")
    other.add_unit(0, unit_batch(50))
    shutil.rmtree(base.path / "entries.lance")
    shutil.copytree(other.path / "entries.lance", base.path / "entries.lance")
    mixed = KnowledgeBase.open(base.path)
    for read in (
        lambda: mixed.values([0], 7),
        lambda: mixed.prompts([0]),
        lambda: mixed.search(torch.zeros(1, *SHAPE), [0], 1, 1),
    ):
        with pytest.raises(KnowledgeBaseError, match="belongs to another knowledge base"):
            read()
    assert any("another knowledge base" in each for each in mixed.verify().damaged)


def test_a_table_of_another_plan_is_refused(base: KnowledgeBase, tmp_path: Path) -> None:
    made = manifest(plan=Plan(10, 1, (5,)))
    other = KnowledgeBase.create(tmp_path / "other", made, bank(), {})
    shutil.rmtree(base.path / "entries.lance")
    shutil.copytree(other.path / "entries.lance", base.path / "entries.lance")
    with pytest.raises(KnowledgeBaseError, match="key_2 is missing"):
        KnowledgeBase.open(base.path)


def test_an_entry_that_the_ledger_promised_and_the_table_lost_is_reported(base: KnowledgeBase) -> None:
    with open(base.path / "ledger/units.jsonl", "a") as file:
        file.write('{"unit": 9, "rows": 6, "refused": 0, "version": 5}\n')
    assert KnowledgeBase.open(base.path).verify().damaged == ("unit 9: 0 entries in the table, 6 in the ledger",)


def test_a_line_that_a_crash_cut_off_is_passed_over(base: KnowledgeBase) -> None:
    for name in ("ledger/units.jsonl", "refused.jsonl"):
        with open(base.path / name, "ab") as file:
            file.write(b'{"unit": 4, "ro')
    again = KnowledgeBase.open(base.path)
    assert again.completed_units() == {0, 1, 2, 3}
    assert again.refused() == []
    again.add_unit(4, unit_batch(4))
    check_contents(KnowledgeBase.open(base.path), 5)


def test_a_damaged_ledger_line_is_refused_and_the_ledger_can_be_rebuilt(base: KnowledgeBase) -> None:
    ledger = base.path / "ledger/units.jsonl"
    ledger.write_text("nonsense\n" + ledger.read_text())
    with pytest.raises(KnowledgeBaseError, match="line 1"):
        KnowledgeBase.open(base.path)
    ledger.unlink()
    again = KnowledgeBase.open(base.path)
    with again.lock():
        assert again.completed_units() == {0, 1, 2, 3}
    assert len(ledger.read_text().splitlines()) == 4
    check_contents(again, 4)


# Crashes


def forget_last_acknowledgement(base: KnowledgeBase) -> None:
    ledger = base.path / "ledger/units.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:-1]))


def test_a_unit_committed_but_not_acknowledged_is_kept_once(base: KnowledgeBase) -> None:
    forget_last_acknowledgement(base)
    again = KnowledgeBase.open(base.path)
    assert again.completed_units() == {0, 1, 2, 3}
    again.add_unit(3, unit_batch(3))
    check_contents(again, 4)


def test_a_unit_torn_by_a_power_loss_is_taken_back_and_done_again(base: KnowledgeBase) -> None:
    forget_last_acknowledgement(base)
    newest = max((base.path / "entries.lance/data").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    os.truncate(newest, newest.stat().st_size // 2)
    again = KnowledgeBase.open(base.path)
    with again.lock():
        assert again.completed_units() == {0, 1, 2}
        again.add_unit(3, unit_batch(3))
    check_contents(KnowledgeBase.open(base.path), 4)


def test_what_a_killed_unit_refused_is_forgotten_when_it_is_done_again(base: KnowledgeBase) -> None:
    spoilt = unit_batch(4)
    spoilt.keys[1][:] = float("nan")
    base.add_unit(4, spoilt)
    forget_last_acknowledgement(base)  # nothing of unit 4 is in the table: as if killed before its commit
    again = KnowledgeBase.open(base.path)
    assert again.add_unit(4, unit_batch(4)).refused == 0
    assert KnowledgeBase.open(base.path).refused() == []
    check_contents(KnowledgeBase.open(base.path), 5)


@pytest.mark.parametrize("left", [0, 100])
def test_a_manifest_torn_by_a_power_loss_is_set_aside(base: KnowledgeBase, left: int) -> None:
    forget_last_acknowledgement(base)
    newest = min((base.path / "entries.lance/_versions").glob("*.manifest"))
    os.truncate(newest, left)
    again = KnowledgeBase.open(base.path)
    assert len(again) == 3 * ROWS
    with again.lock():
        assert again.completed_units() == {0, 1, 2}
        again.add_unit(3, unit_batch(3))
    check_contents(KnowledgeBase.open(base.path), 4)


def test_an_acknowledged_unit_is_never_taken_back(base: KnowledgeBase) -> None:
    newest = max((base.path / "entries.lance/data").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    os.truncate(newest, newest.stat().st_size // 2)
    again = KnowledgeBase.open(base.path)
    with pytest.raises(KnowledgeBaseError, match="cannot read"):
        again.add_unit(4, unit_batch(4))
    assert any("cannot be read" in each for each in KnowledgeBase.open(base.path).verify().damaged)


def test_twenty_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    path, chance = create(tmp_path / "base").path, random.Random(1)
    for _ in range(20):
        receiver, sender = PROCESSES.Pipe(duplex=False)
        builder = PROCESSES.Process(target=build, args=(str(path), sys.maxsize, sender))  # never done by itself
        builder.start()
        assert receiver.recv() == "started"
        builder.join(chance.uniform(0.0, 0.12))
        builder.kill()
        builder.join()
        assert builder.exitcode == -signal.SIGKILL
    units = max(KnowledgeBase.open(path).completed_units()) + 5
    builder = PROCESSES.Process(target=build, args=(str(path), units))
    builder.start()
    builder.join()
    assert builder.exitcode == 0
    base = KnowledgeBase.open(path)
    assert base.completed_units() == set(range(units))
    assert len(base.leave_one_out(1)) == units * ROWS
    check_contents(base, units)


def test_a_full_disk_stops_the_build_and_room_lets_it_go_on(tmp_path: Path) -> None:
    path = create(tmp_path / "base").path
    receiver, sender = PROCESSES.Pipe(duplex=False)
    builder = PROCESSES.Process(target=build_on_full_disk, args=(str(path), sender))
    builder.start()
    message = receiver.recv()
    assert "cannot write" in message
    assert "make room" in message
    assert receiver.recv() == (ROWS, [0], 1)
    assert receiver.recv() == "done"
    builder.join()
    base = KnowledgeBase.open(path)
    assert len(base) == ROWS + 200
    assert base.verify().clean


def test_only_one_builder_at_a_time(base: KnowledgeBase) -> None:
    ours, theirs = PROCESSES.Pipe()
    builder = PROCESSES.Process(target=hold_lock, args=(str(base.path), theirs))
    builder.start()
    assert ours.recv() == "held"
    with pytest.raises(KnowledgeBaseError, match=f"built by process {builder.pid}"):
        base.add_unit(4, unit_batch(4))
    assert len(KnowledgeBase.open(base.path)) == 4 * ROWS  # readers do not mind
    ours.send("stop")
    builder.join()
    base.add_unit(4, unit_batch(4))
    check_contents(base, 5)


def test_a_dead_builder_s_lock_is_free(base: KnowledgeBase) -> None:
    ours, theirs = PROCESSES.Pipe()
    builder = PROCESSES.Process(target=hold_lock, args=(str(base.path), theirs))
    builder.start()
    ours.recv()
    builder.kill()
    builder.join()
    base.add_unit(4, unit_batch(4))
    assert len(base) == 5 * ROWS


def test_units_that_another_builder_added_are_seen(base: KnowledgeBase) -> None:
    other = KnowledgeBase.open(base.path)
    other.add_unit(4, unit_batch(4))
    base.add_unit(4, unit_batch(4))
    base.add_unit(5, unit_batch(5))
    check_contents(base, 6)


def test_compaction_keeps_every_row_where_it_was(base: KnowledgeBase) -> None:
    before = [entry.entry_id for entry in base.entries(range(len(base)))]
    reader = KnowledgeBase.open(base.path)
    base.finish()
    assert len(list((base.path / "entries.lance/data").iterdir())) == 1
    assert [entry.entry_id for entry in base.entries(range(len(base)))] == before
    with pytest.raises(KnowledgeBaseError, match="cannot read"):
        np.asarray(reader.values(range(len(before)), 7))
    assert len(KnowledgeBase.open(base.path)) == len(before)
    assert base.noise_bank.seeds == SEEDS
