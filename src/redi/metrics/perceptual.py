"""Owns LPIPS, by a user's local weights; must not know studies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redi.metrics.extractors import load_script
from redi.pipelines import chosen_device

_BATCH = 32

Pictures = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Perceptual:
    """What tells how far apart two pictures look (LPIPS; Zhang et al., 2018).

    Attributes:
        name: Of the network, for results.
        identity: Short hash of the weights.
        compute: Of pictures (b, 3, h, w), 0 to 255, what LPIPS is the squared distance of: (b, d).
    """

    name: str
    identity: str
    compute: Callable[[Tensor], Tensor]

    def distances(self, some: Pictures, others: Pictures) -> NDArray[np.float64]:
        """Return LPIPS (n), from 0, of pictures (n, h, w, 3), 0 to 255, pair by pair."""
        found = [
            (self._seen(some[at : at + _BATCH]) - self._seen(others[at : at + _BATCH])).square().sum(dim=1).cpu()
            for at in range(0, len(some), _BATCH)
        ]
        return np.asarray(torch.cat(found).numpy(), np.float64)

    @torch.inference_mode()
    def _seen(self, pictures: Pictures) -> Tensor:
        return self.compute(torch.from_numpy(pictures).permute(0, 3, 1, 2).float()).double().flatten(1)


def load_perceptual(path: Path, *, device: str | None = None) -> Perceptual | None:
    """Open LPIPS from a local file; None if the file holds something else. Nothing is unpickled.

    Args:
        path: TorchScript of VGG16 with LPIPS' weights, as StyleGAN uses it: ``resize_images=False,
            return_lpips=True`` give (b, d).
        device: As torch names it; by default "cuda" where there is one, else "cpu".

    Raises:
        InputError: It is a file, and no TorchScript.
    """
    if not path.is_file():
        return None
    place = chosen_device(device)
    network, identity = load_script(path, place)
    if "return_lpips" not in (argument.name for argument in network.forward.schema.arguments):
        return None

    def compute(pictures: Tensor) -> Tensor:
        found: Tensor = network(pictures.to(place), resize_images=False, return_lpips=True)
        return found

    return Perceptual(f"LPIPS ({path.name})", identity, compute)
