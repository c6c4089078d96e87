"""Owns the order in which the bundled model's parts are trained, and the folder that they end in; must not know how
a part is trained.

A folder of a training run holds ``cache/`` (arrays), ``<stage>.checkpoint`` and ``<stage>.losses.jsonl``, and at the
end ``model/``: a Diffusers folder in float16, the evaluator, and the training record.
"""

from __future__ import annotations

import functools
import itertools
import json
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from redi.comparison import Column, page
from redi.errors import InputError
from redi.miniature.architecture import GUIDANCE_SCALE, assemble, make_text_encoder, make_tokenizer, make_unet
from redi.miniature.autoencoder import encode, train_autoencoder
from redi.miniature.dataset import Shard, asked_for, cached, in_processes, pictures, shards
from redi.miniature.denoiser import train_denoiser
from redi.miniature.evaluator import Evaluator, load_evaluator, train_evaluator
from redi.miniature.loss_curves import loss_curves
from redi.miniature.scenes import captions as make_captions
from redi.miniature.text_encoder import tokenize, tokenize_shard, train_text_encoder
from redi.miniature.training import Stage, read_losses, replace_file
from redi.results import write_json

STAGES = {
    "tokenizer": Stage("tokenizer", 0, 0, 0.0, seed=1),
    "text": Stage("text", 300, 128, 1e-3),
    "autoencoder": Stage("autoencoder", 4000, 8, 2e-3, averaging=0.998),
    "denoiser": Stage("denoiser", 4800, 64, 1e-3, averaging=0.999),
    "evaluator": Stage("evaluator", 2500, 48, 2e-3, averaging=0.995),
}
"""The stages in their order, with what two CPU cores manage in about three hours."""

_STARTED_FROM = "started_from.json"
"""The training record of the denoiser that a further training started from."""

_SCENES = 60_000
_AUTOENCODER_SCENES = 24_000
_EVALUATOR_SCENES = 30_000
_SEEDS = {"autoencoder": 1, "text": 2, "denoiser": 2, "evaluator": 3}


