"""Claims about batches whose images disagree: each goes its own way, as if it were alone, and pays for itself only."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import redi
from ground import NEW, NOISES, Ground, call
from recording import PROMPTS
from redi.engine import Jump, run
from redi.errors import InputError, PlanError, RediWarning, RetrievalError
from redi.jumping import JumpPolicy, JumpRule
from redi.retrieval import COMBINERS, Gate
from tiny import Watcher, noise
from tiny_pipelines import SQUARE, flux

FOREIGN = noise(999)[0]
ASKED = [PROMPTS[0], NEW, "two small trees", PROMPTS[3], NEW, PROMPTS[4], "a dog"]
X_T = torch.stack([NOISES[0], NOISES[0], NOISES[1], NOISES[1], FOREIGN, NOISES[2], NOISES[2]])
NEAR, AWAY = 8, 6
ROUNDING = 5e-6
"""How much a batch of another size may change an image, of its largest number, in float32; measured: 8e-7."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


def nearest(pipe: Any, base: redi.KnowledgeBase) -> list[float]:
    """Return each asked image's distance to its nearest neighbour; infinity for the foreign noise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RediWarning)
        with redi.enable(pipe, base, max_distance=torch.inf) as enabled:
            call(pipe, ASKED, latents=X_T)
    return [report.neighbors[0].distance if report.neighbors else torch.inf for report in enabled.reports]


def limits_that_divide(distances: list[float]) -> dict[int, float]:
    """Return limits that let the images of the base go on late, the nearest other one early, and no more."""
    others = sorted(distance for distance in distances if 0.1 < distance < torch.inf)
    return {NEAR: 0.1, AWAY: (others[0] + others[1]) / 2}


@pytest.mark.parametrize("name", ["ddim", "pndm", "dpm", "unipc"])
def test_each_image_ends_as_if_it_were_alone(ground: Ground, name: str) -> None:
    pipe, base = ground.pipe(name), ground.base(name)
    limits = limits_that_divide(nearest(pipe, base))
    redi.enable(pipe, base, max_distance=limits)
    with pytest.warns(RediWarning, match="image 5"):
        together = call(pipe, ASKED, latents=X_T)
    reports = redi.reports(pipe)
    assert {report.value_step for report in reports} == {NEAR, AWAY, None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RediWarning)
        for image, (prompt, report) in enumerate(zip(ASKED, reports, strict=True)):
            alone = call(pipe, prompt, latents=X_T[image : image + 1])[0]
            (own,) = redi.reports(pipe)
            assert (own.value_step, own.calls, own.full_calls) == (report.value_step, report.calls, report.full_calls)
            assert float((together[image] - alone).abs().max()) <= ROUNDING * float(alone.abs().max())


def test_several_images_of_a_prompt_each_go_their_own_way(ground: Ground) -> None:
    pipe, base = ground.pipe("pndm"), ground.base("pndm")
    limits = limits_that_divide(nearest(pipe, base))
    x_T = torch.stack([NOISES[0], NOISES[1], NOISES[2], NOISES[0]])
    redi.enable(pipe, base, max_distance=limits)
    together = call(pipe, [PROMPTS[0], NEW], latents=x_T, num_images_per_prompt=2)
    reports = redi.reports(pipe)
    assert [report.prompt for report in reports] == [PROMPTS[0]] * 2 + [NEW] * 2
    assert [report.value_step for report in reports[:2]] == [NEAR, NEAR]
    for image, report in enumerate(reports):
        alone = call(pipe, report.prompt, latents=x_T[image : image + 1])[0]
        assert redi.reports(pipe)[0].value_step == report.value_step
        assert float((together[image] - alone).abs().max()) <= ROUNDING * float(alone.abs().max())


def test_generated_pictures_do_not_depend_on_the_batch(ground: Ground) -> None:
    pipe, base = ground.pipe(), ground.base()
    settings: dict[str, Any] = {"max_distance": limits_that_divide(nearest(pipe, base)), "progress": False}
    ids = [0, 0, 1, 1, 2, 2, 2]
    together = redi.generate(pipe, base, ASKED, noise_ids=ids, batch_size=16, **settings)
    alone = redi.generate(pipe, base, ASKED, noise_ids=ids, batch_size=1, **settings)
    assert {each.report.value_step for each in together} == {NEAR, AWAY, None}
    for one, other in zip(together, alone, strict=True):
        difference = np.asarray(one.image).astype(int) - np.asarray(other.image).astype(int)
        assert np.abs(difference).max() <= 1
        assert (one.report.value_step, one.report.calls) == (other.report.value_step, other.report.calls)


def test_the_network_evaluates_the_rows_that_still_need_it(ground: Ground) -> None:
    pipe, base = ground.pipe("pndm"), ground.base("pndm")
    limits = limits_that_divide(nearest(pipe, base))
    rows: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    redi.enable(pipe, base, max_distance=limits)
    with pytest.warns(RediWarning):
        call(pipe, ASKED, latents=X_T)
    reports = redi.reports(pipe)
    assert sum(rows) == 2 * sum(report.calls for report in reports), "guidance evaluates two rows for an image"
    assert {report.value_step: report.calls for report in reports} == {NEAR: 8, AWAY: 10, None: 13}


def test_quantiles_of_several_steps_are_those_of_the_base(ground: Ground) -> None:
    base = ground.base()
    enabled = redi.enable(ground.pipe(), base, quantile={AWAY: 0.9, NEAR: 0.25})
    own = base.leave_one_out(3).double()
    for step, quantile in ((AWAY, 0.9), (NEAR, 0.25)):
        assert enabled.rule.gates[step].max_distance == pytest.approx(float(own.quantile(quantile)))
    assert f"step 3 -> {NEAR} or {AWAY} of 12, 64 neighbours, Kriging, {NEAR} up to distance" in redi.summary(
        enabled.pipe
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"quantile": {7: 0.5}}, PlanError, "value_step=7"),
        ({"quantile": {}}, InputError, "at least|for each"),
        ({"quantile": {"8": 0.5}}, InputError, "for each of some value steps"),
        ({"quantile": {8: None}}, InputError, "a number for each"),
        ({"quantile": {8: 1.5}}, RetrievalError, r"quantile=1\.5"),
        ({"max_distance": {6: 1.0, 8: 2.0}}, InputError, "a smaller limit for each later value step"),
        ({"max_distance": {6: 1.0, 8: 1.0}}, InputError, "a smaller limit for each later value step"),
        ({"max_distance": {8: 1.0}, "value_step": 8}, InputError, "named once"),
        ({"max_distance": {8: 1.0}, "quantile": 0.5}, RetrievalError, "one of the two"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_impossible_limits_are_refused(
    ground: Ground, options: Mapping[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        redi.enable(ground.pipe(), ground.base(), **options)
    assert "Expected: " in str(caught.value)


def test_a_batch_of_as_many_pictures_as_a_picture_has_tokens_parts_as_any_other() -> None:
    pipe, own = stilled(flux()), Watcher()
    embeds = {"prompt_embeds": noise(*range(16), shape=(8, 32)), "pooled_prompt_embeds": noise(*range(16), shape=(16,))}
    settings = {**SQUARE, "num_inference_steps": 6, "output_type": "latent", "return_dict": False}
    x_T = noise(*range(16), shape=(16, 16))
    with run(pipe, own):
        plain = pipe(**embeds, latents=x_T, **settings)[0]
    decisions = [Jump(4, latents) if image % 2 else None for image, latents in enumerate(own.seen[4])]
    with run(pipe, Watcher(2, lambda latents: decisions)) as statistics:
        parted = pipe(**embeds, latents=x_T, **settings)[0]
    assert statistics.calls == [6, 4] * 8
    assert float((parted - plain).abs().max()) <= ROUNDING * float(plain.abs().max())


def stilled(pipe: Any) -> Any:
    """Return a pipeline without dropout and progress bar."""
    pipe.transformer.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


# What a device is asked


class OnDevice(torch.Tensor):
    """A tensor that counts how often the host reads it or what was computed of it, as a GPU's would have to wait."""

    reads = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reading = func.__name__ in {"cpu", "item", "tolist", "numpy", "__bool__", "__float__", "__int__", "nonzero"}
        if reading:
            OnDevice.reads += 1
            with torch._C.DisableTorchFunctionSubclass():
                found = func(args[0], *args[1:], **(kwargs or {}))
            return found.as_subclass(Tensor) if isinstance(found, Tensor) else found
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("weights", COMBINERS)
def test_the_device_is_read_as_often_for_many_images_as_for_one(ground: Ground, weights: str) -> None:
    pipe, base = ground.pipe(), ground.base()
    combiner = COMBINERS[weights]()
    rule = JumpRule(3, {8: Gate(max_distance=1e9)}, combiner.default_neighbors, combiner)
    reads = []
    for images in (1, 3, 24):
        policy = JumpPolicy(base, pipe.scheduler, rule)
        policy.on_start(NOISES.repeat(8, 1, 1, 1)[:images])
        OnDevice.reads = 0
        jumps = policy.at_key(NOISES.repeat(8, 1, 1, 1)[:images].as_subclass(OnDevice))
        assert all(jumps)
        reads.append(OnDevice.reads)
    assert reads[0] == reads[1] == reads[2]
    assert 0 < reads[0] <= 4


def test_an_image_that_cannot_be_searched_costs_the_others_nothing(ground: Ground, tmp_path: Path) -> None:
    pipe, base = ground.pipe(), ground.base()
    policy = JumpPolicy(base, pipe.scheduler, JumpRule(3, {8: Gate()}, 2, COMBINERS["least-squares"]()))
    policy.on_start(NOISES)
    broken = NOISES.clone()
    broken[1, 0, 0, 0] = torch.nan
    assert [jump is not None for jump in policy.at_key(broken)] == [True, False, True]
    assert len(policy.warnings) == 1
    assert "image 2" in policy.warnings[0]
