"""Claims about a pipeline with a knowledge base enabled: a tiny real pipeline, a base recorded from it."""

from __future__ import annotations

import copy
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import redi
from ground import NEW, NOISES, PLAN, Ground, call
from recording import PROMPTS, full_images, record
from redi.engine import Jump, run
from redi.errors import (
    InputError,
    KnowledgeBaseError,
    NoiseError,
    PlanError,
    RediWarning,
    RetrievalError,
)
from redi.retrieval import Combination, Nearest
from tiny import Watcher, noise


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RediWarning)
        yield


# Algorithm 2


@pytest.mark.parametrize("name", ["ddim", "pndm", "dpm", "unipc", "euler"])
def test_a_prompt_of_the_base_ends_as_its_own_full_run(ground: Ground, name: str) -> None:
    pipe = ground.pipe(name)
    full = full_images(pipe, PROMPTS[:3], NOISES, 12)
    redi.enable(pipe, ground.base(name))
    jumped = call(pipe, list(PROMPTS[:3]), latents=NOISES)
    reports = redi.reports(pipe)
    assert [(report.jumped, report.neighbors[0].prompt) for report in reports] == [(True, p) for p in PROMPTS[:3]]
    tolerance = 5e-3 if name in ("ddim", "euler") else 2e-2  # what fp16 leaves, and the restart of multistep solvers
    assert torch.linalg.vector_norm(jumped - full) < tolerance * torch.linalg.vector_norm(full)


def test_a_new_prompt_goes_on_from_the_weighted_values(ground: Ground) -> None:
    pipe, base = ground.pipe(), ground.base()
    watcher = Watcher()
    with run(pipe, watcher):
        full_images(pipe, [NEW], NOISES[1:2], 12)
    query = watcher.seen[3].double()
    own = [row for row, entry in enumerate(base.entries(range(len(base)))) if entry.noise_id == 1]
    keys, values = base.keys(own, 3).double(), base.values(own, 6).double()
    nearest = (keys - query).flatten(1).norm(dim=1).topk(2, largest=False).indices
    weights = torch.linalg.lstsq(keys[nearest].flatten(1).T, query.flatten()[:, None]).solution[:, 0]
    value = torch.tensordot(weights, values[nearest], 1).float()
    with run(pipe, Watcher(3, lambda latents: [Jump(6, value)])):
        by_hand = full_images(pipe, [NEW], NOISES[1:2], 12)

    redi.enable(pipe, base, value_step=6, weights="least-squares", max_distance=torch.inf)
    torch.testing.assert_close(call(pipe, NEW, latents=NOISES[1:2]), by_hand, rtol=1e-4, atol=1e-4)
    (report,) = redi.reports(pipe)
    assert [each.weight for each in report.neighbors] == pytest.approx(weights.tolist(), rel=1e-3)
    assert (report.key_step, report.value_step, report.num_inference_steps) == (3, 6, 12)
    assert (report.noise_id, report.seed, report.prompt, report.sampler) == (1, 22, NEW, "DDIMScheduler")


def test_calls_are_those_of_the_paper(ground: Ground) -> None:
    pipe = ground.pipe("pndm")
    base = ground.base("pndm", redi.Plan(50, key_step=10, value_steps=(20, 30, 40)))
    for value_step, calls in ((None, 21), (40, 21), (30, 31), (20, 41)):
        redi.enable(pipe, base, value_step=value_step, max_distance=1e9)
        call(pipe, [NEW, "two trees"])
        assert [(report.calls, report.full_calls) for report in redi.reports(pipe)] == [(calls, 51)] * 2
    report = redi.reports(pipe)[0]
    assert min(report.network_ms, report.retrieval_ms, report.rest_ms) > 0


@pytest.mark.parametrize("weights", ["least-squares", "affine", "nearest", "kriging"])
def test_every_way_of_weighing_works_with_more_neighbours_than_entries(ground: Ground, weights: str) -> None:
    pipe = ground.pipe()
    redi.enable(pipe, ground.base(), weights=weights, neighbors=100, max_distance=1e9, strict=True)
    assert bool(call(pipe, NEW).isfinite().all())
    (report,) = redi.reports(pipe)
    assert len(report.neighbors) == len(PROMPTS)
    assert (report.variance is not None) == (weights == "kriging")
    assert report.carried is not None
    assert (report.carried != 0) == (weights == "kriging")


def test_another_key_step_of_the_base_can_be_used(ground: Ground) -> None:
    pipe = ground.pipe()
    full = full_images(pipe, PROMPTS[:1], NOISES[:1], 12)
    redi.enable(pipe, ground.base(), key_step=2, value_step=6)
    jumped = call(pipe, PROMPTS[0], latents=NOISES[:1])
    assert redi.reports(pipe)[0].calls == 8
    assert torch.linalg.vector_norm(jumped - full) < 5e-3 * torch.linalg.vector_norm(full)


