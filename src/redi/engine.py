"""Owns running a stock pipeline with ghost steps (Algorithm 2's loop); must not know how a neighbour is found.

The pipeline keeps its own loop, schedule and indices. Between the key step and the value step of a jump the networks
hand back their last answer and ``scheduler.step`` hands back its input, so these steps cost nothing; at the value step
the solver restarts. One policy interface serves recording and jumping, so that their indices cannot disagree.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from redi.conditioning import Conditioning
from redi.errors import PlanError, RetrievalError, UnsupportedError
from redi.lanes import Lane
from redi.modular import free_hooks, refuse_momentum
from redi.networks import Networks, RunStatistics
from redi.patching import patched
from redi.rows import put_rows
from redi.solvers import SolverFacts, facts_for, latents_of, twin
from redi.solvers.admitted import refuse_noise, warn_of_noise

__all__ = ["Jump", "Policy", "RunStatistics", "StopTrajectory", "run"]


@dataclass(frozen=True)
class Jump:
    """Go on with ``latents`` (one image's, without batch axis, any float dtype) after ``value_step`` steps."""

    value_step: int
    latents: Tensor


class Policy(Protocol):
    """What to do along a trajectory. Latents are the pipeline's own: do not write into them."""

    key_step: int | None
    """Completed steps after which :meth:`at_key` is asked; None: never."""

    def on_start(self, latents: Tensor) -> None:
        """See x_T ``(b, ...)`` as the first step gets it, scaled by the scheduler's ``init_noise_sigma``."""

    def at_key(self, latents: Tensor) -> Sequence[Jump | None]:
        """Decide for every row of x_k ``(b, ...)``: a jump, or None to abstain."""

    def on_step(self, completed: int, latents: Tensor) -> None:
        """See the whole batch ``(b, ...)`` after ``completed`` steps; not called when every image slept."""


class StopTrajectory(BaseException):
    """Raised by a policy to end the pipeline call early; it comes out of the pipeline call. A BaseException so that no
    pipeline takes it for an error of its blocks."""


@contextmanager
def run(
    pipe: Any, policy: Policy, *, tail_conditioning: Conditioning | None = None, allow_stochastic: bool = False
) -> Iterator[RunStatistics]:
    """Run the pipeline calls inside the block under ``policy`` (Algorithm 2; sections 4.1 and 4.2).

    Args:
        pipe: A Diffusers pipeline. Its scheduler, and while its loop runs its networks, are patched on the instance;
            afterwards, also after an exception, they are as before.
        policy: Watches the trajectories and decides where they jump.
        tail_conditioning: Sent to the networks instead of the pipeline's own after the key step (section 4.3).
        allow_stochastic: Run samplers that add noise, with a warning, instead of refusing them.

    Yields:
        The run's statistics, complete once the block has ended.

    Raises:
        UnsupportedError: The scheduler is not admitted, PNDM starts inside its schedule (image-to-image), a guider
            keeps momentum, or
            the pipeline is already run by redi.
        PlanError: A jump leads to a step that is not between the key step and the end.
        RetrievalError: ``at_key`` returned something else than one decision, of the latents' shape, per image.
    """
    if policy.key_step is not None:
        refuse_momentum(pipe)
    statistics = RunStatistics()
    networks = Networks(pipe, statistics, tail_conditioning)
    facts = facts_for(pipe.scheduler, allow_stochastic=allow_stochastic)
    loop = _Loop(pipe.scheduler, facts, policy, networks, statistics, allow_stochastic)
    with ExitStack() as cleanup:
        cleanup.callback(lambda: setattr(statistics, "network_seconds", networks.seconds()))
        cleanup.callback(networks.close)
        cleanup.enter_context(patched(pipe.scheduler, "set_timesteps", loop.begin))
        cleanup.enter_context(patched(pipe.scheduler, "step", loop.step))
        try:
            yield statistics
            loop.tell_interruption()
        except StopTrajectory:
            free_hooks(pipe)
            raise


class _Loop:
    """One denoising loop of the pipeline, seen from ``scheduler.step``."""

    def __init__(
        self,
        scheduler: Any,
        facts: SolverFacts,
        policy: Policy,
        networks: Networks,
        statistics: RunStatistics,
        allow_stochastic: bool,
    ) -> None:
        self.scheduler, self.facts, self.policy = scheduler, facts, policy
        self.allow_stochastic = allow_stochastic
        self.networks, self.statistics = networks, statistics
        self.signature = inspect.signature(scheduler.step)
        self.running = False
        self.thread = threading.get_ident()

    def begin(self, set_timesteps: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Start a loop: the pipeline has asked its scheduler for a schedule."""
        self._refuse_other_threads()
        result = set_timesteps(*args, **kwargs)
        self.running, self.started = True, False
        self.calls_done = 0
        self.lanes: list[Lane] = []  # empty while the whole batch goes one way: the head, or everyone abstains
        self.networks.begin_loop()
        self.networks.open()
        return result

    def step(self, plain_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make one call of ``scheduler.step``: Algorithm 2, one iteration."""
        self._refuse_other_threads()
        if not self.running:
            return plain_step(*args, **kwargs)
        arguments = self.signature.bind(*args, **kwargs).arguments
        if not self.started:
            self._start(arguments)
            self.started = True

        ghost_step = self._awake() == []
        output = self._step_lanes(arguments) if self.lanes else plain_step(*args, **kwargs)
        self.calls_done += 1

        steps = self.scheduler.num_inference_steps
        completed = steps if self.calls_done == self.total_calls else self.facts.completed_steps(self.calls_done)
        if completed is not None and not ghost_step:
            self._ask(self.policy.on_step, completed, latents_of(output))
        if completed is not None and completed == self.policy.key_step:
            output = _with_latents(output, self._jump(latents_of(output)))
        self.output = output

        self.networks.next_step(self._awake())
        if self.calls_done == self.total_calls:
            self._end()
        return output

    def tell_interruption(self) -> None:
        """Say that the pipeline returned before the end of its schedule (its ``interrupt`` flag skips the rest)."""
        if self.running and self.calls_done:
            self.statistics.interrupted_after = self.calls_done

    def _refuse_other_threads(self) -> None:
        if threading.get_ident() != self.thread:
            raise UnsupportedError(
                f"a {type(self.scheduler).__name__} used by another thread while redi runs a pipeline with it",
                expected="one loop at a time: the scheduler holds the state of one",
                fix="call the pipelines in turn, or give each a scheduler of its own (from_config)",
            )

    def _start(self, arguments: dict[str, Any]) -> None:
        """Meet the first latents: the scheduler has made no step yet, and a jump restarts from its state.

        Image-to-image and inpainting begin inside the schedule, at a slice of its timesteps. Their steps are counted
        on the whole schedule, so that indices mean what they mean from pure noise.
        """
        noise = self.facts.noise_of(self.scheduler) or self.facts.noise_in(arguments)
        if noise:
            what = f"{type(self.scheduler).__name__} with {noise}"
            warn_of_noise(what) if self.allow_stochastic else refuse_noise(what)
        timesteps = self.scheduler.timesteps
        self.total_calls = self.facts.total_calls(self.scheduler.num_inference_steps)
        start = torch.as_tensor(arguments["timestep"]).flatten()[0]
        begin = getattr(self.scheduler, "begin_index", None) or 0
        if not begin and len(timesteps) and bool(start != timesteps[0]):
            begin = next(iter((timesteps == start).nonzero().flatten().tolist()), 0)
        if len(timesteps) != self.total_calls or bool(start != timesteps[begin]):
            raise UnsupportedError(
                f"a loop from timestep {start:g} of a schedule of {len(timesteps)} calls",
                expected=f"a timestep of the schedule, and all {self.total_calls} calls of it",
                fix="run this pipeline without redi",
            )
        if begin and (self.facts.completed_steps(begin) is None or self.facts.call_index(1) != self.scheduler.order):
            raise UnsupportedError(
                f"a loop of {type(self.scheduler).__name__} from call {begin} of its schedule (image-to-image)",
                expected="a sampler whose first step is made like every other",
                fix="pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config), or strength=1",
            )
        self.calls_done = begin
        latents = arguments["sample"]
        self.batch = len(latents)
        self.pristine = twin(self.scheduler)
        self.networks.know_batch(self.batch)
        self._ask(self.policy.on_start, latents)

    def _step_lanes(self, arguments: dict[str, Any]) -> Any:
        """Step the images that are awake, each lane with its own solver; a ghost step for the others."""
        output = _with_latents(self.output, arguments["sample"])
        for lane in self.lanes:
            if lane.wakes_at <= self.calls_done:
                output = put_rows(output, lane.step(self.facts, arguments, self.batch), lane.images, self.batch)
                self.facts.follow(self.scheduler, lane.scheduler)
        if hasattr(self.scheduler, "_step_index"):
            self.scheduler._step_index = self.calls_done + 1
        return output

    def _jump(self, query: Tensor) -> Tensor:
        """Ask the policy at x_k and return the latents to go on with: x_v where it jumps, x_k where it abstains."""
        if query.is_cuda:
            torch.cuda.synchronize(query.device)  # so that the policy is not charged for queued network work
        jumps = self._ask(self.policy.at_key, query)
        self.networks.in_tail = True
        self._check(jumps, query)
        if not any(jumps):
            return query

        latents = query.clone()
        lanes: dict[int | None, list[int]] = {}
        for image, jump in enumerate(jumps):
            lanes.setdefault(jump.value_step if jump else None, []).append(image)
        jumping = [image for image, jump in enumerate(jumps) if jump]
        latents[jumping] = torch.stack([jump.latents.to(query.dtype) for jump in jumps if jump]).to(query.device)
        for value_step, images in lanes.items():
            if value_step is None:
                self.lanes.append(Lane.going_on(images, self.scheduler, query))
            else:
                self.lanes.append(Lane.jumping(images, self.pristine, self.facts, value_step))
        return latents

    def _check(self, jumps: Sequence[Jump | None], query: Tensor) -> None:
        if len(jumps) != self.batch:
            raise RetrievalError(f"{len(jumps)} decisions at the key step", expected=f"one per image, {self.batch}")
        for jump in filter(None, jumps):
            if jump.latents.shape != query.shape[1:]:
                raise RetrievalError(
                    f"latents of shape {tuple(jump.latents.shape)} to jump to",
                    expected=f"the run's shape {tuple(query.shape[1:])}",
                )
            if not self.calls_done < self.facts.call_index(jump.value_step) < self.total_calls:
                raise PlanError(
                    f"value_step={jump.value_step}",
                    expected=f"a step after the key step {self.policy.key_step} "
                    f"and before the last of {self.scheduler.num_inference_steps}",
                )

    def _awake(self) -> list[int] | None:
        """Return the images that the next step evaluates; None for all."""
        if not self.lanes:
            return None
        return sorted(i for lane in self.lanes if lane.wakes_at <= self.calls_done for i in lane.images)

    def _ask(self, question: Callable[..., Any], *about: Any) -> Any:
        start = time.perf_counter()
        try:
            return question(*about)
        finally:
            self.statistics.policy_seconds += time.perf_counter() - start

    def _end(self) -> None:
        """Release the networks and what was kept for the loop."""
        self.running = False
        self.networks.close()
        self.networks.begin_loop()
        self.lanes, self.output, self.pristine = [], None, None


def _with_latents(output: Any, latents: Tensor) -> Any:
    """Return the same output with other latents."""
    if latents_of(output) is latents:
        return output
    if isinstance(output, tuple):
        return (latents, *output[1:])
    return type(output)(**{**output, "prev_sample": latents})
