"""Claims about upkeep: removing, merging, splitting, compacting; killed on the way, and beside readers."""

from __future__ import annotations

import multiprocessing
import random
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from redi.building.status import build_status
from redi.cli.app import app
from redi.errors import IncompatibleError, InputError, KnowledgeBaseError
from redi.knowledge_base import KnowledgeBase, NoiseBank
from redi.knowledge_base.removal import Removal
from redi.knowledge_base.upkeep import Where, merge, merge_into, remove, split
from small_base import PLAN, ROWS, SHAPE, bank, check_contents, create, filled, manifest, unit_batch
from tiny import tiny_pipeline
from tiny_build import build_tiny, many_prompts

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch"])  # Lance is not fork-safe; it is imported in the child


@pytest.fixture
def base(tmp_path: Path) -> KnowledgeBase:
    return filled(tmp_path / "base")


def prompts(base: KnowledgeBase) -> list[str]:
    base = KnowledgeBase.open(base.path)
    return sorted(base.prompts(range(len(base))))


def other(path: Path, units: range) -> KnowledgeBase:
    """A base built alike, with its own id, of other units."""
    made = create(path)
    for unit in units:
        made.add_unit(unit, unit_batch(unit))
    return made


@pytest.mark.parametrize(
    ("condition", "left"),
    [("prompt=PROMPT 2/*", 18), ("noise=1", 16), ("unit=0-1", 12), ("prompt=prompt ?/0", 20)],
)
def test_what_is_removed_is_gone_and_the_rest_reads_back(base: KnowledgeBase, condition: str, left: int) -> None:
    before = {entry.entry_id: base.values([row], 7) for row, entry in enumerate(base.entries(range(24)))}
    gone = remove(base, Where.parse([condition]))
    again = KnowledgeBase.open(base.path)
    assert (len(again), len(gone)) == (left, 24 - left)
    for row, entry in enumerate(again.entries(range(left))):
        assert torch.equal(again.values([row], 7), before[entry.entry_id])
    assert not {entry.entry_id for entry in gone} & {entry.entry_id for entry in again.entries(range(left))}
    assert again.verify().clean


def test_an_entry_is_removed_by_the_start_of_its_id(base: KnowledgeBase) -> None:
    wanted = base.entries([5])[0]
    assert [each.prompt for each in remove(base, Where.parse([f"entry={wanted.entry_id.hex()[:12]}"]))] == [
        wanted.prompt
    ]


def test_entries_of_independent_noise_are_removed_by_the_only_id_they_have(tmp_path: Path) -> None:
    base = KnowledgeBase.create(
        tmp_path / "base", manifest(noise={"kind": "independent", "seeds": []}), NoiseBank.draw([], SHAPE), {}
    )
    base.add_unit(0, replace(unit_batch(0), noise_ids=[-1] * ROWS))
    told = CliRunner().invoke(app, ["remove", str(base.path), "--where", "noise=-1"])
    assert told.exit_code == 0, told.output
    assert (len(KnowledgeBase.open(base.path)), f"{ROWS} entries removed" in told.output) == (0, True)


@pytest.mark.parametrize(
    "conditions",
    [[], ["colour=red"], ["noise=x"], ["prompt"], ["noise=1", "noise=2"], ["noise=5-1"], ["unit=-"], ["unit=1-x"]],
)
def test_conditions_that_mean_nothing_are_refused(conditions: list[str]) -> None:
    with pytest.raises(InputError):
        Where.parse(conditions)


def test_removed_entries_are_not_found(base: KnowledgeBase) -> None:
    key, noise_id = base.keys([3], 1), base.entries([3])[0].noise_id
    assert base.search(key, [noise_id], 1, 1).rows.tolist() == [[3]]
    remove(base, Where.parse(["prompt=prompt 0/3"]))
    assert base.prompts(base.search(key, [noise_id], 1, 1).rows[0]) != ["prompt 0/3"]


def test_a_removed_unit_is_not_built_again(base: KnowledgeBase) -> None:
    remove(base, Where.parse(["unit=2"]))
    KnowledgeBase.open(base.path).add_unit(2, unit_batch(2))
    assert len(KnowledgeBase.open(base.path)) == 18


