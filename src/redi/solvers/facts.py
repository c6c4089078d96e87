"""Owns what redi knows about a family of Diffusers schedulers; must not know pipelines, policies or knowledge bases.

For every family: how many ``step()`` calls a completed step takes, how the solver goes on after a jump, and what adds
noise. A restart means: solver state as before the first step, index at v; a neighbour's history is worse than none as
soon as the neighbour differs from the query.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from redi.solvers.retaking import Reading, edm_reading, reading, retake, reworded

Settings = Mapping[str, tuple[Any, ...] | None]


@dataclass(frozen=True)
class FirstCall:
    """What the first call after a jump was given, and what it came to; kept until the second.

    Args:
        latents: x_v (b, ...).
        data: The prediction of x_0 there, float32.
        came_to: The latents that the call returned.
    """

    latents: Tensor
    data: Tensor
    came_to: Tensor


@dataclass
class Restart:
    """A solver's way from a jump on.

    Args:
        call_index: Calls that are done at the jump.
        retakes: Whether the first step is taken again with the second call's answer.
        calls: Calls that have been made since.
        first: The first of them, until the second.
    """

    call_index: int
    retakes: bool
    calls: int = 0
    first: FirstCall | None = None


@dataclass(frozen=True)
class SolverFacts:
    """What the engine must know about one scheduler class. Steps are counted completed, calls are ``step()`` calls.

    The class itself stands for solvers without history (Euler, DDIM), which lose nothing by a jump.

    Args:
        settings: Config values that were tested, by name; None where any value will do, because it only moves the
            schedule's numbers. What is not named must have the class's default.
        noisy_settings: Config values that make the sampler stochastic, by name.
        noisy_arguments: Arguments of ``step`` that add noise when they are greater than zero.
        noisy: Whether the sampler always adds noise.
    """

    settings: Settings = field(default_factory=dict)
    noisy_settings: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    noisy_arguments: tuple[str, ...] = ()
    noisy: bool = False

    def call_index(self, completed_steps: int) -> int:
        """Return how many calls are done after ``completed_steps`` steps; of the last step, see ``total_calls``."""
        return completed_steps

    def completed_steps(self, call_index: int) -> int | None:
        """Return how many steps are completed after ``call_index`` calls, None inside a step."""
        return call_index

    def total_calls(self, num_inference_steps: int) -> int:
        """Return how many calls a whole schedule makes."""
        return self.call_index(num_inference_steps)

    def loses_nothing(self, scheduler: Any, completed_steps: int) -> bool:
        """Tell whether a jump to the run's own x_v gives the run's own result, bit for bit."""
        return True

    def gains(self, scheduler: Any) -> bool:
        """Tell whether taking the first step after a jump again has been measured to be better than an Euler step."""
        return False

    def restart(self, scheduler: Any, completed_steps: int) -> Restart:
        """Make ``scheduler``, in its state before the first step, go on after ``completed_steps`` steps."""
        call_index = self.call_index(completed_steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(call_index)
            scheduler._step_index = None
        exact = self.loses_nothing(scheduler, completed_steps) or self.noise_of(scheduler) is not None
        return Restart(call_index, retakes=not exact and self.gains(scheduler))

    def step(self, scheduler: Any, arguments: Mapping[str, Any], restart: Restart | None) -> Any:
        """Call ``scheduler.step``; ``restart`` is that of the images that jumped, None for those that did not."""
        return scheduler.step(**arguments)

    def follow(self, scheduler: Any, stepped: Any) -> None:
        """Let the pipeline's scheduler know what it must of one that was stepped in its place, to scale latents."""

    def noise_of(self, scheduler: Any) -> str | None:
        """Name what makes the scheduler stochastic whatever the arguments of ``step``; None: nothing."""
        if self.noisy:
            return "its noise"
        return next(
            (
                f"{n}={scheduler.config.get(n)!r}"
                for n, v in self.noisy_settings.items()
                if scheduler.config.get(n) in v
            ),
            None,
        )

    def noise_in(self, arguments: Mapping[str, Any]) -> str | None:
        """Name the argument of ``step`` that makes this run stochastic; None: nothing."""
        return next((f"{name}={arguments[name]}" for name in self.noisy_arguments if arguments.get(name)), None)


