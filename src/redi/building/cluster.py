"""Owns recording units on the workers of a Ray cluster, whatever of it dies; must not know how entries are stored."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redi.building.unit_recorder import Recorded, UnitRecorder
from redi.building.units import Unit
from redi.errors import IncompatibleError, InputError, KnowledgeBaseError, UnsupportedError, warn
from redi.identity import compared, identity_of
from redi.knowledge_base import EntryBatch, describe_differences, differences

_IN_FLIGHT = 2  # one that runs and one that waits, so that a worker never waits for the commit
_DEATHS_OF_UNIT, _DEATHS_OF_PROMPT = 3, 2
_TICK, _PATIENCE = 1.0, 600.0


@dataclass(frozen=True)
class Cluster:
    """Where a build records its units: one pipeline on each of some workers, entries committed by this process alone.

    Args:
        load: Called without arguments on every worker: returns the pipeline, the same as that of the build. A function
            of an installed module, or ``functools.partial`` of one.
        address: "local" starts Ray on this machine, "auto" joins the cluster that it is part of; or host:port.
        workers: How many; by default one for each GPU, without GPUs one for each machine.

    Raises:
        InputError: ``load`` cannot be called, or ``workers`` is no number of at least 1.
    """

    load: Callable[[], Any]
    address: str = "local"
    workers: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.load):
            raise InputError(f"load of type {type(self.load).__name__}", expected="a function that returns a pipeline")
        good = self.workers is None or (type(self.workers) is int and self.workers >= 1)
        if not good:
            raise InputError(f"workers={self.workers!r}", expected="a whole number of at least 1")


@dataclass(frozen=True)
class Check:
    """What a worker's pipeline must be: the build's identity, and the arguments that it was read with."""

    identity: Mapping[str, Any]
    arguments: Mapping[str, Any]
    revision: str | None


def record_on_cluster(
    cluster: Cluster,
    recorder: UnitRecorder,
    check: Check,
    units: Sequence[Unit],
    noises_of: Callable[[Unit], Tensor],
    commit: Callable[[Unit, Recorded], None],
) -> None:
    """Record units on workers and commit each here, once, whatever dies meanwhile.

    A worker that dies, with its machine or alone, is replaced and its units are handed out again; a unit that is still
    out when others have nothing to do is handed out twice, and what comes first counts. A unit that killed its worker
    three times is handed out prompt by prompt, and a prompt that does so again is refused.

    Args:
        cluster: Where.
        recorder: How; its pipeline stays here, a worker has its own.
        check: What a worker's pipeline must be.
        units: Which, in any order.
        noises_of: Returns a unit's noises (n, *shape).
        commit: Keeps a unit; called in this thread, once for each.

    Raises:
        UnsupportedError: Ray is not installed.
        IncompatibleError: A worker loaded another model than the build's.
        KnowledgeBaseError: No cluster is there, no worker starts, or workers die without ever finishing anything.
        Exception: The model loads on no worker, or a pipeline raised one that is not a prompt's fault.
    """
    with _connected(cluster.address) as ray:
        crew = _Crew(ray, cluster, replace(recorder, pipe=None), check, noises_of, commit, units)
        try:
            crew.run()
        finally:
            crew.dismiss()


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Connect to the cluster, or start one; an existing connection is used and left."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UnsupportedError("a build on Ray without Ray", expected="ray", fix="pip install 'redi[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address == "local" else None)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise KnowledgeBaseError(
            f"no Ray cluster at {address!r}: {error}",
            expected="'local', 'auto' or host:port of a running cluster",
            fix="ray start --head on one machine, ray start --address=... on the others",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


class _Worker:
    """One pipeline on one worker (a Ray actor)."""

    def __init__(self, load: Callable[[], Any], recorder: UnitRecorder, check: Check) -> None:
        self._load, self._recorder, self._check = load, recorder, check

    def start(self) -> str:
        """Load the pipeline, and say what differs between the build's and this one; empty if nothing does."""
        self._recorder = replace(self._recorder, pipe=self._load())
        own = identity_of(self._recorder.pipe, revision=self._check.revision, **self._check.arguments)
        found = differences(compared(self._check.identity), compared(own))
        return describe_differences(found) if found else ""

    def record(self, unit: Unit, noises: Tensor) -> Recorded:
        return self._recorder.unit(unit, noises)


