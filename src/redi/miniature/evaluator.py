"""Owns the small network that reads a picture (background, style, objects and where they are) and gives the features
for Frechet distance; must not know the text-to-image model.

It is a dense detector: a 16x16 map says for each cell which kind of object is centred there, of which colour and size.
The mean of that map's features over the picture, 128 numbers, is the feature space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from redi.errors import InputError
from redi.miniature.autoencoder import to_unit
from redi.miniature.scenes import IMAGE_SIZE, Placement, Scene
from redi.miniature.training import Stage, train
from redi.miniature.vocabulary import BACKGROUNDS, COLORS, KINDS, PLAIN, SIZES, STYLES

FEATURES = 128
_GRID = 16
_CELL = IMAGE_SIZE / _GRID
_STYLES = (PLAIN, *STYLES)
_PRESENT = 0.5
_APART = 10.0
"""Pixels: of two kinds seen closer together than objects can be, the surer one is there."""


@dataclass(frozen=True)
class Reading:
    """What the evaluator sees in one picture; positions and radii as in a scene (radius is nominal)."""

    background: str
    style: str
    objects: tuple[Placement, ...]


class Evaluator(nn.Module):
    """Reads pictures (b, 3, 64, 64) in -1..1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, 32, stride=2), _convolution(32, 64, stride=2), _Residual(64))
        self.wide = nn.Sequential(_convolution(64, 96, stride=2), _Residual(96), _Residual(96))
        self.lift = nn.Conv2d(96, 64, 1)
        self.join = nn.Sequential(_Residual(64), nn.Conv2d(64, FEATURES, 1), nn.SiLU())
        self.kind = nn.Conv2d(FEATURES, len(KINDS) + 1, 1)
        self.color = nn.Conv2d(FEATURES, len(COLORS), 1)
        self.size = nn.Conv2d(FEATURES, len(SIZES), 1)
        self.background = nn.Linear(FEATURES, len(BACKGROUNDS))
        self.style = nn.Linear(FEATURES, len(_STYLES))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return maps ``kind``, ``color``, ``size`` (b, classes, 16, 16), ``background``, ``style`` (b, classes) and
        ``features`` (b, 128)."""
        near = self.stem(pictures)
        far = nn.functional.interpolate(self.lift(self.wide(near)), scale_factor=2, mode="nearest")
        cells = self.join(near + far)
        features = cells.mean(dim=(2, 3))
        return {
            "kind": self.kind(cells),
            "color": self.color(cells),
            "size": self.size(cells),
            "background": self.background(features),
            "style": self.style(features),
            "features": features,
        }

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image], *, batch_size: int = 128) -> NDArray[np.float64]:
        """Return the features (n, 128) of 64x64 pictures."""
        return torch.cat([out["features"] for out in self._batches(images, batch_size)]).double().numpy()

    @torch.no_grad()
    def read(self, images: Sequence[Image.Image], *, batch_size: int = 128) -> list[Reading]:
        """Return what is seen in each of the 64x64 pictures."""
        return [reading for out in self._batches(images, batch_size) for reading in _readings(out)]

    def _batches(self, images: Sequence[Image.Image], batch_size: int) -> list[dict[str, Tensor]]:
        device = self.background.weight.device
        outputs = []
        for start in range(0, len(images), batch_size):
            batch = [_array(image) for image in images[start : start + batch_size]]
            out = self(to_unit(torch.from_numpy(np.stack(batch))).to(device))
            outputs.append({name: value.float().cpu() for name, value in out.items()})
        return outputs


def load_evaluator(path: Path) -> Evaluator:
    """Load shipped or trained evaluator weights (safetensors)."""
    evaluator = Evaluator()
    evaluator.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return evaluator.eval()


def train_evaluator(
    stage: Stage, drawn: NDArray[np.uint8], scenes: list[Scene], folder: Path, *, device: torch.device
) -> tuple[Evaluator, dict[str, Any]]:
    """Train the evaluator on pictures (n, 3, 64, 64) of scenes, softened and noised at random so that it also reads
    pictures that are decoded rather than drawn. Losses of the attributes are summed (design 2.15)."""
    torch.manual_seed(stage.seed)
    evaluator = Evaluator().to(device)
    maps, labels = _targets(scenes)

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(drawn), (stage.batch_size,), generator=generator)
        pictures = _soften(to_unit(torch.from_numpy(drawn[rows.numpy()])), generator).to(device)
        out = evaluator(pictures)
        target = {name: values[rows].long().to(device) for name, values in (maps | labels).items()}
        kind = nn.functional.cross_entropy(out["kind"].float(), target["kind"], reduction="none")
        there = target["kind"] > 0
        losses = [kind[there].mean(), kind[~there].mean()]
        losses += [
            nn.functional.cross_entropy(out[name].float(), target[name], ignore_index=-1) for name in ("color", "size")
        ]
        losses += [nn.functional.cross_entropy(out[name].float(), target[name]) for name in ("background", "style")]
        return torch.stack(losses).sum()

    record = train(stage, evaluator, loss_of, folder, device=device)
    return evaluator, record


def _convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.SiLU()
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = hidden + self.inner(hidden)
        return result


def _array(image: Image.Image) -> NDArray[np.uint8]:
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        raise InputError(f"a picture of {image.size[0]}x{image.size[1]}", expected=f"{IMAGE_SIZE}x{IMAGE_SIZE} pixels")
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def _targets(scenes: list[Scene]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return maps (n, 16, 16), with an object's labels on the 3x3 cells about its centre, and labels (n)."""
    kinds, colors, sizes = list(KINDS), list(COLORS), list(SIZES)
    shape = (len(scenes), _GRID, _GRID)
    maps = {
        "kind": torch.zeros(shape, dtype=torch.int8),
        "color": torch.full(shape, -1, dtype=torch.int8),
        "size": torch.full(shape, -1, dtype=torch.int8),
    }
    for row, scene in enumerate(scenes):
        for item in scene.placements:
            x, y = int(item.x / _CELL), int(item.y / _CELL)
            cells = (row, slice(max(0, y - 1), y + 2), slice(max(0, x - 1), x + 2))
            maps["kind"][cells] = kinds.index(item.kind) + 1
            maps["color"][cells] = colors.index(item.color)
            maps["size"][cells] = sizes.index(item.size)
    labels = {
        "background": torch.tensor([list(BACKGROUNDS).index(scene.background) for scene in scenes]),
        "style": torch.tensor([_STYLES.index(scene.style or PLAIN) for scene in scenes]),
    }
    return maps, labels


