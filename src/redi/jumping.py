"""Owns Algorithm 2 as a policy of the engine: match the noise, search, decide, combine; must not know pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from redi.engine import Jump
from redi.errors import KnowledgeBaseError, NoiseError, RetrievalError
from redi.knowledge_base import KnowledgeBase
from redi.retrieval import Combination, Combiner, Gate, Neighbor

INDEPENDENT = -1
"""The noise id of every entry of a base with independent noise: one partition, whatever the query's noise."""


@dataclass(frozen=True)
class JumpRule:
    """How images jump: k, v and H of Algorithm 2, the weights, and when to abstain.

    Args:
        key_step: Completed steps (k) after which the base is asked.
        value_step: Completed steps (v) to go on from.
        neighbors: Entries to retrieve (H), at least 1.
        combiner: Makes weights of neighbours.
        gate: Decides by the nearest distance; resolved, so without a quantile.
        strict: Raise where an image would abstain for another reason than its distance.
    """

    key_step: int
    value_step: int
    neighbors: int
    combiner: Combiner
    gate: Gate
    strict: bool = False


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
    """

    base: KnowledgeBase
    scheduler: Any
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
        super().__init__(base, scheduler, rule.key_step, before_key="the run ended before the key step")
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
        for image, decision in zip(ours, self._decide(latents, ours), strict=True):
            self.decisions[image] = decision
        return [decision.jump for decision in self.decisions]

    def _retrieve(self, queries: Tensor, noise_ids: Sequence[int | None]) -> list[Decision]:
        """Algorithm 2 between its two loops: x_k (b, ...) of noises (b) -> what to do, and x_v where it jumps."""
        base, rule, device = self.base, self.rule, queries.device

        found = base.search(queries, noise_ids, rule.neighbors, rule.key_step, device)
        if bool(found.distances.isnan().any()):
            raise RetrievalError(
                "the distance to the nearest neighbour is not a number",
                expected="a base without NaN",
                fix="look for damage: redi inspect --verify",
            )
        reasons = [rule.gate.decide(nearest) for nearest in found.distances[:, 0].tolist()]

        neighbors = [row[row >= 0] for row in found.rows]
        asked = [row if reason is None else row[:0] for row, reason in zip(neighbors, reasons, strict=True)]
        counts = [len(row) for row in asked]
        keys = torch.split(base.keys(torch.cat(asked), rule.key_step, device), counts)
        values = torch.split(base.values(torch.cat(asked), rule.value_step, device), counts)

        decisions = []
        for image, reason in enumerate(reasons):
            seen = noise_ids[image], reason, neighbors[image].tolist(), found.distances[image, : len(neighbors[image])]
            if reason is not None:
                decisions.append(Decision(*seen))
                continue
            made = rule.combiner.combine(queries[image].float(), keys[image], values[image])
            if not bool(made.values.to(queries.dtype).isfinite().all()):
                raise RetrievalError(
                    f"{type(rule.combiner).__name__} gave latents that are not finite in {queries.dtype}",
                    expected="numbers that the run can go on with",
                    fix="use other weights, or run the pipeline in a wider dtype",
                )
            decisions.append(Decision(*seen, rule.value_step, made))
        return decisions

    def _decide(self, latents: Tensor, images: Sequence[int]) -> list[Decision]:
        """Retrieve for these images; one whose retrieval fails abstains and does not keep the others from jumping."""
        if not images:
            return []
        queries = latents[list(images)]
        noise_ids = [self.noise_ids[image] for image in images]
        try:
            if not bool(queries.isfinite().all()):
                raise RetrievalError(f"the latents hold NaN or infinity after {self.rule.key_step} steps")
            return self._retrieve(queries, noise_ids)
        except (KnowledgeBaseError, RetrievalError) as error:
            if self.rule.strict:
                raise
            if len(images) > 1:
                return [decision for image in images for decision in self._decide(latents, [image])]
            self.warnings.append(f"retrieval failed for {_images(images)}, which runs in full.\n  {error}")
            return [Decision(noise_ids[0], f"retrieval failed: {error.got}")]


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
