"""Owns reading a pipeline's identity, all that its trajectories depend on; must not know knowledge bases."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import nn

from redi.errors import InputError, UnsupportedError
from redi.switches import hash_vocabulary, switches_of
from redi.weights_hash import hash_weights

INFORMATION = "information"
"""The one key of an identity that is there to be read, not compared: names and versions that change no number."""

_NOT_OF_THE_TRAJECTORY = ("vae", "vqvae", "movq", "safety_checker", "feature_extractor", "vocoder")


def identity_of(
    pipe: Any,
    *,
    num_inference_steps: int,
    guidance_scale: float,
    negative_prompt: str | None,
    height: int | None = None,
    width: int | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Return what a pipeline's trajectories depend on, as JSON values (design section 5); reads, changes nothing.

    Equal identities (but for :data:`INFORMATION`, see :func:`compared`) mean that the same noise and prompt give the
    same trajectory, floating point aside. Not seen: caches (DeepCache, ``enable_cache``), which approximate one.

    Args:
        pipe: A text-to-image pipeline of the ``StableDiffusionPipeline`` kind.
        num_inference_steps: Steps of the schedule, for its timesteps.
        guidance_scale: As the pipeline's call gets it.
        negative_prompt: As the pipeline's call gets it; None and "" are the same.
        height: Pixels; None is the pipeline's default.
        width: Pixels; None is the pipeline's default.
        revision: Of the model, for information; by default read from the cache folder it was loaded from.

    Returns:
        ``pipeline``, ``weights`` (component -> hash), ``switches`` (component -> config that is not at its default,
        FreeU), ``tokenizers`` (component -> hash), ``adapters`` (component -> name -> hash and scales), ``dtype``,
        ``prediction_type``, ``latents`` (shape, scaling_factor, shift_factor), ``scheduler`` (class, config,
        timesteps), ``guidance`` (scale, negative_prompt), ``information`` (model, revision, versions).

    Raises:
        UnsupportedError: The pipeline has no U-Net, its weights are not in memory, or its scheduler cannot make a
            schedule of that many steps.
        InputError: Height or width do not fit the pipeline.
    """
    networks = dict(_networks(pipe))
    hashes = {name: hash_weights(network) for name, network in networks.items()}
    shape = latent_shape_of(pipe, height, width)
    config = _scheduler_config(pipe.scheduler)
    latents = getattr(getattr(pipe, "vae", None), "config", {})
    return {
        "pipeline": type(pipe).__name__,
        "weights": {name: found.base for name, found in hashes.items()},
        "switches": {name: _json(switches_of(network)) for name, network in networks.items()},
        "tokenizers": {
            name: hash_vocabulary(part)
            for name, part in sorted(pipe.components.items())
            if name.startswith("tokenizer") and part is not None
        },
        "adapters": {
            name: {adapter: dict(facts) for adapter, facts in found.adapters.items()}
            for name, found in hashes.items()
            if found.adapters
        },
        "dtype": str(_floating_dtype(_denoiser(pipe))).removeprefix("torch."),
        "prediction_type": config.pop("prediction_type", None),
        "latents": {
            "shape": list(shape),
            "scaling_factor": _json(latents.get("scaling_factor")),
            "shift_factor": _json(latents.get("shift_factor")),
        },
        "scheduler": {
            "class": type(pipe.scheduler).__name__,
            "config": config,
            "timesteps": _timesteps(pipe.scheduler, num_inference_steps),
        },
        "guidance": {"scale": float(guidance_scale), "negative_prompt": negative_prompt or ""},
        INFORMATION: {
            "model": _model_name(pipe),
            "revision": revision or _cached_revision(pipe),
            "versions": library_versions(),
        },
    }


