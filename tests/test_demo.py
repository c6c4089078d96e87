"""The demonstration, small; skipped where the bundled model's weights are not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from redi.comparison import Column, first_band, page
from redi.errors import InputError
from redi.pipelines import miniature_folder


def _has_weights() -> bool:
    try:
        miniature_folder()
    except InputError:
        return False
    return True


@pytest.mark.skipif(not _has_weights(), reason="the bundled model's weights are not there")
def test_the_demo_leaves_a_comparison_and_a_report_and_tells_a_table(tmp_path: Path) -> None:
    from redi.demo import run_demo

    told = run_demo(tmp_path, entries=16, pictures=2)
    for name in ("full", "ReDi to 7", "ReDi to 12", "retrieval ms", "objects"):
        assert name in told
    outcomes = json.loads((tmp_path / "report.json").read_text())["outcomes"]
    assert [outcome["prompts"] for outcome in outcomes] == [2, 2, 2]
    assert outcomes[0]["calls"] == 20
    assert Image.open(tmp_path / "comparison.png").height > 3 * 160


def test_held_out_prompts_are_in_no_base() -> None:
    from redi.miniature.scenes import captions

    base, asked = captions(500, seed=11, held_out=False), captions(50, seed=12, held_out=True)
    assert not {each.canonical() for each in base.values()} & {each.canonical() for each in asked.values()}


def test_the_first_band_of_a_page_is_a_page_of_its_own() -> None:
    columns = [Column(f"prompt {n}", (Image.new("RGB", (8, 8), (n, 2 * n, 3 * n)),) * 2, ("", "")) for n in range(8)]
    whole, first = (page(each, ["full", "ReDi"], heading="pictures") for each in (columns, columns[:6]))
    assert first_band(whole, 2).tobytes() == first.tobytes()
