"""Claims about chains of jumps: calls, where they end, what entries tell, what they refuse."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import redi
from redi.errors import UnsupportedError
from redi.experiments import chains
from redi.experiments.bills import calls_of, ends_of
from redi.experiments.chains import Trails, finished, looked_at, run_chain
from redi.experiments.laboratory import Laboratory
from redi.experiments.paths import latents_after
from redi.experiments.sampling import Chain, Recording, Sampling, Scale, Solver, chained
from redi.experiments.studies import STUDIES
from redi.pipelines import MINIATURE, load_pipeline
from redi.plan import Plan
from redi.retrieval.weights import Kriging

TINY = Scale("tiny", prompts=6, entries=48, noises=2, replicates=1, reference=40)
RECORDING = Recording(Solver("dpm", 4, (("timestep_spacing", "trailing"),)), (1,), (2, 3))


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("work"), TINY, "cpu", batch_size=16)


@pytest.fixture(scope="module")
def pipe(laboratory: Laboratory) -> Any:
    return laboratory._pipeline(RECORDING.solver)


def test_the_runs_of_entries_end_where_the_pipeline_ends_them(laboratory: Laboratory, pipe: Any) -> None:
    base = laboratory.base(RECORDING, 0)
    rows = looked_at(base).tolist()
    (whole,) = latents_after(pipe, base, base.prompts(rows), [int(base.noise_ids()[row]) for row in rows], [4])
    assert len(rows) == ends_of(RECORDING, TINY) == 48
    torch.testing.assert_close(finished(pipe, base), whole, rtol=0, atol=2e-2)  # its x_v is of float16


def test_a_chain_makes_a_call_at_each_stop_and_no_other(laboratory: Laboratory, pipe: Any) -> None:
    base, prompts = laboratory.base(RECORDING, 0), list(laboratory.prompts(0))
    ends, made = finished(pipe, base), 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1

    hook = pipe.unet.register_forward_pre_hook(count)
    pictures, calls, jumped, _ = run_chain(pipe, base, ends, prompts, [0, 1] * 3, Chain(RECORDING, (0, 2)))
    hook.remove()
    assert made == 2
    assert calls == [2] * 6 == [calls_of(chained(RECORDING, 0, 2))] * 6
    assert len(pictures) == 6
    assert all(jumped)


def test_a_prompt_that_the_base_holds_ends_where_its_own_run_does(laboratory: Laboratory, pipe: Any) -> None:
    base = laboratory.base(RECORDING, 0)
    rows = looked_at(base)[:3].tolist()
    prompts, noise_ids, ends = base.prompts(rows), [int(base.noise_ids()[row]) for row in rows], finished(pipe, base)
    pictures, *_ = run_chain(pipe, base, ends, prompts, noise_ids, Chain(RECORDING, (0, 2)))
    whole = [np.asarray(image, np.float64) for image in chains._Network(pipe, base).decoded(ends[:3])]
    others = [np.asarray(image, np.float64) for image in chains._Network(pipe, base).decoded(ends[3:6])]
    for image, own, other in zip(pictures, whole, others, strict=True):
        assert np.abs(image - own).mean() < 0.2 * np.abs(own - other).mean()


def test_fitted_steps_are_exact_where_what_is_next_is_linear_in_what_was_seen(pipe: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(1, 2, 3, 3, generator=draw).expand(40, -1, -1, -1)
    first = 0.9 * start + torch.randn(40, 2, 3, 3, generator=draw)
    # latents that move on as the first step moved them: offsets from the mean grow by a half at each
    second, last = first.mean(0) + 1.5 * (first - first.mean(0)), 3 + 2.25 * (first - first.mean(0))
    latents = [start, first, second, last]
    scheduler = pipe.scheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(3)
    queries, entries = [each[:5] for each in latents], [each[5:] for each in latents]
    trails = Trails(scheduler, entries, (0, 1))
    seen = [tuple(each[:5] for each in pair) for pair in Trails(scheduler, queries, (0, 1))._seen]
    for place, target in ((1, queries[1]), (2, queries[3])):
        for neighbours in (True, False):
            found = trails.next(seen[:place], neighbours=neighbours)
            off = (found - target.double().flatten(1)).norm() / (target - target.mean(0)).norm()
            assert off < (0.4 if neighbours else 1e-5), (place, neighbours)


def test_entries_that_are_alike_tell_what_no_fitted_step_does(pipe: Any) -> None:
    draw = torch.Generator().manual_seed(1)
    start = torch.zeros(400, 1, 2, 2)
    angle = torch.rand(400, 1, 1, 1, generator=draw) * 6.28
    first = torch.cat([angle.cos(), angle.sin()], 3).expand(-1, -1, 2, 2)
    last = torch.cat([(2 * angle).cos(), (2 * angle).sin()], 3).expand(-1, -1, 2, 2)  # no linear function of the first
    scheduler = pipe.scheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(2)
    trails = Trails(scheduler, [each[20:] for each in (start, first, last)], (0,))
    seen = Trails(scheduler, [each[:20] for each in (start, first, last)], (0,))._seen
    truth = last[:20].double().flatten(1)
    with_them, without = (float((trails.next(seen, neighbours=each) - truth).norm()) for each in (True, False))
    assert with_them < 0.05 * without


def test_what_a_chain_cannot_do_is_refused_before_any_call(laboratory: Laboratory, tmp_path: Any) -> None:
    short = load_pipeline(MINIATURE, scheduler="dpm")
    base = redi.build(short, ["a cat", "a dog"], tmp_path / "short", plan=Plan(4, 1, (2,)), noises=[0])
    with pytest.raises(UnsupportedError, match="3 among them"):
        finished(short, base)
    two = load_pipeline(MINIATURE, scheduler="heun")
    base = redi.build(two, ["a cat", "a dog"], tmp_path / "heun", plan=Plan(4, 1, (3,)), noises=[0])
    with pytest.raises(UnsupportedError, match="one call a step"):
        finished(two, base)


@pytest.mark.parametrize(("name", "other"), [("JITTER", 1e-3), ("Kriging", partial(Kriging, nugget=0.1))])
def test_a_chain_of_other_constants_is_another_run(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch, name: str, other: Any
) -> None:
    sampling = chained(RECORDING, 0, 2)
    before = laboratory._file("samples", sampling, 0)
    assert before == laboratory._file("samples", sampling, 0)
    monkeypatch.setattr(f"redi.experiments.laboratory.{name}", other)
    assert laboratory._file("samples", sampling, 0) != before


def test_tables_name_chains_apart() -> None:
    labels = [each.label for each in STUDIES["chains"].samplings]
    assert len(labels) == len(set(labels))
    assert chained(RECORDING, 0, 2, neighbours=False).label == "chain dpm-4 trailing at 0, 2, no neighbours"
    assert Sampling(RECORDING.solver).recording is None
