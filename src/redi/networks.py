"""Owns the networks of a pipeline while its loop runs: which rows are evaluated, remembered answers, counts, time.

Must not know schedulers or policies: the engine says which images are awake.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from redi.caches import refresh_caches, refuse_untested_caches, restored_caches
from redi.conditioning import Conditioning
from redi.patching import patched_networks, siblings_of
from redi.rows import put_rows, rows_of_images, take_rows, take_rows_of_call


@dataclass
class RunStatistics:
    """What a run evaluated. Per image, in the order of the pipeline's rows; several pipeline calls follow each other.

    ``calls`` and ``skipped_calls`` are counted on the networks, from ``set_timesteps`` to the last ``step``: a row
    counts as called when it was among the rows evaluated, as skipped when it was answered from memory.
    ``network_calls`` counts evaluations whatever their rows. Seconds are complete once the run has ended; on a GPU
    network seconds are measured on the device. ``interrupted_after`` is the number of scheduler calls after which the
    last loop was left before its end (the pipeline's ``interrupt`` flag); None if it was not.
    """

    calls: list[int] = field(default_factory=list)
    skipped_calls: list[int] = field(default_factory=list)
    network_seconds: float = 0.0
    policy_seconds: float = 0.0
    network_calls: int = 0
    interrupted_after: int | None = None


class Stopwatch:
    """Adds up the time of ``with watch.running(device)`` blocks, on a GPU without waiting for it until it is read."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Measure the block; work that the block queues on a CUDA ``device`` is measured there."""
        if device.type != "cuda":
            start = time.perf_counter()
            try:
                yield
            finally:
                self._seconds += time.perf_counter() - start
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record(torch.cuda.current_stream(device))
        try:
            yield
        finally:
            end.record(torch.cuda.current_stream(device))
            self._events.append((begin, end))

    def read(self) -> float:
        """Return the seconds so far, waiting for queued work."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000
        self._events.clear()
        return self._seconds


class Networks:
    """The networks of one pipeline, patched from :meth:`open` to :meth:`close`.

    The engine sets ``batch`` once it is known, and ``awake`` before every step of the loop (None: every image).
    An answer is remembered per network and per position of its call within a step, so that pipelines that call a
    network twice a step (conditional, unconditional) get each answer back in its place.
    """

    def __init__(self, pipe: Any, statistics: RunStatistics, tail_conditioning: Conditioning | None) -> None:
        self._pipe = pipe
        self._statistics = statistics
        self._conditioning = tail_conditioning
        self._patches = ExitStack()
        self._watch = Stopwatch()
        self._first_image = 0
        self._thread = threading.get_ident()
        self.begin_loop()

    def begin_loop(self) -> None:
        """Forget the last loop."""
        self.batch: int | None = None
        self.awake: Sequence[int] | None = None
        self.in_tail = False
        self._swapped = False
        self._memory: dict[tuple[str, int], Any] = {}
        self._position: dict[str, int] = {}
        self._denoising: set[str] = set()
        self._calls_before_first_step = 0

    def open(self) -> None:
        """Patch every network component of the pipeline.

        Raises:
            UnsupportedError: A network has a cache that cannot follow a jump.
        """
        self.close()
        refuse_untested_caches(self._pipe)
        self._patches.enter_context(restored_caches(self._pipe))
        self._patches.enter_context(patched_networks(self._pipe, self._call))

    def close(self) -> None:
        """Leave the networks as they were."""
        self._patches.close()

    def know_batch(self, batch: int) -> None:
        """Learn, at the first step, how many images there are; what was called by then, and its kind, denoises."""
        self.batch = batch
        called = {name for name, _ in self._memory}
        self._denoising = called.union(*(siblings_of(self._pipe, name) for name in called))
        self._first_image = len(self._statistics.calls)
        self._statistics.calls += [self._calls_before_first_step] * batch
        self._statistics.skipped_calls += [0] * batch

    def next_step(self, awake: Sequence[int] | None) -> None:
        """Start the next step of the loop, with these images awake (None: all)."""
        swapped = self._conditioning is not None and self.in_tail
        if (awake != self.awake or swapped != self._swapped) and awake != []:
            refresh_caches(self._pipe)
            self._swapped = swapped
        self.awake = awake
        self._position.clear()

    def seconds(self) -> float:
        """Return the seconds spent in evaluations."""
        return self._watch.read()

    def _call(self, name: str, evaluate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Answer one call of a network: the awake rows evaluated, the others from memory."""
        if threading.get_ident() != self._thread:  # another pipeline that shares the network
            return evaluate(*args, **kwargs)
        if self.batch is not None and name not in self._denoising:  # a text encoder that the user's callback calls
            return evaluate(*args, **kwargs)
        position = self._position[name] = self._position.get(name, -1) + 1
        place = (name, position)
        total, device = _rows_and_device(args, kwargs)
        remembered = None if self.batch is None or self.awake is None else self._remembered(name, position, total)
        if remembered is None:
            images: Sequence[int] | None = None
        elif not self.awake:
            self._count([])
            return remembered
        else:
            images = self.awake if total is not None and self.batch and total % self.batch == 0 else None

        if self._conditioning is not None and self.in_tail and self.batch is not None:
            args, kwargs = self._conditioning.merge(name, position, evaluate, args, kwargs, self.batch)
        self._count(images)
        if images is None or total is None or self.batch is None:
            with self._watch.running(device):
                answer = evaluate(*args, **kwargs)
        else:
            rows = rows_of_images(images, self.batch, total)
            args, kwargs = take_rows(args, rows, total), take_rows_of_call(kwargs, rows, total)
            with self._watch.running(device):
                part = evaluate(*args, **kwargs)
            answer = put_rows(remembered, part, rows, total)
        self._memory[place] = answer
        return answer

    def _remembered(self, name: str, position: int, total: int | None) -> Any:
        """Return the answer at this position of a step, None if there is none to take.

        An expert that takes over while images sleep, or guidance that begins then, has none of its own; that of a
        network of the same class, or of another position, has its form if it has as many rows (``total``), and the
        rows that sleep are not looked at.
        """
        if (name, position) in self._memory:
            return self._memory[name, position]
        names = (name, *siblings_of(self._pipe, name))
        places = [(each, position) for each in names] + [(each, 0) for each in names]
        answers = (self._memory[place] for place in places if place in self._memory)
        return next((answer for answer in answers if total is not None and _rows_of(answer) == total), None)

    def _count(self, images: Sequence[int] | None) -> None:
        """Count one call that evaluates these images (None: all)."""
        evaluated = images is None or len(images) > 0
        self._statistics.network_calls += evaluated
        if self.batch is None:
            self._calls_before_first_step += 1
            return
        called = set(range(self.batch)) if images is None else set(images)
        for image in range(self.batch):
            counts = self._statistics.calls if image in called else self._statistics.skipped_calls
            counts[self._first_image + image] += 1


def _rows_and_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | None, torch.device]:
    """Return the rows and the device of a network's first argument, the latents; no rows if that is no tensor."""
    latents = args[0] if args else next(iter(kwargs.values()), None)
    if isinstance(latents, Tensor) and latents.ndim > 0:
        return latents.shape[0], latents.device
    return None, torch.device("cpu")


def _rows_of(answer: Any) -> int | None:
    """Return the rows of a network's answer, of its first tensor."""
    if isinstance(answer, Tensor):
        return answer.shape[0] if answer.ndim else None
    parts = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, list | tuple) else ()
    return next((rows for part in parts if (rows := _rows_of(part)) is not None), None)
