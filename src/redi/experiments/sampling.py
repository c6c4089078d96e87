"""Owns what one run of an experiment is: a solver, its steps and, with ReDi, a plan; must not know how it is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from redi.calibration import LEAST_PROMPTS
from redi.experiments.spacings import TIMESTEPS
from redi.retrieval.weights import Combiner

_SPACINGS = {"use_karras_sigmas": "karras", "use_lu_lambdas": "log-SNR", "use_exponential_sigmas": "log-SNR"}
SPACING = "spacing"
"""The setting that is not the scheduler's but names timesteps of :mod:`redi.experiments.spacings`."""
_KEYS = {"trajectory": "", "text": ", text key", "random": ", random neighbours"}


@dataclass(frozen=True)
class Solver:
    """A sampler on a schedule.

    Attributes:
        name: One of :data:`redi.pipelines.SCHEDULERS`.
        steps: Of its schedule.
        settings: Of the scheduler's config, such as the spacing of its steps; or :data:`SPACING`.
    """

    name: str
    steps: int
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """A name for tables."""
        return " ".join(filter(None, (f"{self.name}-{self.steps}", settings_told(self.settings))))

    @property
    def timesteps(self) -> dict[str, Any]:
        """What a pipeline is told besides the number of steps, where the spacing is not the scheduler's own."""
        spacing = dict(self.settings).get(SPACING)
        return {"timesteps": TIMESTEPS[spacing](self.steps)} if spacing else {}

    @property
    def config(self) -> dict[str, Any]:
        """What differs in the scheduler's config."""
        return {name: value for name, value in self.settings if name != SPACING}


@dataclass(frozen=True)
class Recording:
    """The base that a jump needs: its solver, and which steps are kept.

    Attributes:
        solver: The sampler that recorded the trajectories.
        key_steps: Completed steps of the keys, in one pass.
        value_steps: Completed steps of the values.
        share: Of the scale's entries.
        values: How values are kept: "float16", or a codec of fewer bits.
        styles: Whether the base's captions may ask for a style.
    """

    solver: Solver
    key_steps: tuple[int, ...]
    value_steps: tuple[int, ...]
    share: float = 1.0
    values: str = "float16"
    styles: bool = True


@dataclass(frozen=True)
class Jump:
    """Which way through a recording.

    Attributes:
        recording: The base.
        key_step: Completed steps before the jump.
        value_step: Completed steps to go on from.
        neighbors: H; None is what the weights like.
        weights: As of :func:`redi.enable`: a name, or a rule of our own, whose class is its name.
        quantile: The gate, as of :func:`redi.enable`; None lets every picture jump, as in the paper.
        key: What neighbours are found by: "trajectory" (x_k), "text" (the prompt's embedding) or "random". Those two
            need no step before the jump: ``key_step`` may be 0. A random key takes the x_v of one entry of the noise
            as it is, whatever the neighbours and weights say.
        value: What is jumped to: "trajectory" (x_v), or "picture": the nearest neighbour's finished picture, noised
            again to the value step, or as it is at the last.
        thresholds: NIRVANA's rule: cosines of text embeddings, falling, and the value step of each. A picture goes to
            the step of the first that its nearest prompt reaches, and runs in full below all. Empty: all go to the
            value step.
    """

    recording: Recording
    key_step: int
    value_step: int
    neighbors: int | None = None
    weights: str | Combiner = "least-squares"
    quantile: float | None = None
    key: str = "trajectory"
    value: str = "trajectory"
    thresholds: tuple[tuple[float, int], ...] = ()


CHAINED = 1000
"""Entries of one noise that chains look at, at most: kriging solves a system of so many."""


@dataclass(frozen=True)
class Chain:
    """Several jumps through a recording, one after each call (:mod:`redi.experiments.chains`).

    Attributes:
        recording: The base, with latents after every step but the last.
        stops: Completed steps before each call, rising from 0; the last jump goes to the end.
        neighbours: Whether entries are weighed; else the mean and fitted steps are all.
    """

    recording: Recording
    stops: tuple[int, ...]
    neighbours: bool = True


@dataclass(frozen=True)
class Sampling:
    """One way to make the pictures of all prompts: a solver alone, or with a jump or a chain of them (then of the
    recording's solver)."""

    solver: Solver
    jump: Jump | None = None
    chain: Chain | None = None

    @property
    def recording(self) -> Recording | None:
        """The base that it needs."""
        way = self.jump or self.chain
        return way.recording if way else None

    @property
    def label(self) -> str:
        """A name for tables."""
        solver = self.solver.label
        if self.chain is not None:
            stops = ", ".join(map(str, self.chain.stops))
            return f"chain {solver} at {stops}{'' if self.chain.neighbours else ', no neighbours'}"
        if self.jump is None:
            return solver
        jump = self.jump
        if jump.thresholds:
            return f"{solver} by NIRVANA's thresholds"
        if jump.value == "picture":
            done = "as it is" if jump.value_step == self.solver.steps else f"SDEdit from {jump.value_step}"
            return f"{solver} neighbour's picture after {jump.key_step}, {done}{_KEYS[jump.key]}"
        count = f" H={jump.neighbors}" if jump.neighbors else ""
        kept = "" if jump.recording.values == "float16" else f", {jump.recording.values} values"
        rule = jump.weights if isinstance(jump.weights, str) else type(jump.weights).__name__.lower()
        return f"ReDi {solver} {jump.key_step}->{jump.value_step} {rule}{count}{_KEYS[jump.key]}{kept}"


