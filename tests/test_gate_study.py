"""Claims about the study of the gate: fresh halves, scores as the engine's, the best fixed mix, a page from JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import redi
from redi.calibration import Measurements
from redi.experiments.bills import Cost, Route
from redi.experiments.gate import Outcome, _promises, lower_hull, part, run_gate, scores_at_key, work
from redi.experiments.laboratory import Laboratory
from redi.experiments.report import write_report
from redi.experiments.sampling import Recording, Scale, Solver

TINY = Scale("tiny", prompts=40, entries=24, noises=2, replicates=1, reference=60)
RECORDING = Recording(Solver("dpm", 5), (1,), (3, 4))


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("work"), TINY, "cpu", batch_size=20)


@pytest.fixture(scope="module")
def results(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    run_gate(laboratory, folder, tell=lambda line: None, recording=RECORDING)
    return folder


def test_scores_are_those_that_the_engine_reports(laboratory: Laboratory) -> None:
    found = scores_at_key(laboratory, RECORDING, 0)
    made = redi.generate(
        laboratory._pipeline(RECORDING.solver),
        laboratory.base(RECORDING, 0),
        list(laboratory.prompts(0))[:4],
        noise_ids=laboratory.noise_ids(4),
        value_step=3,
        weights="kriging",
        max_distance=float("inf"),
    )
    for place, each in enumerate(made):
        report = each.report
        assert found["distance"][place] == pytest.approx(report.neighbors[0].distance, rel=1e-3)
        assert found["residual"][place] == pytest.approx(report.residual, rel=1e-2)
        assert found["variance"][place] == pytest.approx(report.variance, rel=1e-2)


def test_what_is_there_is_not_billed(laboratory: Laboratory, results: Path) -> None:
    assert laboratory.cost(work(RECORDING)) == Cost(0, 0)
    laboratory._route(Route(RECORDING.solver, (1,)), 0).unlink()
    assert laboratory.cost(work(RECORDING)) == Cost(40, 0), "the call up to the key, of all prompts"
    scores_at_key(laboratory, RECORDING, 0)
    assert laboratory.cost(work(RECORDING)) == Cost(0, 0)


def test_results_and_page_say_what_was_asked_and_delivered(results: Path, tmp_path: Path) -> None:
    found = json.loads((results / "tiny" / "gate.json").read_text())
    assert {(row["value_step"], row["score"]) for row in found["scores"]} == {
        (step, score) for step in (3, 4) for score in ("distance", "residual", "variance")
    }
    assert found["fixed"][-1] == {"calls": 5.0, "loss": 0.0}
    for row in found["promises"]:
        assert row["verdict"] == ("kept" if row["loss"]["low"] <= row["asked"] else "broken")
        assert 3 <= row["calls"] <= 5
    page = write_report(results, tmp_path / "results.md", scale="tiny")
    assert "## The gate (dpm-5, key after 1" in page
    assert (tmp_path / "images" / "results-tiny-gate.svg").exists()


def simulated(size: int = 400, *, told: bool) -> Measurements:
    """Losses that the distance tells, or that nothing tells."""
    draw = np.random.default_rng(5)
    distances, other = draw.random(size), draw.random(size)
    cause = distances if told else other
    return Measurements(
        {"distance": distances},
        {10: cause * draw.random(size), 15: 3 * cause * draw.random(size)},
        {10: 15, 15: 10},
        20,
    )


def test_a_score_that_tells_the_loss_beats_fixed_plans_and_one_that_does_not_is_no_better() -> None:
    outcomes = {told: [Outcome(simulated(told=told), {})] for told in (True, False)}
    rows = {told: _promises(each, [0.1, 0.3]) for told, each in outcomes.items()}
    assert [row["against_fixed"] for row in rows[True]] == ["better", "better"]
    assert all(row["verdict"] == "kept" for each in rows.values() for row in each)
    assert all(row["against_fixed"] != "better" for row in rows[False])
    for row in (row for each in rows.values() for row in each):
        assert row["loss"]["value"] - row["fixed_loss"] == pytest.approx(row["difference"]["value"])
        assert row["scores"] == {"distance": 20}


def test_part_keeps_rows_together_and_a_lot_between_plans_is_a_plan() -> None:
    whole = simulated(told=True)
    half = part(whole, np.arange(0, 400, 2))
    assert len(half) == 200
    assert (half.losses[15] == whole.losses[15][::2]).all()
    assert (half.scores["distance"] == whole.scores["distance"][::2]).all()
    assert lower_hull([(10, 3.0), (15, 2.5), (20, 0.0)]) == [3.0, 1.5, 0.0]
