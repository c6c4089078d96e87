"""Claims about rating pictures blind: nothing tells who made one, scores outlive a kill, a session goes on, what is
asked depends on the folder, and scores of something else are refused."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.error import HTTPError

import pytest
from PIL import Image
from typer.testing import CliRunner

from rated_folders import COLORS, COUNT, STYLE, get, post, served, write_folder
from redi.cli.app import app
from redi.errors import InputError
from redi.experiments.rating import Session, Task, task_of
from redi.experiments.scores import read_scores, summaries


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "plain")


@pytest.fixture
def styled(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "styled", style=STYLE)


def _rate(task: Task, scores: Path, redi: int, full: int) -> None:
    """Rate every pair alike."""
    by_maker = {"redi": redi, "full": full}
    for place, pair in enumerate(task.pairs):
        given = [by_maker[maker] for maker in pair.makers]
        Session(task, scores).score({"place": place, "scores": dict.fromkeys(task.questions, given)})


def test_a_session_is_blind_keeps_its_scores_and_goes_on_after_a_kill(folder: Path) -> None:
    scores = folder / "scores.jsonl"
    with served(folder, scores) as address:
        assert b"Rate pictures" in get(address)
        for left in (6, 5):
            told = json.loads(get(address + "next"))
            assert told.keys() == {"left_over", "place", "prompt", "questions"}, "nothing tells who made a picture"
            assert [each["aspect"] for each in told["questions"]] == ["faithfulness"]
            assert told["left_over"] == left
            assert get(f"{address}picture/{told['place']}/0").startswith(b"\x89PNG")
            post(address, {"place": told["place"], "scores": {"faithfulness": [5, 3]}})
            post(address, {"place": told["place"], "scores": {"faithfulness": [1, 1]}})  # counts no second time
        for wrong in (
            {"place": 99, "scores": {"faithfulness": [1, 1]}},
            {"place": 3, "scores": {"faithfulness": [0, 1]}},
            {"place": 3, "scores": {"faithfulness": [True, 1]}},
            {"place": 3, "scores": {"faithfulness": [1, 1], "style": [1, 1]}},
            {"place": 3, "scores": {"faithfulness": [[1], 1]}},
            {"place": 3, "scores": [1, 1]},
            [3],
        ):
            with pytest.raises(HTTPError, match="400"):
                post(address, wrong)
        for nothing in ("picture/0/2", "picture/0", "picture/6/0", "reference/0", "reference/0/0", "report.json"):
            with pytest.raises(HTTPError, match="404"):
                get(address + nothing)
    with scores.open("a") as file:
        file.write('{"picture": "cut')  # as a kill may leave it
    with served(folder, scores) as address:
        for left in (4, 3, 2, 1):
            told = json.loads(get(address + "next"))
            assert told["left_over"] == left
            post(address, {"place": told["place"], "scores": {"faithfulness": [5, 3]}})
        assert json.loads(get(address + "next")) == {"left_over": 0}
    found = read_scores(scores)
    assert len({each["picture"] for each in found}) == len(found) == COUNT
    assert all(sorted(each["scores"]["faithfulness"].values()) == [3, 5] for each in found)
    assert all(each["scores"]["faithfulness"][each["first"]] == 5 for each in found)


def test_both_makers_come_first_in_turn_and_the_order_is_the_seeds(folder: Path) -> None:
    pairs = task_of(folder, seed=1).pairs
    assert pairs == task_of(folder, seed=1).pairs != task_of(folder, seed=2).pairs
    assert {pair.makers[0] for pair in pairs} == {"redi", "full"}
    for pair in pairs:
        with Image.open(pair.files[pair.makers.index("redi")]) as ours:
            assert ours.getpixel((0, 0)) == COLORS["ours"]


def test_a_style_is_asked_for_beside_its_content_and_layout_against_the_style_free_run(
    folder: Path, styled: Path, tmp_path: Path
) -> None:
    task = task_of(styled, seed=0)
    assert list(task.questions) == ["faithfulness", "style"]
    assert f"keep to the style '{STYLE}'" in task.questions["style"]
    assert {pair.prompt for pair in task.pairs} == {"a cat"}, "content without the style's words"
    scores = tmp_path / "scores.jsonl"
    with served(styled, scores, "--style-free", str(folder)) as address:
        told = json.loads(get(address + "next"))
        assert [each["aspect"] for each in told["questions"]] == ["faithfulness", "style", "layout"]
        place = told["place"]
        reference = get(f"{address}reference/{place}")
        given = {"faithfulness": [5, 4], "style": [3, 2], "layout": [1, 5]}
        post(address, {"place": place, "scores": given})
    (line,) = read_scores(scores)
    assert reference == (folder / line["picture"].replace(".png", "-full.png")).read_bytes()
    assert line["prompt"] == "a cat"
    second = {"redi": "full", "full": "redi"}[line["first"]]
    assert line["scores"] == {aspect: {line["first"]: first, second: other} for aspect, (first, other) in given.items()}
    with pytest.raises(InputError, match="scores of faithfulness, style, layout; asked for faithfulness, style"):
        Session(task, scores).rated()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "a dog"}, "'a cat' of .* is not in"),
        ({"noise_id": 99}, "'a cat' of .* is from another noise in"),
        ({"seed": 99}, "'a cat' of .* is from another noise in"),
        ({"full": None}, "'a cat' in .* has no run in full"),
        ({"full": {"file": "nowhere.png"}}, "cannot read .*nowhere.png"),
    ],
)
def test_a_style_free_folder_of_other_pictures_is_refused(
    folder: Path, styled: Path, change: dict[str, object], message: str
) -> None:
    report = json.loads((folder / "report.json").read_text())
    changed = [image | change for image in report["images"]]
    report["images"] = [{name: each for name, each in image.items() if each is not None} for image in changed]
    (folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(InputError, match=message):
        task_of(styled, style_free=folder, seed=0)


def test_a_style_free_folder_has_no_style_and_the_other_has_and_both_are_of_one_base(
    folder: Path, styled: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="has the style"):
        task_of(styled, style_free=styled, seed=0)
    with pytest.raises(InputError, match="which has no style"):
        task_of(folder, style_free=folder, seed=0)
    with pytest.raises(InputError, match="made with another base"):
        task_of(styled, style_free=write_folder(tmp_path / "other", base="another"), seed=0)


def test_the_summary_is_of_pairs_and_averages_raters_first(styled: Path, tmp_path: Path) -> None:
    ann, ben = tmp_path / "ann.jsonl", tmp_path / "ben.jsonl"
    _rate(task_of(styled, seed=0), ann, redi=4, full=2)
    _rate(task_of(styled, seed=1), ben, redi=5, full=5)
    first = read_scores(ben)[0]
    found = summaries([*read_scores(ann), first])["style"]
    assert (found.pairs, found.redi.value, found.full.value) == (COUNT, 4 + 0.5 / COUNT, 2 + 1.5 / COUNT)
    assert found.difference.low < 2 - 1 / COUNT < found.difference.high, "pairs differ, raters of one are averaged"
    told = _summary(styled, ann)
    assert "1 rater\nfaithfulness, 6 pairs\n  redi: 4.00 [4.00, 4.00]\n  full: 2.00" in told
    assert "style, 6 pairs\n" in told
    both = _summary(styled, ann, ben)
    assert "2 raters\nfaithfulness, 6 pairs\n  redi: 4.50 [4.50, 4.50]\n  full: 3.50" in both
    assert "difference: 1.00 [1.00, 1.00]" in both
    assert "no rated pairs in" in _summary(styled, ann, tmp_path / "nowhere.jsonl")


def _summary(folder: Path, *scores: Path, options: tuple[str, ...] = ("--summary",)) -> str:
    files = [word for path in scores for word in ("--scores", str(path))]
    result = CliRunner().invoke(app, ["experiments", "rate", str(folder), *files, *options])
    return result.output + str(result.exception or "")


def test_fewer_than_two_pairs_and_two_raters_at_one_page_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 rated pairs"):
        summaries([])
    scores = tmp_path / "scores.jsonl"
    task = task_of(folder, seed=0)
    Session(task, scores).score({"place": 0, "scores": {"faithfulness": [1, 2]}})
    with pytest.raises(InputError, match="1 rated pair of faithfulness"):
        summaries(read_scores(scores))
    assert "2 files of scores to write" in _summary(folder, scores, tmp_path / "ben.jsonl", options=())


def test_scores_of_another_folder_are_refused_though_its_files_have_the_same_names(
    folder: Path, tmp_path: Path
) -> None:
    scores = tmp_path / "scores.jsonl"
    _rate(task_of(folder, seed=0), scores, redi=4, full=2)
    again = write_folder(tmp_path / "again")
    assert len(Session(task_of(again, seed=5), scores).rated()) == COUNT, "the same pictures elsewhere are the same"
    Image.new("RGB", (4, 4), (1, 2, 3)).save(again / "000-a-cat-full.png")
    with pytest.raises(InputError, match="scores of other pictures"):
        Session(task_of(again, seed=0), scores).rated()
    assert "scores of other pictures" in _summary(again, scores)
    assert "scores of other pictures" in _summary(again, scores, options=())


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"3",
        b'{"picture": "a.png", "prompt": "a cat", "scores": {"redi": 5, "full": 3}, "first": "redi"}',
        b'{"folder": "f", "picture": "a", "prompt": "a", "first": "redi", "scores": {}}',
        b'{"folder": "f", "picture": "a", "prompt": "a", "first": "you", "scores": {"style": {"redi": 5, "full": 3}}}',
        b'{"folder": "f", "picture": "a", "prompt": "a", "first": "redi", "scores": {"style": {"redi": 5}}}',
        b'{"folder": "f", "picture": "a", "prompt": "a", "first": "redi", "scores": {"style": {"redi": 6, "full": 3}}}',
        b'{"folder": "f", "picture": "a", "prompt": "a", "first": "redi", "scores": {"taste": {"redi": 5, "full": 3}}}',
    ],
)
def test_a_line_of_an_unknown_form_is_named(folder: Path, line: bytes) -> None:
    scores = folder / "scores.jsonl"
    task = task_of(folder, seed=0)
    Session(task, scores).score({"place": 0, "scores": {"faithfulness": [1, 2]}})
    with scores.open("ab") as file:
        file.write(b"\n" + line + b"\n")
    with pytest.raises(InputError, match=r"line 3 of .*scores\.jsonl"):
        read_scores(scores)


def test_a_folder_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no report of pictures"):
        task_of(tmp_path, seed=0)
    (tmp_path / "report.json").write_text(json.dumps({"images": [{"prompt": "a cat", "file": "a.png"}]}))
    with pytest.raises(InputError, match="no pairs"):
        task_of(tmp_path, seed=0)
    wrong = {"settings": {"style": "by Monet"}, "images": [{"prompt": "a cat", "file": "a.png"}]}
    (tmp_path / "report.json").write_text(json.dumps(wrong))
    with pytest.raises(InputError, match="does not end with the style"):
        task_of(tmp_path, seed=0)
