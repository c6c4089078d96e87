"""Owns reading a pipeline's identity, all that its trajectories depend on; must not know knowledge bases."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from redi.attachment import stock_class
from redi.calls import checked_arguments, json_value, parameters_of, recorded_call
from redi.errors import PlanError, UnsupportedError
from redi.modular import guider_of
from redi.pictures import stand_in, written
from redi.rehearsal import Rehearsal, rehearse
from redi.switches import hash_vocabulary, switches_of
from redi.weights_hash import hash_weights

INFORMATION = "information"
"""The one key of an identity that is there to be read, not compared: names and versions that change no number."""

_DENOISERS = ("unet", "transformer", "transformer_2")
_NOT_OF_THE_TRAJECTORY = ("vae", "vqvae", "movq", "safety_checker", "feature_extractor", "vocoder")


def identity_of(pipe: Any, *, revision: str | None = None, **call: Any) -> dict[str, Any]:
    """Return what a pipeline's trajectories depend on, as JSON values (design section 5); reads, changes nothing.

    Equal identities (but for :data:`INFORMATION`, see :func:`compared`) mean that the same noise and prompt give the
    same trajectory, floating point aside. Not seen: caches (DeepCache, ``enable_cache``), which approximate one.

    Args:
        pipe: A text-to-anything pipeline.
        revision: Of the model, for information; by default read from the cache folder it was loaded from.
        call: Arguments of every call; what is left out or None is the pipeline's default.

    Returns:
        What :func:`standing_identity` tells, and ``call`` (argument -> value, also those left to the pipeline),
        ``latents`` (shape, dtype, scaling_factor, shift_factor), ``schedule`` (timesteps, sigmas) and ``information``
        (model, revision, versions).

    Raises:
        UnsupportedError: The pipeline has no network that denoises, its weights are not in memory, or its scheduler
            cannot make the schedule.
        InputError: The pipeline does not take such arguments.
        PlanError: Its schedule has another number of steps than was asked for.
    """
    standing = standing_identity(pipe)
    information = {
        "model": _model_name(pipe),
        "revision": revision or _cached_revision(pipe),
        "versions": library_versions(),
    }
    return {**standing, **called_identity(pipe, standing, call), INFORMATION: information}


def called_identity(pipe: Any, standing: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an identity that depends on what the pipeline is called with, ``call``, ``latents`` and
    ``schedule``; ``standing`` is the other part. Arguments and errors as of :func:`identity_of`."""
    arguments = checked_arguments(pipe, call)
    sides = {"height", "width"} & parameters_of(pipe).keys()
    if len(sides - arguments.keys()) == 1:  # Stable Diffusion forgets one side where it is not given the other
        (other,) = sides - arguments.keys()
        square = {name: value for name, value in arguments.items() if name not in sides}
        arguments[other] = _rehearsed(pipe, square, standing).checked.get(other)
    rehearsal = _rehearsed(pipe, arguments, standing)
    latents = getattr(getattr(pipe, "vae", None), "config", {})
    sigmas = {} if rehearsal.sigmas is None else {"sigmas": list(rehearsal.sigmas)}
    return {
        "call": recorded_call(pipe, arguments, rehearsal.checked),
        "latents": {
            "shape": list(rehearsal.shape),
            "dtype": str(rehearsal.dtype).removeprefix("torch."),
            "scaling_factor": json_value(latents.get("scaling_factor")),
            "shift_factor": json_value(latents.get("shift_factor")),
        },
        "schedule": {"timesteps": list(rehearsal.timesteps), **sigmas},
    }


