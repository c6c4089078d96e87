"""Owns opening a stock pipeline by name, with a scheduler by name; must not know the command line.

The short names of schedulers stand here and nowhere else; which of their settings redi admits is told by
:mod:`redi.solvers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redi.errors import InputError, RediError, UnsupportedError

if TYPE_CHECKING:
    from redi.knowledge_base import KnowledgeBase

MINIATURE = "miniature"
"""The name of the model that comes with redi."""

DTYPES = ("float32", "bfloat16", "float16")

_NOT_FINITE = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}
"""How a manifest spells the numbers that JSON has no word for."""


@dataclass(frozen=True)
class SchedulerChoice:
    """A scheduler class of Diffusers, and the settings that it needs whatever the model's own scheduler says."""

    class_name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Any:
        """The class."""
        return getattr(import_module("diffusers"), self.class_name)

    def made_from(self, config: Any) -> Any:
        """Return the scheduler, made from the config of the model's own."""
        return self.kind.from_config(config, **self.settings)


SCHEDULERS: Mapping[str, SchedulerChoice] = {
    "pndm": SchedulerChoice("PNDMScheduler", {"skip_prk_steps": True}),
    "ddim": SchedulerChoice("DDIMScheduler", {"clip_sample": False}),
    "dpm": SchedulerChoice("DPMSolverMultistepScheduler"),
    "unipc": SchedulerChoice("UniPCMultistepScheduler"),
    "euler": SchedulerChoice("EulerDiscreteScheduler"),
    "dpm-single": SchedulerChoice("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    "deis": SchedulerChoice("DEISMultistepScheduler"),
    "lms": SchedulerChoice("LMSDiscreteScheduler"),
    "heun": SchedulerChoice("HeunDiscreteScheduler"),
    "kdpm2": SchedulerChoice("KDPM2DiscreteScheduler"),
}
"""Short names, as in ``redi build --scheduler``; "dpm" is DPM-Solver++(2M). "lms" needs SciPy."""


def load_pipeline(
    model: str = MINIATURE, *, scheduler: str | None = None, dtype: str = "float32", device: str | None = None
) -> Any:
    """Open a Diffusers pipeline.

    Args:
        model: "miniature" (the bundled model), a folder that ``save_pretrained`` wrote, or a hub id.
        scheduler: One of :data:`SCHEDULERS`; by default the model's own.
        dtype: One of :data:`DTYPES`.
        device: As torch names it; by default "cuda" where there is one, else "cpu".

    Returns:
        The pipeline, on the device, ready to call.

    Raises:
        InputError: The model is not there or does not load, or a name is unknown.
    """
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise InputError(f"scheduler {scheduler!r}", expected=f"one of {', '.join(SCHEDULERS)}")
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}", expected=f"one of {', '.join(DTYPES)}")
    pipe = _loaded(model, dtype)
    if scheduler is not None:
        pipe.scheduler = SCHEDULERS[scheduler].made_from(pipe.scheduler.config)
    return _placed(pipe, device)


def pipeline_for(base: KnowledgeBase, *, model: str | None = None, device: str | None = None) -> Any:
    """Open the pipeline that a knowledge base was built with, by what its manifest says.

    Args:
        base: The knowledge base.
        model: Where the model is, if not where the manifest says.
        device: As of :func:`load_pipeline`.

    Raises:
        InputError: The model is not there or does not load.
        UnsupportedError: The base was built with a scheduler that is not admitted, or that holds a function.
    """
    identity = base.manifest.identity
    try:
        model = model or identity["information"]["model"]
        dtype, recorded = identity["dtype"], identity["scheduler"]
        class_name = recorded["class"]
        config = {name: _NOT_FINITE.get(str(value), value) for name, value in recorded["config"].items()}
        if identity["prediction_type"] is not None:  # flow matching has none
            config["prediction_type"] = identity["prediction_type"]
        if dtype not in DTYPES or not all(isinstance(each, str) for each in (model or "", class_name)):
            raise TypeError("a dtype, model and scheduler that redi can open")
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the manifest of {base.path} does not say {error}",
            expected="a base that redi build wrote",
            fix="open the pipeline yourself and call redi.generate(pipe, kb, prompts)",
        ) from error
    if not model:
        raise InputError(f"{base.path} does not say which model it was built with", fix="name it: --model <folder>")
    from redi.solvers.admitted import admitted_names, class_named

    kind = class_named(class_name)
    if kind is None or "function" in config.values():
        raise UnsupportedError(
            f"{base.path} was built with the scheduler {class_name}" + (" and a function of yours" if kind else ""),
            expected=f"what a manifest can tell: one of {', '.join(admitted_names())}",
            fix="open the pipeline yourself and call redi.generate(pipe, kb, prompts)",
        )
    pipe = _loaded(str(model), dtype)
    pipe.scheduler = kind.from_config(config)
    return _placed(pipe, device)


