"""Owns Algorithm 2 as a policy of the engine: match the noise, search, decide, combine; must not know pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from redi.engine import Jump
from redi.errors import KnowledgeBaseError, NoiseError, RetrievalError
from redi.knowledge_base import KnowledgeBase
from redi.retrieval import Combination, Combiner, Gate, Neighbor, Report, choose_step

INDEPENDENT = -1
"""The noise id of every entry of a base with independent noise: one partition, whatever the query's noise."""


@dataclass(frozen=True)
class JumpRule:
    """How images jump: k, v and H of Algorithm 2, the weights, and when to abstain.

    Args:
        key_step: Completed steps (k) after which the base is asked.
        gates: By value step (v, completed steps to go on from), how near the nearest neighbour must be. The latest
            step whose gate lets an image pass is taken; beyond all it abstains. Resolved, so without quantiles.
        neighbors: Entries to retrieve (H), at least 1.
        combiner: Makes weights of neighbours.
        strict: Raise where an image would abstain for another reason than its distance.
        allow_stochastic: Run samplers that add noise.
    """

    key_step: int
    gates: Mapping[int, Gate]
    neighbors: int
    combiner: Combiner
    strict: bool = False
    allow_stochastic: bool = False


@dataclass(frozen=True, eq=False)
class Decision:
    """What was decided for one image: why it abstains (None: it jumps), its neighbours and what was made of them."""

    noise_id: int | None
    reason: str | None
    rows: Sequence[int] = ()
    distances: Tensor = field(default_factory=lambda: torch.empty(0))
    value_step: int | None = None
    combination: Combination | None = None

    @property
    def jump(self) -> Jump | None:
        """What the engine is told."""
        if self.combination is None or self.value_step is None:
            return None
        return Jump(self.value_step, self.combination.values)


@dataclass
class NoiseWatch:
    """A policy that only tells which noises of the bank a run started from; its images run in full.

    Args:
        base: The knowledge base.
        scheduler: The pipeline's; its ``init_noise_sigma`` is read when the run starts.
        allow_stochastic: Whether the run's sampler may add noise.
    """

    base: KnowledgeBase
    scheduler: Any
    allow_stochastic: bool = False
    key_step: int | None = None
    noise_ids: list[int | None] = field(default_factory=list)
    """Per image of the latest run, its noise; None if it is not of the bank."""
    decisions: list[Decision] = field(default_factory=list)
    """Per image of the latest run."""
    warnings: list[str] = field(default_factory=list)
    """What the user should hear of the latest run."""
    before_key: str = "run in full, as asked"
    """Why an image has not jumped as long as nobody has decided."""

    def on_start(self, latents: Tensor) -> None:
        """Find the noise of every row of x_T (b, ...)."""
        self.warnings = []
        if self.base.manifest.noise["kind"] == "independent":
            self.noise_ids = [INDEPENDENT] * len(latents)
        else:
            self.noise_ids = self.base.noise_bank.match(
                latents, float(getattr(self.scheduler, "init_noise_sigma", 1.0))
            )
        self.decisions = [Decision(noise_id, self.before_key) for noise_id in self.noise_ids]

    def at_key(self, latents: Tensor) -> Sequence[Jump | None]:
        """Let every image abstain."""
        return [None] * len(latents)

    def on_step(self, completed: int, latents: Tensor) -> None:
        """Do nothing."""

    def ended(self, pipe: Any, arguments: Mapping[str, Any], reports: Sequence[Report], *, swapped: bool) -> None:
        """Hear what became of a call's images; ``swapped`` if other prompts guided them after the key step."""