@pytest.mark.parametrize("steps", ["noted", "deleted"])
def test_a_removal_that_was_killed_is_ended_by_the_next_writer(base: KnowledgeBase, steps: str) -> None:
    names = [(2, 0), (2, 3)]
    Removal(base.path, base._table, base._ledger).begin(names)
    if steps == "deleted":
        base._table.delete(names)
    with KnowledgeBase.open(base.path).lock():
        pass
    again = KnowledgeBase.open(base.path)
    assert len(again) == 22
    assert again.verify().clean


def test_compacting_takes_removed_rows_off_the_disk(base: KnowledgeBase) -> None:
    gone = base.values([0], 7).half().numpy().tobytes()
    remove(base, Where.parse(["prompt=prompt 0/0"]))
    data = base.path / "entries.lance/data"
    assert any(gone in file.read_bytes() for file in data.iterdir())
    base.compact(grace=timedelta(0))
    assert not any(gone in file.read_bytes() for file in data.iterdir())
    again = KnowledgeBase.open(base.path)
    assert len(again.leave_one_out(1)) == 23
    assert again.verify().clean


def test_compacting_leaves_readers_what_they_read(base: KnowledgeBase) -> None:
    reader = KnowledgeBase.open(base.path)
    base.remove([(0, 0)])
    base.compact()
    assert reader.prompts([0]) == ["prompt 0/0"]
    assert reader.values(range(24), 7).isfinite().all()


def test_a_base_is_as_it_is_on_the_disk_when_asked_for(base: KnowledgeBase) -> None:
    reader = KnowledgeBase.open(base.path)
    assert reader.current() is reader
    batch = unit_batch(9)
    reader.search(batch.keys[1], batch.noise_ids, 1, 1)
    base.add_unit(9, batch)
    base.remove([(0, 0)])
    now = reader.current()
    found = now.search(batch.keys[1], batch.noise_ids, 1, 1)
    assert now.prompts(found.rows[:, 0]) == batch.prompts
    assert (len(now), reader.prompts([0])) == (29, ["prompt 0/0"])  # rows of the old object keep their meaning


def test_an_index_that_grew_finds_what_a_new_one_finds(base: KnowledgeBase) -> None:
    reader, queries = KnowledgeBase.open(base.path), unit_batch(50).keys[1]
    for unit in range(4, 10):
        reader.search(queries, [0] * ROWS, 3, 1)
        base.add_unit(unit, unit_batch(unit))
        reader = reader.current()
        found, expected = reader.search(queries, [0] * ROWS, 3, 1), base.search(queries, [0] * ROWS, 3, 1)
        assert torch.equal(found.rows, expected.rows)
        assert torch.allclose(found.distances, expected.distances)


def test_merging_adds_what_is_new_and_doubles_nothing(base: KnowledgeBase, tmp_path: Path) -> None:
    more = other(tmp_path / "more", range(2, 6))
    assert merge(base, more) == 2 * ROWS
    assert merge(KnowledgeBase.open(base.path), more) == 0
    assert prompts(base) == sorted(f"prompt {unit}/{slot}" for unit in range(6) for slot in range(ROWS))
    again = KnowledgeBase.open(base.path)
    assert again.verify().clean
    for row, entry in enumerate(again.entries(range(len(again)))):
        unit, slot = map(int, entry.prompt[7:].split("/"))
        assert torch.equal(again.values([row], 7)[0], unit_batch(unit).values[7][slot].half().float())


def elsewhere(path: Path, units: range, by: float, **changes: Any) -> KnowledgeBase:
    """A base built alike on another machine: what its latents are differences to is off by a share of itself."""
    noises, generator = bank(), torch.Generator().manual_seed(9)
    steps = [*PLAN.key_steps, *(PLAN.value_steps if changes else ())]
    off = {step: 1 + by * torch.randn(noises.latents.shape, generator=generator) for step in steps}
    made = KnowledgeBase.create(
        path, manifest(**changes), noises, {step: noises.latents * 0.9 * off[step] for step in steps}
    )
    for unit in units:
        made.add_unit(unit, unit_batch(unit))
    return made


