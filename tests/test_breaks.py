"""Claims about the study of where it breaks: groups that part the prompts, bases that lack a kind, pairs, a page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from redi.comparison import Column
from redi.experiments import breaks, worst
from redi.experiments.breaks import _others, _parts, _row, keywords, own, run_breaks
from redi.experiments.laboratory import Laboratory
from redi.experiments.report import write_report
from redi.experiments.sampling import Recording, Scale, Solver
from redi.experiments.subjects import Miniature
from redi.experiments.worst import AS_IN_BASE, WORDING, Outcome, worst_sheets
from redi.metrics.extractors import Extractor
from redi.miniature.scenes import Description, ObjectDescription
from redi.miniature.vocabulary import KINDS

TINY = Scale("tiny", prompts=16, entries=64, noises=2, replicates=1, reference=60)
RECORDING = Recording(Solver("dpm", 4), (1,), (2, 3))
QUERIES = 6


@pytest.fixture(scope="module", autouse=True)
def _few_queries() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as fewer:
        fewer.setattr(breaks, "_QUERIES", QUERIES)
        yield


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("work"), TINY, "cpu", batch_size=16)


@pytest.fixture(scope="module")
def results(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as fewer:
        fewer.setattr(breaks, "_GUIDANCES", (1.0, 2.0))
        fewer.setattr(breaks, "_SHARES", (0.004, 0.25))
        run_breaks(laboratory, folder, tell=lambda line: None, recording=RECORDING)
    return folder


def test_every_panel_parts_the_prompts(laboratory: Laboratory, results: Path) -> None:
    asked = list(laboratory.prompts(0).values())
    for groups in _parts(laboratory, RECORDING, 0).values():
        assert sorted(np.concatenate(list(groups.values()))) == list(range(16))
    counts = _parts(laboratory, RECORDING, 0)["objects"]
    assert all(len(asked[place].objects) == int(name) for name, places in counts.items() for place in places)


def test_a_base_without_a_kind_has_as_many_entries_and_none_of_that_kind() -> None:
    whole, without = Miniature(), Miniature(without="cat")
    names = KINDS["cat"]
    assert any(name in text for text in whole.base_prompts(0, 100, True) for name in names)
    lacking = without.base_prompts(0, 100, True)
    assert len(lacking) == 100
    assert not any(name in text for text in lacking for name in names)
    assert len({each.weights for each in (whole, without, Miniature(guidance=4.0))}) == 3
    assert Miniature(guidance=2.0).weights == whole.weights, "what is as usual is kept under the usual name"


def test_results_and_page_tell_every_group(results: Path, tmp_path: Path) -> None:
    found = json.loads((results / "tiny" / "breaks.json").read_text())
    rows = {(row["panel"], row["group"]): row for row in found["rows"]}
    assert {("entries of the base", "16"), ("guidance", "2"), ("wording", "keywords")} <= rows.keys()
    assert rows["style", "none asked"]["n"] + rows["style", "one asked"]["n"] == 16
    same = rows["wording", "as in the base"], rows["guidance", "2"], rows["entries of the base", "16"]
    assert len({json.dumps(row["difference"]) for row in same}) == 1, "the same runs"
    assert rows["wording", "as in the base"]["calls"]["jump"] == 2
    assert 2 <= rows["wording", "as in the base"]["calls"]["gated"] <= 4
    assert rows["wording", "keywords"]["n"] == QUERIES
    page = write_report(results, tmp_path / "some" / "where" / "page.md", scale="tiny")
    assert "## Where it breaks (ReDi dpm-4 1->3 kriging)" in page
    sheets = {one["file"] for one in found["sheets"]}
    assert {"tiny/breaks.png", "tiny/breaks-far.png", "tiny/breaks-wording.png", "tiny/breaks-guidance.png"} <= sheets
    assert all((results / one).stat().st_size > 1000 for one in sheets)
    linked = {tmp_path / "some" / "where" / link for link in re.findall(r"\]\(([^)]*breaks[^)]*)\)", page)}
    assert {each.resolve() for each in linked} == {(results / one).resolve() for one in sheets}


def test_every_group_is_seen_by_the_eyes_that_were_given(
    laboratory: Laboratory, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def colors(pictures: list[Image.Image]) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.asarray(each.convert("RGB")) for each in pictures])).double().mean((1, 2))

    monkeypatch.setattr(breaks, "_GUIDANCES", (2.0,))
    monkeypatch.setattr(breaks, "_SHARES", (0.25,))
    other = replace(laboratory, subject=Miniature(Extractor("mean colors", "none", "colors", colors)))
    found = _others(other, own(RECORDING), 0)
    usual = found[WORDING][AS_IN_BASE].apart["jump"]
    assert usual.any()
    np.testing.assert_array_equal(found["guidance"]["2"].apart["jump"], usual, "the same runs, in the same features")


def test_pictures_of_another_gate_are_made_anew_and_the_others_kept(
    laboratory: Laboratory, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, recording = list(laboratory.prompts(0).items())[:QUERIES], breaks.own(RECORDING)
    folder = laboratory._folder("pictures", recording, 0)
    before = set(folder.iterdir())
    breaks._compared(laboratory, recording, asked, replicate=0)
    assert set(folder.iterdir()) == before, "they are there"
    monkeypatch.setattr(breaks, "DEFAULT_QUANTILE", 0.5)
    breaks._compared(laboratory, recording, asked, replicate=0)
    assert len(set(folder.iterdir()) - before) == 1


def test_differences_are_of_pairs_over_all_replicates() -> None:
    right = np.tile([1.0, 0.0], 50)
    one = Outcome(
        {"full": right, "jump": np.where(np.arange(100) < 10, 0.0, right), "gated": right},
        {"jump": np.ones(100), "gated": np.zeros(100)},
        {"full": np.full(100, 10.0), "jump": np.full(100, 6.0), "gated": np.full(100, 7.0)},
        {"full": np.zeros((100, 8, 8, 3), np.uint8), "jump": np.ones((100, 8, 8, 3), np.uint8)},
        np.asarray([f"prompt {place}" for place in range(100)]),
    )
    row = _row("panel", "group", [one, one])
    assert row["n"] == 200
    assert row["difference"]["value"] == pytest.approx(-0.05)
    assert row["difference"]["high"] < 0
    assert row["gated_difference"]["high"] == row["gated_closeness"]["value"] == 0
    assert len(one.part([1, 2]).right["full"]) == 2


def test_keywords_say_all_that_is_asked_for() -> None:
    asked = Description((ObjectDescription("cat", "red", "small"), ObjectDescription("car", "blue")), "above", "sea")
    assert keywords(asked) == "small red cat, blue car, above, sea"


def test_the_worst_are_the_farthest_of_the_groups_that_a_sheet_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(apart: float, group: str) -> Outcome:
        right, calls = dict.fromkeys(("full", "jump", "gated"), np.ones(2)), dict.fromkeys(("full", "jump"), np.ones(2))
        pictures = dict.fromkeys(("full", "jump"), np.zeros((2, 8, 8, 3), np.uint8))
        far = {"jump": np.asarray([apart, apart + 0.5])}
        return Outcome(right, far, calls, pictures, np.asarray([f"{group} near", f"{group} far"]))

    monkeypatch.setattr(worst, "_WORST", 3)
    wording = {"as in the base": [outcome(9, "base")], "keywords": [outcome(1, "key"), outcome(2, "words")]}
    objects = {"1": [outcome(3, "one")], "3": [outcome(4, "three")]}
    columns: list[list[str]] = []
    drawn = worst.sheet

    def kept(shown: Sequence[Column], *args: Any, **options: Any) -> Image.Image:
        columns.append([column.title for column in shown])
        return drawn(shown, *args, **options)

    monkeypatch.setattr(worst, "sheet", kept)
    none: dict[str, list[Outcome]] = {}
    panels = {"objects": objects, "wording": wording, worst.DISTANCE: none, "guidance": none, worst.ENTRIES: none}
    assert list(worst_sheets(panels)) == ["breaks", "breaks-objects", "breaks-wording"]
    assert columns == [
        ["three far", "three near", "one far"],
        ["three far", "three near"],
        ["words far", "words near", "key far"],
    ]
