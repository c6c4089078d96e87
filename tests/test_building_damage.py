"""Claims about builds in a folder that a power cut or another build has changed: what is made again, what refused."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from redi.errors import IncompatibleError, KnowledgeBaseError, RediWarning
from redi.knowledge_base import EntryBatch, KnowledgeBase, read_hashes
from redi.knowledge_base.growth import Growth, add_grown
from redi.knowledge_base.ledger import BuilderLock
from tiny import tiny_pipeline
from tiny_build import PLAN, PROMPTS, Interruption, build_tiny, count_calls

ROWS = list(range(len(PROMPTS)))
Contents = dict[bytes, tuple[str, int, int, torch.Tensor]]


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    return tiny_pipeline(tmp_path / "model")


def empty_newest(path: Path, count: int = 1) -> list[Path]:
    """Cut the manifests of the newest versions of a base's table to nothing, and return them."""
    newest = sorted((path / "entries.lance/_versions").glob("*.manifest"))[:count]  # versions count down
    for manifest in newest:
        os.truncate(manifest, 0)
    return newest


def contents(kb: KnowledgeBase) -> Contents:
    entries, values = kb.entries(range(len(kb))), kb.values(range(len(kb)), 8)
    assert len({each.entry_id for each in entries}) == len(kb)
    return {
        each.entry_id: (each.prompt, each.noise_id, each.seed, value)
        for each, value in zip(entries, values, strict=True)
    }


def check_same(found: Contents, wanted: Contents) -> None:
    assert found.keys() == wanted.keys()
    for name, (*facts, value) in found.items():
        assert facts == [*wanted[name][:3]]
        torch.testing.assert_close(value, wanted[name][3], rtol=1e-2, atol=1e-2)


def files(path: Path) -> dict[Path, tuple[bytes, int]]:
    """Return what is in every file but the builder's lock."""
    found = (file for file in path.rglob("*") if file.is_file() and file.name != "lock")
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in found}


def grow(kb: KnowledgeBase) -> None:
    noise = kb.noise_bank.latents[:1]
    keys, values = (dict.fromkeys(steps, noise) for steps in (PLAN.key_steps, PLAN.value_steps))
    add_grown(kb, EntryBatch(["a grown cat"], [0], [0], keys, values), Growth(), {}, 1.0)


def interrupted(pipe: Any, path: Path) -> None:
    """Build two of the four units."""
    with Interruption(pipe, 4 + 18 + 18 + 3, RuntimeError()):
        build_tiny(pipe, path)
    assert KnowledgeBase.open(path).completed_units() == {0, 1}