def compared(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an identity that two pipelines must share."""
    return {name: value for name, value in identity.items() if name != INFORMATION}


def latent_shape_of(pipe: Any, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
    """Return the shape (c, h, w) of one latent of a pipeline of the ``StableDiffusionPipeline`` kind.

    Args:
        pipe: The pipeline.
        height: Pixels; None is the pipeline's default.
        width: Pixels; None is the pipeline's default.

    Raises:
        UnsupportedError: The pipeline has no U-Net.
        InputError: Height or width is not a positive multiple of the pixels per latent.
    """
    config = _denoiser(pipe).config
    factor = int(getattr(pipe, "vae_scale_factor", 8))
    size = config.sample_size
    defaults = (size, size) if isinstance(size, int) else tuple(size)
    sides = []
    for name, pixels, default in zip(("height", "width"), (height, width), defaults, strict=True):
        pixels = default * factor if pixels is None else pixels
        if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < factor or pixels % factor:
            raise InputError(f"{name}={pixels!r}", expected=f"a positive multiple of {factor} pixels")
        sides.append(pixels // factor)
    return int(config.in_channels), sides[0], sides[1]


def library_versions() -> dict[str, str]:
    """Return the installed versions of redi and of the libraries that compute its numbers."""
    return {name: _version(name) for name in ("redi", "diffusers", "transformers", "torch")}


@functools.cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _denoiser(pipe: Any) -> Any:
    unet = getattr(pipe, "unet", None)
    if unet is None:
        raise UnsupportedError(
            f"{type(pipe).__name__}, a pipeline without a unet", expected="a pipeline like StableDiffusionPipeline"
        )
    return unet


def _networks(pipe: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield the components that denoise or encode the prompt: every network but those that only see pixels."""
    for name, component in sorted(pipe.components.items()):
        if isinstance(component, nn.Module) and not name.startswith(_NOT_OF_THE_TRAJECTORY):
            yield name, component


def _floating_dtype(network: nn.Module) -> torch.dtype | None:
    return next((weight.dtype for weight in network.parameters() if weight.is_floating_point()), None)


def _scheduler_config(scheduler: Any) -> dict[str, Any]:
    return {name: _json(value) for name, value in sorted(scheduler.config.items()) if not name.startswith("_")}


def _timesteps(scheduler: Any, num_inference_steps: int) -> list[float]:
    """Return the schedule's timesteps, one per call, made by a fresh scheduler: the pipeline's stays untouched."""
    fresh = type(scheduler).from_config(scheduler.config)
    try:
        fresh.set_timesteps(num_inference_steps)
    except Exception as error:  # a scheduler may raise anything
        raise UnsupportedError(
            f"{type(scheduler).__name__} cannot make a schedule of {num_inference_steps!r} steps: {error}",
            expected="a scheduler that needs nothing but the number of steps",
        ) from error
    return [round(float(timestep), 4) for timestep in fresh.timesteps]


def _model_name(pipe: Any) -> str | None:
    """Return the hub id that the pipeline was loaded from, or the name of its folder."""
    loaded_from = getattr(pipe, "name_or_path", None)
    if not loaded_from:
        return None
    path = Path(loaded_from)
    return path.resolve().name if path.is_dir() or len(path.parts) > 2 else str(loaded_from)


def _cached_revision(pipe: Any) -> str | None:
    """Return the commit in the hub's cache folder (models--.../snapshots/<commit>) that the U-Net came from."""
    parts = PurePath(str(_denoiser(pipe).config.get("_name_or_path") or "")).parts
    return next((after for before, after in pairwise(parts) if before == "snapshots"), None)


def _json(value: Any) -> Any:
    """Return a config value as JSON keeps it; numbers that JSON has no word for become text."""
    if isinstance(value, Mapping):
        return {str(name): _json(item) for name, item in value.items()}
    if hasattr(value, "tolist"):  # arrays and tensors
        value = value.tolist()
    if isinstance(value, list | tuple | set | frozenset):
        return [_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value) if isinstance(value, torch.dtype | torch.device) else type(value).__name__
