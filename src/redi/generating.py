"""Owns generating many samples: with a knowledge base, in full, and with a style; must not know how one is decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any, Unpack

import torch
from PIL.Image import Image
from tqdm import tqdm

from redi.attachment import quiet, stock_call
from redi.building.checks import warn_of_long_prompts
from redi.compatibility import call_arguments, check_pipeline, complete_call
from redi.enabling import JumpOptions, open_base, prepare
from redi.errors import InputError, NoiseError, UnsupportedError
from redi.jumping import NoiseWatch
from redi.knowledge_base import KnowledgeBase
from redi.modular import samples_of
from redi.reporting import reported_call
from redi.retrieval import Report

Base = KnowledgeBase | str | PathLike[str]


@dataclass(frozen=True)
class Generation:
    """One generated sample, what happened to it, and, if asked for, its run in full from the same noise.

    Attributes:
        output: As the pipeline returns it: a picture, the frames of a video, or a waveform.
        report: What happened to it.
        full_output: The same in full, if it was asked for.
        full_report: Of the run in full.
    """

    output: Any
    report: Report
    full_output: Any = None
    full_report: Report | None = None

    @property
    def image(self) -> Image:
        """The picture, of a pipeline that makes pictures."""
        return _picture(self.output)

    @property
    def full_image(self) -> Image | None:
        """The picture in full, if it was asked for."""
        return None if self.full_output is None else _picture(self.full_output)


def generate(
    pipe: Any,
    kb: Base,
    prompts: str | Sequence[str],
    *,
    seed: int = 0,
    noise_ids: Sequence[int] | None = None,
    batch_size: int = 16,
    compare: bool = False,
    progress: bool = True,
    **options: Unpack[JumpOptions],
) -> list[Generation]:
    """Generate one sample (picture, video, sound) per prompt by trajectory retrieval (Algorithm 2).

    Args:
        pipe: A Diffusers pipeline, whether or not redi is enabled on it; left as it is.
        kb: A knowledge base, or its folder.
        prompts: One prompt per picture.
        seed: Chooses each picture's noise from the bank, by the picture's place only: the batch size changes nothing.
        noise_ids: Chooses the noises themselves, one per prompt.
        batch_size: Pictures per pipeline call.
        compare: Also run each picture in full from the same noise.
        progress: Show a progress bar.
        options: As of :func:`redi.enable`.

    Raises:
        InputError: There are no prompts, or an argument is out of range.
        NoiseError: A noise is not in the bank.
        RediError: As :func:`redi.enable`.
    """
    enabled = prepare(pipe, kb, **options)
    order = _order(pipe, enabled.base, prompts, seed, noise_ids, batch_size)
    try:
        return _generations(order, enabled.policy, compare, progress)
    finally:
        enabled.close()


def full(
    pipe: Any,
    kb: Base,
    prompts: str | Sequence[str],
    *,
    seed: int = 0,
    noise_ids: Sequence[int] | None = None,
    batch_size: int = 16,
    progress: bool = True,
    allow_stochastic: bool = False,
) -> list[Generation]:
    """Generate the same pictures in full, for comparison: the base's noises and settings, every step, no retrieval.

    Arguments and errors as of :func:`generate`.
    """
    base = open_base(kb)
    check_pipeline(base, pipe, allow_stochastic=allow_stochastic)
    order = _order(pipe, base, prompts, seed, noise_ids, batch_size)
    return _generations(order, partial(NoiseWatch, base, pipe.scheduler, allow_stochastic), False, progress)


def stylize(
    pipe: Any,
    kb: Base,
    prompts: str | Sequence[str],
    style: str,
    *,
    seed: int = 0,
    noise_ids: Sequence[int] | None = None,
    batch_size: int = 16,
    compare: bool = False,
    progress: bool = True,
    **options: Unpack[JumpOptions],
) -> list[Generation]:
    """Generate in a style that the base does not hold (section 4.3).

    Each prompt alone guides the head, so that the base has neighbours for it; prompt and style together
    (``f"{prompt} {style}"``, which the report names) guide the tail. A picture that abstains gets its style after the
    key step. Arguments and errors as of :func:`generate`; ``compare`` runs prompt and style together in full.
    """
    if not isinstance(style, str) or not style.strip():
        raise InputError(f"style={style!r}", expected="words to append to the prompts, such as 'as a mosaic'")
    enabled = prepare(pipe, kb, **options)
    order = _order(pipe, enabled.base, prompts, seed, noise_ids, batch_size, style)
    try:
        return _generations(order, enabled.policy, compare, progress)
    finally:
        enabled.close()


@dataclass(frozen=True)
class _Order:
    """What to generate: prompts (n), what guides their tails (n, or None), and each one's noise and generator.

    Noises are places in the bank; None where noise is independent: then the generator's seed makes it.
    """

    pipe: Any
    base: KnowledgeBase
    prompts: list[str]
    tail_prompts: list[str] | None
    noise_ids: list[int] | None
    seed: int
    batch_size: int


def _order(
    pipe: Any,
    base: KnowledgeBase,
    prompts: str | Sequence[str],
    seed: int,
    noise_ids: Sequence[int] | None,
    batch_size: int,
    style: str | None = None,
) -> _Order:
    """Check what was asked for and choose the noises."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise InputError("no prompts", expected="at least one")
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"prompt {text!r} is a {type(text).__name__}", expected="text")
    for name, number, least in (("seed", seed, 0), ("batch_size", batch_size, 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise InputError(f"{name}={number!r}", expected=f"a whole number of at least {least}")
    if seed + len(texts) > 2**64:
        raise InputError(f"seed={seed}", expected="below 2**64, also with a picture's place added")
    tails = None if style is None else [f"{text} {style}" for text in texts]
    warn_of_long_prompts(pipe, tails or texts, call_arguments(base, pipe))
    return _Order(pipe, base, texts, tails, _noises(base, len(texts), seed, noise_ids), seed, batch_size)


def _noises(base: KnowledgeBase, count: int, seed: int, noise_ids: Sequence[int] | None) -> list[int] | None:
    bank = base.noise_bank
    if noise_ids is None:
        return bank.choose(count, torch.Generator().manual_seed(seed)) if len(bank) else None
    if len(noise_ids) != count:
        raise InputError(f"{len(noise_ids)} noise ids for {count} prompts", expected="one per prompt")
    for noise_id in noise_ids:
        if isinstance(noise_id, bool) or not isinstance(noise_id, int) or noise_id not in range(len(bank)):
            raise NoiseError(f"noise id {noise_id!r}", expected=f"a noise of the bank, 0 to {len(bank) - 1}")
    return list(noise_ids)


def _generations(order: _Order, policy: Callable[[], NoiseWatch], compare: bool, progress: bool) -> list[Generation]:
    """Run every batch under a fresh policy, and again in full if asked to compare."""
    in_full = replace(order, prompts=order.tail_prompts or order.prompts, tail_prompts=None)
    made: list[Generation] = []
    with quiet(order.pipe), tqdm(total=len(order.prompts), disable=not progress, unit="image") as bar:
        for start in range(0, len(order.prompts), order.batch_size):
            images = slice(start, start + order.batch_size)
            jumping = policy()
            pictures, reports = _batch(order, images, jumping)
            if compare:
                watch = NoiseWatch(order.base, order.pipe.scheduler, jumping.allow_stochastic)
                full_pictures, full_reports = _batch(in_full, images, watch)
                made += map(Generation, pictures, reports, full_pictures, full_reports)
            else:
                made += map(Generation, pictures, reports)
            bar.update(len(pictures))
    return made


def _batch(order: _Order, images: slice, policy: NoiseWatch) -> tuple[list[Any], list[Report]]:
    """Make one pipeline call for some of the images."""
    prompts, noise_ids = order.prompts[images], order.noise_ids
    seeds = range(order.seed + images.start, order.seed + images.start + len(prompts))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    call = stock_call(order.pipe)
    output, reports = reported_call(
        order.pipe,
        call,
        complete_call(order.base, order.pipe, call, (), {"prompt": prompts, "generator": generators}),
        policy,
        choose=None if noise_ids is None else lambda count: noise_ids[images],
        tail_prompts=order.tail_prompts[images] if order.tail_prompts else None,
    )
    return samples_of(output), reports


def _picture(output: Any) -> Image:
    if not isinstance(output, Image):
        raise UnsupportedError(
            f"the picture of a {type(output).__name__}",
            expected="a pipeline that makes pictures",
            fix="output holds what this pipeline made; redi.samples.shown gives a video's middle frame",
        )
    return output