@dataclass(frozen=True)
class TwoCallFacts(SolverFacts):
    """Heun and its kin: two calls a step, but for the last step, which has one. A step is complete after both."""

    def call_index(self, completed_steps: int) -> int:
        return 2 * completed_steps

    def completed_steps(self, call_index: int) -> int | None:
        return None if call_index % 2 else call_index // 2

    def total_calls(self, num_inference_steps: int) -> int:
        return 2 * num_inference_steps - 1

    def follow(self, scheduler: Any, stepped: Any) -> None:
        """KDPM2 scales latents at the middle of a step by another sigma; ``sample`` tells it where it is."""
        if hasattr(scheduler, "sample"):
            scheduler.sample = stepped.sample


@dataclass(frozen=True)
class MultistepFacts(SolverFacts):
    """Solvers that remember answers: their first step after a jump is an Euler step, taken again at the second call."""

    def order(self, scheduler: Any) -> int:
        """Return how many answers the solver combines at most."""
        return int(scheduler.config.get("solver_order", 4))

    def loses_nothing(self, scheduler: Any, completed_steps: int) -> bool:
        return self.order(scheduler) == 1

    def gains(self, scheduler: Any) -> bool:
        return True

    def step(self, scheduler: Any, arguments: Mapping[str, Any], restart: Restart | None) -> Any:
        if restart is None:
            return scheduler.step(**arguments)
        restart.calls += 1
        if restart.first is not None:
            arguments, restart.first = self._retaken(scheduler, arguments, restart, restart.first), None
        output = self._step(scheduler, arguments, restart)
        if restart.retakes and restart.calls == 1:
            latents = arguments["sample"]
            data = self.reading(scheduler, restart.call_index).data(latents, arguments["model_output"])
            restart.first = FirstCall(latents, data, latents_of(output))
        return output

    def _step(self, scheduler: Any, arguments: Mapping[str, Any], restart: Restart) -> Any:
        """Make one of the calls after a jump."""
        return scheduler.step(**arguments)

    def _retaken(
        self, scheduler: Any, arguments: Mapping[str, Any], restart: Restart, first: FirstCall
    ) -> Mapping[str, Any]:
        """Put what the first step should have come to in the place of what it came to.

        Pipelines and callbacks that edit latents between steps (inpainting's mask) keep their edit.
        """
        latents, answer = arguments["sample"], arguments["model_output"]
        before, here = (self.reading(scheduler, restart.call_index + calls) for calls in (0, 1))
        better = retake(before, first.latents, first.data, here, here.data(latents, answer))
        change = better - first.came_to.float()
        return {
            **arguments,
            "sample": (latents.float() + change).to(latents.dtype),
            "model_output": reworded(answer, here, change),
        }

    def reading(self, scheduler: Any, call_index: int) -> Reading:
        """Return how the network's answer to a call (from 0) is read."""
        sigma = scheduler.sigmas[call_index]
        scale, noise = scheduler._sigma_to_alpha_sigma_t(sigma)
        return reading(scheduler.config.prediction_type, float(scale), float(noise))


