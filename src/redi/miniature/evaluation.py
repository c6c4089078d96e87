"""Owns ``redi miniature evaluate``: the bundled model's and evaluator's figures on held-out data; must not know the
rest of redi."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import StableDiffusionPipeline
from tqdm import tqdm

from redi.errors import InputError
from redi.miniature.architecture import GUIDANCE_SCALE
from redi.miniature.drawing import draw
from redi.miniature.evaluator import Evaluator, load_evaluator
from redi.miniature.quality import reading_accuracy, summarize
from redi.miniature.scenes import Description, captioned_scenes
from redi.miniature.scenes import captions as make_captions

WEIGHTS = Path(__file__).parent / "weights"
"""The bundled model's folder."""

_BARS = {"objects_of_1": 0.85, "objects_of_2": 0.65, "style_when_asked": 0.85}
_READING_BAR = 0.97


def bundled_evaluator() -> Evaluator:
    """Load the evaluator that comes with redi.

    Raises:
        InputError: The weights are not there.
    """
    return _evaluator_of(WEIGHTS)


def evaluate_model(
    model: Path | None,
    *,
    captions: int,
    renders: int,
    steps: int,
    guidance_scale: float | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Generate held-out captions with the stock pipeline and read them; read held-out drawings.

    Returns:
        The configuration, ``reading`` (accuracy of the evaluator on drawings), ``control`` (the same shares as
        ``generated``, of drawings of the held-out captions) and ``generated``.
    """
    folder = WEIGHTS if model is None else model
    evaluator = _evaluator_of(folder)
    pipe = StableDiffusionPipeline.from_pretrained(folder).to(device)
    pipe.set_progress_bar_config(disable=True)
    scale = GUIDANCE_SCALE if guidance_scale is None else guidance_scale
    scenes = [scene for _, scene in itertools.islice(captioned_scenes(seed, held_out=True), renders)]
    drawn = evaluator.read([draw(scene) for scene in scenes])
    asked = make_captions(captions, seed=seed, held_out=True)
    started = time.perf_counter()
    readings = []
    texts = list(asked)
    for start in tqdm(range(0, captions, batch_size), desc="generating", unit="batch"):
        batch = texts[start : start + batch_size]
        generators = [torch.Generator().manual_seed(seed * captions + start + row) for row in range(len(batch))]
        pictures = pipe(batch, num_inference_steps=steps, guidance_scale=scale, generator=generators).images
        readings += evaluator.read(pictures)
    descriptions: list[Description] = list(asked.values())
    return {
        "captions": captions,
        "renders": renders,
        "steps": steps,
        "guidance_scale": scale,
        "scheduler": type(pipe.scheduler).__name__,
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "counts": {f"objects_of_{n}": sum(len(d.objects) == n for d in descriptions) for n in (1, 2, 3)},
        "reading": reading_accuracy(scenes, drawn),
        "control": summarize([scene.description for scene in scenes], drawn),
        "generated": summarize(descriptions, readings),
    }


def format_evaluation(result: dict[str, Any]) -> str:
    """Return the figures as lines ``name value [bar ok|MISS]``."""
    lines = [f"evaluator on {result['renders']} held-out drawings"]
    lines += [
        _line(name, value, _READING_BAR if name != "scene" else None) for name, value in result["reading"].items()
    ]
    lines += [f"model on {result['captions']} held-out captions, {result['scheduler']} {result['steps']} steps"]
    lines += [_line(name, value, _BARS.get(name)) for name, value in result["generated"].items()]
    return "\n".join(lines)


def _line(name: str, value: float | None, bar: float | None) -> str:
    if value is None:
        return f"  {name:<18} -"
    verdict = "" if bar is None else f"  {bar:.2f} {'ok' if value >= bar else 'MISS'}"
    return f"  {name:<18} {value:.3f}{verdict}"


def _evaluator_of(folder: Path) -> Evaluator:
    path = folder / "evaluator" / "evaluator.safetensors"
    if not path.exists():
        raise InputError(
            f"no evaluator at {path}",
            expected="a folder that redi miniature train wrote",
            fix="redi miniature train --out runs/miniature, then pass --model runs/miniature/model",
        )
    return load_evaluator(path)