# Abstaining


def test_beyond_the_gate_an_image_abstains_bit_for_bit(ground: Ground) -> None:
    pipe = ground.pipe("pndm")
    plain = full_images(pipe, [NEW], NOISES[:1], 12)
    redi.enable(pipe, ground.base("pndm"), max_distance=0)
    assert torch.equal(call(pipe, NEW, latents=NOISES[:1]), plain)
    (report,) = redi.reports(pipe)
    assert report.reason is not None
    assert report.reason.startswith("too far")
    assert (report.jumped, report.value_step, report.calls, report.full_calls) == (False, None, 13, 13)
    assert report.neighbors[0].weight is None


def test_foreign_latents_abstain_bit_for_bit_and_say_so(ground: Ground) -> None:
    pipe = ground.pipe("dpm")
    foreign = noise(999)
    plain = full_images(pipe, [NEW], foreign, 12)
    redi.enable(pipe, ground.base("dpm"), max_distance=1e9)
    with pytest.warns(RediWarning, match="does not hold the initial latents of image 1") as caught:
        abstained = call(pipe, NEW, latents=foreign)
    assert [each.filename for each in caught if each.category is RediWarning] == [call.__code__.co_filename]
    assert torch.equal(abstained, plain)
    assert redi.reports(pipe)[0].reason == "its noise is not in the bank"
    assert redi.reports(pipe)[0].noise_id is None


def test_foreign_latents_raise_if_strict(ground: Ground) -> None:
    pipe = ground.pipe()
    redi.enable(pipe, ground.base(), strict=True)
    with pytest.raises(NoiseError, match="does not hold the initial latents of image 2"):
        call(pipe, [NEW, NEW], latents=torch.cat([NOISES[:1], noise(999)]))
    assert redi.reports(pipe) == []


def test_each_image_of_a_batch_is_decided_alone(ground: Ground) -> None:
    pipe = ground.pipe("pndm")
    prompts = [PROMPTS[0], NEW, PROMPTS[2], NEW]
    x_T = torch.cat([NOISES[:2], noise(999), NOISES[2:]])
    redi.enable(pipe, ground.base("pndm"), max_distance=0.05)
    with pytest.warns(RediWarning, match="image 3"):
        together = call(pipe, prompts, latents=x_T)
    assert [report.jumped for report in redi.reports(pipe)] == [True, False, False, False]
    assert [report.noise_id for report in redi.reports(pipe)] == [0, 1, None, 2]
    for image in (0, 1, 3):
        alone = call(pipe, prompts[image], latents=x_T[image : image + 1])
        torch.testing.assert_close(together[image], alone[0], rtol=1e-4, atol=1e-4)


def test_a_base_that_vanishes_costs_time_not_pictures(ground: Ground, tmp_path: Path) -> None:
    pipe = ground.pipe()
    copied = tmp_path / "base"
    shutil.copytree(ground.base().path, copied)
    plain = full_images(pipe, [NEW, NEW], NOISES[:2], 12)
    redi.enable(pipe, copied, max_distance=1e9)
    shutil.rmtree(copied / "entries.lance")
    with pytest.warns(RediWarning, match="cannot read"):
        assert torch.equal(call(pipe, [NEW, NEW], latents=NOISES[:2]), plain)
    assert {report.reason.partition(":")[0] for report in redi.reports(pipe)} == {"retrieval failed"}
    redi.enable(pipe, redi.KnowledgeBase.open(ground.base().path), strict=True)


def test_a_damaged_entry_keeps_only_its_own_image_from_jumping(ground: Ground, tmp_path: Path) -> None:
    pipe = ground.pipe()
    base = ground.base()
    redi.enable(pipe, base, weights=_Refusing(base.keys([0], 3)[0]), max_distance=1e9)
    with pytest.warns(RediWarning, match="retrieval failed for image 1"):
        call(pipe, [PROMPTS[0], NEW], latents=NOISES[:2])
    assert [report.jumped for report in redi.reports(pipe)] == [False, True]


class _Refusing:
    """A combiner of the user's that cannot cope with one key."""

    default_neighbors = 1

    def __init__(self, key: Tensor) -> None:
        self.key = key

    def combine(self, query: Tensor, keys: Tensor, values: Tensor) -> Any:
        if torch.equal(keys[0], self.key):
            raise RetrievalError("not this one")
        return redi.retrieval.Nearest().combine(query, keys, values)


