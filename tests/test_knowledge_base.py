"""Claims about what a knowledge base holds: building, searching, reading, refusing; damage stands beside it."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from redi.errors import KnowledgeBaseError, PlanError
from redi.knowledge_base import EntryBatch, ExactIndex, KnowledgeBase, NoiseBank, compare_files
from redi.knowledge_base.upkeep import Where, split
from redi.plan import Plan
from small_base import (
    PLAN,
    ROWS,
    SHAPE,
    bank,
    check_contents,
    create,
    filled,
    manifest,
    unit_batch,
)


@pytest.fixture
def base(tmp_path: Path) -> KnowledgeBase:
    return filled(tmp_path / "base")


def test_what_was_added_comes_back(base: KnowledgeBase) -> None:
    check_contents(base, 4)
    again = KnowledgeBase.open(base.path)
    assert again.manifest == base.manifest
    assert again.completed_units() == {0, 1, 2, 3}
    check_contents(again, 4)


def test_rows_come_in_the_order_asked_for(base: KnowledgeBase) -> None:
    rows = [5, 0, 5, 17]
    everything = base.values(range(len(base)), 7)
    assert torch.equal(base.values(torch.tensor(rows), 7), everything[rows])
    assert base.prompts(rows) == ["prompt 0/5", "prompt 0/0", "prompt 0/5", "prompt 2/5"]


def test_a_unit_added_twice_is_there_once(base: KnowledgeBase) -> None:
    record = base.add_unit(2, unit_batch(2))
    KnowledgeBase.open(base.path).add_unit(2, unit_batch(2))
    assert (record.rows, record.refused) == (ROWS, 0)
    check_contents(KnowledgeBase.open(base.path), 4)


def test_a_reader_passes_over_files_that_a_writer_renames_under_it(base: KnowledgeBase) -> None:
    for number in range(3):  # Lance's temporary files are there one moment and not the next
        (base.path / "entries.lance" / "data" / f".tmp{number}").symlink_to("nowhere")
    again = KnowledgeBase(base.path, base.manifest, base._noises, ExactIndex)
    assert len(again.noise_ids()) == len(base)


def test_a_row_that_does_not_exist_is_refused(base: KnowledgeBase) -> None:
    for row in (-1, len(base)):
        with pytest.raises(KnowledgeBaseError, match=f"of a table of {len(base)}"):
            base.values([row], 7)


def test_steps_that_are_not_recorded_are_refused(base: KnowledgeBase) -> None:
    with pytest.raises(PlanError):
        base.values([0], 5)
    with pytest.raises(PlanError):
        base.keys([0], 3)
    with pytest.raises(PlanError):
        base.search(torch.zeros(1, *SHAPE), [0], 1, 4)


# Search


def test_search_equals_brute_force_within_the_noise(base: KnowledgeBase) -> None:
    queries = unit_batch(77, rows=9).keys[2]
    noise_ids = [row % 3 for row in range(9)]
    found = base.search(queries, noise_ids, 3, 2)
    entries = base.entries(range(len(base)))
    keys = base.keys(range(len(base)), 2).double()
    for row, noise_id in enumerate(noise_ids):
        own = [position for position, entry in enumerate(entries) if entry.noise_id == noise_id]
        distances = (keys[own] - queries[row].double()).flatten(1).norm(dim=1)
        order = distances.argsort()[:3]
        assert found.rows[row].tolist() == [own[position] for position in order.tolist()]
        assert torch.allclose(found.distances[row].double(), distances[order], rtol=1e-4)


def test_an_entry_finds_itself(base: KnowledgeBase) -> None:
    entries = base.entries(range(len(base)))
    found = base.search(base.keys(range(len(base)), 1), [entry.noise_id for entry in entries], 1, 1)
    assert found.rows[:, 0].tolist() == list(range(len(base)))
    assert float(found.distances.max()) < 1e-5


def test_more_neighbours_than_entries_shrink_and_are_padded(tmp_path: Path) -> None:
    base = create(tmp_path / "base")
    batch = unit_batch(0, rows=4)  # noises 0, 1, 2, 0
    base.add_unit(0, batch)
    found = base.search(batch.keys[1], [0, 1, 2, None], 50, 1)
    assert found.rows.tolist() == [[0, 3], [1, -1], [2, -1], [-1, -1]]
    assert torch.isinf(found.distances[1:, 1]).all()


def test_an_empty_base_finds_nothing(tmp_path: Path) -> None:
    found = create(tmp_path / "base").search(torch.zeros(2, *SHAPE), [0, 1], 3, 1)
    assert found.rows.tolist() == [[-1], [-1]]


def test_a_query_with_nan_finds_nothing_and_leaves_the_others_alone(base: KnowledgeBase) -> None:
    queries = unit_batch(1).keys[1]
    alone = base.search(queries[1:], [0] * (ROWS - 1), 2, 1)
    queries[0, 0, 0, 0] = float("nan")
    found = base.search(queries, [0] * ROWS, 2, 1)
    assert found.rows[0].tolist() == [-1, -1]
    assert torch.equal(found.rows[1:], alone.rows)


def test_a_second_search_reads_no_key(base: KnowledgeBase) -> None:
    again = KnowledgeBase.open(base.path)
    again.search(unit_batch(1).keys[1], [0] * ROWS, 2, 1)
    expected = base.search(unit_batch(1).keys[1], [0] * ROWS, 2, 1)
    shutil.rmtree(base.path / "entries.lance" / "data")
    assert torch.equal(again.search(unit_batch(1).keys[1], [0] * ROWS, 2, 1).rows, expected.rows)


def test_entries_added_later_are_found(base: KnowledgeBase) -> None:
    batch = unit_batch(9)
    base.search(batch.keys[1], batch.noise_ids, 1, 1)
    base.add_unit(9, batch)
    found = base.search(batch.keys[1], batch.noise_ids, 1, 1)
    assert base.prompts(found.rows[:, 0]) == batch.prompts


def test_wrong_queries_are_refused(base: KnowledgeBase) -> None:
    with pytest.raises(KnowledgeBaseError, match="queries of shape"):
        base.search(torch.zeros(2, 4, 5, 5), [0, 0], 1, 1)
    with pytest.raises(KnowledgeBaseError, match="1 noise ids"):
        base.search(torch.zeros(2, *SHAPE), [0], 1, 1)
    with pytest.raises(KnowledgeBaseError, match="0 neighbours"):
        base.search(torch.zeros(2, *SHAPE), [0, 0], 0, 1)


def test_a_user_s_own_index_is_used(base: KnowledgeBase) -> None:
    class Farthest(ExactIndex):
        def search(self, queries: torch.Tensor, neighbors: int) -> tuple[torch.Tensor, torch.Tensor]:
            positions, distances = super().search(queries, 10_000)
            return positions.flip(1)[:, :neighbors], distances.flip(1)[:, :neighbors]

    entry = base.entries([0])[0]
    found = KnowledgeBase.open(base.path, index=Farthest).search(base.keys([0], 1), [entry.noise_id], 1, 1)
    assert int(found.rows[0, 0]) != 0


@pytest.mark.parametrize("norm", [1.0, 1e-2, 1e-3])
def test_float16_keeps_the_differences_of_key_step_one(tmp_path: Path, norm: float) -> None:
    """Keys of one noise that differ by ``norm`` in all, around a noise of unit variance: order and distance hold."""
    shape, count = (4, 64, 64), 40
    noises = NoiseBank.draw([11], shape)
    made = manifest(plan=Plan(5, 1, (2,)), latent_shape=shape, noise={"kind": "shared", "seeds": [11]})
    base = KnowledgeBase.create(tmp_path / "base", made, noises, {1: 0.98 * noises.latents})
    differences = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    differences *= norm / 16384**0.5 * torch.linspace(0.5, 1, count, dtype=torch.float64)[:, None, None, None]
    exact = 0.98 * noises.latents.double() + differences
    values = {2: torch.zeros(count, *shape)}
    base.add_unit(0, EntryBatch(["a"] * count, [0] * count, [11] * count, {1: exact.float()}, values))
    stored = base.keys(range(count), 1).double()
    true, kept = torch.cdist(exact.flatten(1), exact.flatten(1)), torch.cdist(stored.flatten(1), stored.flatten(1))
    pairs = ~torch.eye(count, dtype=torch.bool)
    assert float((kept / true - 1)[pairs].abs().max()) < 1e-3
    found = base.search(exact.float(), [0] * count, 3, 1)
    nearest = true.sort(dim=1).values[:, :3]  # two of one row differ by 3e-6, which is one distance in float32
    torch.testing.assert_close(true.gather(1, found.rows), nearest, rtol=5e-6, atol=0.0)
    raw = torch.cdist(exact.half().double().flatten(1), exact.half().double().flatten(1))
    if norm <= 1e-2:
        assert float((raw / true - 1)[pairs].abs().max()) > 0.1  # what storing x itself would do


# Leave-one-out


def test_leave_one_out_distances_are_those_of_the_nearest_other(base: KnowledgeBase) -> None:
    with pytest.raises(KnowledgeBaseError, match="leave-one-out"):
        base.leave_one_out(1)
    base.finish()
    entries = base.entries(range(len(base)))
    for step in PLAN.key_steps:
        keys = base.keys(range(len(base)), step).flatten(1)
        distances = torch.cdist(keys, keys, compute_mode="donot_use_mm_for_euclid_dist")
        ids = torch.tensor([entry.noise_id for entry in entries])
        distances[ids[:, None] != ids[None]] = torch.inf
        expected = distances.fill_diagonal_(torch.inf).amin(dim=1)
        found = KnowledgeBase.open(base.path).leave_one_out(step)
        assert torch.allclose(found.sort().values, expected.sort().values, rtol=1e-4)
    check_contents(base, 4)


def test_leave_one_out_distances_of_an_older_state_are_refused(base: KnowledgeBase) -> None:
    base.finish()
    base.add_unit(4, unit_batch(4))
    for each in (base, KnowledgeBase.open(base.path)):
        with pytest.raises(KnowledgeBaseError, match="older than the newest entries"):
            each.leave_one_out(1)


# Refused entries and wrong input


def test_rows_that_are_not_finite_are_named_and_the_rest_is_stored(base: KnowledgeBase) -> None:
    batch = unit_batch(4)
    batch.keys[2][1, 0, 0, 0] = float("nan")
    batch.values[7][3, 0, 0, 0] = float("-inf")
    batch.values[4][5, 0, 0, 0] = 1e6
    record = base.add_unit(4, batch)
    assert (record.rows, record.refused) == (ROWS - 3, 3)
    refused = KnowledgeBase.open(base.path).refused()
    assert [(each.unit, each.slot, each.prompt) for each in refused] == [(4, s, f"prompt 4/{s}") for s in (1, 3, 5)]
    assert [each.reason for each in refused] == [
        "key_2 is not finite",
        "value_7 is not finite",
        "value_4 is beyond float16",
    ]
    assert base.prompts(range(24, 27)) == ["prompt 4/0", "prompt 4/2", "prompt 4/4"]
    report = base.verify()
    assert report.clean
    assert (report.entries, report.refused) == (27, 3)


def test_a_unit_whose_entries_are_all_refused_is_complete(base: KnowledgeBase) -> None:
    batch = unit_batch(4)
    batch.keys[1][:] = float("nan")
    base.add_unit(4, batch)
    again = KnowledgeBase.open(base.path)
    assert 4 in again.completed_units()
    assert again.add_unit(4, batch).refused == ROWS
    assert len(again.refused()) == ROWS
    assert again.verify().clean


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"keys": {1: torch.zeros(ROWS, *SHAPE)}}, "keys of steps [1]"),
        ({"keys": {step: torch.zeros(ROWS, 4, 5, 5) for step in (1, 2)}}, f"floats of shape ({ROWS}, 4, 4, 4)"),
        ({"keys": {step: torch.zeros(ROWS, *SHAPE, dtype=torch.int32) for step in (1, 2)}}, "torch.int32"),
        ({"values": {4: torch.zeros(ROWS, *SHAPE), 8: torch.zeros(ROWS, *SHAPE)}}, "values of steps [4, 8]"),
        ({"noise_ids": [0] * (ROWS - 1)}, f"{ROWS - 1} noise ids"),
        ({"noise_ids": [3] * ROWS}, "noise id 3"),
        ({"noise_ids": [-1] * ROWS}, "noise id -1"),
        ({"seeds": [-1] * ROWS}, "seed -1"),
        ({"prompts": [], "noise_ids": [], "seeds": []}, "at least one"),
    ],
)
def test_a_unit_that_does_not_fit_is_refused_whole(base: KnowledgeBase, change: dict[str, object], said: str) -> None:
    with pytest.raises(KnowledgeBaseError) as caught:
        base.add_unit(4, replace(unit_batch(4), **change))  # type: ignore[arg-type]
    assert said in str(caught.value)
    check_contents(KnowledgeBase.open(base.path), 4)


def test_any_float_dtype_is_taken(tmp_path: Path) -> None:
    base = create(tmp_path / "base")
    batch = unit_batch(0)
    for unit, dtype in enumerate((torch.float64, torch.bfloat16, torch.float16)):
        keys = {step: tensor.to(dtype) for step, tensor in batch.keys.items()}
        values = {step: tensor.to(dtype) for step, tensor in batch.values.items()}
        base.add_unit(unit, replace(batch, keys=keys, values=values))
    assert base.verify().clean
    assert torch.allclose(base.values(range(6, 12), 7), batch.values[7], atol=2e-2)


def test_independent_noise_has_entries_without_a_bank(tmp_path: Path) -> None:
    made = manifest(noise={"kind": "independent", "seeds": []})
    base = KnowledgeBase.create(tmp_path / "base", made, NoiseBank.draw([], SHAPE), {})
    batch = replace(unit_batch(0), noise_ids=[-1] * ROWS)
    base.add_unit(0, batch)
    with pytest.raises(KnowledgeBaseError, match="noise id 1"):
        base.add_unit(1, unit_batch(1))
    found = KnowledgeBase.open(base.path).search(batch.keys[1], [-1] * ROWS, 2, 1)
    assert found.rows[:, 0].tolist() == list(range(ROWS))


# Creating and opening


def test_a_base_is_not_made_over_another(base: KnowledgeBase, tmp_path: Path) -> None:
    with pytest.raises(KnowledgeBaseError, match="holds a knowledge base already"):
        create(base.path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(KnowledgeBaseError, match=r"thesis\.tex"):
        create(tmp_path / "mine")
    (tmp_path / "file").write_text("x")
    with pytest.raises(KnowledgeBaseError, match="is a file"):
        create(tmp_path / "file")
    check_contents(base, 4)


@pytest.mark.parametrize("below", ["part", "noise/part", "entries.lance/data/part"])
def test_no_base_is_made_inside_of_another(base: KnowledgeBase, below: str) -> None:
    base.sign()
    for make in (create, base.save_pretrained, lambda folder: split(base, Where.parse(["noise=1"]), folder)):
        with pytest.raises(KnowledgeBaseError, match="is inside of the knowledge base"):
            make(base.path / below)
    assert compare_files(base.path) == []
    check_contents(base, 4)


def test_a_base_that_lost_its_manifest_is_not_overwritten(base: KnowledgeBase) -> None:
    (base.path / "manifest.json").unlink()
    with pytest.raises(KnowledgeBaseError, match="entries but no manifest"):
        create(base.path)


def test_a_create_that_was_killed_can_be_repeated(tmp_path: Path) -> None:
    path = create(tmp_path / "base").path
    (path / "manifest.json").rename(path / "manifest.json.tmp-abc")
    create(path).add_unit(0, unit_batch(0))
    check_contents(KnowledgeBase.open(path), 1)


def test_parts_that_do_not_fit_the_manifest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeBaseError, match="the manifest's seeds"):
        KnowledgeBase.create(tmp_path / "a", manifest(), NoiseBank.draw([1, 2, 3], SHAPE), {})
    with pytest.raises(KnowledgeBaseError, match="reference latents of step 1"):
        KnowledgeBase.create(tmp_path / "b", manifest(), bank(), {1: torch.zeros(3, 4, 5, 5)})
    with pytest.raises(PlanError, match=r"references of steps \[4\]"):
        KnowledgeBase.create(tmp_path / "c", manifest(), bank(), {4: bank().latents})
    assert not list(tmp_path.iterdir())


def test_opening_writes_nothing(base: KnowledgeBase) -> None:
    def state() -> dict[str, tuple[int, int]]:
        files = (file for file in base.path.rglob("*") if file.is_file())
        return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files}

    before = state()
    again = KnowledgeBase.open(base.path)
    again.search(torch.zeros(1, *SHAPE), [0], 1, 1)
    again.verify()
    assert state() == before


def test_a_base_can_be_moved(base: KnowledgeBase, tmp_path: Path) -> None:
    shutil.copytree(base.path, tmp_path / "elsewhere")
    shutil.rmtree(base.path)
    check_contents(KnowledgeBase.open(tmp_path / "elsewhere"), 4)


def test_a_process_that_was_forked_while_building_does_not_keep_the_lock(base: KnowledgeBase) -> None:
    with base.lock():
        forked = get_context("fork").Process(target=time.sleep, args=(60,))
        forked.start()
    try:
        with KnowledgeBase.open(base.path).lock():
            pass
    finally:
        forked.kill()
        forked.join()