@pytest.mark.parametrize("changes", [{}, {"values": "int8"}])
def test_bases_of_two_machines_are_merged_though_their_references_round_otherwise(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    ours, more = (
        elsewhere(tmp_path / f"{by}", units, by, **changes) for by, units in ((0.0, range(4)), (1e-3, range(2, 6)))
    )
    assert merge(ours, more) == 2 * ROWS
    again = KnowledgeBase.open(ours.path)
    assert again.verify().clean
    assert prompts(ours) == sorted(f"prompt {unit}/{slot}" for unit in range(6) for slot in range(ROWS))
    for row, entry in enumerate(again.entries(range(len(again)))):
        unit, slot = map(int, entry.prompt[7:].split("/"))
        batch = unit_batch(unit)
        assert torch.allclose(again.keys([row], 1)[0], batch.keys[1][slot], atol=5e-5, rtol=0)
        assert torch.allclose(again.values([row], 7)[0], batch.values[7][slot], atol=0.05 if changes else 2e-3)


def contents(base: KnowledgeBase) -> dict[tuple[str, int], list[Tensor]]:
    """Return keys and values by prompt and noise, which no two entries share."""
    rows, plan = range(len(base)), base.plan
    latents = [base.keys(rows, step) for step in plan.key_steps] + [base.values(rows, s) for s in plan.value_steps]
    found = {
        (entry.prompt, entry.noise_id): [each[row] for each in latents] for row, entry in enumerate(base.entries(rows))
    }
    assert len(found) == len(base)
    return found


def test_what_was_built_in_other_batches_is_merged_and_reads_back_as_it_was(tmp_path: Path) -> None:
    pipe, prompts = tiny_pipeline(tmp_path / "model"), many_prompts(12)
    ours = build_tiny(pipe, tmp_path / "ours", prompts[:8], noises=4, batch_size=8)
    more = build_tiny(pipe, tmp_path / "more", prompts[4:], noises=4, batch_size=1)  # last bits differ on most machines
    expected = {**contents(more), **contents(ours)}
    assert merge(ours, more) == len(expected) - 8
    found = contents(KnowledgeBase.open(ours.path))
    assert found.keys() == expected.keys()
    for name, latents in found.items():
        for one, other in zip(latents, expected[name], strict=True):
            torch.testing.assert_close(one, other, atol=1e-2, rtol=0)


def test_references_that_no_rounding_explains_are_not_merged(base: KnowledgeBase, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match=r"references of step \d differ by up to 0\."):
        merge(base, elsewhere(tmp_path / "more", range(1), 0.2))
    assert len(KnowledgeBase.open(base.path)) == 24


def test_one_reference_among_many_that_no_rounding_explains_is_enough(base: KnowledgeBase, tmp_path: Path) -> None:
    references = {step: base.references[step].clone() for step in PLAN.key_steps}
    references[2][1] *= 1.07  # 4 % of all of them
    more = KnowledgeBase.create(tmp_path / "more", manifest(), bank(), references)
    with pytest.raises(IncompatibleError, match=r"references of step 2 differ by up to 0\.07"):
        merge(base, more)


def test_no_build_goes_on_in_what_was_merged_or_split_off(tmp_path: Path) -> None:
    pipe, prompts = tiny_pipeline(tmp_path / "model"), many_prompts(6)
    ours, more = (build_tiny(pipe, tmp_path / each, prompts) for each in ("ours", "more"))
    both = merge_into(tmp_path / "both", [ours, more])
    part, _ = split(ours, Where.parse(["noise=1"]), tmp_path / "part")
    for made, count in ((both, 6), (part, 2)):
        status = build_status(made.path)
        assert (status.units, status.prompts, status.entries, status.more) == (None, None, 0, count)
        with pytest.raises(IncompatibleError, match="prompts"):
            build_tiny(pipe, made.path, prompts)
        assert len(KnowledgeBase.open(made.path)) == count


def test_merging_into_a_new_base_leaves_the_others_alone(base: KnowledgeBase, tmp_path: Path) -> None:
    more = other(tmp_path / "more", range(3, 5))
    made = merge_into(tmp_path / "both", [base, more])
    assert (len(made), len(base), len(more)) == (30, 24, 12)
    assert len(merge_into(tmp_path / "both", [base, more])) == 30
    assert made.verify().clean


def test_a_base_made_of_others_tells_when_it_was_made_and_last_changed(tmp_path: Path) -> None:
    noises, long_ago = bank(), "2020-01-01T00:00:00+00:00"
    old = KnowledgeBase.create(tmp_path / "old", manifest(created=long_ago), noises, {})
    assert build_status(old.path).last_commit is None, "nothing was"
    old.add_unit(0, unit_batch(0))
    both = merge_into(tmp_path / "both", [old, old])
    part, _ = split(old, Where.parse(["noise=1"]), tmp_path / "part")
    for made in (both, part):
        status = build_status(made.path)
        assert made.manifest.created > long_ago
        assert status.units_done == 0
        assert status.last_commit is not None
        assert status.last_commit >= made.manifest.created
    assert old.manifest.created == long_ago


def test_merging_bases_that_differ_is_refused_with_both_sides(base: KnowledgeBase, tmp_path: Path) -> None:
    noises = bank()
    strange = replace(manifest(), identity={"model": {"id": "tiny", "sha": "cd"}, "guidance": 7.5})
    more = KnowledgeBase.create(tmp_path / "more", strange, noises, dict.fromkeys(PLAN.key_steps, noises.latents * 0.9))
    with pytest.raises(IncompatibleError, match=r"model.sha(.|\n)*base: +\"ab\"(.|\n)*more: +\"cd\""):
        merge(base, more)


def test_splitting_moves_entries_to_a_base_of_their_own(base: KnowledgeBase, tmp_path: Path) -> None:
    made, count = split(base, Where.parse(["noise=2"]), tmp_path / "part")
    assert (count, len(made), len(base)) == (8, 8, 16)
    assert {entry.noise_id for entry in made.entries(range(8))} == {2}
    assert len(set(prompts(made)) | set(prompts(base))) == 24
    assert base.verify().clean
    assert made.verify().clean
    assert split(KnowledgeBase.open(base.path), Where.parse(["noise=2"]), tmp_path / "part")[1] == 0
    with pytest.raises(KnowledgeBaseError, match="another knowledge base"):
        split(base, Where.parse(["noise=1"]), tmp_path / "part")


def upkeep_forever(folder: str, what: str) -> None:
    base = KnowledgeBase.open(f"{folder}/base")
    if what == "compact":
        while True:
            base.compact(grace=timedelta(0))
    elif what == "merge":
        merge(base, KnowledgeBase.open(f"{folder}/more"))
    elif what == "split":
        split(base, Where.parse(["noise=2"]), f"{folder}/part")
    else:
        remove(base, Where.parse(["prompt=prompt ?/[0-2]"]))


@pytest.mark.parametrize("what", ["compact", "merge", "split", "remove"])
def test_killed_upkeep_loses_and_doubles_nothing(tmp_path: Path, what: str) -> None:
    filled(tmp_path / "base")
    other(tmp_path / "more", range(3, 40))
    chance = random.Random(what)
    for _ in range(4):
        process = PROCESSES.Process(target=upkeep_forever, args=(str(tmp_path), what))
        process.start()
        process.join(chance.uniform(0.0, 0.25) + 0.05)
        process.kill()
        process.join()
    if what != "compact":
        upkeep_forever(str(tmp_path), what)
    base = KnowledgeBase.open(tmp_path / "base")
    base.compact()
    held = prompts(base) + (prompts(KnowledgeBase.open(tmp_path / "part")) if what == "split" else [])
    units = range(40 if what == "merge" else 4)
    slots = range(3, ROWS) if what == "remove" else range(ROWS)
    assert sorted(held) == sorted(f"prompt {unit}/{slot}" for unit in units for slot in slots)
    assert KnowledgeBase.open(base.path).verify().clean


def test_a_base_of_which_much_was_removed_still_holds_what_it_should(base: KnowledgeBase) -> None:
    remove(base, Where.parse(["unit=1-3"]))
    base.compact()
    check_contents(KnowledgeBase.open(base.path), 1)


def test_the_commands_do_what_they_say(base: KnowledgeBase, tmp_path: Path) -> None:
    other(tmp_path / "more", range(3, 5))
    folder, more, part = str(base.path), str(tmp_path / "more"), str(tmp_path / "part")
    told = [
        CliRunner().invoke(app, command)
        for command in (
            ["merge", folder, more],
            ["remove", folder, "--where", "unit=0", "--dry-run"],
            ["remove", folder, "--where", "unit=0"],
            ["split", folder, "--where", "noise=2", "--out", part],
            ["compact", folder, "--now"],
            ["remove", folder, "--where", "nonsense"],
        )
    ]
    assert [each.exit_code for each in told] == [0, 0, 0, 0, 0, 1], [each.output for each in told]
    assert "6 of 12 entries were new" in told[0].output
    assert "6 entries would be removed; " in told[1].output
    assert told[2].output.count("prompt 0/") == 6
    assert "8 entries moved" in told[3].output
    assert "condition 'nonsense'" in told[5].output
    assert len(KnowledgeBase.open(base.path)) == 16