def miniature_folder() -> Path:
    """Return the Diffusers folder of the bundled model.

    Raises:
        InputError: This installation has none.
    """
    folder = Path(__file__).parent / "miniature" / "weights"
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"the bundled model is not in {folder}",
            expected="weights that come with redi",
            fix="install redi from a complete checkout, or train the model: redi miniature train --help",
        )
    return folder


def model_name(model: str) -> str:
    """Return what a manifest calls a model, so that it can be opened again: folders by their whole path."""
    return str(Path(model).resolve()) if model != MINIATURE and Path(model).is_dir() else model


def chosen_device(device: str | None) -> str:
    """Return the device that was asked for, or "cuda" where there is one, else "cpu"."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def default_guidance(model: str) -> float | None:
    """Return the guidance scale to use with a model when none is asked for; None is the pipeline's own default."""
    if model != MINIATURE:
        return None
    from redi.miniature.architecture import GUIDANCE_SCALE

    return GUIDANCE_SCALE


def opened(model: str, how: Callable[[str], Any]) -> Any:
    """Open a model, or a part of one.

    Args:
        model: As of :func:`load_pipeline`.
        how: Opens it, given its folder or hub id.

    Raises:
        InputError: The model is not there or does not load.
    """
    path = miniature_folder() if model == MINIATURE else Path(model)
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise InputError(
            f"the folder {model} holds no pipeline", expected="a model_index.json, as save_pretrained writes it"
        )
    if not path.is_dir() and (path.is_absolute() or model.startswith(("./", "../", "~")) or model.count("/") != 1):
        raise InputError(
            f"model {model!r} is not there",
            expected=f"{MINIATURE!r}, a folder that save_pretrained wrote, or a hub id such as owner/name",
            fix="check the path, or name the model's place with --model",
        )
    try:
        with _no_loading_bars():
            return how(str(path) if path.is_dir() else model)
    except RediError:
        raise
    except Exception as error:  # from_pretrained raises whatever its parts raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"model {model!r} does not load: {first}",
            expected=f"{MINIATURE!r}, a folder that save_pretrained wrote, or a hub id that can be reached",
            fix="check the name; without a network only folders and models that are cached can be opened",
        ) from error


def _loaded(model: str, dtype: str) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    return opened(model, lambda place: DiffusionPipeline.from_pretrained(place, dtype=getattr(torch, dtype)))


def _placed(pipe: Any, device: str | None) -> Any:
    import torch

    name = chosen_device(device)
    try:
        placed = pipe.to(name)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"device {name!r}: {str(error).splitlines()[0]}", expected='a device that torch has here, such as "cpu"'
        ) from error
    if placed.device.type == "cpu" and isinstance(getattr(placed, "vae", None), torch.nn.Module):
        for layer in placed.vae.modules():
            if isinstance(layer, torch.nn.Conv2d):
                weight = layer.weight.data.contiguous(memory_format=torch.channels_last)
                layer.weight.data = weight  # decodes faster there; it touches no trajectory
    return placed


@contextmanager
def _no_loading_bars() -> Iterator[None]:
    """Hide the bars that Diffusers and Transformers draw while they open a folder."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    shown = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, was in zip(libraries, shown, strict=True):
            if was:
                library.enable_progress_bar()
