"""Owns the initial noises that a knowledge base is built from; must not know entries or pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from redi.errors import KnowledgeBaseError, NoiseError
from redi.knowledge_base.durable import replace_file
from redi.knowledge_base.guard import read_file

_PROBE = 64
MAX_TENSOR_BYTES = 1 << 36


@dataclass(frozen=True)
class NoiseBank:
    """M initial latents of unit variance, each named by its seed and by its index (``noise_id``).

    Args:
        seeds: The M seeds.
        latents: (M, *shape) float32 on the CPU; not multiplied by the scheduler's ``init_noise_sigma``.

    Raises:
        NoiseError: Seeds repeat, are out of range, or do not fit the latents.
    """

    seeds: tuple[int, ...]
    latents: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", tuple(self.seeds))
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
                raise NoiseError(f"seed {seed!r}", expected="a whole number from 0 to 2**64 - 1")
        if len(set(self.seeds)) != len(self.seeds):
            raise NoiseError(f"seeds {self.seeds} with a repeat", expected="a different seed for every noise")
        if self.latents.dtype != torch.float32 or self.latents.shape[:1] != (len(self.seeds),):
            raise NoiseError(
                f"{self.latents.dtype} latents of shape {tuple(self.latents.shape)} for {len(self.seeds)} seeds",
                expected="float32 latents, one for each seed",
            )

    @classmethod
    def draw(cls, seeds: Sequence[int], shape: Sequence[int]) -> NoiseBank:
        """Draw one noise of ``shape`` for each seed, on the CPU in float32, as ``torch.Generator`` gives it.

        The noise of a seed is the one that Diffusers draws for one image with a CPU generator of that seed.

        Raises:
            NoiseError: A seed repeats or is out of range.
        """
        empty = torch.empty((0, *shape), dtype=torch.float32)
        for seed in seeds:
            cls((seed,), torch.empty((1, *shape)))
        drawn = [torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
        return cls(tuple(seeds), torch.stack(drawn) if drawn else empty)

    def __len__(self) -> int:
        return len(self.seeds)

    def save(self, path: Path) -> None:
        """Write the latents to one safetensors file, whole or not at all.

        Raises:
            KnowledgeBaseError: The disk is full or not writable.
        """
        replace_file(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the safetensors form of the bank."""
        return pack_tensors({"latents": self.latents})

    @classmethod
    def load(cls, path: Path, seeds: Sequence[int]) -> NoiseBank:
        """Read what :meth:`save` wrote; ``seeds`` name the noises, as the manifest lists them.

        Raises:
            KnowledgeBaseError: The file is missing, damaged, or holds another number of noises.
        """
        return cls.from_bytes(read_tensor_file(path), path, seeds)

    @classmethod
    def from_bytes(cls, data: bytes, path: Path, seeds: Sequence[int]) -> NoiseBank:
        """Read what :meth:`to_bytes` gave; ``path`` is named in errors, which are those of :meth:`load`."""
        latents = unpack_tensors(data, path).get("latents")
        if latents is None or latents.dtype != torch.float32 or latents.shape[:1] != (len(seeds),):
            raise KnowledgeBaseError(f"{path} does not hold {len(seeds)} noises", expected="the bank that redi wrote")
        return cls(tuple(seeds), latents)

    def choose(self, count: int, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> list[int]:
        """Choose a noise for each of ``count`` images; the same generator state gives the same choice.

        One generator (or none: torch's own) goes through the bank in random order, so images of one call differ
        as long as the bank lasts. A list of generators, one an image, lets each choose alone.

        Raises:
            NoiseError: The bank is empty, or the list has another length than ``count``.
        """
        if not self.seeds:
            raise NoiseError("a choice from an empty noise bank", expected="a base with shared noise")
        if generator is None or isinstance(generator, torch.Generator):
            chosen: list[int] = []
            while len(chosen) < count:
                chosen += self._shuffled(generator)
            return chosen[:count]
        if len(generator) != count:
            raise NoiseError(f"{len(generator)} generators for {count} images", expected="one generator an image")
        return [self._shuffled(one)[0] for one in generator]

    def _shuffled(self, generator: torch.Generator | None) -> list[int]:
        device = torch.device("cpu") if generator is None else generator.device
        order: list[int] = torch.randperm(len(self), generator=generator, device=device).tolist()
        return order

    def index_of(self, seed: int) -> int:
        """Return the noise id of a seed.

        Raises:
            NoiseError: The bank does not hold the seed.
        """
        if seed not in self.seeds:
            raise NoiseError(f"seed {seed}", expected=f"one of the base's seeds {_some(self.seeds)}")
        return self.seeds.index(seed)

    def match(self, latents: Tensor, scale: float = 1.0) -> list[int | None]:
        """Tell which noise of the bank each latent is, or None.

        Args:
            latents: (b, *shape), any float dtype and device: x_T as the first step gets it.
            scale: What the pipeline multiplied the noise with (``init_noise_sigma``).

        A latent is a noise of the bank when every number agrees up to the rounding of the latents' dtype.
        """
        rows = latents.detach().to("cpu")
        if rows.shape[1:] != self.latents.shape[1:]:
            return [None] * rows.shape[0]
        eps = torch.finfo(rows.dtype).eps if rows.is_floating_point() else 0.0
        tolerance = 4 * max(eps, torch.finfo(torch.float32).eps)
        flat, bank = rows.flatten(1).float(), self.latents.flatten(1)
        return [self._match_one(row, bank, float(scale), tolerance) for row in flat]

    @staticmethod
    def _match_one(row: Tensor, bank: Tensor, scale: float, tolerance: float) -> int | None:
        probe = bank[:, :_PROBE] * scale
        near = ((row[:_PROBE] - probe).abs() <= tolerance * (probe.abs() + 1e-3 * scale)).all(dim=1)
        for noise_id in near.nonzero().flatten().tolist():
            noise = bank[noise_id] * scale
            if bool(((row - noise).abs() <= tolerance * (noise.abs() + 1e-3 * scale)).all()):
                return int(noise_id)
        return None


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the safetensors form of named tensors."""
    return bytes(save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}))


def load_tensors(path: Path, limit: int = MAX_TENSOR_BYTES) -> dict[str, Tensor]:
    """Read a safetensors file whole.

    Raises:
        KnowledgeBaseError: The file is missing, damaged or larger than ``limit`` bytes.
    """
    return unpack_tensors(read_tensor_file(path, limit), path)


def read_tensor_file(path: Path, limit: int = MAX_TENSOR_BYTES) -> bytes:
    """Return the bytes of a file that :func:`unpack_tensors` can read.

    Raises:
        KnowledgeBaseError: The file is missing or larger than ``limit`` bytes.
    """
    try:
        return read_file(path, limit)
    except OSError as error:
        raise _unreadable(path, error) from error


def unpack_tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors of safetensors bytes; ``path`` is named in errors.

    Raises:
        KnowledgeBaseError: They are damaged.
    """
    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> KnowledgeBaseError:
    return KnowledgeBaseError(
        f"cannot read {path}: {str(error)[:300]}", expected="the safetensors file that redi wrote", fix="restore it"
    )


def _some(seeds: Sequence[int], limit: int = 20) -> str:
    return ", ".join(map(str, seeds[:limit])) + (", ..." if len(seeds) > limit else "")