@dataclass(frozen=True)
class TrainingRun:
    """One training run in one folder."""

    folder: Path
    device: torch.device
    scenes: int = _SCENES
    compiled: bool = False

    def train(self, name: str, *, steps: int | None = None, batch_size: int | None = None) -> None:
        """Train one stage, or finish it if it was begun; earlier stages must be there.

        ``steps`` and ``batch_size`` stand in for the stage's own.

        Raises:
            InputError: The stage is unknown, or one that it builds on is not finished.
        """
        if name not in STAGES:
            raise InputError(f"stage {name!r}", expected=f"one of {', '.join(STAGES)}")
        stage = STAGES[name]
        stage = replace(stage, steps=steps or stage.steps, batch_size=batch_size or stage.batch_size)
        record = getattr(self, f"_train_{name}")(stage)
        write_json(self.folder / f"{name}.record.json", record | {"commit": _commit()})
        loss_curves(self._losses(), self.folder / "losses.png")

    def start_from(self, model: Path) -> None:
        """Take over an exported model, so that its denoiser is trained further (with other batches) on its other parts.

        Does nothing in a folder that has taken one over before.

        Raises:
            InputError: The folder holds a run of its own, or ``model`` is not what :meth:`export` writes.
        """
        if (self.folder / _STARTED_FROM).exists():
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder} is not empty", expected="an empty folder to start a further training in")
        if not (model / "training.json").is_file():
            raise InputError(f"{model} holds no training.json", expected="a model that redi miniature export wrote")
        record = json.loads((model / "training.json").read_text())
        pipe = StableDiffusionPipeline.from_pretrained(model)
        pipe.tokenizer.save_pretrained(self.folder / "tokenizer")
        pipe.vae.save_pretrained(self.folder / "vae")
        _save(pipe.text_encoder, self.folder / "text-text_encoder.safetensors")
        _save(pipe.unet, self.folder / "start-unet.safetensors")
        _save(load_evaluator(model / "evaluator" / "evaluator.safetensors"), self.folder / "evaluator.safetensors")
        for name, stage in record["stages"].items():
            write_json(self.folder / f"{name}.record.json", stage)
        write_json(self.folder / _STARTED_FROM, record["stages"]["denoiser"])

    def tokenizer(self) -> CLIPTokenizer:
        """Return the learned tokenizer."""
        return CLIPTokenizer.from_pretrained(self._finished("tokenizer"))

    def text_encoder(self, *, trained_by: str = "denoiser") -> CLIPTextModel:
        """Return the text encoder as the text stage or the denoiser stage left it."""
        return _load(make_text_encoder(self.tokenizer()), self._finished(f"{trained_by}-text_encoder.safetensors"))

    def autoencoder(self) -> AutoencoderKL:
        """Return the trained autoencoder."""
        return AutoencoderKL.from_pretrained(self._finished("vae"))

    def unet(self) -> UNet2DConditionModel:
        """Return the trained denoiser."""
        return _load(make_unet(), self._finished("denoiser-unet.safetensors"))

    def evaluator(self) -> Evaluator:
        """Return the trained evaluator."""
        return load_evaluator(self._finished("evaluator.safetensors"))

    def export(self) -> Path:
        """Write ``model/``: the stock pipeline's folder and the evaluator, float16, and the training record."""
        target = self.folder / "model"
        pipe = assemble(self.autoencoder(), self.text_encoder(), self.tokenizer(), self.unet())
        pipe.to(torch.float16).save_pretrained(target)
        for config in target.glob("*/config.json"):
            _publish_config(config)
        half = {name: value.half() for name, value in self.evaluator().state_dict().items()}
        (target / "evaluator").mkdir(exist_ok=True)
        save_file(half, target / "evaluator" / "evaluator.safetensors")
        records = {name: json.loads((self.folder / f"{name}.record.json").read_text()) for name in STAGES}
        for name, path in self._losses().items():
            records[name]["final_loss"] = read_losses(path)[-1]["loss"]
        write_json(target / "training.json", {"stages": records})
        self._sample_sheet(pipe.to(torch.float32))
        return target

    def _losses(self) -> dict[str, Path]:
        paths = {name: self.folder / f"{name}.losses.jsonl" for name in STAGES}
        return {name: path for name, path in paths.items() if path.exists()}

    def _sample_sheet(self, pipe: StableDiffusionPipeline) -> None:
        """Write ``samples.png``: pictures of held-out captions, 20 steps each."""
        texts = list(make_captions(16, seed=0, held_out=True))
        pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(texts))]
        images = pipe(texts, num_inference_steps=20, guidance_scale=GUIDANCE_SCALE, generator=generators).images
        columns = [Column(text, (image,), ("",)) for text, image in zip(texts, images, strict=True)]
        page(columns, [""], per_band=8).save(self.folder / "samples.png")

    def _train_tokenizer(self, stage: Stage) -> dict[str, Any]:
        texts = list(make_captions(20_000, seed=stage.seed, held_out=False))
        tokenizer = make_tokenizer(texts, self.folder / "tokenizer")
        return {"vocabulary": len(tokenizer), "captions": len(texts), "seed": stage.seed}

    def _train_text(self, stage: Stage) -> dict[str, Any]:
        asked = in_processes(asked_for, self._shards(), description="reading captions")
        descriptions = list(itertools.chain.from_iterable(asked))
        encoder, record = train_text_encoder(
            stage, self.tokenizer(), descriptions, self._tokens(), self.folder, device=self.device
        )
        _save(encoder, self.folder / "text-text_encoder.safetensors")
        return record

    def _train_autoencoder(self, stage: Stage) -> dict[str, Any]:
        drawn = self._pictures("autoencoder", _AUTOENCODER_SCENES)
        autoencoder, record = train_autoencoder(stage, drawn, self.folder, device=self.device)
        autoencoder.save_pretrained(self.folder / "vae")
        return record

    def _train_denoiser(self, stage: Stage) -> dict[str, Any]:
        text_encoder = self.text_encoder(trained_by="text")
        empty = tokenize(self.tokenizer(), [""])[0]
        started_from = self.folder / _STARTED_FROM
        before = json.loads(started_from.read_text()) if started_from.exists() else None
        if before is not None:  # other batches than those that it has seen
            stage = replace(stage, seed=before["stage"]["seed"] + 1)
        torch.manual_seed(stage.seed)
        unet = make_unet() if before is None else _load(make_unet(), self.folder / "start-unet.safetensors")
        record = train_denoiser(
            stage,
            unet,
            text_encoder,
            self._latents(),
            self._tokens(),
            empty,
            self.folder,
            device=self.device,
            compiled=self.compiled,
        )
        record["scenes"] = self.scenes
        if before is not None:
            record["started_from"] = before
        _save(unet, self.folder / "denoiser-unet.safetensors")
        _save(text_encoder, self.folder / "denoiser-text_encoder.safetensors")
        return record

    def _train_evaluator(self, stage: Stage) -> dict[str, Any]:
        drawn = self._pictures("evaluator", _EVALUATOR_SCENES)
        scenes = [scene for shard in shards(len(drawn), seed=_SEEDS["evaluator"]) for scene in shard.scenes()]
        evaluator, record = train_evaluator(stage, drawn, scenes, self.folder, device=self.device)
        _save(evaluator, self.folder / "evaluator.safetensors")
        return record

    def _finished(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            raise InputError(f"{path} is missing", expected="the stage that writes it, finished", fix="train it first")
        return path

    def _shards(self) -> list[Shard]:
        return shards(self.scenes, seed=_SEEDS["denoiser"])

    def _tokens(self) -> NDArray[np.int16]:
        def make() -> NDArray[np.int16]:
            tokenize_each = functools.partial(tokenize_shard, self.tokenizer())
            return np.concatenate(list(in_processes(tokenize_each, self._shards(), description="writing captions")))

        return np.asarray(cached(self.folder / "cache" / "tokens.npy", self.scenes, make), np.int16)

    def _latents(self) -> NDArray[np.float16]:
        def make() -> NDArray[np.float16]:
            autoencoder = self.autoencoder().to(self.device)
            scale = autoencoder.config.scaling_factor
            drawn = in_processes(pictures, self._shards(), description="drawing")
            return np.concatenate([(encode(autoencoder, part) * scale).astype(np.float16) for part in drawn])

        return np.asarray(cached(self.folder / "cache" / "latents.npy", self.scenes, make), np.float16)

    def _pictures(self, name: str, most: int) -> NDArray[np.uint8]:
        count = min(most, self.scenes)

        def make() -> NDArray[np.uint8]:
            return np.concatenate(
                list(in_processes(pictures, shards(count, seed=_SEEDS[name]), description=f"drawing for {name}"))
            )

        return np.asarray(cached(self.folder / "cache" / f"{name}.npy", count, make), np.uint8)


def _publish_config(path: Path) -> None:
    """Take the training folder's name out of a part's config, and let a stock ``from_pretrained`` widen the
    half-precision text encoder as it does the other parts."""
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    if "dtype" in config:
        config["dtype"] = "float32"
    write_json(path, config)


def _save(network: torch.nn.Module, path: Path) -> None:
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    replace_file(path, lambda temporary: save_file(state, temporary))


def _load(network: Any, path: Path) -> Any:
    from safetensors.torch import load_file

    network.load_state_dict(load_file(path))
    return network.eval()


def _commit() -> str:
    """Return the source's commit, or "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
