"""Owns building a knowledge base in this process (Algorithm 1), with resume; must not know how entries are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from redi.building.checks import (
    check_numbers,
    check_pipeline,
    check_previews,
    checked_prompts,
    checked_seeds,
    warn_of_long_prompts,
)
from redi.building.cluster import Check, Cluster, record_on_cluster
from redi.building.previews import save_preview
from redi.building.unit_recorder import Recorded, UnitRecorder
from redi.building.units import Unit, Work, default_unit_size, digest_of
from redi.calls import arguments_from, checked_arguments
from redi.errors import IncompatibleError, KnowledgeBaseError, PlanError, warn
from redi.identity import INFORMATION, compared, identity_of, library_versions
from redi.knowledge_base import (
    KnowledgeBase,
    Manifest,
    NoiseBank,
    describe_differences,
    differences,
    read_hashes,
)
from redi.knowledge_base.taking_back import take_back_lost
from redi.pictures import is_picture
from redi.plan import Plan


def build(
    pipe: Any,
    prompts: Sequence[str],
    path: str | PathLike[str],
    *,
    plan: Plan,
    noises: int | Sequence[int] = 16,
    noise: str = "shared",
    batch_size: int = 16,
    unit_size: int | None = None,
    stop_at_value: bool = True,
    previews: bool = False,
    model_id: str | None = None,
    revision: str | None = None,
    progress: bool = True,
    allow_stochastic: bool = False,
    cluster: Cluster | None = None,
    **call: Any,
) -> KnowledgeBase:
    """Build a knowledge base, or go on with one: run each prompt once and keep key and values (Algorithm 1).

    Prompt i starts from noise i mod M of the bank. After every unit the entries so far are durable: an interrupted
    build (Ctrl-C, kill, full disk) goes on when it is called again with the same arguments.

    Args:
        pipe: A stock pipeline from text to pictures, video or sound, on any device and in any dtype.
        prompts: One entry is recorded for each, repeats included.
        path: Folder of the knowledge base, or its address ``s3://bucket/name``; new, empty, or with the same build
            unfinished.
        plan: The steps to record.
        noises: How many noises the bank has (M; seeds 0 to M-1), or their seeds.
        noise: ``"shared"``: from the bank; ``"independent"``: entry i from its own noise of seed i, for study only,
            because such entries are too far apart to be retrieved.
        batch_size: Prompts in one pipeline call.
        unit_size: Entries committed together; by default of :func:`~redi.building.units.default_unit_size`. A base
            that is continued keeps its own.
        stop_at_value: Whether to leave out the steps after the last value step.
        previews: Whether to finish the trajectories and keep small pictures of them
            (:func:`~redi.building.preview_path`); then ``stop_at_value`` is of no account.
        model_id: Name of the model, for information; by default what the pipeline was loaded from.
        revision: Of the model, for information.
        progress: Whether to show entries done, rate and time left.
        allow_stochastic: Run samplers that add noise (ancestral, SDE, ``eta``), with a warning: the theory is of ODEs.
        cluster: Record on the workers of a Ray cluster; this process runs ``pipe`` for the references alone, and
            commits. Workers and machines may die, and so may this process: the same call goes on.
        call: Arguments of every call of the pipeline, as it takes them, the same for all prompts: ``guidance_scale``,
            ``negative_prompt``, ``height``, ``num_frames`` and so on. What is left out is the pipeline's default.

    Returns:
        The finished knowledge base. Entries whose latents are not finite, and prompts that the pipeline raises an
        error for, are left out and named in a warning.

    Raises:
        InputError: Prompts, noises, sizes or arguments of the call that cannot be used.
        PlanError: ``plan`` is no plan, or the call asks for another number of steps.
        UnsupportedError: The pipeline or its scheduler is not admitted.
        IncompatibleError: The folder holds a base that was built otherwise.
        KnowledgeBaseError: The folder holds something else, another builder works on it, or the disk is full.
    """
    begun, prompts, seeds = KnowledgeBase.exists(path), checked_prompts(prompts), checked_seeds(noises, noise)
    check_numbers(plan, batch_size=batch_size, unit_size=1 if unit_size is None else unit_size)
    unit_size = unit_size or default_unit_size(len(prompts), batch_size)
    check_pipeline(pipe, allow_stochastic=allow_stochastic)
    if previews:
        check_previews(pipe)
    digest = digest_of(prompts)

    arguments = {**checked_arguments(pipe, call), "num_inference_steps": plan.num_inference_steps}
    if call.get("num_inference_steps") not in (None, plan.num_inference_steps):
        raise PlanError(f"num_inference_steps={call['num_inference_steps']!r}", expected=f"the plan's, {plan}")
    warn_of_long_prompts(pipe, prompts, arguments)
    identity = identity_of(pipe, revision=revision, **arguments)
    identity[INFORMATION]["model"] = model_id or identity[INFORMATION]["model"]
    identity[INFORMATION]["prompts"] = {"count": len(prompts), "sha256": digest}
    identity[INFORMATION]["unit_size"] = unit_size
    shape = tuple(identity["latents"]["shape"])
    manifest = Manifest(plan, identity, shape, {"kind": noise, "seeds": list(seeds)}, library_versions())

    dtype = getattr(torch, identity["latents"]["dtype"])
    pictures = {name: value for name, value in arguments.items() if is_picture(value)}
    check = Check(identity, arguments, revision)
    arguments = {**arguments_from(pipe, identity["call"]), **pictures}
    stop = stop_at_value and not previews
    recorder = UnitRecorder(pipe, arguments, plan, batch_size, stop, previews, allow_stochastic, dtype)
    builder = _Builder(recorder, cluster, check, progress, prompts, seeds)
    kb = builder.opened(path, manifest) if begun else builder.created(path, manifest)
    with kb.lock():
        builder.record_missing(kb, builder.work(kb.manifest))
        if not _is_finished(kb):
            kb.finish(device=pipe.device)
        elif read_hashes(kb.path) is None:
            kb.sign()
    _warn_of_refused(kb)
    return kb


@dataclass(frozen=True)
class _Builder:
    """One call of :func:`build`, its arguments checked."""

    recorder: UnitRecorder
    cluster: Cluster | None
    check: Check
    progress: bool
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def work(self, begun: Manifest) -> Work:
        """Return the units of a base, of the size that it was begun with."""
        return Work(self.prompts, self.seeds, begun.identity[INFORMATION]["unit_size"])

    def opened(self, path: str | PathLike[str], manifest: Manifest) -> KnowledgeBase:
        """Return the base to go on with."""

        def planned(begun: Manifest) -> int:
            _check_same_build(begun, manifest, str(path))
            return len(self.work(begun))

        take_back_lost(path, planned)
        kb = KnowledgeBase.open(path)
        _check_same_build(kb.manifest, manifest, kb.address)
        kb.check_files()
        return kb

    def created(self, path: str | PathLike[str], manifest: Manifest) -> KnowledgeBase:
        """Return a new base, or the one to go on with that another build has begun there meanwhile."""
        try:
            KnowledgeBase.check_free(path)
            bank = NoiseBank.draw(manifest.noise["seeds"], manifest.latent_shape)
            return KnowledgeBase.create(path, manifest, bank, self.references(bank))
        except KnowledgeBaseError:
            if not KnowledgeBase.exists(path):
                raise
        return self.opened(path, manifest)

    def references(self, bank: NoiseBank) -> dict[int, Tensor]:
        """Return by key step where the empty prompt comes to from each noise: (M, *shape) float32.

        Keys are stored as differences to these, which float16 resolves. Where they are not finite, zero.
        """
        parts: list[dict[int, Tensor]] = []
        steps = self.recorder.plan.key_steps
        with tqdm(total=len(bank), unit="noise", desc="reference trajectories", disable=not self.progress) as bar:
            for noises in torch.split(bank.latents, self.recorder.batch_size) if len(bank) else ():
                parts.append(self.recorder.latents([""] * len(noises), noises, steps))
                bar.update(len(noises))
        references = {}
        for step in steps if parts else ():
            latents = torch.cat([part[step] for part in parts]).float()
            finite = latents.flatten(1).isfinite().all(dim=1)
            references[step] = torch.where(finite.reshape(-1, *[1] * (latents.ndim - 1)), latents, 0.0)
        return references

    def record_missing(self, kb: KnowledgeBase, work: Work) -> None:
        """Record every unit that the base does not hold, here or on the cluster; each is durable when it is told."""
        done = kb.completed_units()
        missing = [unit for unit in work if unit.number not in done]
        total = len(work.prompts)
        held = total - sum(len(unit.prompts) for unit in missing)
        with tqdm(total=total, initial=held, unit="entry", desc=kb.path.name, disable=not self.progress) as bar:
            if self.cluster is None:
                for unit in missing:
                    _keep(kb, unit, self.recorder.unit(unit, _noises_of(kb, unit), bar.update))
            elif missing:

                def commit(unit: Unit, recorded: Recorded) -> None:
                    _keep(kb, unit, recorded)
                    bar.update(len(unit.prompts))

                record_on_cluster(
                    self.cluster, self.recorder, self.check, missing, lambda unit: _noises_of(kb, unit), commit
                )


def _keep(kb: KnowledgeBase, unit: Unit, recorded: Recorded) -> None:
    """Commit a unit; its previews first, so that no entry is without."""
    for place, output in recorded.outputs.items():
        save_preview(kb, unit.number, place, output)
    kb.add_unit(unit.number, recorded.batch)


def _noises_of(kb: KnowledgeBase, unit: Unit) -> Tensor:
    """Return the unit noise (n, *shape) float32 of a unit's entries."""
    if len(kb.noise_bank):
        return kb.noise_bank.latents[list(unit.noise_ids)]
    return NoiseBank.draw(unit.seeds, kb.manifest.latent_shape).latents


