"""Owns the ``noise/`` folder: the bank and each noise's reference latents; must not know entries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from redi.errors import KnowledgeBaseError, PlanError
from redi.knowledge_base.durable import replace_file, writing
from redi.knowledge_base.guard import shortened
from redi.knowledge_base.manifest import FILE_NAME, Manifest
from redi.knowledge_base.noise_bank import NoiseBank, pack_tensors, read_tensor_file, unpack_tensors

_BANK, _REFERENCES = "noise/bank.safetensors", "noise/references.safetensors"
_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Noises:
    """A noise bank (M noises) and, by step, a reference latent of each noise: (M, *shape) float32.

    Keys are stored as differences to the reference, which float16 resolves where it would drown them in x itself; so
    are values that are kept in fewer bits.
    """

    bank: NoiseBank
    references: Mapping[int, Tensor]

    def reference(self, step: int, noise_ids: Tensor) -> Tensor:
        """Return (n, *shape) float32 for (n,) int64 noise ids; zero for independent noise (-1).

        Raises:
            KnowledgeBaseError: The bank does not hold a noise.
        """
        reference = self.references.get(step, torch.zeros_like(self.bank.latents))
        if noise_ids.numel() and not -1 <= int(noise_ids.min()) <= int(noise_ids.max()) < len(self.bank):
            raise KnowledgeBaseError(
                f"entries that name noises {int(noise_ids.min())} to {int(noise_ids.max())}",
                expected=f"the {len(self.bank)} of the bank, from 0, or -1",
                fix="run redi inspect --verify to see what is damaged; restore the folder or build it again",
            )
        zero = reference.new_zeros((1, *reference.shape[1:]))
        return torch.cat([reference, zero])[noise_ids]

    def check(self, manifest: Manifest) -> None:
        """Compare with the manifest.

        Raises:
            KnowledgeBaseError: Seeds or shapes differ, or a reference is missing or not finite.
            PlanError: There is a reference of a step whose latents are not stored as differences.
        """
        shape = (len(manifest.noise["seeds"]), *manifest.latent_shape)
        if list(self.bank.seeds) != manifest.noise["seeds"] or tuple(self.bank.latents.shape) != shape:
            raise KnowledgeBaseError(
                f"noise bank of shape {tuple(self.bank.latents.shape)}",
                expected=f"the manifest's seeds and shape {shape}",
            )
        if not bool(self.bank.latents.isfinite().all()):
            raise KnowledgeBaseError("a noise bank with NaN or infinity", expected="finite noises")
        unknown = sorted(set(self.references) - set(manifest.referenced_steps))
        if unknown:
            raise PlanError(f"references of steps {unknown}", expected=f"key steps {manifest.plan.key_steps}")
        for step in manifest.referenced_steps:
            reference = self.references.get(step)
            if reference is None or tuple(reference.shape) != shape or not bool(reference.isfinite().all()):
                got = "none" if reference is None else f"{reference.dtype} of shape {tuple(reference.shape)}"
                raise KnowledgeBaseError(
                    f"reference latents of step {step}: {got}", expected=f"finite, of shape {shape}"
                )
            if reference.dtype != torch.float32:
                raise KnowledgeBaseError(f"reference latents of {reference.dtype}", expected="float32")

    def save(self, folder: Path, manifest: Manifest) -> dict[str, str]:
        """Write ``noise/`` below ``folder`` and return the checksums for the manifest.

        Raises:
            KnowledgeBaseError: The disk is full or not writable.
        """
        bank = self.bank.to_bytes()
        references = pack_tensors({name: self.references[step] for name, step in _names(manifest).items()})
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
        shape, counts = manifest.latent_shape, (1, len(manifest.referenced_steps))
        limits = [4 * len(manifest.noise["seeds"]) * math.prod(shape) * count + _HEADER_BYTES for count in counts]
        bank_file, references_file = folder / _BANK, folder / _REFERENCES
        bank = _checked(bank_file, limits[0], manifest, "bank")
        found = unpack_tensors(_checked(references_file, limits[1], manifest, "references"), references_file)
        names = _names(manifest)
        if set(found) != set(names):
            raise KnowledgeBaseError(
                f"{references_file} holds {shortened(sorted(found))}", expected=", ".join(sorted(names))
            )
        references = {names[name]: tensor for name, tensor in found.items()}
        noises = cls(NoiseBank.from_bytes(bank, bank_file, manifest.noise["seeds"]), references)
        noises.check(manifest)
        return noises


def _names(manifest: Manifest) -> dict[str, int]:
    """Return the steps of references by their names in the file."""
    keys = manifest.plan.key_steps
    return {f"{'key' if step in keys else 'value'}_{step}": step for step in manifest.referenced_steps}


def _checked(path: Path, limit: int, manifest: Manifest, name: str) -> bytes:
    """Return the bytes of a file whose checksum the manifest knows."""
    data = read_tensor_file(path, limit)
    known = manifest.noise.get("sha256")
    if not isinstance(known, dict) or known.get(name) != sha256(data).hexdigest():
        raise KnowledgeBaseError(
            f"{path} does not match the checksum in {FILE_NAME}",
            expected="the noises that the base was built from",
            fix="restore the noise folder that belongs to this base; keys cannot be read without it",
        )
    return data