def test_weights_that_overflow_abstain(ground: Ground) -> None:
    class Huge:
        default_neighbors = 1

        def combine(self, query: Tensor, keys: Tensor, values: Tensor) -> Combination:
            return replace(Nearest().combine(query, keys, values), values=values[0] * torch.inf)

    plain = full_images(ground.pipe(), [NEW], NOISES[:1], 12)
    pipe = ground.pipe()
    redi.enable(pipe, ground.base(), weights=Huge(), max_distance=1e9)
    with pytest.warns(RediWarning, match="Huge gave latents that are not finite"):
        assert torch.equal(call(pipe, NEW, latents=NOISES[:1]), plain)


def test_half_precision_pipelines_jump_to_their_own_values(ground: Ground, tmp_path: Path) -> None:
    pipe = ground.pipe("dpm").to(torch.bfloat16)
    base = record(tmp_path / "bfloat16", pipe, PLAN)
    plain = full_images(pipe, PROMPTS[:2], NOISES[[2, 0]].bfloat16(), 12)
    with redi.enable(pipe, base, weights="nearest", strict=True):
        jumped = call(pipe, list(PROMPTS[:2]), latents=NOISES[[2, 0]].bfloat16())
        assert [report.neighbors[0].prompt for report in redi.reports(pipe)] == list(PROMPTS[:2])
        call(pipe, PROMPTS[0], generator=torch.Generator().manual_seed(1))
        assert redi.reports(pipe)[0].jumped
    assert jumped.dtype == torch.bfloat16
    torch.testing.assert_close(jumped, plain, rtol=0.05, atol=0.05)


def test_a_model_that_makes_nan_abstains(ground: Ground) -> None:
    pipe = ground.pipe()
    redi.enable(pipe, ground.base())

    def spoil(pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": tensors["latents"] * (torch.nan if index == 1 else 1)}

    with pytest.warns(RediWarning, match="NaN or infinity after 3 steps"):
        call(pipe, NEW, callback_on_step_end=spoil)
    assert redi.reports(pipe)[0].jumped is False


# Noise


def test_noise_comes_from_the_bank_by_the_users_generator(ground: Ground) -> None:
    pipe = ground.pipe()
    redi.enable(pipe, ground.base(), max_distance=1e9)

    def ids(**kwargs: Any) -> list[int | None]:
        call(pipe, [NEW, NEW], **kwargs)
        return [report.noise_id for report in redi.reports(pipe)]

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    assert ids(generator=seeded(5)) == ids(generator=seeded(5))
    assert len({tuple(ids(generator=seeded(seed))) for seed in range(8)}) > 1
    assert ids(generator=[seeded(1), seeded(2)]) == ids(generator=[seeded(1), seeded(2)])
    torch.manual_seed(3)
    drawn = ids()
    torch.manual_seed(3)
    assert ids() == drawn
    assert len(set(drawn)) == 2


def test_independent_noise_is_searched_as_one_partition(ground: Ground, tmp_path: Path) -> None:
    pipe = ground.pipe()
    base = record(tmp_path / "independent", pipe, PLAN, shared=False)
    redi.enable(pipe, base, max_distance=1e9, strict=True)
    call(pipe, [PROMPTS[1], NEW], generator=[torch.Generator().manual_seed(1001), torch.Generator().manual_seed(7)])
    own, new = redi.reports(pipe)
    assert (own.jumped, own.noise_id, own.seed) == (True, None, None)
    assert own.neighbors[0].prompt == PROMPTS[1]
    assert own.neighbors[0].distance < 0.1 < new.neighbors[0].distance


# Options


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"neighbors": 0}, InputError),
        ({"neighbors": True}, InputError),
        ({"neighbors": 1.5}, InputError),
        ({"value_step": 7}, PlanError),
        ({"key_step": 1}, PlanError),
        ({"weights": "best"}, RetrievalError),
        ({"max_distance": -1.0}, RetrievalError),
        ({"max_distance": "near"}, RetrievalError),
        ({"quantile": 1.5}, RetrievalError),
        ({"quantile": "0.5"}, RetrievalError),
        ({"quantile": 0.5, "max_distance": 1.0}, RetrievalError),
    ],
)
def test_impossible_options_are_refused_when_enabling(
    ground: Ground, options: dict[str, Any], error: type[Exception]
) -> None:
    pipe = ground.pipe()
    with pytest.raises(error, match="Expected: "):
        redi.enable(pipe, ground.base(), **options)
    assert type(pipe) is StableDiffusionPipeline


