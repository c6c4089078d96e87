"""Claims about estimators of x_v: exact where they must be, compared on the same queries, shown from JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from redi.experiments.estimates import DEFAULT, run_estimates
from redi.experiments.estimators import ESTIMATORS, mean_of_noise
from redi.experiments.laboratory import Laboratory
from redi.experiments.report import write_report
from redi.experiments.sampling import Recording, Scale, Solver

TINY = Scale("tiny", prompts=4, entries=12, noises=2, replicates=1, reference=40)
SMOOTH = [name for name in ESTIMATORS if "kriging" in name or "regression" in name or "ridge" in name]


def _linear(count: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys (count, 64) of three directions, which four neighbours can tell, and values under one linear map."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(64, 3, generator=torch.Generator().manual_seed(9))).Q.T
    keys = 3 + torch.randn(count, 3, generator=draw) @ directions
    return keys, keys @ torch.randn(64, 64, generator=torch.Generator().manual_seed(8)) / 8


@pytest.mark.parametrize("name", SMOOTH)
def test_a_linear_map_from_key_to_value_is_found_by_what_claims_to_regress(name: str) -> None:
    (keys, values), (queries, truth) = _linear(300), _linear(5, seed=1)
    unit = (mean_of_noise(queries, keys, values) - truth).norm()
    assert (ESTIMATORS[name](queries, keys, values) - truth).norm() < 0.35 * unit


def test_every_estimator_knows_more_than_the_noise_alone() -> None:
    (keys, values), (queries, truth) = _linear(300), _linear(5, seed=1)
    unit, *others = ESTIMATORS.values()
    known = (unit(queries, keys, values) - truth).norm()
    assert all((each(queries, keys, values) - truth).norm() < known for each in others)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    laboratory = Laboratory(tmp_path_factory.mktemp("work"), TINY, "cpu", batch_size=4)
    run_estimates(laboratory, folder, tell=lambda line: None, recording=Recording(Solver("dpm", 6), (1, 2), (3, 4)))
    return folder


def test_errors_are_told_in_units_of_the_noises_mean_and_against_the_default(results: Path) -> None:
    rows = json.loads((results / "tiny" / "estimates.json").read_text())["rows"]
    by_name = {(row["estimator"], row["key_step"]): row for row in rows}
    unit, *_ = ESTIMATORS
    assert by_name[unit, 1]["error"]["value"] == pytest.approx(1)
    assert by_name[DEFAULT, 2]["against_default"] == {"value": 0, "low": 0, "high": 0}
    assert by_name[DEFAULT, 2]["error"]["value"] < 1
    assert any("ahead" in name for name, key_step in by_name if key_step == 2)


def test_the_section_shows_every_estimator(results: Path, tmp_path: Path) -> None:
    page = write_report(results, tmp_path / "results.md", scale="tiny")
    assert all(f"| {name} |" in page for name in ESTIMATORS)