class JumpPolicy(NoiseWatch):
    """Algorithm 2 of the paper; every image is decided alone.

    Args:
        base: Where to search.
        scheduler: The pipeline's; its ``init_noise_sigma`` is read when the run starts.
        rule: k, v, H, weights and gate.

    Raises:
        NoiseError: (from the run) An initial latent is not of the bank, and the rule is strict.
        KnowledgeBaseError, RetrievalError: (from the run) Retrieval failed, and the rule is strict.
    """

    def __init__(self, base: KnowledgeBase, scheduler: Any, rule: JumpRule) -> None:
        super().__init__(
            base,
            scheduler,
            rule.allow_stochastic,
            rule.key_step,
            before_key="its run does not come through the key step",
        )
        self.rule = rule

    def on_start(self, latents: Tensor) -> None:
        """Find the noise of every row of x_T (b, ...); a foreign one abstains."""
        super().on_start(latents)
        foreign = [image for image, noise_id in enumerate(self.noise_ids) if noise_id is None]
        if not foreign:
            return
        error = NoiseError(
            f"the knowledge base's noise bank does not hold the initial latents of {_images(foreign)}",
            expected="one of its noises: entries of another noise are far away whatever the prompt",
            fix="pass no latents= and let redi choose by generator=, or take them from kb.noise_bank.latents",
        )
        if self.rule.strict:
            raise error
        self.warnings.append(f"{error}\n  {_images(foreign)} will run in full.")

    def at_key(self, latents: Tensor) -> Sequence[Jump | None]:
        """Decide for every row of x_k (b, ...)."""
        self.decisions = [Decision(None, "its noise is not in the bank")] * len(latents)
        ours = [image for image, noise_id in enumerate(self.noise_ids) if noise_id is not None]
        if ours:
            queries = latents.detach()[ours]
            # The one read of the latents: keys and values come from files, so the host is where they are weighed.
            for image, decision in zip(ours, self._decide(queries, queries.cpu(), ours), strict=True):
                self.decisions[image] = decision
        return [decision.jump for decision in self.decisions]

    def _decide(self, queries: Tensor, on_host: Tensor, images: Sequence[int]) -> list[Decision]:
        """Retrieve for these images' x_k (b, ...) at once; where that fails, for each alone, so that only the images
        that cannot be read abstain."""
        try:
            return self._retrieve(queries, on_host, images)
        except (KnowledgeBaseError, RetrievalError) as error:
            if len(images) == 1:
                return [self._failed(images[0], error)]
            one_by_one = [slice(place, place + 1) for place in range(len(images))]
            return [self._decide(queries[one], on_host[one], images[one])[0] for one in one_by_one]

    def _retrieve(self, queries: Tensor, on_host: Tensor, images: Sequence[int]) -> list[Decision]:
        """Algorithm 2 between its two loops: x_k (b, ...) -> what to do, and x_v where it jumps.

        Args:
            queries: (b, ...) on the device of the run, where they are searched.
            on_host: The same on the CPU.
            images: (b) their places in the batch.
        """
        base, rule = self.base, self.rule
        noise_ids = [self.noise_ids[image] for image in images]
        found = base.search(queries, noise_ids, rule.neighbors, rule.key_step, queries.device)
        neighbors = [row[row >= 0] for row in found.rows]
        explained = self._explained(on_host, neighbors)
        seen = []
        for noise_id, near, distances, made in zip(noise_ids, neighbors, found.distances, explained, strict=True):
            value_step, reason = choose_step(rule.gates, float(distances[0]), made)
            seen.append(Decision(noise_id, reason, near.tolist(), distances[: len(near)], value_step))

        pairs: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values by place; each value step is read at once
        for value_step in rule.gates:
            jumping = [place for place, decision in enumerate(seen) if decision.value_step == value_step]
            if jumping:
                rows = [neighbors[place] for place in jumping]
                read = base.pairs(torch.cat(rows), rule.key_step, value_step)
                parts = (torch.split(each, [len(own) for own in rows]) for each in read)
                pairs |= dict(zip(jumping, zip(*parts, strict=True), strict=True))

        decisions = []
        for place, (image, decision) in enumerate(zip(images, seen, strict=True)):
            try:
                if not bool(on_host[place].isfinite().all()):
                    raise RetrievalError(f"the latents hold NaN or infinity after {rule.key_step} steps")
                if bool(decision.distances.isnan().any()):
                    raise RetrievalError(
                        "the distance to a neighbour is not a number",
                        expected="a base without NaN",
                        fix="look for damage: redi inspect --verify",
                    )
                if place in pairs:
                    made = self._combined(on_host[place], *pairs[place])
                    decision = replace(decision, combination=made)
            except RetrievalError as error:
                decision = self._failed(image, error)
            decisions.append(decision)
        return decisions

    def _explained(self, on_host: Tensor, neighbors: Sequence[Tensor]) -> list[Combination | None]:
        """Return how the keys of each query's neighbours explain it, where a gate asks; the values are not read yet."""
        asked = any(gate.needs_weights for gate in self.rule.gates.values())
        if not asked or not any(map(len, neighbors)):
            return [None] * len(neighbors)
        read = self.base.keys(torch.cat(list(neighbors)), self.rule.key_step)
        keys = torch.split(read, [len(rows) for rows in neighbors])
        return [self._combined(query, own, own) if len(own) else None for query, own in zip(on_host, keys, strict=True)]

    def _combined(self, query: Tensor, keys: Tensor, values: Tensor) -> Combination:
        made = self.rule.combiner.combine(query.float(), keys, values)
        if not bool(made.values.to(query.dtype).isfinite().all()):
            raise RetrievalError(
                f"{type(self.rule.combiner).__name__} gave latents that are not finite in {query.dtype}",
                expected="numbers that the run can go on with",
                fix="use other weights, or run the pipeline in a wider dtype",
            )
        return made

    def _failed(self, image: int, error: KnowledgeBaseError | RetrievalError) -> Decision:
        """Let an image abstain because its retrieval failed, or raise if the rule is strict."""
        if self.rule.strict:
            raise error
        self.warnings.append(f"retrieval failed for {_images([image])}, which runs in full.\n  {error}")
        return Decision(self.noise_ids[image], f"retrieval failed: {error.got}")


def neighbors_of(base: KnowledgeBase, decisions: Sequence[Decision]) -> list[tuple[Neighbor, ...]]:
    """Return the neighbours of each decision with their prompts, read at once.

    Raises:
        KnowledgeBaseError: A row cannot be read.
    """
    rows = sorted({row for decision in decisions for row in decision.rows})
    prompts = dict(zip(rows, base.prompts(rows), strict=True)) if rows else {}
    found = []
    for decision in decisions:
        weights = decision.combination.weights.tolist() if decision.combination else [None] * len(decision.rows)
        named = zip(decision.rows, decision.distances.tolist(), weights, strict=True)
        found.append(tuple(Neighbor(prompts[row], distance, weight) for row, distance, weight in named))
    return found


def _images(images: Sequence[int]) -> str:
    """Name rows of a batch, counted from 1."""
    names = ", ".join(str(image + 1) for image in images[:8]) + (", ..." if len(images) > 8 else "")
    return f"image {names}" if len(images) == 1 else f"images {names}"
