"""Owns how images that ran in full become entries: seen by a policy, stored by a thread; must not know files."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redi.caches import has_caches
from redi.calls import parameters_of
from redi.errors import KnowledgeBaseError, warn
from redi.jumping import JumpPolicy, JumpRule
from redi.knowledge_base import EntryBatch, KnowledgeBase
from redi.knowledge_base.eviction import Name
from redi.knowledge_base.growth import Growth, add_grown
from redi.retrieval import Report

_MOST_WAITING = 1024
"""Entries that wait to be stored at most; beyond, an image is not recorded rather than waited for."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """An image that ran in full: its prompt, its noise, and latents (*shape) by step, on the run's device."""

    prompt: str
    noise_id: int
    latents: Mapping[int, Tensor]


@dataclass(frozen=True, eq=False)
class _Used:
    """Rows of a base that an image jumped with, and the calls that this saved."""

    base: KnowledgeBase
    rows: Sequence[int]
    saved: float


class Grower:
    """Stores entries in a thread of its own: together, ``delay`` seconds after the first of them at the latest.

    Args:
        base: The base to add to; this opens it once more, so that the pipeline's object is left alone.
        growth: How it grows.

    Attributes:
        added: Entries stored so far.
        evicted: Entries that went to make room.
        dropped: Images that were not recorded because too many waited.
    """

    def __init__(self, base: KnowledgeBase, growth: Growth) -> None:
        growth.check(base)
        self._base, self._growth = KnowledgeBase.open(base.address), growth
        self._seen: list[_Seen] = []
        self._used: list[_Used] = []
        self._change = threading.Condition()
        self._busy = self._hurry = self._closed = False
        self._worth = 0.0
        self.added = self.evicted = self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="redi-growth", daemon=True)
        self._thread.start()
        atexit.register(_close, weakref.ref(self))

    def offer(self, seen: Sequence[_Seen], used: Sequence[_Used]) -> None:
        """Take what came of a pipeline call; returns at once."""
        with self._change:
            room = max(0, _MOST_WAITING - len(self._seen))
            self.dropped += len(seen[room:])
            self._seen += seen[:room]
            self._used += used
            self._change.notify_all()

    def flush(self) -> None:
        """Store what waits, and return when it is stored (or could not be, which warns)."""
        with self._change:
            self._hurry = True
            self._change.notify_all()
            self._change.wait_for(lambda: not self._hurry or not self._thread.is_alive())

    def close(self) -> None:
        """Store what waits, and end."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._change:
                self._hurry = self._hurry and bool(self._seen or self._used)  # asked for while others were being stored
                self._change.notify_all()
                self._change.wait_for(lambda: self._seen or self._used or self._hurry or self._closed)
                in_time = time.monotonic() + self._growth.delay
                while not (self._closed or self._hurry or len(self._seen) >= self._growth.group):
                    left = in_time - time.monotonic()
                    if left <= 0 or not self._change.wait(left):
                        break
                seen, self._seen = self._seen, []
                used, self._used = self._used, []
                closed = self._closed
            try:
                if seen or used:
                    self._store(seen, used)
            except Exception as error:
                self._put_back(seen, used, error)
            if closed:
                return

    def _put_back(self, seen: list[_Seen], used: list[_Used], error: Exception) -> None:
        """Try again later if the disk or another process stands in the way; whatever else it is costs these entries."""
        again = isinstance(error, KnowledgeBaseError) and not self._closed
        later = "they are tried again" if again else "they are lost"
        warn(f"{len(seen)} pictures that ran in full could not be added to {self._base.path}; {later}\n  {error}")
        if again:
            with self._change:
                self._seen, self._used = [*seen, *self._seen][:_MOST_WAITING], [*used, *self._used][:_MOST_WAITING]
                self._hurry = False
                self._change.notify_all()
                self._change.wait_for(lambda: self._closed, timeout=max(1.0, self._growth.delay))

    def _store(self, seen: list[_Seen], used: list[_Used]) -> None:
        counted: dict[Name, tuple[int, float]] = {}
        for each in used:
            share = each.saved / len(each.rows)
            self._worth = share
            try:
                entries = each.base.entries(each.rows)
            except KnowledgeBaseError:  # its version is gone; a count is less than what waits behind it
                continue
            for entry in entries:
                uses, saved = counted.get((entry.unit, entry.slot), (0, 0.0))
                counted[entry.unit, entry.slot] = (uses + 1, saved + share)
        plan = self._base.plan
        worth = self._worth or float(plan.value_steps[-1] - plan.key_step)
        grown = add_grown(self._base, self._batch(seen), self._growth, counted, worth)
        self.added += grown.added
        self.evicted += grown.evicted

    def _batch(self, seen: list[_Seen]) -> EntryBatch | None:
        bank = self._base.noise_bank
        whole = [each for each in seen if all(bool(latents.isfinite().all()) for latents in each.latents.values())]
        if not whole:
            return None
        steps = {step: torch.stack([each.latents[step].cpu() for each in whole]) for step in whole[0].latents}
        return EntryBatch(
            prompts=[each.prompt for each in whole],
            noise_ids=[each.noise_id for each in whole],
            seeds=[bank.seeds[each.noise_id] for each in whole],
            keys={step: steps[step] for step in self._base.plan.key_steps},
            values={step: steps[step] for step in self._base.plan.value_steps},
        )


def _close(reference: weakref.ref[Grower]) -> None:
    grower = reference()
    if grower is not None:
        grower.close()


class GrowingPolicy(JumpPolicy):
    """Algorithm 2, and what its full runs pass through is kept: key and values of an image that abstained.

    Args:
        base: Where to search.
        scheduler: The pipeline's.
        rule: How images jump.
        grower: Stores what is kept.
    """

    def __init__(self, base: KnowledgeBase, scheduler: Any, rule: JumpRule, grower: Grower) -> None:
        super().__init__(base, scheduler, rule)
        self._grower = grower
        self._steps = {*base.plan.key_steps, *base.plan.value_steps}
        self._seen: dict[int, Tensor] = {}

    def on_start(self, latents: Tensor) -> None:
        """Start with nothing seen."""
        self._seen = {}
        super().on_start(latents)

    def on_step(self, completed: int, latents: Tensor) -> None:
        """Keep a copy, on the run's device, of what an entry needs."""
        if completed in self._steps and not all(decision.jump for decision in self.decisions):
            self._seen[completed] = latents.detach().clone()

    def ended(self, pipe: Any, arguments: Mapping[str, Any], reports: Sequence[Report], *, swapped: bool) -> None:
        """Hand over the images that ran in full from a noise of the bank, and the entries that others jumped with."""
        used = [
            _Used(self.base, decision.rows, float(report.full_calls - report.calls))
            for decision, report in zip(self.decisions, reports, strict=True)
            if decision.jump
        ]
        seen: list[_Seen] = []
        if self._seen.keys() == self._steps and not swapped and is_plain(pipe, arguments):
            seen = [
                _Seen(report.prompt, decision.noise_id, {step: each[image] for step, each in self._seen.items()})
                for image, (decision, report) in enumerate(zip(self.decisions, reports, strict=True))
                if decision.jump is None and decision.noise_id is not None
            ]
        self._seen = {}
        self._grower.offer(seen, used)


def is_plain(pipe: Any, arguments: Mapping[str, Any]) -> bool:
    """Say whether a call's trajectories follow from its prompt and its noise, as those of a build do.

    The base's own settings have been compared before. What is left are arguments that may differ from image to image:
    other prompts beside the first, embeddings in their place, callbacks that may change latents; and caches.
    """
    prompt = arguments.get("prompt")
    if prompt is None or has_caches(pipe):
        return False
    known = parameters_of(pipe)
    for name, value in arguments.items():
        if value is None:
            continue
        called = name.startswith("callback") and not isinstance(value, int | list | tuple)
        if name not in known or called or "embeds" in name or name == "attention_mask":
            return False
        if name.startswith("prompt_") and value != prompt:
            return False
    return True
