"""Claims about the study of styles: the base holds none, layouts are compared by what is seen, a page from JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from redi.experiments.laboratory import Laboratory
from redi.experiments.report import write_report
from redi.experiments.sampling import Recording, Scale, Solver
from redi.experiments.styles import FULL, WAYS, run_styles
from redi.miniature.evaluator import Reading
from redi.miniature.quality import layout_similarity
from redi.miniature.scenes import Placement
from redi.miniature.vocabulary import STYLES

TINY = Scale("tiny", prompts=6, entries=8, noises=2, replicates=1, reference=40)
RECORDING = Recording(Solver("dpm", 5), (1,), (3,), styles=False)


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("work"), TINY, "cpu", batch_size=4)


@pytest.fixture(scope="module")
def results(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    run_styles(laboratory, folder, tell=lambda line: None, recording=RECORDING)
    return folder


def test_the_base_holds_no_style(laboratory: Laboratory, results: Path) -> None:
    base = laboratory.base(RECORDING, 0)
    prompts = base.prompts(range(len(base)))
    assert len(prompts) == TINY.entries
    assert not any(suffix in prompt for prompt in prompts for suffix in STYLES.values())


def test_every_way_is_measured_in_every_style(results: Path) -> None:
    found = json.loads((results / "tiny" / "styles.json").read_text())
    rows = {(row["label"], row["style"]): row for row in found["rows"]}
    assert len(rows) == (1 + len(WAYS)) * (len(STYLES) + 1)
    assert {label: rows[label, "all"]["calls"] for label in (FULL, *(way.label for way in WAYS))} == {
        FULL: 5,
        "ReDi, least squares H=2": 3,
        "ReDi, kriging": 3,
        "prompt alone up to the key, then prompt and style, no jump": 5,
    }
    mean = np.mean([rows[FULL, style]["layout"]["value"] for style in STYLES])
    assert rows[FULL, "all"]["layout"]["value"] == pytest.approx(mean)
    assert (results / "tiny" / "styles.png").stat().st_size > 1000


def test_layouts_are_alike_where_the_same_kinds_are_near() -> None:
    def seen(*objects: tuple[str, float, float]) -> Reading:
        return Reading("sea", "plain", tuple(Placement(kind, "red", "small", x, y, 10.0) for kind, x, y in objects))

    one = seen(("cat", 20, 20), ("boat", 40, 40))
    assert layout_similarity(one, one) == 1
    assert layout_similarity(one, seen(("cat", 23, 24), ("boat", 40, 50))) == 0.5, "10 pixels are not near, 5 are"
    assert layout_similarity(one, seen(("cat", 20, 20), ("fish", 40, 40))) == pytest.approx(1 / 3)
    assert layout_similarity(one, seen()) == 0
    assert layout_similarity(seen(), seen()) == 1


def test_the_page_says_what_the_result_says(results: Path, tmp_path: Path) -> None:
    pages = [write_report(results, tmp_path / name / "results.md", scale="tiny") for name in ("one", "two")]
    assert pages[0] == pages[1]
    assert f"| {FULL} | mosaic | 5 |" in pages[0]
    assert "- ReDi, kriging, against the full run: " in pages[0]
