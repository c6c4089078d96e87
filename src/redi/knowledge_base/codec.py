"""Owns how latents become bytes of fewer bits, and the columns of a table; must not know where they are kept.

8 bits: every block of 64 numbers has a float16 scale (its largest magnitude / 127) and 64 signed bytes, as in GGML's
Q8_0. 4 bits: every block of 32 numbers has a float16 scale and 32 places in the sixteen levels of NormalFloat (Dettmers
et al., QLoRA, 2023), which suit what is nearly Gaussian; of a few scales the one with the least square error is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Half = npt.NDArray[np.float16]
Payload = npt.NDArray[np.uint8]

_MOST = np.float32(np.finfo(np.float16).max)


class Codec(Protocol):
    """A way to keep latents (n, d)."""

    @property
    def name(self) -> str:
        """What a manifest calls it."""
        ...

    def width(self, size: int) -> int:
        """Return the bytes of one latent of ``size`` numbers."""
        ...

    def encode(self, latents: Half) -> Payload:
        """Return (n, width) bytes of (n, d) finite numbers."""
        ...

    def decode(self, payload: Payload, size: int) -> Half:
        """Return (n, d) numbers; what was not encoded here may come out as NaN."""
        ...


@dataclass(frozen=True)
class Float16:
    """Numbers as they are, in two little-endian bytes each."""

    name: str = "float16"

    def width(self, size: int) -> int:
        """See :class:`Codec`."""
        return 2 * size

    def encode(self, latents: Half) -> Payload:
        """See :class:`Codec`."""
        return (
            np.ascontiguousarray(latents, dtype="<f2")
            .view(np.uint8)
            .reshape(len(latents), self.width(latents.shape[1]))
        )

    def decode(self, payload: Payload, size: int) -> Half:
        """See :class:`Codec`."""
        return np.ascontiguousarray(payload).view("<f2").reshape(-1, size)


@dataclass(frozen=True)
class Int8:
    """Signed bytes with a scale for each block."""

    name: str = "int8"
    block: int = 64

    def width(self, size: int) -> int:
        """See :class:`Codec`."""
        blocks = -(-size // self.block)
        return blocks * (2 + self.block)

    def encode(self, latents: Half) -> Payload:
        """See :class:`Codec`."""
        blocks = _blocks(latents, self.block)
        scales = (np.abs(blocks).max(axis=2, keepdims=True) / 127).astype("<f2")
        places = np.rint(blocks / _divisor(scales)).clip(-127, 127).astype(np.int8)
        return np.concatenate([scales.view(np.uint8), places.view(np.uint8)], axis=2).reshape(
            len(latents), self.width(latents.shape[1])
        )

    def decode(self, payload: Payload, size: int) -> Half:
        """See :class:`Codec`."""
        scales, places = _parts(payload, self.block)
        return _halves(scales, places.view(np.int8).astype(np.float32), size)


_BELOW = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.09105, 0.0)
_ABOVE = (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.562617, 0.7229568, 1.0)
_LEVELS = np.array((*_BELOW, *_ABOVE), dtype=np.float32)
_EDGES = (_LEVELS[1:] + _LEVELS[:-1]) / 2
_PAIRS = np.stack([_LEVELS[np.arange(256) & 15], _LEVELS[np.arange(256) >> 4]], axis=1)


@dataclass(frozen=True)
class NormalFloat4:
    """Sixteen levels with a scale for each block, two numbers in a byte."""

    name: str = "nf4"
    block: int = 32
    scales: tuple[float, ...] = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)

    def width(self, size: int) -> int:
        """See :class:`Codec`."""
        blocks = -(-size // self.block)
        return blocks * (2 + self.block // 2)

    def encode(self, latents: Half) -> Payload:
        """See :class:`Codec`."""
        blocks = _blocks(latents, self.block)
        largest = np.abs(blocks).max(axis=2, keepdims=True)
        kept = self._at(blocks, largest * self.scales[0])
        for share in self.scales[1:]:
            tried = self._at(blocks, largest * share)
            better = tried[2] < kept[2]
            kept = tuple(np.where(better, new, old) for new, old in zip(tried, kept, strict=True))
        packed = kept[1][..., 0::2] | (kept[1][..., 1::2] << 4)
        return np.concatenate([kept[0].view(np.uint8), packed], axis=2).reshape(
            len(latents), self.width(latents.shape[1])
        )

    @staticmethod
    def _at(blocks: npt.NDArray[np.float32], wished: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], ...]:
        """Return scales, places and square errors of blocks at the scales wished for."""
        scales = wished.astype("<f2")
        places = np.searchsorted(_EDGES, blocks / _divisor(scales)).astype(np.uint8)
        errors = np.square(_LEVELS[places] * scales.astype(np.float32) - blocks).sum(axis=2, keepdims=True)
        return scales, places, errors

    def decode(self, payload: Payload, size: int) -> Half:
        """See :class:`Codec`."""
        scales, packed = _parts(payload, self.block // 2)
        return _halves(scales, _PAIRS[packed].reshape(*packed.shape[:2], self.block), size)


FLOAT16 = Float16()
CODECS: Mapping[str, Codec] = {each.name: each for each in (FLOAT16, Int8(), NormalFloat4())}


@dataclass(frozen=True)
class Columns:
    """The latent columns of a table.

    Attributes:
        names: ``key_<step>`` and ``value_<step>``.
        size: Numbers in one latent (d).
        values: How values are kept; keys are kept in float16, which search needs.
    """

    names: tuple[str, ...]
    size: int
    values: Codec = FLOAT16

    def codec(self, name: str) -> Codec:
        """Return how a column is kept."""
        return self.values if name.startswith("value_") else FLOAT16


def _blocks(latents: Half, block: int) -> npt.NDArray[np.float32]:
    """Return (n, blocks, block) float32, the last block filled up with zeros."""
    count, size = latents.shape
    blocks = -(-size // block)
    filled = np.zeros((count, blocks * block), dtype=np.float32)
    filled[:, :size] = latents
    return filled.reshape(count, blocks, block)


def _divisor(scales: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    divisor = scales.astype(np.float32)
    divisor[divisor == 0] = 1
    return divisor


def _parts(payload: Payload, block: int) -> tuple[npt.NDArray[np.float32], Payload]:
    """Return the scales (n, blocks, 1) and the bytes (n, blocks, block) behind them."""
    parts = np.ascontiguousarray(payload).reshape(len(payload), payload.shape[1] // (2 + block), 2 + block)
    return np.ascontiguousarray(parts[..., :2]).view("<f2").astype(np.float32), np.ascontiguousarray(parts[..., 2:])


def _halves(scales: npt.NDArray[np.float32], places: npt.NDArray[np.float32], size: int) -> Half:
    """Return (n, d) float16; a scale's rounding may carry the largest number over float16's end."""
    with np.errstate(invalid="ignore"):  # a stranger's scale may be infinite; whoever reads looks for NaN
        numbers = scales * places
    flat = numbers.reshape(len(numbers), numbers.shape[1] * numbers.shape[2])[:, :size]
    return np.asarray(np.clip(flat, -_MOST, _MOST), dtype=np.float16)