def standing_identity(pipe: Any) -> dict[str, Any]:
    """Return the part of an identity that holds whatever the pipeline is called with.

    Returns:
        ``pipeline``, ``settings`` (the pipeline's own config), ``weights`` (component -> hash), ``switches``
        (component -> config that is not at its default, FreeU), ``tokenizers`` (component -> hash), ``adapters``
        (component -> name -> hash and scales), ``dtype``, ``prediction_type``, ``scheduler`` (class, config);
        of a modular pipeline ``guider`` (class, settings).

    Raises:
        UnsupportedError: The pipeline has no network that denoises, or its weights are not in memory.
    """
    networks = dict(_networks(pipe))
    hashes = {name: hash_weights(network) for name, network in networks.items()}
    config, guider = _scheduler_config(pipe.scheduler), guider_of(pipe)
    return {
        "pipeline": stock_class(pipe).__name__,
        "settings": _settings(pipe),
        "weights": {name: found.base for name, found in hashes.items()},
        "switches": {name: json_value(switches_of(network)) for name, network in networks.items()},
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
        "scheduler": {"class": type(pipe.scheduler).__name__, "config": config},
        **({} if guider is None else {"guider": json_value(guider)}),
    }


def compared(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an identity that two pipelines must share."""
    return {name: value for name, value in identity.items() if name != INFORMATION}


def _rehearsed(pipe: Any, arguments: Mapping[str, Any], standing: Mapping[str, Any]) -> Rehearsal:
    """Return what the pipeline sets up for such a call; found out once, as long as the pipeline stays as it is."""
    vae = getattr(getattr(pipe, "vae", None), "config", {})
    asked = {name: json_value(written(value)) for name, value in arguments.items()}
    look = json.dumps([asked, standing, json_value(dict(vae))], sort_keys=True)
    known = _rehearsals.setdefault(pipe, {})
    if look not in known:
        if len(known) >= _MOST_REHEARSALS:
            known.clear()
        found = rehearse(pipe, {name: stand_in(value) for name, value in arguments.items()})
        steps = arguments.get("num_inference_steps", found.num_inference_steps)
        if found.num_inference_steps != steps:
            raise PlanError(
                f"a schedule of {found.num_inference_steps} steps where {steps} were asked for",
                expected="as many sigmas or timesteps as steps",
            )
        known[look] = found
    return known[look]


_MOST_REHEARSALS = 16
_rehearsals: WeakKeyDictionary[Any, dict[str, Rehearsal]] = WeakKeyDictionary()


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
    found = next((part for name in _DENOISERS if (part := getattr(pipe, name, None)) is not None), None)
    if found is None:
        raise UnsupportedError(
            f"{type(pipe).__name__}, a pipeline without a unet or transformer",
            expected="a pipeline that denoises with a network of that name",
        )
    return found


def _settings(pipe: Any) -> dict[str, Any]:
    """Return what the pipeline itself was configured with, such as where Wan changes experts."""
    return {
        name: json_value(value)
        for name, value in sorted(pipe.config.items())
        if name not in pipe.components and not name.startswith("_") and name != "requires_safety_checker"
    }


def _networks(pipe: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield the components that denoise or encode the prompt: every network but those that only see pixels."""
    for name, component in sorted(pipe.components.items()):
        if isinstance(component, nn.Module) and not name.startswith(_NOT_OF_THE_TRAJECTORY):
            yield name, component


def _floating_dtype(network: nn.Module) -> torch.dtype | None:
    return next((weight.dtype for weight in network.parameters() if weight.is_floating_point()), None)


def _scheduler_config(scheduler: Any) -> dict[str, Any]:
    return {name: json_value(value) for name, value in sorted(scheduler.config.items()) if not name.startswith("_")}


def _model_name(pipe: Any) -> str | None:
    """Return the hub id that the pipeline was loaded from, or the name of its folder."""
    loaded_from = getattr(pipe, "name_or_path", None)
    if not loaded_from:
        return None
    path = Path(loaded_from)
    return path.resolve().name if path.is_dir() or len(path.parts) > 2 else str(loaded_from)


def _cached_revision(pipe: Any) -> str | None:
    """Return the commit in the hub's cache folder (models--.../snapshots/<commit>) that the denoiser came from."""
    parts = PurePath(str(_denoiser(pipe).config.get("_name_or_path") or "")).parts
    return next((after for before, after in pairwise(parts) if before == "snapshots"), None)
