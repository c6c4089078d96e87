"""Claims about samplings: spacings, other keys and values, each run as the library itself would."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler

from redi.errors import InputError
from redi.experiments.bills import calls_of
from redi.experiments.laboratory import Laboratory
from redi.experiments.other_keys import distance_at_value, run_by_similarity, run_full
from redi.experiments.other_values import reuse_pictures
from redi.experiments.paths import latents_after
from redi.experiments.sampling import SPACING, Recording, Sampling, Solver, plain, redi
from redi.experiments.spacings import TIMESTEPS
from redi.experiments.studies import STUDIES
from redi.miniature.evaluation import bundled_evaluator
from tiny_study import FULL, RECORDING, TINY


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("work"), TINY, "cpu", batch_size=4)


@pytest.mark.parametrize("name", ["quadratic", "align-your-steps"])
def test_a_spacing_of_timesteps_is_what_the_solver_runs_on(
    laboratory: Laboratory, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    stock = DPMSolverMultistepScheduler.set_timesteps

    @wraps(stock)
    def noted(scheduler: DPMSolverMultistepScheduler, *args: Any, **options: Any) -> None:
        stock(scheduler, *args, **options)
        seen.append(scheduler.timesteps.tolist())

    monkeypatch.setattr(DPMSolverMultistepScheduler, "set_timesteps", noted)
    sampling = plain("dpm", 4, **{SPACING: name})
    assert sampling.label == f"dpm-4 {name}"
    assert set(laboratory.sample(sampling, 0).calls) == {4}
    assert seen[-1] == TIMESTEPS[name](4)
    assert sorted(seen[-1], reverse=True) == seen[-1]


@pytest.mark.parametrize("name", TIMESTEPS)
def test_a_base_of_a_spacing_is_jumped_through_on_its_timesteps(laboratory: Laboratory, name: str) -> None:
    recording = Recording(Solver("dpm", 5, ((SPACING, name),)), (1, 2), (3,))
    jump = redi(recording, 2, 3, weights="nearest")
    assert jump.label == f"ReDi dpm-5 {name} 2->3 nearest"
    samples = laboratory.sample(jump, 0)
    assert samples.jumped.all()
    assert set(samples.calls) == {4}
    base = laboratory.base(recording, 0)
    assert base.manifest.identity["schedule"]["timesteps"] == TIMESTEPS[name](5)
    apart = laboratory.at_value(jump, 0)
    (own,) = latents_after(
        laboratory._pipeline(recording.solver), base, base.prompts(range(4)), base.noise_ids()[:4].tolist(), [3]
    )
    assert (own - base.values(range(4), 3)).abs().max() < 0.02, "up to the base's float16"
    assert (apart > 0).all()


def test_every_schedule_of_a_study_is_one_that_the_model_knows(laboratory: Laboratory) -> None:
    for solver in {sampling.solver for study in STUDIES.values() for sampling in study.samplings}:
        timesteps = laboratory.scheduler(solver).timesteps.tolist()
        assert 0 <= min(timesteps) < max(timesteps) <= 999, solver


def test_other_keys_jump_at_the_same_calls_and_land_elsewhere(laboratory: Laboratory) -> None:
    by_key = {key: redi(RECORDING, 2, 4, neighbors=2, key=key) for key in ("trajectory", "text", "random")}
    samples = {key: laboratory.sample(sampling, 0) for key, sampling in by_key.items()}
    assert all(set(each.calls) == {4} for each in samples.values())
    assert not np.array_equal(samples["text"].pictures, samples["trajectory"].pictures)
    apart = {key: laboratory.at_value(sampling, 0) for key, sampling in by_key.items()}
    assert all((each > 0).all() for each in apart.values())
    assert apart["trajectory"].mean() < apart["random"].mean()
    with pytest.raises(InputError, match="does not jump"):
        laboratory.at_value(FULL, 0)


def test_a_random_entry_is_the_same_however_prompts_are_parted(
    laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = redi(RECORDING, 2, 4, key="random")
    whole = laboratory.sample(sampling, 0)
    monkeypatch.setattr("redi.experiments.laboratory._PART", 2)
    parted = replace(laboratory, folder=tmp_path, batch_size=2).sample(sampling, 0)
    assert np.abs(parted.pictures.astype(int) - whole.pictures.astype(int)).max() <= 1, "up to rounding of the batch"


@pytest.mark.parametrize("key", ["text", "trajectory"])
def test_a_neighbours_picture_as_it_is_needs_no_call_after_its_key(laboratory: Laboratory, key: str) -> None:
    before = 0 if key == "text" else 2
    unchanged = laboratory.sample(redi(RECORDING, before, 6, key=key, value="picture", weights="nearest"), 0)
    assert set(unchanged.calls) == {before}
    noised = laboratory.sample(redi(RECORDING, before, 4, key=key, value="picture", weights="nearest"), 0)
    assert set(noised.calls) == {before + 2}
    apart = np.abs(noised.features - unchanged.features).max(1)
    assert (apart > 0).all(), "fresh noise and another prompt make another picture"


def test_the_neighbours_picture_of_an_entrys_own_prompt_is_its_full_run(laboratory: Laboratory) -> None:
    base, pipe = laboratory.base(RECORDING, 0), laboratory._pipeline(RECORDING.solver)
    entries = base.entries(range(4))
    prompts, noise_ids = [entry.prompt for entry in entries], [entry.noise_id for entry in entries]
    for key, before in (("text", 0), ("trajectory", 2)):
        jump = redi(RECORDING, before, 6, key=key, value="picture", weights="nearest").jump
        assert jump is not None
        pictures, *_ = reuse_pictures(pipe, base, prompts, noise_ids, jump)
        for one, other in zip(pictures, run_full(pipe, base, prompts, noise_ids), strict=True):
            assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_diversity_is_of_one_prompt_from_every_noise(laboratory: Laboratory) -> None:
    (prompt, *_), pipe = laboratory.prompts(0), laboratory._pipeline(FULL.solver)
    pictures = run_full(pipe, laboratory.base(RECORDING, 0), [prompt] * 2, [0, 1])
    one, other = bundled_evaluator().features(pictures)
    assert laboratory.diversity(FULL, 0) == pytest.approx([np.linalg.norm(one - other)], rel=1e-3)


def test_a_text_key_needs_no_step_before_the_jump(laboratory: Laboratory) -> None:
    started = laboratory.sample(redi(RECORDING, 0, 4, key="text", weights="nearest"), 0)
    later = laboratory.sample(redi(RECORDING, 2, 4, key="text", weights="nearest"), 0)
    assert set(started.calls) == {2}
    np.testing.assert_array_equal(started.pictures, later.pictures)


def test_no_step_before_the_jump_saves_both_calls_of_the_first_step_of_pndm(laboratory: Laboratory) -> None:
    recording = Recording(Solver("pndm", 6), (1,), (4, 5))
    without = redi(recording, 0, 4, key="text", weights="nearest")
    assert set(laboratory.sample(without, 0).calls) == {2}, "those of its last two steps"
    assert set(laboratory.sample(redi(recording, 1, 5, weights="nearest"), 0).calls) == {3}
    assert calls_of(without) == 2


def test_thresholds_choose_each_pictures_step_by_its_nearest_prompt(laboratory: Laboratory) -> None:
    def of(*thresholds: tuple[float, int]) -> Sampling:
        return redi(RECORDING, 0, 4, weights="nearest", key="text", thresholds=thresholds)

    nobody, full = laboratory.sample(of((1.01, 4)), 0), laboratory.sample(FULL, 0)
    np.testing.assert_array_equal(nobody.pictures, full.pictures)
    assert set(nobody.calls) == {6}
    assert not nobody.jumped.any()
    everybody = laboratory.sample(of((1.01, 3), (-1.0, 4)), 0)
    assert set(everybody.calls) == {2}
    assert everybody.jumped.all()
    nearest = laboratory.sample(redi(RECORDING, 0, 4, key="text", weights="nearest"), 0)
    assert (everybody.pictures == nearest.pictures).all((1, 2, 3)).any(), "cosine and distance often agree"
    pipe, base = laboratory._pipeline(RECORDING.solver), laboratory.base(RECORDING, 0)
    entries = base.entries(range(2))
    own, strict = [entry.prompt for entry in entries], of((0.9999, 4), (-1.0, 3)).jump
    assert strict is not None
    _, calls, jumped, _ = run_by_similarity(pipe, base, [*own, "zzz"], [*(e.noise_id for e in entries), 0], strict)
    assert calls == [2, 2, 3], "a prompt that the base holds goes to the later step"
    assert jumped == [True] * 3


def test_an_entrys_own_prompt_lands_on_its_own_value(laboratory: Laboratory) -> None:
    jump = redi(RECORDING, 2, 4, weights="nearest").jump
    assert jump is not None
    base, pipe = laboratory.base(RECORDING, 0), laboratory._pipeline(RECORDING.solver)
    entries = base.entries(range(4))
    noise_ids = [entry.noise_id for entry in entries]
    apart = distance_at_value(pipe, base, [entry.prompt for entry in entries], noise_ids, jump)
    assert max(apart) < 0.05, "up to the base's float16"
