"""Claims about what experiments cost: calls as they are counted, shared work once, toy enough for every study."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from redi.calibration import LEAST_PROMPTS
from redi.cli.app import app
from redi.experiments.bills import DIVERSE_CALLS, MINIATURE_SPEED, Cost, Work, after, calls_of, cost
from redi.experiments.breaks import _LACKING, _parts
from redi.experiments.costs import at_paper, page
from redi.experiments.laboratory import Laboratory
from redi.experiments.runner import EXPERIMENTS, experiment, run_study
from redi.experiments.sampling import PAPER, SMALL, TOY, Recording, Scale, Solver, plain, redi, scale_of
from redi.experiments.studies import SHORT, Study
from redi.experiments.works import WORKS, total

TINY = Scale("tiny", prompts=4, entries=24, noises=2, replicates=1, reference=40)
MINUTES = 3
CALL = 0.015
"""CPU seconds of a call of one picture, measured on one core."""


@pytest.fixture
def laboratory(tmp_path: Path) -> Laboratory:
    return Laboratory(tmp_path, TINY, "cpu", batch_size=4)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_toy_takes_minutes_for_every_study(name: str) -> None:
    scale = scale_of("toy", name)
    assert total([WORKS[name](scale)], scale).calls * CALL < MINUTES * 60


def test_toy_has_prompts_enough_for_the_gates_halves_and_for_the_groups_of_breaks(tmp_path: Path) -> None:
    gate, breaks = scale_of("toy", "gate"), scale_of("toy", "breaks")
    assert gate.prompts // 2 >= LEAST_PROMPTS
    laboratory = Laboratory(tmp_path, breaks, "cpu")
    asked = laboratory.prompts(0).values()
    assert sum(any(each.kind == _LACKING for each in one.objects) for one in asked) >= 2
    recording = replace(SHORT, solver=Solver("dpm", 3), key_steps=(1,), value_steps=(2,), share=0.25)
    for panel, groups in _parts(laboratory, recording, 0).items():
        assert all(len(places) >= 2 for places in groups.values()), f"an interval of {panel} needs two"


def test_only_toys_differ_between_studies() -> None:
    assert all(scale_of("small", name) is SMALL and scale_of("paper", name) is PAPER for name in EXPERIMENTS)
    assert scale_of("toy", "table2") is TOY
    assert (SMALL.prompts, SMALL.entries, SMALL.noises, SMALL.replicates, SMALL.resamples) == (200, 2000, 4, 3, 400)


@pytest.mark.parametrize("solver", [Solver("pndm", 5), Solver("heun", 3), Solver("dpm", 4)])
def test_calls_are_billed_as_they_are_counted(laboratory: Laboratory, solver: Solver) -> None:
    sampling = plain(solver.name, solver.steps)
    assert set(laboratory.sample(sampling, 0).calls) == {calls_of(sampling)}


def test_a_jumps_calls_of_pndm_are_billed_as_they_are_counted(laboratory: Laboratory) -> None:
    sampling = redi(Recording(Solver("pndm", 6), (2,), (4,)), 2, 4, neighbors=2)
    assert set(laboratory.sample(sampling, 0).calls) == {calls_of(sampling)} == {5}


def test_a_base_that_is_half_built_is_billed_with_its_rest(laboratory: Laboratory) -> None:
    recording = Recording(Solver("dpm", 3), (1,), (2,))
    needed = Work(recordings=(recording,))
    whole = laboratory.cost(needed)
    assert whole == Cost(24 * 2, 24 * 2)
    few = replace(laboratory, scale=replace(TINY, entries=8))
    few.base(recording, 0)
    shutil.copytree(few._folder("bases", recording, 0), laboratory._folder("bases", recording, 0))
    assert laboratory.cost(needed) == Cost(16 * 2, 16 * 2)
    assert few.cost(needed) == Cost(0, 0)


def test_a_bill_tells_hours_and_what_they_are_reckoned_with(laboratory: Laboratory) -> None:
    told = laboratory.bill(Work(others={"an hour": Cost(round(MINIATURE_SPEED.calls * 3600), 0)}))
    assert "; 1 hours at 120 calls a second (measured on two CPU cores with nothing beside)" in told


def test_diversity_of_the_finest_runs_is_neither_billed_nor_measured(tmp_path: Path) -> None:
    fine, finer = plain("dpm", DIVERSE_CALLS), plain("dpm", DIVERSE_CALLS + 1)
    several = cost(Work((fine,), diversity=(fine,)), TINY).calls - cost(Work((fine,)), TINY).calls
    assert several == DIVERSE_CALLS
    assert cost(Work((finer,), diversity=(finer,)), TINY) == cost(Work((finer,)), TINY)
    small = replace(TINY, prompts=2, replicates=2)
    laboratory = Laboratory(tmp_path, small, "cpu")
    study = Study("fine", "Fine", (plain("dpm", 2), finer), plain("dpm", 2))
    one, other = run_study(study, laboratory, tmp_path / "results", tell=lambda line: None)["rows"]
    assert "diversity" in one
    assert "diversity" not in other


class _Told(Exception):
    """The first line that a run tells: what it will cost."""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_run_prints_what_the_page_of_costs_tells(tmp_path: Path, name: str) -> None:
    def stop(line: str) -> None:
        raise _Told(line)

    scale = scale_of("toy", name)
    with pytest.raises(_Told, match=rf"^{name}: (at most )?{total([WORKS[name](scale)], scale).calls:,} network calls"):
        experiment(name)(Laboratory(tmp_path, scale, "cpu"), tmp_path / "results", tell=stop)


def test_what_two_experiments_need_is_taken_once() -> None:
    of = {name: WORKS[name](SMALL) for name in WORKS}
    assert total([of["table2"], of["table2"]], SMALL) == total([of["table2"]], SMALL)
    both = total([of["table2"], of["table3"]], SMALL)
    assert both.calls < total([of["table2"]], SMALL).calls + total([of["table3"]], SMALL).calls
    assert total([of["table3"], of["gate"]], SMALL).latents == total([of["gate"]], SMALL).latents, "one base"


def test_every_experiment_has_a_row_with_hours_and_statistics_at_the_papers_scale() -> None:
    assert list(WORKS) == list(EXPERIMENTS)
    lines = page().splitlines()
    for name in (*EXPERIMENTS, "all together"):
        (row,) = (line for line in lines if line.startswith((f"| `{name}` |", f"| {name} |")))
        assert row.count("|") == 10
    assert "hours of one CPU core for intervals" in at_paper(["table1"])


@pytest.mark.parametrize(
    ("command", "name"), [(("run", "table1"), "table1"), (("run", "all"), "all"), (("bound",), "bound")]
)
def test_the_papers_scale_without_its_model_is_refused_with_what_it_takes(command: tuple[str, ...], name: str) -> None:
    refused = CliRunner().invoke(app, ["experiments", *command, "--scale", "paper"])
    assert refused.exit_code == 1
    told = str(refused.exception) + refused.output
    assert f"{name} takes" in told
    assert "network calls" in told
    assert f"redi experiments run {name} --scale paper --model" in told


def test_heun_takes_two_calls_for_each_step_but_the_last() -> None:
    assert after(Solver("heun", 13), 13) == 25
    assert after(Solver("pndm", 50), 50) == 51
    assert cost(Work((plain("heun", 13),)), TINY).calls == 4 * 25
    assert np.isclose(Cost(3600, 0).hours(MINIATURE_SPEED), 1 / 120)
