"""Claims about rating pictures blind: nothing tells who made one, scores outlive a kill, a session goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from PIL import Image
from typer.testing import CliRunner

from redi.cli.app import app
from redi.errors import InputError
from redi.experiments.rating import Session, pairs_of, read_scores, summary

COUNT = 6
COLORS = {"ours": (200, 0, 0), "full": (0, 0, 200)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of one prompt: they are told apart by file, not by prompt."""
    images = []
    for place in range(COUNT):
        names = {"ours": f"{place:03d}-a-cat.png", "full": f"{place:03d}-a-cat-full.png"}
        for maker, name in names.items():
            Image.new("RGB", (4, 4), COLORS[maker]).save(tmp_path / name)
        images.append({"prompt": "a cat", "file": names["ours"], "full": {"file": names["full"]}})
    (tmp_path / "report.json").write_text(json.dumps({"images": images}))
    return tmp_path


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """Serve in a process of its own, and kill it with -9."""
    command = [sys.executable, "-u", "-c", "from redi.cli import main; main()", "experiments", "rate", str(folder)]
    command += ["--scores", str(folder / "scores.jsonl")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def _get(address: str) -> bytes:
    with urlopen(address, timeout=10) as answer:
        return bytes(answer.read())


def _post(address: str, told: object) -> None:
    urlopen(Request(address + "score", json.dumps(told).encode()), timeout=10).close()


def test_a_session_is_blind_keeps_its_scores_and_goes_on_after_a_kill(folder: Path) -> None:
    with _served(folder) as address:
        assert b"Rate pictures" in _get(address)
        for left in (6, 5):
            told = json.loads(_get(address + "next"))
            assert told.keys() == {"left_over", "place", "prompt"}, "nothing tells who made a picture"
            assert told["left_over"] == left
            assert _get(f"{address}picture/{told['place']}/0").startswith(b"\x89PNG")
            _post(address, {"place": told["place"], "scores": [5, 3]})
            _post(address, {"place": told["place"], "scores": [1, 1]})  # a second click counts no second time
        for wrong in (
            {"place": 99, "scores": [1, 1]},
            {"place": 3, "scores": [0, 1]},
            {"place": 3, "scores": [True, 1]},
        ):
            with pytest.raises(HTTPError, match="400"):
                _post(address, wrong)
        with pytest.raises(HTTPError, match="404"):
            _get(address + "picture/0/2")
        with pytest.raises(HTTPError, match="404"):
            _get(address + "report.json")
    with (folder / "scores.jsonl").open("a") as file:
        file.write('{"picture": "cut')  # as a kill may leave it
    with _served(folder) as address:
        for left in (4, 3, 2, 1):
            told = json.loads(_get(address + "next"))
            assert told["left_over"] == left
            _post(address, {"place": told["place"], "scores": [5, 3]})
        assert json.loads(_get(address + "next")) == {"left_over": 0}
    found = read_scores(folder / "scores.jsonl")
    assert len({each["picture"] for each in found}) == len(found) == COUNT
    assert all(sorted(each["scores"].values()) == [3, 5] for each in found)
    assert all(each["scores"][each["first"]] == 5 for each in found)


def test_both_makers_come_first_in_turn_and_the_order_is_the_seeds(folder: Path) -> None:
    pairs = pairs_of(folder, seed=1)
    assert pairs == pairs_of(folder, seed=1) != pairs_of(folder, seed=2)
    assert {pair.makers[0] for pair in pairs} == {"redi", "full"}
    for pair in pairs:
        with Image.open(pair.files[pair.makers.index("redi")]) as ours:
            assert ours.getpixel((0, 0)) == COLORS["ours"]


def test_the_summary_is_of_pairs(folder: Path) -> None:
    scores, pairs = folder / "scores.jsonl", pairs_of(folder, seed=0)
    with pytest.raises(InputError, match="0 rated pairs"):
        summary(scores)
    session = Session(pairs, scores)
    for place, pair in enumerate(pairs):
        session.score({"place": place, "scores": [4 if maker == "redi" else 2 for maker in pair.makers]})
    found = summary(scores)
    assert (found["redi"].value, found["full"].value, found["difference"].low) == (4, 2, 2)
    told = CliRunner().invoke(app, ["experiments", "rate", str(folder), "--scores", str(scores), "--summary"])
    assert "6 pairs\nredi: 4.00 [4.00, 4.00]\nfull: 2.00" in told.output


def test_a_folder_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no report of pictures"):
        pairs_of(tmp_path, seed=0)
    (tmp_path / "report.json").write_text(json.dumps({"images": [{"prompt": "a cat", "file": "a.png"}]}))
    with pytest.raises(InputError, match="no pairs"):
        pairs_of(tmp_path, seed=0)
