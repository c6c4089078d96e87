"""Claims about bases that grow while they are used: what is added, what is not, how full they get, who else writes."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import redi
from redi.building.recorder import record
from redi.building.status import build_status
from redi.cli.app import app
from redi.errors import InputError, KnowledgeBaseError, RediWarning
from redi.growing import is_plain
from redi.knowledge_base import KnowledgeBase
from redi.knowledge_base.eviction import RULES, Use, UseLog, least_worth
from redi.knowledge_base.growth import Growth, add_grown, bytes_of_an_entry
from redi.knowledge_base.guard import bytes_below
from redi.knowledge_base.ledger import BuilderLock
from small_base import ROWS, create, filled, grow_alone, unit_batch
from tiny import tiny_pipeline
from tiny_build import PLAN, build_tiny

NEW = ["an old map", "a wet stone", "two tall men"]
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch"])  # Lance is not fork-safe; it is imported in the child


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_pipeline(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture
def base(pipe: Any, tmp_path: Path) -> Iterator[KnowledgeBase]:
    yield build_tiny(pipe, tmp_path / "kb", ["a cat", "a dog", "a fox", "a cow"], noises=2)
    redi.disable(pipe)


def held(base: KnowledgeBase) -> list[str]:
    now = KnowledgeBase.open(base.path)
    return sorted(now.prompts(range(len(now))))


def grown(pipe: Any, base: KnowledgeBase, **call: Any) -> list[str]:
    """What a call that abstains adds to the base."""
    before = set(held(base))
    with redi.enable(pipe, base, max_distance=0.0, grow=True):
        pipe(**{"output_type": "latent", "generator": torch.Generator().manual_seed(0), **call})
    return sorted(set(held(base)) - before)


def test_an_image_that_ran_in_full_becomes_the_entry_that_a_build_makes(pipe: Any, base: KnowledgeBase) -> None:
    assert grown(pipe, base, prompt=NEW) == sorted(NEW)
    now = KnowledgeBase.open(base.path)
    rows = range(4, 7)
    entries = now.entries(rows)
    noises = now.noise_bank.latents[[entry.noise_id for entry in entries]]
    steps = (*PLAN.key_steps, *PLAN.value_steps)
    call = {"num_inference_steps": PLAN.num_inference_steps}
    expected, _ = record(pipe, call, [entry.prompt for entry in entries], noises, steps, stop=True, outputs=False)
    for step in PLAN.key_steps:
        assert torch.allclose(now.keys(rows, step), expected[step], atol=2e-3, rtol=1e-3)
    for step in PLAN.value_steps:
        assert torch.allclose(now.values(rows, step), expected[step], atol=2e-3, rtol=1e-3)
    assert now.verify().clean


def test_the_next_image_jumps_by_what_the_last_one_left(pipe: Any, base: KnowledgeBase) -> None:
    with redi.enable(pipe, base, max_distance=1e-2, grow=True) as enabled:
        latents = base.noise_bank.latents[:1]
        jumped = []
        for _ in range(2):
            pipe("an old map", latents=latents, output_type="latent")
            jumped += [report.jumped for report in redi.reports(pipe)]
            enabled.grower.flush()
    assert jumped == [False, True]
    assert redi.summary(pipe).startswith("redi is not enabled")
    uses = UseLog(base.path, 1e9).read()
    assert max(use.uses for use in uses.values()) == 1


def test_entries_are_stored_after_the_delay_without_being_asked(pipe: Any, base: KnowledgeBase) -> None:
    with redi.enable(pipe, base, max_distance=0.0, grow=redi.Growth(delay=0.1)):
        pipe("an old map", output_type="latent")
        deadline = threading.Event()
        for _ in range(100):
            if "an old map" in held(base):
                break
            deadline.wait(0.05)
        assert "an old map" in held(base)


def test_flushing_stores_what_came_while_another_group_was_being_stored(pipe: Any, base: KnowledgeBase) -> None:
    with redi.enable(pipe, base, max_distance=0.0, grow=redi.Growth(delay=1.0)) as enabled:
        flushing = threading.Thread(target=enabled.grower.flush)
        with BuilderLock(base.path / "lock").held():
            pipe("an old map", output_type="latent")
            threading.Event().wait(1.5)  # by now its storing waits for the lock
            pipe("a wet stone", output_type="latent")
            flushing.start()
        flushing.join()
        assert {"an old map", "a wet stone"} <= set(held(base))


def test_only_images_that_abstained_are_added(pipe: Any, base: KnowledgeBase) -> None:
    latents = base.noise_bank.latents[[0, 0]]  # "a cat" is in the base, from noise 0
    with redi.enable(pipe, base, max_distance=1e-2, grow=True):
        pipe(["a cat", "an old map"], latents=latents, output_type="latent")
        assert [report.jumped for report in redi.reports(pipe)] == [True, False]
    assert sorted(held(base)) == ["a cat", "a cow", "a dog", "a fox", "an old map"]


def test_the_same_image_again_is_not_added_twice(pipe: Any, base: KnowledgeBase) -> None:
    assert grown(pipe, base, prompt="an old map") == ["an old map"]
    grown(pipe, base, prompt=["an old map", "a wet stone"], latents=base.noise_bank.latents)
    grown(pipe, base, prompt=["an old map", "a wet stone"], latents=base.noise_bank.latents)
    now = KnowledgeBase.open(base.path)
    found = [(entry.prompt, entry.noise_id) for entry in now.entries(range(len(now)))]
    assert len(found) == len(set(found))
    assert now.verify().duplicates == 0


def test_foreign_trajectories_are_not_added(pipe: Any, base: KnowledgeBase) -> None:
    foreign = torch.randn(1, *base.manifest.latent_shape, generator=torch.Generator().manual_seed(99))
    with pytest.warns(UserWarning, match="noise"):
        assert grown(pipe, base, prompt="an old map", latents=foreign) == []
    assert grown(pipe, base, prompt="an old map", callback_on_step_end=lambda *_: {}) == []
    embeds, _ = pipe.encode_prompt("an old map", "cpu", 1, False)
    assert grown(pipe, base, prompt_embeds=embeds) == []
    for refused in ({"guidance_scale": 3.0}, {"negative_prompt": "fog"}, {"num_inference_steps": 12}):
        with pytest.raises(redi.RediError):
            grown(pipe, base, prompt="an old map", **refused)
    assert held(base) == ["a cat", "a cow", "a dog", "a fox"]


def test_styles_and_interrupted_runs_are_not_added(pipe: Any, base: KnowledgeBase) -> None:
    redi.stylize(pipe, base, ["an old map"], "at night", max_distance=0.0, grow=True, progress=False)
    assert len(held(base)) == 4

    def stop(*_: Any) -> None:
        pipe._interrupt = True

    hook = pipe.unet.register_forward_hook(stop)
    try:
        assert grown(pipe, base, prompt="an old map") == []
    finally:
        hook.remove()


def test_calls_with_more_than_a_prompt_are_not_plain(pipe: Any) -> None:
    assert is_plain(pipe, {"prompt": "a", "guidance_scale": 7.5, "callback_on_step_end_tensor_inputs": ["latents"]})
    assert not is_plain(pipe, {"prompt": "a", "prompt_2": "b"})
    assert not is_plain(pipe, {"prompt": "a", "something": 1})


def test_a_failing_disk_costs_no_image_and_is_tried_again(pipe: Any, base: KnowledgeBase) -> None:
    with redi.enable(pipe, base, max_distance=0.0, grow=redi.Growth(delay=0.0)) as enabled:
        (base.path / "uses.jsonl").mkdir()  # what cannot be written
        pipe("an old map", output_type="latent")
        with pytest.warns(UserWarning, match="tried again"):
            enabled.grower.flush()
        (base.path / "uses.jsonl").rmdir()
    assert "an old map" in held(base)


def test_generate_grows_a_base(pipe: Any, base: KnowledgeBase) -> None:
    redi.generate(pipe, base, NEW, max_distance=0.0, grow=True, batch_size=2, progress=False)
    assert set(NEW) <= set(held(base))


def test_the_command_grows_a_base(pipe: Any, base: KnowledgeBase, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    command = ["generate", *NEW, "--kb", str(base.path), "--model", str(tmp_path / "model"), "--max-distance", "0"]
    told = CliRunner().invoke(app, [*command, "--grow", "--capacity", "6", "--out", str(tmp_path / "out")])
    assert told.exit_code == 0, told.output
    assert "6 entries, 4 before" in told.output
    assert CliRunner().invoke(app, [*command, "--capacity-size", "big"]).exit_code == 2


def test_what_cannot_grow_is_refused(pipe: Any, base: KnowledgeBase) -> None:
    for growth in (Growth(capacity=3), Growth(capacity_bytes=bytes_of_an_entry(base))):
        with pytest.raises(InputError, match="capacity of"):
            redi.enable(pipe, base, grow=growth)
    with pytest.raises(InputError, match="allow_stochastic"):
        redi.enable(pipe, base, grow=True, allow_stochastic=True)
    delays: list[Any] = [-1.0, float("nan"), float("inf"), 1e10, None, "soon"]
    wrong = [{"capacity": 0}, {"eviction": "newest"}, {"half_life": 0.0}, {"half_life": "a day"}]
    for each in (*wrong, *({"delay": delay} for delay in delays)):
        with pytest.raises(InputError):
            Growth(**each)


# Capacity and eviction, without a pipeline.


def add(base: KnowledgeBase, unit: int, growth: Growth, now: float, used: Any = None) -> Any:
    return add_grown(base, unit_batch(unit), growth, used or {}, 10.0, now)


@pytest.mark.parametrize("rule", [*RULES, "none"])
def test_a_base_never_holds_more_than_its_capacity(tmp_path: Path, rule: str) -> None:
    base, growth = create(tmp_path / "base"), Growth(capacity=20, eviction=rule)
    for unit in range(8):
        add(base, unit, growth, float(unit))
        assert len(base) <= 20
    assert len(base) >= 15
    assert KnowledgeBase.open(base.path).verify().clean
    first = "prompt 0/0" in held(base)
    assert first is (rule == "none")


def test_used_entries_stay_and_old_uses_fade(tmp_path: Path) -> None:
    base, growth = create(tmp_path / "base"), Growth(capacity=12, eviction="aged", half_life=10.0)
    add(base, 0, growth, 0.0)
    name = base.names()[0]
    add(base, 1, growth, 1.0, {name: (3, 60.0)})
    add(base, 2, growth, 2.0)
    assert "prompt 0/0" in held(base)
    add(base, 3, growth, 200.0)
    add(base, 4, growth, 201.0)
    assert "prompt 0/0" not in held(base)


def test_the_rules_differ_where_they_should() -> None:
    names = [(0, 0), (0, 1), (0, 2)]
    uses = {(0, 0): Use(9, 90.0, 90.0, 0.0), (0, 1): Use(1, 10.0, 10.0, 90.0), (0, 2): Use(0, 0.0, 5.0, 100.0)}
    first = {rule: least_worth(names, uses, 1, rule, 100.0, 10.0)[0] for rule in RULES}
    assert first == {"aged": (0, 0), "nirvana": (0, 2), "lru": (0, 0), "fifo": (0, 0)}


def test_an_entry_that_was_evicted_can_come_again(tmp_path: Path) -> None:
    base, growth = create(tmp_path / "base"), Growth(capacity=6, eviction="fifo")
    for unit in (0, 1, 0, 1, 0):
        assert add(base, unit, growth, 0.0).added == ROWS
    assert held(base) == [f"prompt 0/{slot}" for slot in range(ROWS)]


def test_distances_are_measured_again_as_a_base_grows(tmp_path: Path) -> None:
    base = filled(tmp_path / "base")
    base.finish()
    for unit in range(4, 8):
        add(base, unit, Growth(), 0.0)
    assert len(KnowledgeBase.open(base.path).leave_one_out(1)) > 24


def test_entries_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    base, batch = create(tmp_path / "base"), unit_batch(0)
    batch.values[4][2] = float("nan")
    assert add_grown(base, batch, Growth(), {}, 1.0).added == ROWS - 1
    assert base.refused() == []


def test_a_damaged_count_of_uses_is_named(tmp_path: Path) -> None:
    base = filled(tmp_path / "base")
    (base.path / "uses.jsonl").write_text('{"at": 1, "used": [[1]]}\n')
    with pytest.raises(KnowledgeBaseError, match="counting begins again"):
        UseLog(base.path, 1.0).read()


def test_what_grew_is_told_apart_from_what_was_built(pipe: Any, base: KnowledgeBase) -> None:
    before = build_status(base.path)
    assert grown(pipe, base, prompt=NEW)
    after = build_status(base.path)
    assert (after.units_done, after.entries, before.more) == (before.units_done, before.entries, 0)
    assert after.more == len(KnowledgeBase.open(base.path)) - before.entries > 0
    told = CliRunner().invoke(app, ["build", "status", str(base.path)]).output
    assert f"units: {before.units_done} of {before.units_done}" in told
    assert f"grown or merged in: {after.more}" in told
    assert (
        f"{before.entries} of {before.prompts} prompts" in CliRunner().invoke(app, ["inspect", str(base.path)]).output
    )


DAMAGED = [
    '{"at": 1, "used": [[1]]}\n',
    "nonsense\n",
    '{"known": [[0, 0, 1, 1.0, NaN, 5.0]]}\n',
    '{"known": [[0, 0, 1, 1.0, Infinity, 5.0]]}\n',
    '{"at": NaN, "used": [[0, 0, 1, 1.0]]}\n',
    '{"at": 1, "used": [[0, 0, 1, NaN]]}\n',
]


@pytest.mark.parametrize("line", DAMAGED)
def test_a_full_base_stays_full_though_its_count_of_uses_is_damaged(tmp_path: Path, line: str) -> None:
    base = create(tmp_path / "base")
    (base.path / "uses.jsonl").write_text(line)
    growth = Growth(capacity=12)
    with pytest.warns(RediWarning, match="counted anew"):
        sizes = [add_grown(base, unit_batch(unit), growth, {}, 1.0) and len(base) for unit in range(5)]
    assert max(sizes) <= 12
    assert (base.path / "uses.torn").read_text().startswith(line)
    assert UseLog(base.path, 1.0).read()


def test_an_eviction_that_fails_again_and_again_lets_one_group_in_at_most(tmp_path: Path) -> None:
    base, growth = create(tmp_path / "base"), Growth(capacity=12)
    (base.path / "uses.jsonl").write_text("nonsense\n")
    (base.path / "uses.torn").mkdir()  # where it cannot be set aside
    sizes = []
    for unit in range(6):
        with contextlib.suppress(KnowledgeBaseError):
            add_grown(base, unit_batch(unit), growth, {}, 1.0)
        sizes.append(len(base))
    assert sizes[2:] == [12 + ROWS] * 4
    (base.path / "uses.torn").rmdir()
    with pytest.warns(RediWarning, match="counted anew"):
        found = add_grown(base, unit_batch(6), growth, {}, 1.0)
    assert (found.added, found.evicted, len(base)) == (ROWS, 2 * ROWS, 12)
    assert base.verify().clean


def test_uses_in_the_future_count_as_uses_now(tmp_path: Path) -> None:
    base = create(tmp_path / "base")
    (base.path / "uses.jsonl").write_text('{"known": [[0, 0, 1, 1.0, 1.0, 1e300]]}\n')
    growth = Growth(capacity=12, half_life=3600.0)
    for unit in range(5):
        add_grown(base, unit_batch(unit), growth, {(0, 0): (1, 5.0)}, 1.0, now=1e6 - 8e6 * (unit % 2))
        assert len(base) <= 12
    late, early = Use(1, 1.0, 1.0, 900.0), Use(1, 1.0, 1.0, 100.0)
    assert least_worth([(0, 1), (0, 0)], {(0, 0): late, (0, 1): early}, 1, "lru", 100.0, 1.0) == [(0, 1)]


def test_many_uses_are_put_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redi.knowledge_base.eviction._LONG", 2000)
    base = filled(tmp_path / "base")
    for at in range(200):
        add_grown(base, None, Growth(), {(at % 4, 2): (1, 3.0)}, 1.0, now=float(at))
    assert (base.path / "uses.jsonl").stat().st_size < 2200 + 128 * len(base)
    assert {name: use.uses for name, use in UseLog(base.path, 1e9).read().items()} == {
        (unit, 2): 50 for unit in range(4)
    }


def test_a_count_of_many_entries_is_not_written_again_for_every_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redi.knowledge_base.eviction._LONG", 0)
    base, lines = filled(tmp_path / "base"), []
    for at in range(20):
        add_grown(base, None, Growth(), dict.fromkeys(base.names(), (1, 3.1)), 1.0, now=at + 0.123456789)
        lines.append((base.path / "uses.jsonl").read_bytes().count(b"\n"))
    assert 2 <= lines.count(1) < 10
    assert {use.uses for use in UseLog(base.path, 1e9).read().values()} == {20}


def test_the_ledger_does_not_grow_with_what_was_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redi.knowledge_base.base.COMMITS_PER_COMPACTION", 8)
    base, lines = filled(tmp_path / "base"), []
    for unit in range(4, 44):
        add_grown(base, unit_batch(unit), Growth(capacity=30, eviction="fifo"), {}, 1.0)
        lines.append((base.path / "ledger/units.jsonl").read_bytes().count(b"\n"))
    assert max(lines[20:]) < 40
    again = KnowledgeBase.open(base.path)
    assert set(range(4)) <= again.completed_units()  # what was built is not built again
    assert again.verify().clean


def test_what_is_evicted_leaves_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redi.knowledge_base.base.GRACE", timedelta(0))
    base, sizes, versions = create(tmp_path / "base"), [], []
    for unit in range(60):
        add_grown(base, unit_batch(unit), Growth(capacity=18), {}, 1.0)
        sizes.append(bytes_below(base.path / "entries.lance"))
        versions.append(len(list((base.path / "entries.lance/_versions").iterdir())))
    assert max(sizes[20:]) < 1.5 * max(sizes[:20])
    assert max(versions) < 10
    assert base.verify().clean


@pytest.mark.parametrize("option", [["--capacity", "5"], ["--capacity-size", "1GB"], ["--eviction", "aged"]])
def test_a_capacity_without_growing_is_refused(base: KnowledgeBase, option: list[str]) -> None:
    found = CliRunner().invoke(app, ["generate", "a red circle", "--kb", str(base.path), *option])
    assert found.exit_code == 1
    assert "without --grow" in found.output


def test_several_processes_grow_one_base_and_a_reader_sees_all(tmp_path: Path) -> None:
    base = create(tmp_path / "base")
    growers = [PROCESSES.Process(target=grow_alone, args=(str(base.path), first)) for first in (0, 3, 9)]
    for grower in growers:
        grower.start()
    reader = base
    while any(grower.is_alive() for grower in growers):
        growers[0].join(0.02)
        reader = reader.current()
        key = unit_batch(3).keys[1]
        found = reader.search(key, unit_batch(3).noise_ids, 1, 1)
        for row in found.rows[found.rows >= 0].tolist():
            unit, slot = map(int, reader.prompts([row])[0][7:].split("/"))
            assert torch.equal(reader.values([row], 7)[0], unit_batch(unit).values[7][slot].half().float())
    assert [grower.exitcode for grower in growers] == [0, 0, 0]
    now = reader.current()
    assert held(now) == sorted(f"prompt {unit}/{slot}" for unit in range(15) for slot in range(ROWS))
    found = now.search(unit_batch(14).keys[1], unit_batch(14).noise_ids, 1, 1)
    assert now.prompts(found.rows[:, 0]) == unit_batch(14).prompts
    assert now.verify().clean
