"""Owns reading pictures with a user's local weights (CLIP, DINOv2, Inception); must not know studies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from redi.errors import InputError
from redi.pipelines import chosen_device

_BATCH = 32
_INCEPTION_SIDE = 299
_KINDS = "a folder of CLIP or DINOv2 as Transformers saves it, or a TorchScript file (.pt) of FID's Inception"


@dataclass(frozen=True, eq=False)
class Extractor:
    """What turns pictures into features, and, with CLIP, tells how well they fit their prompts.

    Attributes:
        name: Of the network and the features, for results.
        resize: How pictures are brought to its size, for results.
        identity: Short hash of the weights.
        compute: Features (b, d) of a batch of pictures.
        compare: Cosines (b) of pictures with their prompts; None where the network reads no text.
    """

    name: str
    resize: str
    identity: str
    compute: Callable[[list[Image.Image]], Tensor]
    compare: Callable[[list[str], list[Image.Image]], Tensor] | None = None

    def features(self, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Return features (n, d) of pictures (n)."""
        return self._all(lambda part: self.compute(list(pictures[part])), len(pictures))

    def score(self, prompts: Sequence[str], pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Return the CLIP score (n), the cosine of picture and prompt, -1 to 1 (Hessel et al., 2021, without its
        factor).

        Raises:
            InputError: The network reads no text.
        """
        compare = self.compare
        if compare is None:
            raise InputError(f"a CLIP score by {self.name}", expected="a network that reads text: CLIP")
        return self._all(lambda part: compare(list(prompts[part]), list(pictures[part])), len(pictures))

    def _all(self, of: Callable[[slice], Tensor], count: int) -> NDArray[np.float64]:
        with torch.inference_mode():
            parts = [of(slice(start, start + _BATCH)).double().cpu() for start in range(0, count, _BATCH)]
        return np.asarray(torch.cat(parts).numpy(), np.float64)


def load_extractor(path: Path, *, device: str | None = None) -> Extractor:
    """Open an extractor from local files; no network is asked, nothing is unpickled.

    Args:
        path: A folder of CLIP or DINOv2, as ``save_pretrained`` writes it with its image processor (and tokenizer), or
            a TorchScript file of Inception as clean-fid and StyleGAN use it: pictures (b, 3, 299, 299) of 0 to 255
            and ``return_features=True`` give (b, 2048).
        device: As torch names it; by default "cuda" where there is one, else "cpu".

    Raises:
        InputError: It is none of these, or does not load.
    """
    place = chosen_device(device)
    if path.is_file():
        return _inception(path, place)
    try:
        kind = json.loads((path / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"features of {path}: no config.json with a model_type", expected=_KINDS) from error
    if kind not in _MAKERS:
        raise InputError(f"features of {path}, a {kind}", expected=_KINDS)
    try:
        return _MAKERS[kind](path, place)
    except Exception as error:  # from_pretrained raises whatever its parts raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"features of {path} do not load: {first}", expected=_KINDS) from error


def _clip(path: Path, device: str) -> Extractor:
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(path, local_files_only=True, use_safetensors=True).eval().to(device)
    processor, tokenizer = _processor(path), AutoTokenizer.from_pretrained(path, local_files_only=True)

    def seen(pictures: list[Image.Image]) -> Tensor:
        found = model.get_image_features(**_shown(processor, pictures, device))
        return found if isinstance(found, Tensor) else found.pooler_output

    def compare(prompts: list[str], pictures: list[Image.Image]) -> Tensor:
        tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(device)
        told = model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        told = told if isinstance(told, Tensor) else told.pooler_output
        return torch.cosine_similarity(told, seen(pictures), dim=1)

    return Extractor(f"CLIP image embeddings ({path.name})", _told(processor), _hash(path), seen, compare)


def _dinov2(path: Path, device: str) -> Extractor:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True).eval().to(device)
    processor = _processor(path)

    def seen(pictures: list[Image.Image]) -> Tensor:
        found: Tensor = model(**_shown(processor, pictures, device)).pooler_output
        return found

    return Extractor(f"DINOv2 class tokens ({path.name})", _told(processor), _hash(path), seen)


def load_script(path: Path, device: str) -> tuple[Any, str]:
    """Open a TorchScript file; return the network and a short hash of its weights.

    Raises:
        InputError: It is none.
    """
    try:
        network = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path} is not TorchScript", expected=_KINDS) from error
    return network, hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _inception(path: Path, device: str) -> Extractor:
    network, digest = load_script(path, device)

    def seen(pictures: list[Image.Image]) -> Tensor:
        sides = (_INCEPTION_SIDE, _INCEPTION_SIDE)
        arrays = [np.asarray(each.convert("RGB").resize(sides, Image.Resampling.BICUBIC)) for each in pictures]
        found: Tensor = network(
            torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float().to(device), return_features=True
        )
        return found.flatten(1)

    resize = f"PIL bicubic to {_INCEPTION_SIDE}x{_INCEPTION_SIDE}"
    return Extractor(f"Inception pool features ({path.name})", resize, digest, seen)


_MAKERS: dict[str, Callable[[Path, str], Extractor]] = {"clip": _clip, "dinov2": _dinov2}


def _processor(path: Path) -> Any:
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(path, local_files_only=True, backend="pil")


def _shown(processor: Any, pictures: list[Image.Image], device: str) -> dict[str, Tensor]:
    found = processor(images=[each.convert("RGB") for each in pictures], return_tensors="pt")
    return {"pixel_values": found["pixel_values"].to(device)}


def _told(processor: Any) -> str:
    """Return how a processor of Transformers brings pictures to size, in words."""
    size = getattr(processor, "size", None) or {}
    sides = dict(size).get("shortest_edge") or "x".join(str(each) for each in dict(size).values() if each)
    crop = "x".join(str(each) for each in dict(getattr(processor, "crop_size", None) or {}).values() if each)
    how = Image.Resampling(int(processor.resample)).name.lower() if processor.resample is not None else "its own way"
    return f"PIL {how} to {sides}" + (
        f", centre {crop}" if crop and getattr(processor, "do_center_crop", False) else ""
    )


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in [*sorted(folder.glob("*.safetensors")), folder / "config.json", folder / "preprocessor_config.json"]:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