@dataclass(frozen=True)
class PLMSFacts(MultistepFacts):
    """PNDM in its PLMS form: its first step takes two calls, the second one at a repeated timestep."""

    def call_index(self, completed_steps: int) -> int:
        return completed_steps + 1 if completed_steps else 0

    def completed_steps(self, call_index: int) -> int | None:
        if call_index == 1:
            return None
        return max(call_index - 1, 0)

    def _step(self, scheduler: Any, arguments: Mapping[str, Any], restart: Restart) -> Any:
        """Skip the repetition of the first step.

        With an empty history PLMS runs only at ``counter=0``, an Euler step, and would repeat that step at
        ``counter=1``, which leaves the rest of the run one timestep behind.
        """
        output = scheduler.step(**arguments)
        if restart.calls == 1:
            scheduler.counter = 2
            scheduler.cur_sample = None
        return output

    def gains(self, scheduler: Any) -> bool:
        """Not where PLMS combines v's themselves, or where it does not step to its own next timestep."""
        config = scheduler.config
        even = config.num_train_timesteps % scheduler.num_inference_steps == 0
        lands = config.timestep_spacing == "leading" or (config.timestep_spacing == "trailing" and even)
        return bool(config.prediction_type == "epsilon" and lands)

    def reading(self, scheduler: Any, call_index: int) -> Reading:
        kept = float(scheduler.alphas_cumprod[int(scheduler.timesteps[call_index])])
        return reading(scheduler.config.prediction_type, kept**0.5, (1 - kept) ** 0.5)


@dataclass(frozen=True)
class LMSFacts(MultistepFacts):
    """Linear multistep: it takes its order from its index, so the ramp from one is ours to ask for after a jump."""

    def _step(self, scheduler: Any, arguments: Mapping[str, Any], restart: Restart) -> Any:
        return scheduler.step(**{**arguments, "order": min(restart.calls, arguments.get("order", 4))})

    def reading(self, scheduler: Any, call_index: int) -> Reading:
        return reading(scheduler.config.prediction_type, 1.0, float(scheduler.sigmas[call_index]))


@dataclass(frozen=True)
class IPNDMFacts(MultistepFacts):
    """Improved PNDM: its network answers with v on a trigonometric schedule of its own."""

    def reading(self, scheduler: Any, call_index: int) -> Reading:
        return reading("v_prediction", float(scheduler.alphas[call_index]), float(scheduler.betas[call_index]))


@dataclass(frozen=True)
class EDMMultistepFacts(MultistepFacts):
    """DPM-Solver++ on EDM's schedule, which preconditions the network's answer."""

    def reading(self, scheduler: Any, call_index: int) -> Reading:
        return edm_reading(scheduler, float(scheduler.sigmas[call_index]))


@dataclass(frozen=True)
class BlockFacts(MultistepFacts):
    """Single-step DPM-Solver: blocks of one to three calls; between blocks it remembers nothing."""

    def loses_nothing(self, scheduler: Any, completed_steps: int) -> bool:
        return bool(scheduler.order_list[completed_steps] == 1)


@dataclass(frozen=True)
class CorrectingFacts(MultistepFacts):
    """UniPC: it corrects each step itself with the next call's answer, the first one after a jump to second order.

    Its corrector starts from its own last latents, so that of a step taken again only the answer counts.
    """

    def loses_nothing(self, scheduler: Any, completed_steps: int) -> bool:
        return False

    def gains(self, scheduler: Any) -> bool:
        config = scheduler.config
        return bool(config.predict_x0 and config.solver_type == "bh2" and config.solver_order > 1)


@dataclass(frozen=True)
class SAFacts(CorrectingFacts):
    """SA-Solver: corrects each step like UniPC; stochastic wherever its ``tau_func`` is not zero."""

    def gains(self, scheduler: Any) -> bool:
        return False

    def noise_of(self, scheduler: Any) -> str | None:
        times = range(scheduler.config.num_train_timesteps)
        return "a tau_func that is not zero" if any(scheduler.tau_func(time) for time in times) else None


def latents_of(output: Any) -> Tensor:
    """Return the latents of what ``scheduler.step`` returned, a tuple or an output object."""
    latents: Tensor = output[0] if isinstance(output, tuple) else output.prev_sample
    return latents


def twin(scheduler: Any) -> Any:
    """Return a scheduler of the same class and state that can be stepped without touching this one.

    Lists are copied, tensors shared (the admitted schedulers replace tensors and never write into them), and methods
    that someone put on the instance stay behind.
    """
    other = object.__new__(type(scheduler))
    for name, value in vars(scheduler).items():
        if not (callable(value) and hasattr(type(scheduler), name)):
            vars(other)[name] = list(value) if type(value) is list else value
    return other