def _check_same_build(begun: Manifest, manifest: Manifest, address: str) -> None:
    """Refuse to go on with a base that was begun with other arguments.

    Raises:
        IncompatibleError: Something differs; the message prints both sides.
    """
    found = differences(_what_makes_entries(begun), _what_makes_entries(manifest))
    if found:
        raise IncompatibleError(
            f"{address} was begun with other arguments than this build's:\n{describe_differences(found)}",
            expected="the same model, plan, noises and prompts",
            fix="repeat the call that began it, or choose another folder",
        )


def _what_makes_entries(manifest: Manifest) -> dict[str, Any]:
    return {
        **compared(manifest.identity),
        "plan": manifest.plan.to_dict(),
        "noise": {"kind": manifest.noise["kind"], "seeds": manifest.noise["seeds"]},
        "prompts": manifest.identity.get(INFORMATION, {}).get("prompts"),
    }


def _is_finished(kb: KnowledgeBase) -> bool:
    try:
        for step in kb.plan.key_steps:
            kb.leave_one_out(step)
    except KnowledgeBaseError:
        return False
    return True


def _warn_of_refused(kb: KnowledgeBase) -> None:
    refused = kb.refused()
    if refused:
        named = "; ".join(f"{each.prompt[:60]!r} ({each.reason})" for each in refused[:5])
        more = f"; ... see {kb.path / 'refused.jsonl'}" if len(refused) > 5 else ""
        warn(f"{len(refused)} entries were refused: {named}{more}")
