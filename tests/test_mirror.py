"""Claims about bases in a bucket: nothing lost, doubled or foreign, whoever writes and dies. A real server, real files.

A *machine* here is a working copy of its own.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import object_store
from machines import OnMachine
from redi.building.status import build_status
from redi.cli.app import app
from redi.errors import InputError, KnowledgeBaseError, RediWarning
from redi.knowledge_base import KnowledgeBase, mirror, sharing, upkeep
from redi.knowledge_base.bucket import Bucket
from redi.knowledge_base.growth import Growth, add_grown
from small_base import ROWS, check_contents, create, filled, unit_batch
from tiny import tiny_pipeline
from tiny_build import PROMPTS, build_tiny, server


def test_a_base_in_a_bucket_is_what_it_is_in_a_folder(address: str, on: OnMachine) -> None:
    assert not KnowledgeBase.exists(address)
    base = filled(address)
    check_contents(base, 4)
    assert base.address == address
    base.finish()
    on("second")
    assert KnowledgeBase.exists(address)
    other = KnowledgeBase.open(address)
    check_contents(other, 4)
    assert other.path != base.path
    assert torch.equal(other.leave_one_out(2), base.leave_one_out(2))
    found = other.search(other.keys([3, 9], 1), other.noise_ids()[[3, 9]].tolist(), 1, 1)
    assert found.rows.flatten().tolist() == [3, 9]
    assert build_status(address).entries == 4 * ROWS
    with pytest.raises(KnowledgeBaseError, match="holds a knowledge base already"):
        create(address)


def test_opening_again_fetches_nothing_that_is_there(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(address)
    monkeypatch.setattr(Bucket, "download", None)
    check_contents(KnowledgeBase.open(address), 4)


def test_machines_that_take_turns_build_on_what_the_other_did(address: str, on: OnMachine) -> None:
    first = create(address)
    on("second")
    second = KnowledgeBase.open(address)
    for unit in range(6):
        (first, second)[unit % 2].add_unit(unit, unit_batch(unit))
    second.add_unit(0, unit_batch(0))
    check_contents(second, 6)
    on("third")
    check_contents(KnowledgeBase.open(address), 6)


def test_who_comes_second_makes_the_change_again(address: str, on: OnMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    first = create(address)
    on("second")
    second = KnowledgeBase.open(address)
    stock, calls = Bucket.swap, []

    def overtaken(bucket: Bucket, *args: Any) -> Any:
        monkeypatch.setattr(Bucket, "swap", stock)
        second.add_unit(0, unit_batch(0))
        second.add_unit(1, unit_batch(1))
        calls.append(1)
        return stock(bucket, *args)

    monkeypatch.setattr(Bucket, "swap", overtaken)
    assert first.add_unit(1, unit_batch(1)).rows == ROWS
    assert calls
    check_contents(first, 2)
    first.add_unit(2, unit_batch(2))
    on("third")
    check_contents(KnowledgeBase.open(address), 3)


def test_a_change_that_was_not_published_is_taken_back(address: str) -> None:
    base = create(address)
    base.add_unit(0, unit_batch(0))
    alone = KnowledgeBase.open(base.path)  # as a process that dies before it publishes
    alone.add_unit(1, unit_batch(1))
    alone.add_unit(2, unit_batch(2))
    shutil.copy(base.path / "manifest.json", base.path / "noise" / "left-over")
    again = KnowledgeBase.open(address)
    check_contents(again, 1)
    assert not (base.path / "noise" / "left-over").exists()
    again.add_unit(1, unit_batch(1))
    check_contents(again, 2)


def test_a_reader_notices_that_a_version_came_again_with_other_entries(address: str, on: OnMachine) -> None:
    base = create(address)
    alone = KnowledgeBase.open(base.path)
    alone.add_unit(0, unit_batch(0))  # not published: its writer dies
    base = KnowledgeBase(base.path, base.manifest, base._noises, base._searcher.make, base._mirror)
    batch = unit_batch(0)
    query, noise = batch.keys[1][:1], batch.noise_ids[:1]
    assert base.search(query, noise, 1, 1).distances.item() < 1e-2
    on("second")
    other = KnowledgeBase.open(address)
    other.add_unit(3, unit_batch(3))
    assert base._mirror is not None
    base._mirror.update()
    fresh = base.current()
    assert fresh is not base
    check = fresh.search(query, noise, 1, 1)
    assert check.distances.item() > 1e-2
    base.add_unit(3, unit_batch(3))
    assert base.search(query, noise, 1, 1).distances.item() > 1e-2
    assert set(base.prompts(range(len(base)))) == set(unit_batch(3).prompts)


def test_who_reads_on_this_machine_ends_what_they_began_when_another_has_compacted(
    address: str, on: OnMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = filled(address)
    reader = KnowledgeBase.open(base.path)
    files = set(base.path.glob("entries.lance/data/*"))
    on("second")
    other = KnowledgeBase.open(address)
    upkeep.remove(other, upkeep.Where.parse(["noise=0"]))
    other.compact(grace=timedelta(0))
    assert base._mirror is not None
    base._mirror.update()
    assert torch.isfinite(reader.values(range(4 * ROWS), 4)).all()
    on("first")
    again = KnowledgeBase.open(address)  # another process, which only knows of them what the first wrote down
    again.add_unit(9, unit_batch(9))
    assert len(again) == len(KnowledgeBase.open(address)) == 5 * ROWS - 8
    assert files < set(base.path.glob("entries.lance/data/*"))
    assert not {f"entries.lance/data/{file.name}" for file in files} & Bucket(address).head().files.keys()  # type: ignore[union-attr]
    monkeypatch.setattr(mirror, "GRACE", timedelta(0))
    KnowledgeBase.open(address)
    assert not files & set(base.path.glob("entries.lance/data/*"))


def test_who_still_holds_a_base_that_another_replaced_writes_nothing_into_that(address: str, on: OnMachine) -> None:
    old = filled(address)
    on("second")
    Bucket(address)._store.delete("head.json")
    new = create(address)
    new.add_unit(0, unit_batch(0))
    with pytest.raises(KnowledgeBaseError, match="another knowledge base is at"):
        old.add_unit(9, unit_batch(9))
    on("third")
    check = KnowledgeBase.open(address)
    assert (check.manifest.kb_id, len(check)) == (new.manifest.kb_id, ROWS)
    assert check.verify().clean


def test_a_file_that_is_lost_here_is_not_lost_in_the_bucket(
    address: str, on: OnMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = filled(address)

    def careless(*_: Any, **__: Any) -> Any:
        next((base.path / "entries.lance" / "data").iterdir()).unlink()
        return {}

    with monkeypatch.context() as patch:
        patch.setattr("redi.knowledge_base.leave_one_out.measure", careless)
        with pytest.raises(KnowledgeBaseError):
            base.measure()
    check_contents(KnowledgeBase.open(address), 4)
    on("second")
    check_contents(KnowledgeBase.open(address), 4)


def test_tidying_leaves_a_base_whose_address_is_below_another(address: str) -> None:
    base, below = filled(address), filled(f"{address}/objects")
    assert Bucket(address).drop_unused(timedelta(0)) >= 0
    check_contents(KnowledgeBase.open(below.address), 4)
    check_contents(KnowledgeBase.open(base.address), 4)


def test_a_damaged_working_copy_is_made_whole(address: str) -> None:
    base = filled(address)
    data = sorted((base.path / "entries.lance" / "data").iterdir())
    data[0].write_bytes(data[0].read_bytes()[::-1])
    data[1].unlink()
    (base.path / "manifest.json").unlink()
    check_contents(KnowledgeBase.open(address), 4)


def test_entries_that_only_the_copy_holds_are_set_aside(address: str) -> None:
    base = filled(address)
    Bucket(address)._store.delete("head.json")
    with pytest.warns(RediWarning, match="held entries: they are in") as caught:
        create(address).add_unit(0, unit_batch(0))
    check_contents(KnowledgeBase.open(address), 1)
    aside = str(caught[0].message).rsplit(" ", 1)[-1]
    assert Path(aside).parent == base.path.parent
    check_contents(KnowledgeBase.open(aside), 4)


def test_a_reader_sees_what_another_machine_added_after_a_while(
    address: str, on: OnMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = _behind(address, on)
    assert len(reader.current()) == 0
    monkeypatch.setattr(mirror, "LOOK_AGAIN", 0.0)
    stock, slow = Bucket.download, threading.Event()

    def slowly(*arguments: Any) -> None:
        if threading.current_thread().name == "redi-mirror":
            slow.wait()
        stock(*arguments)

    monkeypatch.setattr(Bucket, "download", slowly)
    assert len(reader.current()) == 0, "no picture waits for a download"
    other = KnowledgeBase.open(address)
    assert len(other) == ROWS, "nor does anybody else of this machine"
    other.add_unit(1, unit_batch(1))
    slow.set()
    seen = _looked(reader)
    check_contents(seen, 2)
    _looked(seen)
    monkeypatch.setattr(Bucket, "head", lambda *_: (_ for _ in ()).throw(KnowledgeBaseError("the network is down")))
    with pytest.warns(RediWarning, match="going on with the copy"):
        assert len(_looked(seen)) == 2 * ROWS


def test_what_a_look_has_fetched_is_not_fetched_again(
    address: str, on: OnMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = _behind(address, on)
    monkeypatch.setattr(mirror, "LOOK_AGAIN", 0.0)
    stock, fetched = Bucket.download, []
    monkeypatch.setattr(Bucket, "download", lambda *each: (fetched.append(each[1].object), stock(*each)))
    check_contents(_looked(reader), 1)
    assert fetched
    assert len(fetched) == len(set(fetched))


def test_what_grew_is_published_when_the_interpreter_ends(address: str, store: dict[str, str], tmp_path: Path) -> None:
    create(address)
    script = """
