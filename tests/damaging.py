"""Owns saved bases whose files can be replaced one by one, and reading all of it; must not know what damages it."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

import torch

from redi.errors import RediError
from redi.knowledge_base import KnowledgeBase, compare_files, sharing, write_hashes
from small_base import PLAN, SEEDS, SHAPE, filled, unit_batch

MEMORY = 3 << 30
LONGEST_MESSAGE = 10_000


class Victim:
    """Two finished bases, one of values in fewer bits; each file can be replaced, its base read, the file restored."""

    def __init__(self, folder: Path) -> None:
        base = filled(folder / "base")
        base.finish()
        base.add_unit(4, unit_batch(4))
        spoilt = unit_batch(5)
        spoilt.keys[1][0] = float("nan")
        base.add_unit(5, spoilt)
        base.finish()
        write_hashes(base.path)
        base.save_pretrained(folder / "small", values="nf4")
        self.folder, self.path = folder, base.path
        found = (file for file in folder.rglob("*") if file.is_file() and file.name != "lock")
        self.whole = {str(file.relative_to(folder)): file.read_bytes() for file in found}
        self.names = sorted(self.whole)

    def outcome(self, name: str, data: bytes, *, copy_too: bool = False) -> str:
        """Read everything with one file replaced: "read", or the name of the RediError; anything else is raised."""
        file = self.folder / name
        base = self.folder / Path(name).parts[0]
        file.write_bytes(data)
        try:
            return read_everything(base) + (copied(base) if copy_too else "")
        finally:
            file.write_bytes(self.whole[name])


def copied(folder: Path) -> str:
    """Copy a base into fewer bits; errors of redi are answers, others are not."""
    target = folder.parent / "copied"
    shutil.rmtree(target, ignore_errors=True)
    try:
        sharing.save(folder, target, values="nf4")
    except RediError as error:
        return named(error)
    return ", copied"


def read_everything(folder: Path) -> str:
    """Ask a base for all that it can be asked for; errors of redi are answers, others are not."""
    try:
        base = KnowledgeBase.open(folder)
    except RediError as error:
        return named(error)
    answers = set()
    queries = torch.zeros(len(SEEDS), *SHAPE)
    for ask in (
        base.check_files,
        base.verify,
        base.refused,
        lambda: compare_files(folder),
        lambda: base.leave_one_out(PLAN.key_step),
        lambda: base.search(queries, range(len(SEEDS)), 2, PLAN.key_step),
        lambda: base.pairs(range(len(base)), PLAN.key_steps[-1], PLAN.value_steps[-1]),
        lambda: base.entries(range(len(base))),
    ):
        try:
            ask()
        except RediError as error:
            answers.add(named(error))
    return ", ".join(sorted(answers)) or "read"


def named(error: RediError) -> str:
    """Return the class of an error that a person can read."""
    if len(str(error)) > LONGEST_MESSAGE:
        raise ValueError(f"a message of {len(str(error))} characters") from error
    return type(error).__name__


def limit_memory() -> None:
    """Let this process take ``MEMORY`` bytes more than it has, so that an absurd allocation ends it."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.RLIM_INFINITY))


def peak_megabytes() -> float:
    """Return the most memory that this process ever held (``ru_maxrss`` would begin with its parent's)."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))


def copy(victim: Victim, folder: Path) -> Path:
    """Return a copy of the base that a test may spoil."""
    shutil.copytree(victim.path, folder)
    return folder