@dataclass(frozen=True)
class _Task:
    """A unit, or one prompt of it at some place."""

    unit: Unit
    place: int | None = None

    def given(self) -> Unit:
        if self.place is None:
            return self.unit
        one = slice(self.place, self.place + 1)
        unit = self.unit
        return Unit(unit.number, unit.prompts[one], unit.noise_ids[one], unit.seeds[one])


class _Crew:
    """Workers, what each was given, and what is still to be done."""

    def __init__(
        self,
        ray: Any,
        cluster: Cluster,
        recorder: UnitRecorder,
        check: Check,
        noises_of: Callable[[Unit], Tensor],
        commit: Callable[[Unit, Recorded], None],
        units: Sequence[Unit],
    ) -> None:
        self._ray, self._cluster, self._recorder, self._check = ray, cluster, recorder, check
        self._noises_of, self._commit = noises_of, commit
        self._waiting = deque(_Task(unit) for unit in units)
        self._open = {unit.number for unit in units}
        self._pieces: dict[int, dict[int, Recorded]] = {}
        self._starting: dict[Any, Any] = {}
        self._ready: list[Any] = []
        self._out: dict[Any, tuple[Any, _Task]] = {}
        self._deaths: Counter[_Task] = Counter()
        self._lost_in_a_row = 0
        self._since = time.monotonic()

    def run(self) -> None:
        """Hand out and take in until every unit is committed."""
        for _ in range(self._size()):
            self._hire()
        while self._open:
            self._hand_out()
            refs = [*self._starting, *self._out]
            for ref in self._ray.wait(refs, num_returns=1, timeout=_TICK)[0]:
                self._take(ref)
            if self._ready:
                self._since = time.monotonic()
            elif time.monotonic() - self._since > _PATIENCE:
                raise KnowledgeBaseError(
                    f"no worker started in {_PATIENCE:.0f} s",
                    expected="a free GPU, or a free CPU where the cluster has none",
                    fix="ray status tells what the cluster has; ask for fewer workers, or start more machines",
                )

    def dismiss(self) -> None:
        """End the workers, also those that still record what is committed by now."""
        for worker in [*self._starting.values(), *self._ready]:
            self._ray.kill(worker)

    def _size(self) -> int:
        gpus = int(self._ray.cluster_resources().get("GPU", 0))
        machines = sum(node["Alive"] for node in self._ray.nodes())
        return min(self._cluster.workers or gpus or machines, len(self._open))

    def _hire(self) -> None:
        gpus = self._ray.cluster_resources().get("GPU", 0)
        needs = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        kind = self._ray.remote(_Worker).options(**needs, max_restarts=0, scheduling_strategy="SPREAD")
        worker = kind.remote(self._cluster.load, self._recorder, self._check)
        self._starting[worker.start.remote()] = worker

    def _hand_out(self) -> None:
        loads = Counter(worker for worker, _ in self._out.values())
        for depth in range(_IN_FLIGHT):
            for worker in self._ready:
                if loads[worker] == depth and (task := self._next(idle=depth == 0)):
                    noises = self._noises_of(task.given())
                    self._out[worker.record.remote(task.given(), noises)] = worker, task
                    loads[worker] += 1

    def _next(self, *, idle: bool) -> _Task | None:
        """Return what to do next; for an idle worker, if nothing waits, what another has had longest and alone."""
        while self._waiting:
            task = self._waiting.popleft()
            if self._is_open(task):
                return task
        copies = Counter(task for _, task in self._out.values())
        again = (task for _, task in self._out.values() if copies[task] == 1 and self._is_open(task))
        return next(again, None) if idle else None

    def _is_open(self, task: _Task) -> bool:
        number = task.unit.number
        if task.place is None:
            return number in self._open and number not in self._pieces
        return number in self._open and task.place not in self._pieces[number]

    def _take(self, ref: Any) -> None:
        from ray.exceptions import RayError, RayTaskError

        if ref not in self._starting and ref not in self._out:
            return
        worker = self._starting[ref] if ref in self._starting else self._out[ref][0]
        try:
            found = self._ray.get(ref)
        except RayTaskError as error:
            self._raised(ref, worker, getattr(error, "cause", None) or error)
            return
        except RayError as error:
            self._lose(worker, error)
            return
        if self._starting.pop(ref, None):
            if found:
                raise IncompatibleError(
                    f"a worker loaded another pipeline than the build's:\n{found}",
                    expected="the same model on every machine",
                    fix="put the same files at the same place everywhere",
                )
            self._ready.append(worker)
            return
        _, task = self._out.pop(ref)
        self._lost_in_a_row = 0
        if self._is_open(task):
            self._keep(task, found)

    def _raised(self, ref: Any, worker: Any, error: Exception) -> None:
        """Do without a worker whose model did not load, if there are others."""
        if self._starting.pop(ref, None) is None:
            raise error
        self._ray.kill(worker)
        if not self._ready and not self._starting:
            raise error
        warn(f"a worker could not load the model, the build goes on without it: {error}")

    def _keep(self, task: _Task, found: Recorded) -> None:
        number = task.unit.number
        if task.place is not None:
            pieces = self._pieces[number]
            pieces[task.place] = found
            if len(pieces) < len(task.unit.prompts):
                return
            found = _together(task.unit, [pieces[place] for place in sorted(pieces)])
        self._commit(task.unit, found)
        self._open.discard(number)
        self._pieces.pop(number, None)

    def _lose(self, worker: Any, error: Exception) -> None:
        """Forget a worker that died, hand out again what it had, and replace it."""
        self._lost_in_a_row += 1
        if self._lost_in_a_row > 3 * (len(self._ready) + len(self._starting) + 1):
            raise KnowledgeBaseError(
                f"{self._lost_in_a_row} workers died without finishing anything; the last one said: {error}",
                expected="workers with memory for the model and a batch",
                fix="a smaller batch size, fewer workers on a machine, or load() tried by hand there",
            ) from error
        self._starting = {ref: each for ref, each in self._starting.items() if each is not worker}
        self._ready = [each for each in self._ready if each is not worker]
        had = [(ref, task) for ref, (each, task) in self._out.items() if each is worker]
        for ref, _ in had:
            del self._out[ref]
        if had:
            self._deaths[had[0][1]] += 1  # the first ran, the other waited behind it
        for _, task in reversed(had):
            self._waiting.extendleft(reversed(self._again(task)))
        self._hire()

    def _again(self, task: _Task) -> list[_Task]:
        deaths = self._deaths[task]
        if task.place is None and deaths >= _DEATHS_OF_UNIT and self._is_open(task):
            self._pieces[task.unit.number] = {}
            return [_Task(task.unit, place) for place in range(len(task.unit.prompts))]
        if task.place is not None and deaths >= _DEATHS_OF_PROMPT and self._is_open(task):
            self._keep(task, self._refused(task, f"its worker died {deaths} times"))
            return []
        return [task]

    def _refused(self, task: _Task, reason: str) -> Recorded:
        unit, plan = task.given(), self._recorder.plan
        nothing = torch.full_like(self._noises_of(unit), torch.nan)
        keys, values = (dict.fromkeys(steps, nothing) for steps in (plan.key_steps, plan.value_steps))
        return Recorded(EntryBatch(unit.prompts, unit.noise_ids, unit.seeds, keys, values, {0: reason}))


def _together(unit: Unit, pieces: Sequence[Recorded]) -> Recorded:
    """Return a unit's entries from those of each of its prompts, in order."""
    batches = [piece.batch for piece in pieces]
    keys, values = (
        {step: torch.cat([each[step].float() for each in kind]) for step in kind[0]}
        for kind in ([batch.keys for batch in batches], [batch.values for batch in batches])
    )
    failed = {place: batch.failed[0] for place, batch in enumerate(batches) if batch.failed}
    outputs = {place: piece.outputs[0] for place, piece in enumerate(pieces) if piece.outputs}
    return Recorded(EntryBatch(unit.prompts, unit.noise_ids, unit.seeds, keys, values, failed), outputs)