def settings_told(settings: Iterable[tuple[str, Any]]) -> str:
    """Return a solver's settings as tables name them."""
    named = ("timestep_spacing", SPACING)
    told = (value if name in named else _SPACINGS.get(name, f"{name}={value}") for name, value in settings)
    return " ".join(map(str, told))


def plain(name: str, steps: int, **settings: Any) -> Sampling:
    """Return a solver alone."""
    return Sampling(Solver(name, steps, tuple(sorted(settings.items()))))


def redi(recording: Recording, key_step: int, value_step: int, **options: Any) -> Sampling:
    """Return a jump through a recording; ``options`` as of :class:`Jump`."""
    return Sampling(recording.solver, Jump(recording, key_step, value_step, **options))


def chained(recording: Recording, *stops: int, neighbours: bool = True) -> Sampling:
    """Return a chain of jumps through a recording."""
    return Sampling(recording.solver, chain=Chain(recording, stops, neighbours))


@dataclass(frozen=True)
class Scale:
    """How large a study is.

    Attributes:
        name: Of the scale.
        prompts: Held-out prompts of one replicate.
        entries: Of a base.
        noises: Of a bank.
        replicates: Banks, each with its own noises, base prompts and held-out prompts.
        reference: Real pictures that Frechet distances are measured to.
    """

    name: str
    prompts: int
    entries: int
    noises: int
    replicates: int
    reference: int = 4000

    @property
    def diverse(self) -> range:
        """Places of the prompts whose pictures from every noise are compared: every eighth, where there are several."""
        return range(0, self.prompts if self.noises > 1 else 0, 8)

    @property
    def spread(self) -> int:
        """Pictures of a replicate that are made for that, besides those that a sampling makes of every prompt."""
        return len(self.diverse) * (self.noises - 1)

    def noise_of(self, place: int) -> int:
        """Return where the prompt at a place starts, of the replicate's noises."""
        return place % self.noises

    def other_noises(self, place: int) -> list[int]:
        """Return the noises that it does not start from."""
        return [noise for noise in range(self.noises) if noise != self.noise_of(place)]

    @property
    def resamples(self) -> int:
        """Of the bootstrap of distances between distributions: fewer for a handful of prompts."""
        return 400 if self.prompts * self.replicates >= 100 else 50


TOY = Scale("toy", prompts=12, entries=32, noises=2, replicates=1, reference=200)
_TOYS: Mapping[str, Scale] = {
    "table1": replace(TOY, prompts=4, noises=1),
    "rivals": replace(TOY, prompts=4, entries=16, noises=1),
    **dict.fromkeys(("keys", "keys-pndm"), replace(TOY, prompts=4, entries=16, noises=1)),
    "bound": replace(TOY, prompts=4),
    "gate": replace(TOY, prompts=2 * LEAST_PROMPTS),
    "bank": replace(TOY, prompts=24, entries=96),
    "breaks": replace(TOY, prompts=16),
    "figure6-pndm": replace(TOY, prompts=8),
}
"""Studies with other toys: of many rows or dear figures, or that part their prompts into groups or fit a rule."""
SMALL = Scale("small", prompts=200, entries=2000, noises=4, replicates=3)
PAPER = Scale("paper", prompts=4000, entries=82_000, noises=1, replicates=3, reference=40_000)
SCALES = {scale.name: scale for scale in (TOY, SMALL, PAPER)}


def scale_of(name: str, study: str) -> Scale:
    """Return the scale of that name for a study: toys differ."""
    return _TOYS.get(study, TOY) if SCALES[name] is TOY else SCALES[name]


def fingerprint(*parts: Any) -> str:
    """Return a short hash of what dataclasses and plain values say, the same on every machine.

    Fields at their defaults are left out, so that a field that comes later does not make earlier runs strangers.
    """
    return hashlib.sha256(json.dumps([_told(part) for part in parts], sort_keys=True).encode()).hexdigest()[:16]


def _told(part: Any) -> Any:
    if is_dataclass(part):
        said = {each.name: getattr(part, each.name) for each in fields(part)}
        return {each.name: _told(said[each.name]) for each in fields(part) if said[each.name] != each.default}
    return part


def says(told: Any, part: Any) -> bool:
    """Return whether JSON says what a dataclass or a plain value does.

    A field that it lacks came after it was written, and is at its default. One that there is no more is another thing.
    """
    if not is_dataclass(part):
        return bool(told == json.loads(json.dumps(part)))
    if not isinstance(told, dict) or not told.keys() <= {each.name for each in fields(part)}:
        return False
    said = {each.name: getattr(part, each.name) for each in fields(part)}
    return all(
        says(told[each.name], said[each.name]) if each.name in told else said[each.name] == each.default
        for each in fields(part)
    )
