"""Claims about a base that several processes grow, read and compact while they are killed: make soak, in small."""

from __future__ import annotations

from pathlib import Path

from soaking import soak


def test_processes_that_are_killed_lose_double_and_mix_up_nothing(tmp_path: Path) -> None:
    found = soak(tmp_path, seconds=12, groups=10)
    assert found.kills >= 2
    assert found.acknowledged > 12
    assert (found.lost, found.doubled, found.damaged, found.foreign) == (0, 0, 0, 0)
