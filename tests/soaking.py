"""Processes that grow, read and compact one base while some are killed, and what is left; must not know pytest."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

from small_base import ROWS, create, unit_batch

GROWERS = (0, 1)
_SPAN = 1_000_000  # numbers of groups of one grower


def grow(path: str, acks: str, who: int, groups: int) -> None:
    """Add groups of six entries one after the other, note each that was acknowledged, and then add them all again."""
    from redi.knowledge_base import KnowledgeBase
    from redi.knowledge_base.growth import Growth, add_grown

    told = Path(acks) / f"grower-{who}"
    base, at = KnowledgeBase.open(path), acknowledged(Path(acks), who)
    while True:
        add_grown(base, unit_batch(who * _SPAN + at % groups), Growth(), {}, 1.0)
        if at < groups:
            with told.open("ab", buffering=0) as file:
                file.write(b"+")
                os.fsync(file)
        at += 1
        time.sleep(0.02)


def read(path: str, acks: str, seed: int) -> None:
    """Look up what was acknowledged: its key must find it, with its own values; note the memory, and what is wrong."""
    import torch

    from redi.knowledge_base import KnowledgeBase
    from small_base import PLAN

    draw, folder = random.Random(seed), Path(acks)
    memory, wrong = folder / f"memory-{os.getpid()}", folder / f"wrong-{os.getpid()}"
    while True:
        before = {who: acknowledged(folder, who) for who in GROWERS}
        base = KnowledgeBase.open(path)
        for _ in range(20):
            who = draw.choice(GROWERS)
            if not before[who]:
                continue
            batch, slot = unit_batch(who * _SPAN + draw.randrange(before[who])), draw.randrange(ROWS)
            query = batch.keys[PLAN.key_step][slot : slot + 1]
            found = base.search(query, [batch.noise_ids[slot]], 2, PLAN.key_step)
            row = int(found.rows[0, 0])
            served = [base.prompts([row])[0]] if row >= 0 else []
            values = base.values([row], PLAN.value_steps[0])[0] if row >= 0 else torch.zeros(())
            if served != [batch.prompts[slot]] or not torch.equal(
                values, batch.values[PLAN.value_steps[0]][slot].half().float()
            ):
                with wrong.open("a") as file:
                    file.write(f"{batch.prompts[slot]}: {served}\n")
        with memory.open("a") as file:
            file.write(f"{_resident()}\n")
        time.sleep(0.05)


def compact(path: str, acks: str) -> None:
    """Compact again and again, waiting for whoever writes."""
    from redi.errors import KnowledgeBaseError
    from redi.knowledge_base import KnowledgeBase

    while True:
        try:
            base = KnowledgeBase.open(path)
            with base.lock(10):
                base.compact()
        except KnowledgeBaseError as error:
            if "is being built by" not in str(error):
                with (Path(acks) / f"wrong-{os.getpid()}").open("a") as file:
                    file.write(f"compacting: {error}\n")
        time.sleep(0.5)


def acknowledged(acks: Path, who: int) -> int:
    """Return how many groups a grower was told are stored."""
    told = acks / f"grower-{who}"
    return told.stat().st_size if told.exists() else 0


@dataclass(frozen=True)
class Soaked:
    """What was done and what is left.

    Attributes:
        kills: Processes that were killed.
        acknowledged: Entries that a grower was told are stored.
        lost: Of these, those that are not there.
        doubled: Entries that are there more than once.
        damaged: Problems that verifying every row found.
        foreign: Readings of another entry, or of other values, than those asked for; and errors.
        memory_ratio: Of a reader that is never killed: resident memory at its end over that once the base was full.
    """

    kills: int
    acknowledged: int
    lost: int
    doubled: int
    damaged: int
    foreign: int
    memory_ratio: float


def soak(folder: Path, seconds: float, groups: int, seed: int = 0) -> Soaked:
    """Let two growers, a reader and a compactor work on one base, and kill one of them again and again (SIGKILL).

    A second reader is never killed; its memory is watched.
    """
    from redi.knowledge_base import KnowledgeBase

    path, acks = str(folder / "kb"), folder / "acks"
    acks.mkdir(parents=True)
    create(Path(path))
    context, draw = multiprocessing.get_context("forkserver"), random.Random(seed)
    context.set_forkserver_preload(["torch"])  # Lance is not fork-safe; it is imported in the child
    jobs = [
        *((grow, (path, str(acks), who, groups)) for who in GROWERS),
        (read, (path, str(acks), 1)),
        (compact, (path, str(acks))),
    ]

    def start(job: int) -> multiprocessing.process.BaseProcess:
        work, arguments = jobs[job]
        process = context.Process(target=work, args=arguments, daemon=True)
        process.start()
        return process

    watcher = context.Process(target=read, args=(path, str(acks), 2), daemon=True)
    watcher.start()
    running, kills, ended = [start(job) for job in range(len(jobs))], 0, 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(draw.uniform(0.5, 4))
        job = draw.randrange(len(jobs))
        ended += not running[job].is_alive()
        running[job].kill()
        running[job].join()
        kills += 1
        running[job] = start(job)
    for process in (*running, watcher):
        ended += not process.is_alive()
        process.kill()
        process.join()

    base = KnowledgeBase.open(path)
    told = {who: acknowledged(acks, who) for who in GROWERS}
    wanted = {p for who in GROWERS for at in range(told[who]) for p in unit_batch(who * _SPAN + at).prompts}
    stored = base.prompts(range(len(base)))
    report = base.verify()
    resident = [int(line) for line in (acks / f"memory-{watcher.pid}").read_text().split()]
    wrong = [line for file in acks.glob("wrong-*") for line in file.read_text().splitlines()]
    for line in wrong[:5]:
        print(line)
    return Soaked(
        kills=kills,
        acknowledged=len(wanted),
        lost=len(wanted - set(stored)),
        doubled=len(stored) - len(set(stored)) + report.duplicates,
        damaged=len(report.damaged),
        foreign=len(wrong) + ended,
        memory_ratio=max(resident[-len(resident) // 5 :]) / max(resident[len(resident) // 3 : len(resident) // 2]),
    )


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
