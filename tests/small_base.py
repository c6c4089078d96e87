"""Owns a tiny knowledge base for tests, and a builder that can be killed; must not know pytest."""

from __future__ import annotations

import resource
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from redi.errors import KnowledgeBaseError
from redi.knowledge_base import EntryBatch, KnowledgeBase, Manifest, NoiseBank
from redi.knowledge_base.growth import Growth, add_grown
from redi.plan import Plan

SHAPE = (4, 4, 4)
PLAN = Plan(10, key_step=1, value_steps=(4, 7), more_key_steps=(2,))
SEEDS = (3, 5, 8)
ROWS = 6


def manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "plan": PLAN,
        "identity": {"model": {"id": "tiny", "sha": "ab"}, "guidance": 7.5},
        "latent_shape": SHAPE,
        "noise": {"kind": "shared", "seeds": list(SEEDS)},
    }
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def bank() -> NoiseBank:
    return NoiseBank.draw(SEEDS, SHAPE)


def create(path: Path) -> KnowledgeBase:
    noises = bank()
    return KnowledgeBase.create(path, manifest(), noises, dict.fromkeys(PLAN.key_steps, noises.latents * 0.9))


def filled(path: Path) -> KnowledgeBase:
    """Return a new base of four units."""
    made = create(path)
    for unit in range(4):
        made.add_unit(unit, unit_batch(unit))
    return made


def unit_batch(unit: int, rows: int = ROWS) -> EntryBatch:
    """The same entries whenever the same unit is asked for."""
    generator = torch.Generator().manual_seed(unit)
    ids = [(unit + slot) % len(SEEDS) for slot in range(rows)]
    noises = bank().latents[ids]

    def drawn() -> Tensor:
        return torch.randn(rows, *SHAPE, generator=generator)

    return EntryBatch(
        prompts=[f"prompt {unit}/{slot}" for slot in range(rows)],
        noise_ids=ids,
        seeds=[SEEDS[each] for each in ids],
        keys={step: 0.9 * noises + 0.01 * step * drawn() for step in PLAN.key_steps},
        values={step: drawn() for step in PLAN.value_steps},
    )


def check_contents(base: KnowledgeBase, units: int) -> None:
    """Every entry of every unit is there once, with its own numbers."""
    entries = base.entries(range(len(base)))
    assert sorted((entry.unit, entry.slot) for entry in entries) == [(u, s) for u in range(units) for s in range(ROWS)]
    batches = {unit: unit_batch(unit) for unit in range(units)}
    for step in PLAN.value_steps:
        stored = base.values(range(len(base)), step)
        expected = torch.stack([batches[entry.unit].values[step][entry.slot] for entry in entries])
        assert torch.equal(stored, expected.half().float())
    for step in PLAN.key_steps:
        stored = base.keys(range(len(base)), step)
        expected = torch.stack([batches[entry.unit].keys[step][entry.slot] for entry in entries])
        assert torch.allclose(stored, expected, atol=5e-5, rtol=0)
    assert [entry.prompt for entry in entries] == [batches[e.unit].prompts[e.slot] for e in entries]
    assert [entry.noise_id for entry in entries] == [batches[e.unit].noise_ids[e.slot] for e in entries]
    report = base.verify()
    assert report.clean, report.damaged


def build(path: str, units: int, channel: Connection | None = None) -> None:
    """Add what is missing of ``units`` units; says so on the channel when it starts."""
    from redi.knowledge_base import table

    table.COMMITS_PER_COMPACTION = 4
    base = KnowledgeBase.open(path)
    if channel is not None:
        channel.send("started")
    with base.lock():
        for unit in range(units):
            if unit not in base.completed_units():
                base.add_unit(unit, unit_batch(unit))
    base.finish()


def build_on_full_disk(path: str, channel: Connection) -> None:
    """Add units with room for small files only, then with room again; sends the error's text, then 'done'."""
    base = KnowledgeBase.open(path)
    base.add_unit(0, unit_batch(0))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        base.add_unit(1, unit_batch(1, rows=200))
        channel.send("no error")
    except KnowledgeBaseError as error:
        channel.send(str(error))
    channel.send((len(base), sorted(base.completed_units()), len(list((base.path / "entries.lance/data").iterdir()))))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    base.add_unit(1, unit_batch(1, rows=200))
    channel.send("done")


def hold_lock(path: str, channel: Connection) -> None:
    """Hold the builder's lock until told to stop."""
    with KnowledgeBase.open(path).lock():
        channel.send("held")
        channel.recv()


def grow_alone(path: str, first: int) -> None:
    """Add six units as growth does, beside others that do the same."""
    base = KnowledgeBase.open(path)
    for unit in range(first, first + 6):
        add_grown(base, unit_batch(unit), Growth(), {}, 1.0)
