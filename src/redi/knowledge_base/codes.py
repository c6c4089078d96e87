"""Owns keys squeezed into codes that FAISS scans, in two ways, and their files; must not know noises or tables.

A coder turns keys (n, d) into n codes of a few hundred bytes, and queries into what FAISS compares with them. FAISS
ranks candidates only: the whole keys of the best are compared again in float32 by who searches. Only FAISS's plain
types are used; its "fast scan" types overflow at these dimensions without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from redi.errors import KnowledgeBaseError

_POWER_STEPS = 6
_LEVELS = 127
"""Of an axis to either side of zero, in 8 bits."""
_PROBE = 64
_BREADTH = 16

Codes = npt.NDArray[np.uint8]


class Coder(Protocol):
    """How keys become codes. Made by ``fit`` of a class, or by :func:`coder_of` from what was stored.

    Attributes:
        name: In words.
        center: (d) float32.
        breadth: How many codes the first level finds for each that the last one passes on; 1 of one level.
    """

    name: str
    center: Tensor
    breadth: int

    def tensors(self) -> dict[str, Tensor]:
        """Return all that :func:`coder_of` needs to make this coder again."""
        ...

    def levels(self) -> tuple[Any, ...]:
        """Return FAISS indexes without codes: the one that is scanned, and one that ranks what it finds, if any."""
        ...

    def coordinates(self, keys: Tensor, *, stored: bool) -> npt.NDArray[np.float32]:
        """Return what FAISS encodes (``stored``) or compares codes with: (n, d) float32 to (n, m) float32."""
        ...


class ProjectedCoder:
    """Principal components of centred keys and the norm of what they leave, each in 8 bits.

    Keys of one noise are of low rank. With m-1 components and the norm r of the rest, the squared distance of a key x
    and a query q is |P(q - x)|^2 + r^2 plus what is the same for all keys and a product of two rests, which is small.
    m is a multiple of 16, or FAISS is four times slower.

    The axes are kept in 8 bits, because in float32 those of a few thousand keys take more than their codes: what
    rounding adds to an axis points anywhere, and keys of low rank have next to nothing there.

    Args:
        center: (d) float32.
        axes: (m-1, d) int8.
        scales: (m-1) float32; axes times these are orthonormal rows, up to rounding.
        ranges: (2m) float32: least value and width of each coordinate.
    """

    breadth = 1

    def __init__(self, center: Tensor, axes: Tensor, scales: Tensor, ranges: Tensor) -> None:
        self.center, self._rounded, self._scales, self._ranges = center, axes, scales, ranges
        self._axes = axes * scales[:, None]
        self.name = f"{len(axes)} principal components"

    @classmethod
    def fit(cls, sample: Tensor, size: int) -> ProjectedCoder:
        """Find the axes from a sample of keys (s, d) float32; ``size`` is m."""
        center = sample.mean(dim=0)
        centred = sample - center
        axes = _principal(centred, size - 1)
        scales = axes.abs().amax(dim=1) / _LEVELS
        rounded = (axes / scales[:, None]).round().to(torch.int8)
        coder = cls(center, rounded, scales, torch.zeros(2 * size))
        trained = faiss.IndexScalarQuantizer(size, faiss.ScalarQuantizer.QT_8bit)
        trained.train(coder.coordinates(sample, stored=True))
        return cls(center, rounded, scales, torch.from_numpy(faiss.vector_to_array(trained.sq.trained)))

    def tensors(self) -> dict[str, Tensor]:
        """See :class:`Coder`."""
        return {"center": self.center, "axes": self._rounded, "scales": self._scales, "ranges": self._ranges}

    def levels(self) -> tuple[Any, ...]:
        """See :class:`Coder`."""
        made = faiss.IndexScalarQuantizer(len(self._axes) + 1, faiss.ScalarQuantizer.QT_8bit)
        faiss.copy_array_to_vector(self._ranges.numpy(), made.sq.trained)
        made.is_trained = True
        return (made,)

    def coordinates(self, keys: Tensor, *, stored: bool) -> npt.NDArray[np.float32]:
        """See :class:`Coder`."""
        found = torch.zeros(len(keys), len(self._axes) + 1)
        if stored:
            centred = keys - self.center
            torch.mm(centred, self._axes.T, out=found[:, :-1])
            rest = centred.square().sum(dim=1) - found[:, :-1].square().sum(dim=1)
            found[:, -1] = rest.clamp(min=0).sqrt()
        else:
            torch.mm(keys - self.center, self._axes.T, out=found[:, :-1])
        return found.numpy()


def _principal(centred: Tensor, count: int) -> Tensor:
    """Return the leading right singular vectors of (s, d), (count, d), by subspace iteration on the s x s products."""
    products = centred @ centred.T
    start = torch.randn(len(centred), min(len(centred), count + 16), generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(products @ start).Q
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(products @ basis).Q
    _, vectors = torch.linalg.eigh((basis.T @ products @ basis).double())
    leading = basis @ vectors.flip(1)[:, :count].float()
    axes: Tensor = torch.linalg.qr(centred.T @ leading).Q.T.contiguous()
    return axes


class RotatedCoder:
    """RaBitQ: the signs (and with 2 bits a little more) of centred keys after a random rotation by Hadamard transform.

    For keys without a low rank, as those of independent noises are. The error of a squared distance is about
    0.75 / sqrt(d) of it with one bit, whose scan is six times as fast as one of two bits; so codes of two bits only
    rank what codes of one bit have found.

    Args:
        center: (d) float32.
        bits: Bits a coordinate of the longest codes, 1 or 2.
        probe: What the rotation made of a known vector when the codes were written; None to ask it now.
    """

    def __init__(self, center: Tensor, bits: int, probe: Tensor | None = None) -> None:
        self.center, self._bits = center, bits
        self.name = f"{'1 bit, then ' if bits > 1 else ''}{bits} bit{'s' if bits > 1 else ''} a dimension, rotated"
        self.breadth = _BREADTH if bits > 1 else 1
        self._rotation = faiss.HadamardRotation(len(center))
        known = torch.linspace(-1, 1, len(center))[None]
        self._probe = torch.from_numpy(self._rotation.apply(known.numpy()))[0, :_PROBE].clone()
        if probe is not None and not torch.allclose(self._probe, probe, atol=1e-4):
            raise KnowledgeBaseError(
                f"FAISS {faiss.__version__} rotates otherwise than the one that made the index",
                expected="the same rotation",
                fix="make the index again: redi index --rebuild",
            )

    @classmethod
    def fit(cls, sample: Tensor, bits: int) -> RotatedCoder:
        """Centre on a sample of keys (s, d) float32."""
        return cls(sample.mean(dim=0), bits)

    def tensors(self) -> dict[str, Tensor]:
        """See :class:`Coder`."""
        return {"center": self.center, "bits": torch.tensor([self._bits]), "probe": self._probe}

    def levels(self) -> tuple[Any, ...]:
        """See :class:`Coder`."""
        return tuple(self._level(bits) for bits in range(1, self._bits + 1))

    def _level(self, bits: int) -> Any:
        made = faiss.IndexRaBitQ(self._rotation.d_out, faiss.METRIC_L2, bits)
        faiss.copy_array_to_vector(np.zeros(self._rotation.d_out, dtype=np.float32), made.center)
        made.is_trained = True
        return made

    def coordinates(self, keys: Tensor, *, stored: bool) -> npt.NDArray[np.float32]:
        """See :class:`Coder`."""
        rotated: npt.NDArray[np.float32] = self._rotation.apply((keys - self.center).contiguous().numpy())
        return rotated


def coder_of(found: Mapping[str, Tensor], size: int) -> Coder:
    """Make the coder that gave these ``tensors``, for keys of ``size`` numbers.

    Raises:
        KnowledgeBaseError: They are not what a coder gives, or this FAISS rotates otherwise.
    """
    center = found.get("center", torch.empty(0))
    fine = center.shape == (size,) and all(bool(each.isfinite().all()) for each in found.values())
    if fine and set(found) == {"center", "axes", "scales", "ranges"}:
        axes, scales, ranges = found["axes"], found["scales"], found["ranges"]
        parts = all(each.dtype == torch.float32 for each in (center, scales, ranges)) and axes.dtype == torch.int8
        shapes = scales.shape == axes.shape[:1] and ranges.shape == (2 * (len(axes) + 1),)
        if parts and axes.ndim == 2 and axes.shape[1] == size and shapes:
            return ProjectedCoder(center, axes, scales, ranges)
    if fine and set(found) == {"center", "bits", "probe"} and center.dtype == torch.float32:
        bits, probe = found["bits"], found["probe"]
        if bits.tolist() in ([1], [2]) and probe.dtype == torch.float32 and probe.shape == (min(_PROBE, len(probe)),):
            return RotatedCoder(center, int(bits), probe)
    raise KnowledgeBaseError("an index of unknown making", expected="what redi wrote", fix="redi index --rebuild")


def encode(coder: Coder, keys: Tensor) -> Codes:
    """Return the codes of keys, of all levels side by side: (n, d) float32 to (n, bytes) uint8."""
    coordinates = coder.coordinates(keys, stored=True)
    return np.concatenate([level.sa_encode(coordinates) for level in coder.levels()], axis=1)


def filled(coder: Coder, codes: Codes) -> Any:
    """Return a FAISS index of codes in memory."""
    levels = coder.levels()
    for level, part in zip(levels, _by_level(levels, codes), strict=True):
        level.add_sa_codes(np.ascontiguousarray(part), None)
    return _together(coder, levels)


def code_files(path: Path, coder: Coder) -> list[Path]:
    """Return the files of codes, one for each level; the first is ``path``."""
    return [path.with_name(f"{path.name}{level or ''}") for level in range(len(coder.levels()))]


def write_codes(path: Path, coder: Coder, codes: Codes) -> None:
    """Write codes as files of FAISS indexes.

    Raises:
        OSError: The disk is full or not writable.
    """
    levels = coder.levels()
    for file, level, part in zip(code_files(path, coder), levels, _by_level(levels, codes), strict=True):
        head, tail, size = _frame(level, len(codes))
        with open(file, "wb") as opened:
            opened.write(head + (len(codes) * size).to_bytes(8, "little"))
            opened.write(np.ascontiguousarray(part).data)
            opened.write(tail)


def read_codes(path: Path, coder: Coder, count: int) -> Codes:
    """Return the codes of files, of all levels side by side: (count, bytes) uint8.

    Raises:
        KnowledgeBaseError: The files are not those of ``count`` codes by this coder.
    """
    files = zip(code_files(path, coder), coder.levels(), strict=True)
    parts = [_mapped(file, level, count) for file, level in files]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def open_codes(path: Path, coder: Coder, count: int) -> Any:
    """Return a FAISS index whose codes are mapped, so that processes share them.

    FAISS believes what stands in a file, so everything but the codes themselves is compared first with what must
    stand there; any code is a valid code.

    Raises:
        KnowledgeBaseError: The files are not those of ``count`` codes by this coder.
    """
    files = code_files(path, coder)
    for file, level in zip(files, coder.levels(), strict=True):
        _mapped(file, level, count)
    return _together(coder, tuple(faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC) for file in files))


def _by_level(levels: tuple[Any, ...], codes: Codes) -> list[Codes]:
    ends = np.cumsum([level.code_size for level in levels])
    return np.split(codes, ends[:-1], axis=1)


def _together(coder: Coder, levels: tuple[Any, ...]) -> Any:
    if len(levels) == 1:
        return levels[0]
    both = faiss.IndexRefine(*levels)
    both.k_factor = coder.breadth
    return both


def _mapped(path: Path, level: Any, count: int) -> Codes:
    head, tail, size = _frame(level, count)
    start, length = len(head) + 8, count * size
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise KnowledgeBaseError(f"cannot read {path}: {error}", fix="redi index --rebuild") from error
    framed = head + length.to_bytes(8, "little")
    if (
        len(data) != start + length + len(tail)
        or bytes(data[:start]) != framed
        or bytes(data[start + length :]) != tail
    ):
        raise KnowledgeBaseError(
            f"{path} is not the codes of {count} keys", expected="the file that redi wrote", fix="redi index --rebuild"
        )
    return data[start : start + length].reshape(count, size)


def _frame(level: Any, count: int) -> tuple[bytes, bytes, int]:
    """Return what FAISS writes before the codes (without their number of bytes) and after them, and bytes a code."""
    made: Any = faiss.clone_index(level)
    made.ntotal = count
    without = faiss.serialize_index(made).tobytes()
    made.codes.resize(1)
    with_one = faiss.serialize_index(made).tobytes()
    place = next(at for at, (a, b) in enumerate(zip(without, with_one, strict=False)) if a != b)
    return without[:place], without[place + 8 :], int(made.code_size)