def test_a_base_that_is_missing_or_empty_is_refused(ground: Ground, tmp_path: Path) -> None:
    with pytest.raises(KnowledgeBaseError, match="no knowledge base at"):
        redi.enable(ground.pipe(), tmp_path)
    empty = record(tmp_path / "empty", ground.pipe(), PLAN, prompts=PROMPTS[:0])
    with pytest.raises(KnowledgeBaseError, match="has no entries"):
        redi.enable(ground.pipe(), empty)


def test_the_gate_is_a_quantile_of_the_bases_own_distances(ground: Ground) -> None:
    pipe, base = ground.pipe(), ground.base()
    distances = base.leave_one_out(3).double()
    for options, quantile in (({}, 0.9), ({"quantile": 0.5}, 0.5)):
        enabled = redi.enable(pipe, base, **options)
        assert enabled.rule.gates[8].max_distance == pytest.approx(float(distances.quantile(quantile)))


def test_an_unfinished_base_has_no_gate_and_says_so(ground: Ground, tmp_path: Path) -> None:
    pipe = ground.pipe()
    base = record(tmp_path / "unfinished", pipe, PLAN, finish=False)
    with pytest.warns(RediWarning, match="no gate"):
        redi.enable(pipe, base)
    assert "no gate" in redi.summary(pipe)
    with pytest.raises(KnowledgeBaseError):
        redi.enable(pipe, base, quantile=0.9)


# Attaching


def test_disabling_gives_the_stock_pipeline_back(ground: Ground) -> None:
    pipe = ground.pipe()
    plain = call(pipe, NEW, latents=NOISES[:1], num_inference_steps=4)
    before = set(vars(pipe))
    redi.enable(pipe, ground.base(), max_distance=1e9)
    call(pipe, NEW)
    redi.disable(pipe)
    redi.disable(pipe)
    assert type(pipe) is StableDiffusionPipeline
    assert set(vars(pipe)) == before
    assert torch.equal(call(pipe, NEW, latents=NOISES[:1], num_inference_steps=4), plain)
    assert redi.reports(pipe) == []
    assert "not enabled" in redi.summary(pipe)


def test_enabling_twice_replaces_and_a_failed_one_leaves_the_first(ground: Ground) -> None:
    pipe = ground.pipe()
    redi.enable(pipe, ground.base(), value_step=8, max_distance=1e9)
    redi.enable(pipe, ground.base().path, value_step=6, max_distance=1e9)
    with pytest.raises(PlanError):
        redi.enable(pipe, ground.base(), value_step=7)
    call(pipe, NEW)
    assert [report.value_step for report in redi.reports(pipe)] == [6]
    redi.disable(pipe)
    assert type(pipe) is StableDiffusionPipeline


def test_it_is_a_context_manager(ground: Ground) -> None:
    pipe = ground.pipe()
    with redi.enable(pipe, ground.base(), max_distance=1e9) as enabled:
        call(pipe, NEW)
        assert len(redi.reports(pipe)) == 1
    assert type(pipe) is StableDiffusionPipeline
    assert len(enabled.reports) == 1
    with pytest.raises(ZeroDivisionError), redi.enable(pipe, ground.base()):
        raise ZeroDivisionError
    assert type(pipe) is StableDiffusionPipeline


def test_leaving_the_block_of_a_replaced_one_keeps_the_newer(ground: Ground) -> None:
    pipe = ground.pipe()
    with redi.enable(pipe, ground.base(), max_distance=1e9):
        newer = redi.enable(pipe, ground.base(), value_step=6)
    assert repr(newer) in redi.summary(pipe)


def test_an_enabled_pipeline_saves_and_copies_as_the_stock_one(ground: Ground, tmp_path: Path) -> None:
    pipe = ground.pipe()
    redi.enable(pipe, ground.base(), max_distance=1e9)
    call(pipe, NEW)
    pipe.save_pretrained(tmp_path / "saved")
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is StableDiffusionPipeline
    assert type(copy.deepcopy(pipe)) is StableDiffusionPipeline
    redi.enable(loaded, ground.base(), max_distance=1e9)
    assert torch.equal(call(loaded, NEW, latents=NOISES[:1]), call(pipe, NEW, latents=NOISES[:1]))


def test_summary_tells_what_is_enabled_and_what_happened(ground: Ground) -> None:
    pipe = ground.pipe("pndm")
    redi.enable(pipe, ground.base("pndm"), max_distance=0.5)
    before = redi.summary(pipe)
    assert "18 entries, 3 noises; step 3 -> 8 of 12, 64 neighbours, Kriging, up to distance 0.5" in before
    assert "no image has been generated yet" in before
    call(pipe, [PROMPTS[0], NEW], latents=NOISES[:2])
    after = redi.summary(pipe)
    assert "3 -> 8 of 12" in after
    assert "abstained: too" in after
    assert "1 of 2 jumped; 21 calls instead of 26" in after