def test_a_finished_base_whose_newest_version_was_emptied_is_built_again(pipe: Any, tmp_path: Path) -> None:
    wanted = contents(build_tiny(pipe, tmp_path / "kb"))
    (lost,) = empty_newest(tmp_path / "kb")
    with pytest.warns(RediWarning, match=r"empty \(0 bytes\) .* units that only it held are made again: 0, 1, 2, 3$"):
        kb = build_tiny(pipe, tmp_path / "kb")
    check_same(contents(kb), wanted)
    check_same(contents(KnowledgeBase.open(tmp_path / "kb")), wanted)
    assert lost.with_suffix(".torn").stat().st_size == 0
    assert kb.verify().clean
    assert all(kb.leave_one_out(step).shape == (20,) for step in PLAN.key_steps)
    calls = count_calls(pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_tiny(pipe, tmp_path / "kb")
    assert calls == []


def test_a_finished_base_that_was_killed_before_it_was_signed_is_signed_by_the_same_build(
    pipe: Any, tmp_path: Path
) -> None:
    kb = build_tiny(pipe, tmp_path / "kb")
    signed = read_hashes(kb.path)
    assert signed is not None
    (kb.path / "hashes.json").unlink()
    calls = count_calls(pipe)
    build_tiny(pipe, tmp_path / "kb")
    assert not calls
    assert read_hashes(kb.path) == signed


@pytest.mark.parametrize("lost", [1, 2], ids=["one version", "two versions"])
def test_an_unfinished_base_makes_again_only_what_the_emptied_versions_held(
    pipe: Any, tmp_path: Path, lost: int
) -> None:
    wanted = contents(build_tiny(pipe, tmp_path / "whole"))
    interrupted(pipe, tmp_path / "kb")
    before = contents(KnowledgeBase.open(tmp_path / "kb"))
    emptied = empty_newest(tmp_path / "kb", lost)
    calls = count_calls(pipe)
    units = ", ".join(map(str, range(2 - lost, 2)))
    with pytest.warns(RediWarning, match=f"units that only it held are made again: {units}$"):
        kb = build_tiny(pipe, tmp_path / "kb")
    assert len(calls) == 9 * (2 * lost + 2 + 1)
    assert all(each.with_suffix(".torn").exists() for each in emptied)
    ids = {entry.prompt: entry.entry_id for entry in kb.entries(ROWS)}
    assert before.keys() <= set(ids.values())
    found = {prompt: value for prompt, *_, value in contents(kb).values()}
    for prompt, *_, value in wanted.values():  # the ids are of another base
        torch.testing.assert_close(found[prompt], value, rtol=1e-2, atol=1e-2)
    assert sorted(found) == sorted(PROMPTS)
    assert kb.verify().clean


def test_an_emptied_version_that_only_tidied_the_table_costs_no_unit(pipe: Any, tmp_path: Path) -> None:
    kb = build_tiny(pipe, tmp_path / "kb")
    grow(kb)
    wanted = contents(kb)
    kb.compact()  # leaves the versions of the last minutes
    empty_newest(tmp_path / "kb")
    calls = count_calls(pipe)
    with pytest.warns(RediWarning, match="no unit is missing"):
        again = build_tiny(pipe, tmp_path / "kb")
    assert calls == []
    check_same(contents(again), wanted)
    assert again.verify().clean


def remove_an_entry(kb: KnowledgeBase) -> None:
    kb.remove([(1, 2)])


def forget_the_ledger(kb: KnowledgeBase) -> None:
    (kb.path / "ledger/units.jsonl").unlink()


@pytest.mark.parametrize("lose", [grow, remove_an_entry, forget_the_ledger])
def test_what_the_build_cannot_make_again_is_refused_and_nothing_is_changed(
    pipe: Any, tmp_path: Path, lose: Callable[[KnowledgeBase], None]
) -> None:
    lose(build_tiny(pipe, tmp_path / "kb"))
    empty_newest(tmp_path / "kb")
    before, calls = files(tmp_path / "kb"), count_calls(pipe)
    with pytest.raises(KnowledgeBaseError, match=r"(?s)is lost .*restore the folder from a copy"):
        build_tiny(pipe, tmp_path / "kb")
    assert files(tmp_path / "kb") == before
    assert calls == []


def test_another_build_does_not_take_units_back(pipe: Any, tmp_path: Path) -> None:
    build_tiny(pipe, tmp_path / "kb")
    empty_newest(tmp_path / "kb")
    before = files(tmp_path / "kb")
    with pytest.raises(IncompatibleError, match="prompts"):
        build_tiny(pipe, tmp_path / "kb", PROMPTS[::-1])
    with BuilderLock(tmp_path / "kb/lock").held(), pytest.raises(KnowledgeBaseError, match="is being built by"):
        build_tiny(pipe, tmp_path / "kb")
    assert files(tmp_path / "kb") == before


def test_who_only_reads_changes_nothing_and_is_told_what_makes_the_base_whole(pipe: Any, tmp_path: Path) -> None:
    build_tiny(pipe, tmp_path / "kb")
    empty_newest(tmp_path / "kb")
    before = files(tmp_path / "kb")
    with pytest.raises(KnowledgeBaseError, match=r"empty \(0 bytes\)") as caught:
        KnowledgeBase.open(tmp_path / "kb")
    assert "run the same redi build again: it makes the missing units again" in caught.value.fix
    assert files(tmp_path / "kb") == before


@pytest.mark.parametrize("aside", [False, True], ids=["before it was set aside", "before there was a new table"])
def test_a_build_that_was_killed_while_it_took_units_back_goes_on(pipe: Any, tmp_path: Path, aside: bool) -> None:
    wanted = contents(build_tiny(pipe, tmp_path / "kb"))
    (lost,) = empty_newest(tmp_path / "kb")
    (tmp_path / "kb/ledger/units.jsonl").write_text('{"version": 1}\n')
    if aside:
        lost.rename(lost.with_suffix(".torn"))
    with pytest.warns(RediWarning, match="has been set aside"):
        kb = build_tiny(pipe, tmp_path / "kb")
    check_same(contents(kb), wanted)
    assert kb.verify().clean


# Two builds that begin at the same moment


@pytest.fixture
def beginning(pipe: Any) -> Callable[[Callable[[], object]], None]:
    """Return what has something done in the middle of the next build's reference trajectories."""

    def arrange(act: Callable[[], object]) -> None:
        def once(*_: object) -> None:
            handle.remove()
            act()

        handle = pipe.unet.register_forward_pre_hook(once)

    return arrange


def test_a_build_that_began_second_goes_on_with_the_base_of_the_first(
    pipe: Any, beginning: Callable[[Callable[[], object]], None], tmp_path: Path
) -> None:
    other = tiny_pipeline(tmp_path / "model")
    beginning(lambda: interrupted(other, tmp_path / "kb"))
    kb = build_tiny(pipe, tmp_path / "kb")
    assert sorted(kb.prompts(ROWS)) == sorted(PROMPTS)
    assert kb.completed_units() == {0, 1, 2, 3}
    assert kb.verify().clean


def test_a_build_that_began_second_says_that_another_builder_is_at_work(
    pipe: Any, beginning: Callable[[Callable[[], object]], None], tmp_path: Path
) -> None:
    other = tiny_pipeline(tmp_path / "model")
    with ExitStack() as stack:

        def begin_and_hold() -> None:
            interrupted(other, tmp_path / "kb")
            stack.enter_context(BuilderLock(tmp_path / "kb/lock").held())

        beginning(begin_and_hold)
        with pytest.raises(KnowledgeBaseError, match="is being built by process"):
            build_tiny(pipe, tmp_path / "kb")
    assert KnowledgeBase.open(tmp_path / "kb").completed_units() == {0, 1}


def test_a_build_with_other_arguments_that_began_second_is_refused(
    pipe: Any, beginning: Callable[[Callable[[], object]], None], tmp_path: Path
) -> None:
    other = tiny_pipeline(tmp_path / "model")
    beginning(lambda: interrupted(other, tmp_path / "kb"))
    with pytest.raises(IncompatibleError, match=r"prompts\.sha256"):
        build_tiny(pipe, tmp_path / "kb", PROMPTS[::-1])
