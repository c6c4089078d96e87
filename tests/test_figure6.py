"""Claims about figure 6: every point is measured as the library itself would jump, a page and plots from JSON alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from redi.errors import InputError
from redi.experiments.figure6 import FIGURES, NEIGHBORS, Figure6, Point, _estimated, run_figure6
from redi.experiments.laboratory import Laboratory
from redi.experiments.report import write_report
from redi.experiments.sampling import Recording, Scale, Solver, plain, redi

TINY = Scale("tiny", prompts=4, entries=24, noises=2, replicates=1, reference=40)
RECORDING = Recording(Solver("dpm", 6), (1, 2), (3, 4))
FIGURE = Figure6(
    "DPM, 6 steps",
    RECORDING,
    {
        "size": (Point(0.5, 2, 4), Point(1.0, 2, 4)),
        "value": (Point(1.0, 2, 3), Point(1.0, 2, 4)),
        "key": (Point(1.0, 1, 3), Point(1.0, 2, 4)),
    },
)


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("work"), TINY, "cpu", batch_size=4)


@pytest.fixture(scope="module")
def results(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    run_figure6(laboratory, folder, tell=lambda line: None, name="figure6", figure=FIGURE)
    return folder


def test_what_goes_on_from_an_estimate_is_what_the_library_makes(laboratory: Laboratory, results: Path) -> None:
    """One step before the jump or the whole head: the picture is the same, and so are the calls that are told."""
    values, _ = _estimated(laboratory, FIGURE, 0)[Point(1.0, 2, 4), 2]
    sampling = redi(RECORDING, 2, 4, neighbors=2)
    short, whole = laboratory.going_on(sampling, 0, values), laboratory.sample(sampling, 0)
    assert np.array_equal(short.calls, whole.calls)
    assert np.abs(short.pictures.astype(int) - whole.pictures.astype(int)).max() <= 1
    with pytest.raises(InputError, match="does not jump"):
        laboratory.going_on(plain("dpm", 6), 0, values)


def test_a_result_holds_every_point_with_every_number_of_neighbours(results: Path) -> None:
    found = json.loads((results / "tiny" / "figure6.json").read_text())
    assert len(found["rows"]) == len(FIGURE.points) * len(NEIGHBORS) == 4 * 5
    assert {row["entries"] for row in found["rows"]} == {12, 24}
    by_point = {(row["share"], row["key_step"], row["value_step"], row["neighbors"]): row for row in found["rows"]}
    assert by_point[1.0, 2, 4, 1]["at_value"]["value"] <= by_point[0.5, 2, 4, 1]["at_value"]["value"]
    assert by_point[1.0, 2, 4, 1]["calls"] == 4
    assert by_point[1.0, 2, 3, 1]["calls"] == 5


def test_the_page_and_its_plots_are_the_same_bytes_for_the_same_results(results: Path, tmp_path: Path) -> None:
    pages = [write_report(results, tmp_path / name / "results.md", scale="tiny") for name in ("one", "two")]
    assert pages[0] == pages[1]
    assert "| size | 12 | 2 | 4 | 4 | 1 |" in pages[0]
    for ending in ("svg", "png"):
        plots = [
            (tmp_path / name / "images" / f"results-tiny-figure6.{ending}").read_bytes() for name in ("one", "two")
        ]
        assert plots[0] == plots[1]


def test_every_figure_can_be_recorded_in_one_pass() -> None:
    for name, figure in FIGURES.items():
        recording = figure.recording
        assert max(recording.key_steps) < min(recording.value_steps), name
        for point in figure.points:
            assert point.key_step in recording.key_steps
            assert point.value_step in recording.value_steps
        assert len({point.value_step - point.key_step for point in figure.panels["key"]}) == 1
