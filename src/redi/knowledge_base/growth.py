"""Owns adding entries to a base that is in use, up to a capacity; must not know pipelines or threads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from redi.errors import InputError, KnowledgeBaseError
from redi.knowledge_base import leave_one_out
from redi.knowledge_base.base import KnowledgeBase
from redi.knowledge_base.entries import EntryBatch, encode_unit
from redi.knowledge_base.eviction import RULES, Name, UseLog, least_worth
from redi.knowledge_base.layout import columns_of
from redi.knowledge_base.noises import Noises

WAIT = 60.0
"""Seconds to wait for another process that writes."""
_LONGEST_DELAY = 86400.0
_SAMPLE = 256
_ROW_BYTES = 128


@dataclass(frozen=True)
class Growth:
    """How a base grows.

    Args:
        capacity: Entries that the base may hold; None for no limit.
        capacity_bytes: The same in bytes of its table.
        eviction: What goes when it is full: ``"aged"`` (calls saved, halved with time), ``"nirvana"`` (calls saved),
            ``"lru"``, ``"fifo"``; or ``"none"``: nothing goes, and nothing more comes.
        half_life: Seconds in which what an entry has saved counts half, for ``"aged"``.
        delay: Seconds after which an entry is stored at the latest, up to a day.
        group: Entries that are stored together without waiting for the delay.

    Raises:
        InputError: A number is out of range, or the rule is unknown.
    """

    capacity: int | None = None
    capacity_bytes: int | None = None
    eviction: str = "aged"
    half_life: float = 7 * 86400.0
    delay: float = 5.0
    group: int = 64

    def __post_init__(self) -> None:
        for name in ("capacity", "capacity_bytes", "group"):
            number = getattr(self, name)
            if number is not None and (type(number) is not int or number < 1):
                raise InputError(f"{name}={number!r}", expected="a whole number of at least 1")
        if not (_is_number(self.half_life) and self.half_life > 0):
            raise InputError(f"half_life={self.half_life!r}", expected="seconds, more than 0")
        if not (_is_number(self.delay) and 0 <= self.delay <= _LONGEST_DELAY):
            raise InputError(f"delay={self.delay!r}", expected=f"seconds, 0 to {_LONGEST_DELAY:.0f}")
        if self.eviction not in (*RULES, "none"):
            raise InputError(f"eviction={self.eviction!r}", expected=f"one of {', '.join(RULES)}, none")

    def limit(self, base: KnowledgeBase) -> int | None:
        """Return how many entries the base may hold; None: any number."""
        limits = [] if self.capacity is None else [self.capacity]
        if self.capacity_bytes is not None:
            limits.append(self.capacity_bytes // bytes_of_an_entry(base))
        return min(limits, default=None)

    def check(self, base: KnowledgeBase) -> None:
        """Refuse a base that cannot grow, or holds more already.

        Raises:
            InputError: See above.
        """
        if base.manifest.noise["kind"] != "shared":
            raise InputError(
                "a base of independent noise to grow",
                expected="shared noise: entries of another noise are never near",
            )
        limit = self.limit(base)
        if limit is not None and limit < len(base):
            raise InputError(
                f"a capacity of {limit} entries for {base.path}, which holds {len(base)}",
                expected="at least as many: growing evicts what it must, and nothing at the start",
                fix="a larger capacity, or redi remove first",
            )


@dataclass(frozen=True)
class Grown:
    """What became of a group of entries: how many were added, and how many others went to make room."""

    added: int
    evicted: int


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def bytes_of_an_entry(base: KnowledgeBase) -> int:
    """Return the bytes of one entry in the table, a short prompt included."""
    columns = columns_of(base.manifest)
    values = len(base.plan.value_steps) * columns.values.width(columns.size)
    return len(base.plan.key_steps) * 2 * columns.size + values + _ROW_BYTES


def add_grown(
    base: KnowledgeBase,
    batch: EntryBatch | None,
    growth: Growth,
    used: Mapping[Name, tuple[int, float]],
    worth: float,
    now: float | None = None,
) -> Grown:
    """Add entries in one commit, without those that are there and those that are not finite; evict what is too many.

    What an earlier eviction that failed left too many goes first: while it cannot, nothing is added.

    Args:
        base: The base; a builder that holds it is waited for.
        batch: The entries; None for none.
        growth: How many there may be, and what goes.
        used: By entry, how often it was used since, and the calls that this saved.
        worth: Calls that one use of an entry saves, with which a new entry starts.
        now: Seconds; the clock's by default.

    Raises:
        KnowledgeBaseError: Another process goes on writing for a minute, or the disk is full.
    """
    now = time.time() if now is None else now
    log = UseLog(base.path, growth.half_life)
    with base.lock(WAIT):
        limit = growth.limit(base)
        evicted = _evict(base, log, growth, limit, now)
        added = 0
        if batch is not None:
            rows, _ = encode_unit(-1, batch, base.manifest, Noises(base.noise_bank, base.references))
            room = len(rows.slots) if limit is None or growth.eviction != "none" else max(0, limit - len(base))
            record = base.add_rows(rows.chosen(range(min(room, len(rows.slots))), -1))
            if record:
                added = record.rows
                used = {**used, **{(record.unit, slot): (0, worth) for slot in range(added)}}
        log.add(now, used)
        if log.is_long(len(base)):
            log.tidy(set(base.names()))
        evicted += _evict(base, log, growth, limit, now)
        if added or evicted:
            _measure_again(base)
    return Grown(added, evicted)


def _evict(base: KnowledgeBase, log: UseLog, growth: Growth, limit: int | None, now: float) -> int:
    """Make room for a twentieth of the capacity, so that not every group has to."""
    if limit is None or growth.eviction == "none" or len(base) <= limit:
        return 0
    over = len(base) - limit
    names = base.names()
    gone = least_worth(names, log.known(), min(len(names), over + limit // 20), growth.eviction, now, growth.half_life)
    base.remove(gone)
    log.tidy(set(names) - set(gone))
    return len(gone)


def _measure_again(base: KnowledgeBase) -> None:
    """Measure distances between entries again once an eighth of them has changed, for the default gate."""
    try:
        for step in base.plan.key_steps:
            leave_one_out.stored(base, step)
    except KnowledgeBaseError:
        base.measure(sample=_SAMPLE)
