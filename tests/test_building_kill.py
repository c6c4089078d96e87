"""Claims about builds that die: killed at random moments, or out of disk. Real processes, real files."""

from __future__ import annotations

import random
from pathlib import Path

from redi.knowledge_base import KnowledgeBase
from tiny import tiny_pipeline
from tiny_build import build_tiny, full_disk_process, kill_build, many_prompts, server, undisturbed_seconds


def test_killed_builds_lose_and_double_nothing(tmp_path: Path) -> None:
    context, moments = server(), random.Random(0)
    unfinished, held, whole = 0, 0, undisturbed_seconds(tmp_path, 60)
    for _ in range(4):
        seconds = moments.uniform(0, whole / 3)
        unfinished += kill_build(context, tmp_path / "model", tmp_path / "kb", 60, seconds)
        if (tmp_path / "kb" / "manifest.json").exists():
            entries = len(KnowledgeBase.open(tmp_path / "kb"))
            assert entries >= held
            held = entries
    assert unfinished
    pipe = tiny_pipeline(tmp_path / "model")
    kb = build_tiny(pipe, tmp_path / "kb", many_prompts(60))
    assert len(kb) == 60
    assert sorted(kb.prompts(range(60))) == sorted(many_prompts(60))
    assert kb.verify().clean


def test_a_build_stopped_by_a_full_disk_goes_on_when_there_is_room(tmp_path: Path) -> None:
    context = server()
    ours, theirs = context.Pipe()
    process = context.Process(target=full_disk_process, args=(str(tmp_path / "model"), str(tmp_path / "kb"), theirs))
    process.start()
    theirs.close()
    try:
        assert ours.poll(120)
        error, entries, end = ours.recv(), ours.recv(), ours.recv()
    finally:
        process.kill()
        process.join()
    assert "make room and start the same build again" in error
    assert entries == 40
    assert end == (60, True)
