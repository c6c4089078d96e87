"""Owns the ``noise/`` folder: the bank and each noise's reference latents; must not know entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from redi.errors import KnowledgeBaseError, PlanError
from redi.knowledge_base.durable import replace_file, writing
from redi.knowledge_base.manifest import FILE_NAME, Manifest
from redi.knowledge_base.noise_bank import NoiseBank, load_tensors, pack_tensors

_BANK, _REFERENCES = "noise/bank.safetensors", "noise/references.safetensors"


@dataclass(frozen=True, eq=False)
class Noises:
    """A noise bank (M noises) and, by key step, a reference latent of each noise: (M, *shape) float32.

    Keys are stored as differences to the reference, which float16 resolves where it would drown them in x itself.
    """

    bank: NoiseBank
    references: Mapping[int, Tensor]

    def reference(self, key_step: int, noise_ids: Tensor) -> Tensor:
        """Return (n, *shape) float32 for (n,) int64 noise ids; zero for independent noise (-1)."""
        reference = self.references[key_step]
        zero = reference.new_zeros((1, *reference.shape[1:]))
        return torch.cat([reference, zero])[noise_ids]

    def check(self, manifest: Manifest) -> None:
        """Compare with the manifest.

        Raises:
            KnowledgeBaseError: Seeds or shapes differ, or a reference is missing or not finite.
            PlanError: There is a reference of a step that is no key step.
        """
        shape = (len(manifest.noise["seeds"]), *manifest.latent_shape)
        if list(self.bank.seeds) != manifest.noise["seeds"] or tuple(self.bank.latents.shape) != shape:
            raise KnowledgeBaseError(
                f"noise bank of shape {tuple(self.bank.latents.shape)}",
                expected=f"the manifest's seeds and shape {shape}",
            )
        unknown = sorted(set(self.references) - set(manifest.plan.key_steps))
        if unknown:
            raise PlanError(f"references of steps {unknown}", expected=f"key steps {manifest.plan.key_steps}")
        for step in manifest.plan.key_steps:
            reference = self.references.get(step)
            if reference is None or tuple(reference.shape) != shape or not bool(reference.isfinite().all()):
                got = "none" if reference is None else f"shape {tuple(reference.shape)}"
                raise KnowledgeBaseError(
                    f"reference latents of step {step}: {got}", expected=f"finite, of shape {shape}"
                )

    def save(self, folder: Path) -> dict[str, str]:
        """Write ``noise/`` below ``folder`` and return the checksums for the manifest.

        Raises:
            KnowledgeBaseError: The disk is full or not writable.
        """
        bank = self.bank.to_bytes()
        references = pack_tensors({f"key_{step}": tensor for step, tensor in self.references.items()})
        with writing(folder):
            (folder / "noise").mkdir(parents=True, exist_ok=True)
        replace_file(folder / _BANK, bank)
        replace_file(folder / _REFERENCES, references)
        return {"bank": sha256(bank).hexdigest(), "references": sha256(references).hexdigest()}

    @classmethod
    def load(cls, folder: Path, manifest: Manifest) -> Noises:
        """Read ``noise/`` below ``folder``.

        Raises:
            KnowledgeBaseError: A file is missing or is not the one that the base was built with.
        """
        for name, file in (("bank", _BANK), ("references", _REFERENCES)):
            _check_digest(folder / file, manifest.noise.get("sha256", {}).get(name))
        found = load_tensors(folder / _REFERENCES)
        references = {int(name.removeprefix("key_")): tensor for name, tensor in found.items()}
        noises = cls(NoiseBank.load(folder / _BANK, manifest.noise["seeds"]), references)
        noises.check(manifest)
        return noises


def _check_digest(path: Path, expected: object) -> None:
    try:
        found = sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise KnowledgeBaseError(
            f"cannot read {path}: {error}", expected="the noises of the base", fix="restore the noise folder"
        ) from error
    if found != expected:
        raise KnowledgeBaseError(
            f"{path} does not match the checksum in {FILE_NAME}",
            expected="the noises that the base was built from",
            fix="restore the noise folder that belongs to this base; keys cannot be read without it",
        )
