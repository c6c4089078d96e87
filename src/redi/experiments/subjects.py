"""Owns what an experiment is about: a model, its prompts, real pictures and who judges; must not know samplings."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image

from redi.building.prompts import read_captions
from redi.errors import InputError
from redi.experiments.sample_files import ATTRIBUTES
from redi.metrics.extractors import Extractor
from redi.metrics.perceptual import Perceptual
from redi.miniature.drawing import draw
from redi.miniature.evaluation import bundled_evaluator
from redi.miniature.quality import Faithfulness, faithful
from redi.miniature.scenes import Description, captioned_scenes, captions
from redi.pipelines import MINIATURE, default_guidance, load_pipeline, miniature_folder, opened

_BASE_SEED, _PROMPT_SEED, _REFERENCE_SEED = 3000, 4000, 5000
_SPARE = 32


class Subject(Protocol):
    """A model with prompts for its bases, held-out prompts, real pictures, and a judge.

    Attributes:
        model: As :func:`redi.pipelines.load_pipeline` takes it.
        guidance: Guidance scale of every run.
        judges: Whether the judge tells right from wrong; otherwise it gives a score or nothing.
        lpips: What tells how far apart two pictures look, if weights were given.
    """

    @property
    def model(self) -> str: ...
    @property
    def guidance(self) -> float | None: ...
    @property
    def judges(self) -> bool: ...
    @property
    def lpips(self) -> Perceptual | None: ...

    @property
    def weights(self) -> str:
        """What bases and latents depend on, as a short hash."""
        ...

    @property
    def eyes(self) -> str:
        """What features and judgements depend on besides, as a short hash; empty for the bundled evaluator."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of one latent."""
        ...

    def told(self) -> dict[str, str]:
        """Return what results say of it: model, extractor, resize, reference and score, in words."""
        ...

    def pipeline(self, device: str | None) -> Any:
        """Open the model's pipeline, with its own scheduler."""
        ...

    def base_prompts(self, replicate: int, count: int, styles: bool) -> list[str]:
        """Return the prompts of a replicate's base; where the prompts can, without those that ask for a style."""
        ...

    def prompts(self, replicate: int, count: int) -> Mapping[str, Any]:
        """Return a replicate's held-out prompts, and of each what the judge must know."""
        ...

    def reference(self, count: int) -> Iterator[Image.Image]:
        """Yield real pictures."""
        ...

    def features(self, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Return the extractor's features (n, d)."""
        ...

    def judge(self, asked: Mapping[str, Any], pictures: Sequence[Image.Image]) -> dict[str, NDArray[np.float64]]:
        """Return for each attribute (n): 1 right, 0 wrong, nan where nothing is said; a score under "all"."""
        ...


@dataclass(frozen=True)
class Miniature:
    """The model that comes with redi, and its evaluator as judge.

    Args:
        extractor: Of features; by default the evaluator's own.
        guidance: Guidance scale; by default the one it was trained for.
        without: A kind of object that no base prompt names; by default bases name all.
        lpips: Of pictures of 64 x 64, as they are.
    """

    extractor: Extractor | None = None
    guidance: float | None = default_guidance(MINIATURE)
    without: str | None = None
    lpips: Perceptual | None = None
    model: str = field(default=MINIATURE, init=False)
    judges: bool = field(default=True, init=False)

    @cached_property
    def weights(self) -> str:
        """A short hash of the bundled weights, so that samples of other weights are never taken for these; with what
        is not as usual after it."""
        digest = hashlib.sha256()
        for path in sorted(miniature_folder().rglob("*.safetensors")):
            digest.update(path.read_bytes())
        guided = "" if self.guidance == default_guidance(MINIATURE) else f" guidance {self.guidance}"
        return f"{digest.hexdigest()[:12]}{guided}{f' without {self.without}' if self.without else ''}"

    @property
    def eyes(self) -> str:
        """The extractor's hash; the evaluator's is in the weights'."""
        return self.extractor.identity if self.extractor else ""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of the bundled network."""
        return (4, 16, 16)

    def told(self) -> dict[str, str]:
        """Return what results say of it."""
        return {
            "model": "the bundled model (64x64 pictures)",
            "extractor": self.extractor.name if self.extractor else "redi's own evaluator",
            "resize": self.extractor.resize if self.extractor else "none",
            "reference": "drawings of held-out captions",
            "score": "the share of pictures in which redi's own evaluator finds everything that the prompt says",
        }

    def pipeline(self, device: str | None) -> Any:
        """Open the bundled pipeline."""
        return load_pipeline(MINIATURE, device=device)

    def base_prompts(self, replicate: int, count: int, styles: bool) -> list[str]:
        """Return captions of the training half."""
        seed = _BASE_SEED + replicate
        if styles and self.without is None:
            return list(captions(count, seed=seed, held_out=False))
        found = captions(2 * count + _SPARE, seed=seed, held_out=False)  # one in three has a style, one in six a kind
        wanted = (text for text, asked in found.items() if (styles or asked.style is None) and not self._names(asked))
        return list(itertools.islice(wanted, count))

    def _names(self, asked: Description) -> bool:
        return any(each.kind == self.without for each in asked.objects)

    def prompts(self, replicate: int, count: int) -> Mapping[str, Any]:
        """Return held-out captions and what they ask for."""
        return captions(count, seed=_PROMPT_SEED + replicate, held_out=True)

    def reference(self, count: int) -> Iterator[Image.Image]:
        """Yield drawings of held-out captions."""
        return (draw(scene) for _, scene in itertools.islice(captioned_scenes(_REFERENCE_SEED, held_out=True), count))

    def features(self, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Return features (n, d)."""
        return (self.extractor or bundled_evaluator()).features(list(pictures))

    def judge(self, asked: Mapping[str, Any], pictures: Sequence[Image.Image]) -> dict[str, NDArray[np.float64]]:
        """Return what the evaluator sees of what was asked for."""
        seen = bundled_evaluator().read(list(pictures))
        found = [faithful(one, reading) for one, reading in zip(asked.values(), seen, strict=True)]
        return {name: _shares(found, name) for name in ATTRIBUTES}


@dataclass(frozen=True)
class Coco:
    """A text-to-image model on COCO 2014, as in the paper: bases of training captions, validation captions held out.

    A base takes one caption of each training image, the first that no other image gave. Held-out prompts are one of
    each validation image, without those that a base could hold. Real pictures are cropped to their middle square.

    Args:
        model: A folder of a Diffusers pipeline, or a hub id.
        folder: COCO as it unpacks: ``annotations/captions_train2014.json``, ``annotations/captions_val2014.json`` and
            ``val2014/*.jpg``.
        extractor: Of features.
        scorer: CLIP, for the score that stands where the miniature has faithfulness.
        dtype: What the model computes in.
        lpips: Of pictures that are shrunk to 64 pixels a side, the size that LPIPS was fitted to.

    Raises:
        InputError: A file is missing, or the scorer reads no text.
    """

    model: str
    folder: Path
    extractor: Extractor
    scorer: Extractor
    dtype: str = "float32"
    lpips: Perceptual | None = None
    guidance: float = field(default=7.5, init=False)
    judges: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.scorer.compare is None:
            raise InputError(f"scores by {self.scorer.name}", expected="CLIP, in Transformers' layout")
        for path in (self._captions("train"), self._captions("val"), self.folder / "val2014"):
            if not path.exists():
                raise InputError(
                    f"{path} is not there",
                    expected="COCO 2014 as it unpacks: annotations/captions_{train,val}2014.json and val2014/",
                    fix="download annotations_trainval2014.zip and val2014.zip from cocodataset.org and unpack them",
                )

    @cached_property
    def weights(self) -> str:
        """A short hash of the model, its dtype and the captions; of a hub id, of its name."""
        digest = hashlib.sha256(f"{self.dtype} {self.guidance}".encode())
        folder = Path(self.model)
        kinds = ("*.safetensors", "*.json", "*.bin")  # the last: what Diffusers reads where there is no safetensors
        files = [path for kind in kinds for path in sorted(folder.rglob(kind))] if folder.is_dir() else []
        for path in (*files, self._captions("train"), self._captions("val")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        digest.update(b"" if files else self.model.encode())
        return digest.hexdigest()[:12]

    @property
    def eyes(self) -> str:
        """The hashes of the extractor and the scorer."""
        return f"{self.extractor.identity}-{self.scorer.identity}"

    @cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """As the model's network says.

        Raises:
            InputError: The model is not there or does not load.
        """
        config = opened(self.model, partial(UNet2DConditionModel.load_config, subfolder="unet"))
        return (config["in_channels"], config["sample_size"], config["sample_size"])

    def told(self) -> dict[str, str]:
        """Return what results say of it."""
        return {
            "model": f"{Path(self.model).name} in {self.dtype}, guidance {self.guidance}",
            "extractor": self.extractor.name,
            "resize": self.extractor.resize,
            "reference": "pictures of COCO's validation set, their middle square",
            "score": f"the CLIP score (mean cosine of {self.scorer.name} and the prompt's, in per cent)",
        }

    def pipeline(self, device: str | None) -> Any:
        """Open the pipeline, without its safety checker: that would blacken pictures behind the measures' back."""
        pipe = load_pipeline(self.model, dtype=self.dtype, device=device)
        if getattr(pipe, "safety_checker", None) is not None:
            pipe.safety_checker = None
        return pipe

    def base_prompts(self, replicate: int, count: int, styles: bool) -> list[str]:
        """Return training captions, in an order of the replicate's own."""
        return self._some(self._training, _BASE_SEED + replicate, count, self._captions("train"))

    def prompts(self, replicate: int, count: int) -> Mapping[str, Any]:
        """Return validation captions that are no training captions."""
        return dict.fromkeys(self._some(self._held_out, _PROMPT_SEED + replicate, count, self._captions("val")))

    def reference(self, count: int) -> Iterator[Image.Image]:
        """Yield validation pictures, in the order of their names.

        Raises:
            InputError: There are fewer.
        """
        files = sorted((self.folder / "val2014").glob("*.jpg"))[:count]
        if len(files) < count:
            raise InputError(
                f"{len(files)} pictures in {self.folder / 'val2014'}",
                expected=f"at least {count}",
                fix="unpack all of val2014.zip",
            )
        for file in files:
            with Image.open(file) as picture:
                yield _middle_square(picture.convert("RGB"))

    def features(self, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Return features (n, d)."""
        return self.extractor.features(pictures)

    def judge(self, asked: Mapping[str, Any], pictures: Sequence[Image.Image]) -> dict[str, NDArray[np.float64]]:
        """Return CLIP scores under "all"."""
        nothing = np.full(len(pictures), np.nan)
        return dict.fromkeys(ATTRIBUTES, nothing) | {"all": self.scorer.score(list(asked), pictures)}

    @cached_property
    def _training_captions(self) -> dict[Any, list[str]]:
        return read_captions(self._captions("train"))

    @cached_property
    def _training(self) -> list[str]:
        return _one_of_each(self._training_captions)

    @cached_property
    def _held_out(self) -> list[str]:
        known = {caption.casefold() for each in self._training_captions.values() for caption in each}
        found = _one_of_each(read_captions(self._captions("val")))
        return [caption for caption in found if caption.casefold() not in known]

    def _captions(self, part: str) -> Path:
        return self.folder / "annotations" / f"captions_{part}2014.json"

    def _some(self, found: Sequence[str], seed: int, count: int, path: Path) -> list[str]:
        if len(found) < count:
            raise InputError(
                f"{len(found)} captions that differ in {path}",
                expected=f"at least {count}",
                fix="unpack annotations_trainval2014.zip again, or choose a smaller --scale",
            )
        return [found[place] for place in np.random.default_rng(seed).permutation(len(found))[:count]]


def subject_of(result: Mapping[str, Any]) -> Mapping[str, str]:
    """Return what a result is of; one that does not say is of the bundled model."""
    told: Mapping[str, str] = result.get("subject", Miniature().told())
    return told


def _one_of_each(by_image: Mapping[Any, Sequence[str]]) -> list[str]:
    """Return one caption of each image, the first that no image before it gave."""
    seen: dict[str, str] = {}
    for several in by_image.values():
        for caption in several:
            if caption.casefold() not in seen:
                seen[caption.casefold()] = caption
                break
    return list(seen.values())


def _middle_square(picture: Image.Image) -> Image.Image:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def _shares(found: Sequence[Faithfulness], name: str) -> NDArray[np.float64]:
    return np.asarray([np.nan if (said := getattr(one, name)) is None else float(said) for one in found])
