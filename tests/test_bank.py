"""Claims about the study of bank sizes: entries of one noise only, more are nearer, a rule that finds its own law."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import redi
from redi.experiments import bank
from redi.experiments.bank import Point, fit, run_bank
from redi.experiments.laboratory import Laboratory
from redi.experiments.report import write_report
from redi.experiments.sampling import Recording, Scale, Solver

TINY = Scale("tiny", prompts=16, entries=64, noises=2, replicates=1, reference=60)
RECORDING = Recording(Solver("dpm", 4), (1,), (3,))


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("work"), TINY, "cpu", batch_size=16)


def test_results_and_page_tell_every_bank(
    laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank, "NOISES", (1, 4))
    run_bank(laboratory, tmp_path, tell=lambda line: None, recording=RECORDING)
    found = json.loads((tmp_path / "tiny" / "bank.json").read_text())
    rows = {(row["noises"], row["entries"], row["alien"]): row for row in found["rows"]}
    assert list(rows) == [
        *((1, count, False) for count in (8, 16, 32, 64)),
        *((4, count, False) for count in (8, 16)),
        (4, 48, True),
    ]
    nearest = [rows[1, count, False]["nearest"]["value"] for count in (8, 16, 32, 64)]
    assert nearest == sorted(nearest, reverse=True)
    assert rows[4, 48, True]["nearest"]["value"] > 2 * rows[4, 16, False]["nearest"]["value"], "of other noises"
    assert rows[4, 48, True]["loss"]["value"] > rows[4, 16, False]["loss"]["value"]
    page = write_report(tmp_path, tmp_path / "results.md", scale="tiny")
    assert "## How many noises, how many entries (ReDi dpm-4 1->3 kriging)" in page
    assert "48 of other noises" in page


def test_an_estimate_is_the_librarys_own(laboratory: Laboratory) -> None:
    own = replace(laboratory, scale=replace(TINY, noises=4))
    *_, most = (point for point in bank._points(own, RECORDING, 0) if not point.alien)
    made = redi.generate(
        own._pipeline(RECORDING.solver),
        own.base(RECORDING, 0),
        list(own.prompts(0))[:4],
        noise_ids=own.noise_ids(4),
        weights="kriging",
        max_distance=float("inf"),
    )
    for place, each in enumerate(made):
        assert most.nearest[place] == pytest.approx(each.report.neighbors[0].distance, rel=1e-3)


def test_the_rule_finds_the_law_that_points_follow() -> None:
    draw = np.random.default_rng(0)
    points = []
    for noises, counts in ((1, (8, 32, 128)), (4, (8, 32))):
        for count in counts:
            apart = 5 * 0.9 * count**-0.25 * draw.uniform(0.8, 1.2, 200)
            points.append([Point(noises, count, False, torch.zeros(0), apart, apart, 5.0)])
    found = fit(points)
    assert found["a"] == pytest.approx(0.9, rel=0.05)
    assert found["b"]["low"] <= 0.25 <= found["b"]["high"]
    assert found["off"] < 0.05
    assert found["needed"]["0.3"]["value"] == pytest.approx((0.9 / 0.3) ** 4, rel=0.2)