import sys, torch, small_base
from redi.growing import Grower, _Seen
from redi.knowledge_base import KnowledgeBase
from redi.knowledge_base.growth import Growth
base = KnowledgeBase.open(sys.argv[1])
latents = {step: torch.randn(small_base.SHAPE) for step in (1, 2, 4, 7)}
grower = Grower(base, Growth(delay=60.0))
grower.offer([_Seen("a prompt", 0, latents)], [])
"""
    paths = [str(Path(__file__).parent), *sys.path]
    environment = {**os.environ, **store, "REDI_CACHE": str(tmp_path / "third"), "PYTHONPATH": os.pathsep.join(paths)}
    ended = subprocess.run([sys.executable, "-c", script, address], env=environment, capture_output=True, text=True)
    assert "lost" not in ended.stderr
    assert KnowledgeBase.open(address).prompts([0]) == ["a prompt"]


def test_upkeep_reaches_the_bucket(address: str, on: OnMachine, tmp_path: Path) -> None:
    base = filled(address)
    gone = upkeep.remove(base, upkeep.Where.parse(["noise=0"]))
    assert len(gone) == 8
    before = _objects(address)
    base.compact(grace=timedelta(0))
    assert len(_objects(address)) > len(before)  # what others may still read stays for a day
    assert Bucket(address).drop_unused(timedelta(0)) > 0
    named = {each.object for each in Bucket(address).head().files.values()}  # type: ignore[union-attr]
    assert _objects(address) == named
    on("second")
    assert len(KnowledgeBase.open(address)) == 4 * ROWS - 8
    moved, count = upkeep.split(KnowledgeBase.open(address), upkeep.Where.parse(["noise=1"]), f"{address}-part")
    assert (moved.address, count) == (f"{address}-part", 8)
    on("third")
    assert len(KnowledgeBase.open(address)) == len(KnowledgeBase.open(f"{address}-part")) == 8
    merged = upkeep.merge_into(tmp_path / "merged", [KnowledgeBase.open(address), KnowledgeBase.open(moved.address)])
    assert len(merged) == 16
    assert merged.verify().clean


def test_bases_are_copied_to_buckets_and_back(address: str, on: OnMachine, tmp_path: Path) -> None:
    filled(tmp_path / "folder").save_pretrained(address)
    on("second")
    fetched = KnowledgeBase.from_pretrained(address)
    check_contents(fetched, 4)
    fetched.add_unit(4, unit_batch(4))
    on("third")
    check_contents(KnowledgeBase.open(address), 5)
    sharing.save(address, tmp_path / "back", value_steps=(7,))
    assert KnowledgeBase.open(tmp_path / "back").plan.value_steps == (7,)
    with pytest.raises(KnowledgeBaseError, match="holds a knowledge base already"):
        sharing.save(tmp_path / "back", address)
    with pytest.raises(InputError, match="revision"):
        KnowledgeBase.from_pretrained(address, revision="main")


def test_commands_name_a_bucket_as_their_user_does(address: str, tmp_path: Path) -> None:
    folder = str(filled(tmp_path / "folder").path)
    for command in (["pull", folder, address], ["merge", folder, folder, "--out", f"{address}-both"]):
        told = CliRunner().invoke(app, command)
        assert told.exit_code == 0, told.output
        assert told.output.startswith(command[-1])
    for wrong in ("s3://", "s3://bucket"):
        told = CliRunner().invoke(app, ["inspect", wrong])
        assert told.exit_code == 1
        assert f"the address {wrong!r}" in told.output


def test_inspect_says_where_the_hashes_of_a_base_in_a_bucket_are(address: str) -> None:
    filled(address).compact()
    told = CliRunner().invoke(app, ["inspect", address, "--verify"])
    assert told.exit_code == 0, told.output
    assert "head.json" in told.output
    assert "changed since" not in told.output


def test_pictures_that_ran_in_full_grow_it(address: str, on: OnMachine) -> None:
    base = filled(address)
    add_grown(base, unit_batch(4), Growth(capacity=4 * ROWS), {(0, 0): (3, 2.0)}, 1.0)
    assert len(base) == 4 * ROWS - 1  # room for a twentieth more is made
    on("second")
    other = KnowledgeBase.open(address)
    assert other.names() == base.names()
    assert torch.equal(other.leave_one_out(1), base.leave_one_out(1))


def test_a_build_goes_to_the_bucket_and_goes_on_from_there(address: str, on: OnMachine, tmp_path: Path) -> None:
    pipe = tiny_pipeline(tmp_path / "model")
    kb = build_tiny(pipe, Path(address))  # pathlib makes one slash of two
    assert kb.address == address
    assert kb.prompts(range(20)) == PROMPTS
    on("second")
    again = build_tiny(pipe, address)  # type: ignore[arg-type]
    assert len(again) == 20
    torch.testing.assert_close(again.values(range(20), 8), kb.values(range(20), 8), rtol=0, atol=0)
    told = CliRunner().invoke(app, ["inspect", address, "--verify"])
    assert told.exit_code == 0, told.output
    assert "20" in told.output
    told = CliRunner().invoke(app, ["compact", address])
    assert told.exit_code == 0, told.output
    assert told.output.startswith(f"{address}: 20 entries, 0.")
    assert "0.0 MB" not in told.output


def test_builders_on_several_machines_are_killed_and_every_entry_is_there_once(
    address: str, on: OnMachine, store: dict[str, str], tmp_path: Path
) -> None:
    units, kills = 24, 0
    create(address)
    context, moments = server(), random.Random(0)
    for attempt in range(30):
        machines = []
        for name in ("first", "second"):
            here, there = context.Pipe()
            caught = ({**store, "REDI_CACHE": str(tmp_path / name)}, address, units, there)
            machines.append((context.Process(target=object_store.build_elsewhere, args=caught), here))
            machines[-1][0].start()
        for _, channel in machines:
            assert channel.recv() == "started"
        for process, _ in machines:
            process.join(None if attempt >= 4 else moments.uniform(0, 0.3))
            if process.is_alive():
                kills += 1
                process.kill()
                process.join()
        if all(process.exitcode == 0 for process, _ in machines):
            break
    assert kills >= 4
    on("third")
    check_contents(KnowledgeBase.open(address), units)


def test_machines_that_grow_one_base_lose_nothing(
    address: str, on: OnMachine, store: dict[str, str], tmp_path: Path
) -> None:
    create(address)
    context = server()
    machines = [
        context.Process(
            target=object_store.grow_elsewhere, args=({**store, "REDI_CACHE": str(tmp_path / name)}, address, first)
        )
        for name, first in (("second", 0), ("third", 4))
    ]
    for each in machines:
        each.start()
    for each in machines:
        each.join()
        assert each.exitcode == 0
    base = KnowledgeBase.open(address)
    wanted = sorted(f"prompt {unit}/{slot}" for unit in range(10) for slot in range(ROWS))
    assert sorted(base.prompts(range(len(base)))) == wanted
    assert base.verify().clean


def _behind(address: str, on: OnMachine) -> KnowledgeBase:
    """Return a base as a second machine opened it, before the first added a unit."""
    base = create(address)
    on("second")
    reader = KnowledgeBase.open(address)
    base.add_unit(0, unit_batch(0))
    return reader


def _looked(base: KnowledgeBase) -> KnowledgeBase:
    """Return what the base is once a look that this began has ended."""
    base.current()
    assert base._mirror is not None
    with base._mirror._looking:
        return base.current()


def _objects(address: str) -> set[str]:
    listed = Bucket(address)._store.list("objects")
    return {each["path"].rsplit("/", 1)[-1] for part in listed for each in part}