def _soften(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Blur and noise each picture by a random amount."""
    shape = (len(pictures), 1, 1, 1)
    blurred = nn.functional.avg_pool2d(nn.functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    amount = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.5)
    softened = torch.lerp(pictures, blurred, amount * 0.8)
    level = 0.12 * torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.5)
    return softened + level * torch.randn(pictures.shape, generator=generator)


def _readings(out: dict[str, Tensor]) -> list[Reading]:
    kinds, colors, sizes = list(KINDS), list(COLORS), list(SIZES)
    scores = out["kind"].softmax(dim=1)[:, 1:]
    peak, where = scores.flatten(2).max(dim=2)
    readings = []
    for row in range(len(scores)):
        objects: list[Placement] = []
        for kind in peak[row].argsort(descending=True).tolist():
            cell = divmod(int(where[row, kind]), _GRID)
            y, x = _centre(scores[row, kind], cell)
            if peak[row, kind] < _PRESENT or any(np.hypot(x - item.x, y - item.y) < _APART for item in objects):
                continue
            color = colors[int(out["color"][row, :, cell[0], cell[1]].argmax())]
            size = sizes[int(out["size"][row, :, cell[0], cell[1]].argmax())]
            objects.append(Placement(kinds[kind], color, size, x, y, 9.0 if size == "small" else 14.0))
        background = list(BACKGROUNDS)[int(out["background"][row].argmax())]
        readings.append(Reading(background, _STYLES[int(out["style"][row].argmax())], tuple(objects)))
    return readings


def _centre(score: Tensor, cell: tuple[int, int]) -> tuple[float, float]:
    """Return the score's centre of mass (y, x in pixels) within two cells of the peak."""
    top, left = max(0, cell[0] - 2), max(0, cell[1] - 2)
    window = score[top : cell[0] + 3, left : cell[1] + 3]
    window = window / window.sum()
    rows = torch.arange(window.shape[0]) + top + 0.5
    columns = torch.arange(window.shape[1]) + left + 0.5
    return float((window.sum(1) * rows).sum()) * _CELL, float((window.sum(0) * columns).sum()) * _CELL
