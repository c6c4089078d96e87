"""Claims about experiments: paired samples that are run once, honest verdicts, a report made from JSON alone."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from typer.testing import CliRunner

from redi.cli.app import app
from redi.errors import InputError
from redi.experiments.bills import Cost, Work
from redi.experiments.laboratory import Laboratory
from redi.experiments.quality import difference, figures
from redi.experiments.report import write_report
from redi.experiments.runner import experiment, run_study
from redi.experiments.sample_files import Samples, read_samples, write_array
from redi.experiments.sampling import CHAINED, Recording, Solver, plain, redi, says
from redi.experiments.studies import STUDIES, Claim
from redi.experiments.subjects import Miniature
from redi.metrics import Reference
from tiny_study import FULL, JUMP, RECORDING, SHORT, STUDY, TINY


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("work"), TINY, "cpu", batch_size=4)


@pytest.fixture(scope="module")
def results(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    run_study(STUDY, laboratory, folder, tell=lambda line: None)
    return folder


def test_calls_are_counted_and_samplings_start_from_the_same_noises(laboratory: Laboratory, results: Path) -> None:
    full, short, jump = (laboratory.sample(sampling, 0) for sampling in (FULL, SHORT, JUMP))
    assert set(full.calls) == {6}
    assert set(short.calls) == {3}
    assert set(jump.calls) == {4}
    assert jump.jumped.all()
    gated = laboratory.sample(redi(RECORDING, 2, 4, quantile=0.0), 0)
    alone = ~gated.jumped
    assert alone.any()
    apart = gated.pictures[alone].astype(int) - full.pictures[alone].astype(int)
    assert np.abs(apart).max() <= 1, "what abstains is what runs in full, up to the rounding of a smaller batch"
    assert set(gated.calls[alone]) == {6}


def test_a_sampling_that_is_there_is_not_run_again(laboratory: Laboratory, results: Path) -> None:
    there, other = (FULL, SHORT, JUMP), (plain("dpm", 5),)
    assert laboratory.cost(Work(there, diversity=there, at_value=(JUMP,))) == Cost(0, 0)
    assert laboratory.cost(Work(other)).calls == 5 * 4 * 2
    assert laboratory.cost(Work(other, diversity=other)).calls == 5 * (4 + 1) * 2, "one prompt's other noise"
    larger = replace(laboratory, scale=replace(TINY, prompts=5))
    assert larger.cost(Work((FULL,))).calls == 6 * 5 * 2, "another scale's samples are other samples"


def test_a_damaged_file_is_named_and_run_again_once_it_is_removed(laboratory: Laboratory, tmp_path: Path) -> None:
    scale = replace(TINY, prompts=2, entries=4, replicates=1)
    own = replace(laboratory, folder=tmp_path, scale=scale, subject=Miniature(guidance=1.0))
    jump = redi(Recording(Solver("dpm", 3), (1,), (2,)), 1, 2, weights="nearest")
    asked = {
        "samples.npz": lambda: own.sample(jump, 0),
        "at_value.npy": lambda: own.at_value(jump, 0),
        "40-*.npy": lambda: Laboratory(own.folder, scale, "cpu", subject=own.subject).reference,
        f"{CHAINED}.npz": lambda: own._finished(jump.jump.recording, 0) if jump.jump else None,
    }
    for name, ask in asked.items():
        ask()
        (path,) = own.folder.rglob(name)
        whole = path.read_bytes()
        for left in (0, len(whole) // 2, len(whole) - 9):
            path.write_bytes(whole[:left])
            with pytest.raises(InputError, match=f"{path} is damaged: .*\n.*\n  Fix: remove it; the same command"):
                ask()
        path.unlink()
        ask()
        assert path.read_bytes() == whole or name == "samples.npz", "which tells the seconds"


def test_a_file_that_lacks_an_array_is_damaged(tmp_path: Path) -> None:
    write_array(tmp_path / "samples.npz", features=np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"samples\.npz is damaged: .*faithful_objects"):
        read_samples(tmp_path / "samples.npz")


def test_replicates_have_other_prompts_noises_and_entries_and_no_twins(laboratory: Laboratory, results: Path) -> None:
    first, second = laboratory.prompts(0), laboratory.prompts(1)
    assert not first.keys() & second.keys()
    assert laboratory.twins(0) == laboratory.twins(1) == 0
    assert not np.array_equal(laboratory.sample(FULL, 0).pictures, laboratory.sample(FULL, 1).pictures)


def test_the_best_are_compared_picture_by_picture(results: Path) -> None:
    found = json.loads((results / "tiny" / "tiny.json").read_text())
    assert [(each["calls"], each["measure"]) for each in found["best"]] == [
        (4, "frechet"),
        (4, "faithfulness"),
        (4, "closeness"),
    ]
    assert {(each["ours"], each["rival"]) for each in found["best"]} == {(JUMP.label, "dpm-4")}
    rows = {row["label"]: row for row in found["rows"]}
    for each in found["best"]:
        ours, alone = (rows[label][each["measure"]]["value"] for label in (JUMP.label, "dpm-4"))
        assert each["difference"]["value"] == pytest.approx(ours - alone, abs=1e-9)
        room = alone - rows["dpm-6"][each["measure"]]["value"]
        assert each["rival_against_full"]["difference"]["value"] == pytest.approx(room, abs=1e-9)


def test_a_result_says_what_it_was_made_with(results: Path) -> None:
    found = json.loads((results / "tiny" / "tiny.json").read_text())
    assert found["scale"]["prompts"] == 4
    assert found["twins"] == 0
    assert {"torch", "diffusers"} <= found["versions"].keys()
    rows = {row["label"]: row for row in found["rows"]}
    assert rows["dpm-6"]["closeness"]["value"] == 0
    assert rows["dpm-6"]["n"] == 8
    assert rows[JUMP.label]["calls"] == 4
    assert rows[JUMP.label]["at_value"]["value"] > 0
    assert all(row["diversity"]["value"] > 0 for row in rows.values())
    assert found["claims"][1]["verdict"] == "no difference", "of a sampling with itself"
    assert (results / "tiny" / "tiny.png").stat().st_size > 1000


def test_the_report_is_the_same_bytes_for_the_same_results(results: Path, tmp_path: Path) -> None:
    pages = [write_report(results, tmp_path / name / "results.md", scale="tiny") for name in ("one", "two")]
    assert pages[0] == pages[1]
    plots = [(tmp_path / name / "images" / "results-tiny-tiny.svg").read_bytes() for name in ("one", "two")]
    assert plots[0] == plots[1]
    assert "| ReDi dpm-6 2->4 least-squares H=2 | 4 |" in pages[0]
    assert "from full | pixels | diversity | kernel | abstained | seconds | x_v apart |" in pages[0]
    with pytest.raises(InputError, match="no results"):
        write_report(tmp_path / "nothing", tmp_path / "results.md", scale="tiny")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is damaged"),
        ('{"study": "tiny", "ki', "is damaged"),
        ("[1, 2]", r"holds \[1, 2\]"),
        ('{"a": 1}', "is of kind None"),
        ('{"kind": ["comparison"]}', "is of kind"),
        ('{"kind": "beauty"}', "is of kind 'beauty'"),
        ('{"kind": "comparison", "study": "tiny", "scale": {}}', "does not tell versions, rows, claims"),
    ],
)
def test_a_damaged_or_foreign_result_is_named(laboratory: Laboratory, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "tiny").mkdir()
    path = tmp_path / "tiny" / "tiny.json"
    path.write_text(content)
    with pytest.raises(InputError, match=f"{path} {said}"):
        write_report(tmp_path, tmp_path / "results.md", scale="tiny")
    with pytest.raises(InputError, match=f"{path} {said}"):
        run_study(STUDY, laboratory, tmp_path, tell=pytest.fail, only="ReDi*")
    assert path.read_text() == content
    assert not (tmp_path / "results.md").exists()


def test_a_result_of_another_scale_makes_no_page(results: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "tiny.json").write_bytes((results / "tiny" / "tiny.json").read_bytes())
    with pytest.raises(InputError, match=r"small/tiny\.json is of the scale tiny"):
        write_report(tmp_path, tmp_path / "results.md", scale="small")


def test_some_rows_are_run_again_and_the_others_kept_as_the_file_says(
    laboratory: Laboratory, results: Path, tmp_path: Path
) -> None:
    before = json.loads((results / "tiny" / "tiny.json").read_text())
    told = {row["label"]: row for row in before["rows"]}
    told[SHORT.label]["frechet"]["value"] = told[JUMP.label]["frechet"]["value"] = -1.0
    told[JUMP.label].pop("rule")
    before["claims"][1]["verdict"] = before["best"][0]["verdict"] = "stale"
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "tiny.json").write_text(json.dumps(before))
    found = run_study(STUDY, laboratory, tmp_path, tell=lambda line: None, only="ReDi*")
    rows = {row["label"]: row for row in found["rows"]}
    assert list(rows) == list(told)
    assert rows[SHORT.label]["frechet"]["value"] == -1, "kept"
    assert rows[JUMP.label]["frechet"]["value"] > 0, "run again"
    assert rows[JUMP.label]["rule"].startswith("LeastSquares(")
    assert [claim["verdict"] for claim in found["claims"]][1] == "no difference", "a claim on a row run again is tested"
    assert found["best"][0]["verdict"] != "stale"
    assert json.loads(json.dumps(found)) == json.loads((tmp_path / "tiny" / "tiny.json").read_text())


def test_a_row_of_another_sampling_of_its_name_is_not_kept(
    laboratory: Laboratory, results: Path, tmp_path: Path
) -> None:
    before = json.loads((results / "tiny" / "tiny.json").read_text())
    told = {row["label"]: row for row in before["rows"]}
    for row in told.values():
        row["frechet"]["value"] = -1.0
    told[JUMP.label]["sampling"]["jump"]["quantile"] = 0.9
    told[FULL.label]["sampling"].pop("chain")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "tiny.json").write_text(json.dumps(before))
    lines: list[str] = []
    found = run_study(STUDY, laboratory, tmp_path, tell=lines.append, only=SHORT.label)
    rows = {row["label"]: row for row in found["rows"]}
    assert rows[JUMP.label]["frechet"]["value"] > 0, "the gate is not in the label"
    assert rows[FULL.label]["frechet"]["value"] == -1, "a field that came later is at its default"
    assert lines[0].startswith(f"{JUMP.label}: the file's row is of another sampling of that name")


def test_the_committed_rows_say_what_the_studies_do() -> None:
    for name, study in STUDIES.items():
        file = Path(__file__).parents[1] / "results" / "small" / f"{name}.json"
        rows = {row["label"]: row["sampling"] for row in json.loads(file.read_text())["rows"]}
        assert all(says(rows[each.label], each) for each in study.samplings), file


def test_the_bill_of_some_rows_is_what_is_run_for_them(
    laboratory: Laboratory, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = redi(RECORDING, 2, 4, neighbors=2, key="text")
    claims = (Claim(text.label, JUMP.label, "frechet"), Claim(text.label, JUMP.label, "at_value"))
    study = replace(STUDY, samplings=(*STUDY.samplings, text), claims=claims, plot=False)
    (tmp_path / "results").mkdir()
    shutil.copytree(results / "tiny", tmp_path / "results" / "tiny")
    for replicate in range(2):
        folder = laboratory._folder("bases", RECORDING, replicate)
        shutil.copytree(folder, tmp_path / "work" / folder.relative_to(laboratory.folder))
    made, forward = 0, UNet2DConditionModel.forward

    @wraps(forward)
    def counted(network: UNet2DConditionModel, sample: Any, *args: Any, **options: Any) -> Any:
        nonlocal made
        made += len(sample) // 2  # with and without the prompt
        return forward(network, sample, *args, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
    lines: list[str] = []
    gone = replace(laboratory, folder=tmp_path / "work")
    run_study(study, gone, tmp_path / "results", tell=lines.append, only="*text key")
    assert f"tiny: {made:,} network calls" in lines[0], "the rival's samples too, and no diversity of the run in full"


def test_what_is_known_of_the_best_is_kept_while_they_are_the_best(
    laboratory: Laboratory, results: Path, tmp_path: Path
) -> None:
    before = json.loads((results / "tiny" / "tiny.json").read_text())
    before["best"][0]["verdict"] = "stale"
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "tiny.json").write_text(json.dumps(before))
    found = run_study(STUDY, laboratory, tmp_path, tell=lambda line: None, only=SHORT.label)
    assert found["best"] == before["best"], "both rows were kept"
    better = {**before, "rows": [{**row, "frechet": {**row["frechet"], "value": 1e3}} for row in before["rows"]]}
    (row,) = (row for row in better["rows"] if row["label"] == FULL.label)
    row["calls"] = 4.0
    (tmp_path / "tiny" / "tiny.json").write_text(json.dumps(better))
    found = run_study(STUDY, laboratory, tmp_path, tell=lambda line: None, only=SHORT.label)
    assert {each["rival"] for each in found["best"] if each["measure"] == "frechet"} == {FULL.label}, "another is best"


def test_rows_are_kept_only_of_the_same_scale_and_model_and_a_pattern_must_be_of_some(
    laboratory: Laboratory, results: Path, tmp_path: Path
) -> None:
    before = json.loads((results / "tiny" / "tiny.json").read_text())
    (tmp_path / "tiny").mkdir()

    def again(only: str, **changes: Any) -> None:
        (tmp_path / "tiny" / "tiny.json").write_text(json.dumps({**before, **changes}))
        run_study(STUDY, laboratory, tmp_path, tell=pytest.fail, only=only)

    with pytest.raises(InputError, match="rows 'redi"):
        again("redi*")
    with pytest.raises(InputError, match="so that rows compare"):
        again("ReDi*", scale={**before["scale"], "entries": 9})
    with pytest.raises(InputError, match="so that rows compare"):
        again("ReDi*", subject={"model": "another"})


def test_rows_of_other_constants_are_told(results: Path, tmp_path: Path) -> None:
    found = json.loads((results / "tiny" / "tiny.json").read_text())
    assert "not of today's" not in write_report(results, tmp_path / "results.md", scale="tiny")
    (jump,) = (row for row in found["rows"] if row["label"] == JUMP.label)
    jump["rule"] = "LeastSquares(cutoff=0)"
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "tiny.json").write_text(json.dumps(found))
    page = write_report(tmp_path, tmp_path / "results.md", scale="tiny")
    assert "*The rows of least-squares are of LeastSquares(cutoff=0), not of today's `LeastSquares(" in page


def test_rows_that_miss_a_measure_say_so(results: Path, tmp_path: Path) -> None:
    found = json.loads((results / "tiny" / "tiny.json").read_text())
    for row in found["rows"]:
        for measure in ("kernel", "jumped", "seconds", "at_value", "diversity"):
            row.pop(measure, None)
    found["rows"][0]["at_value"] = found["rows"][0]["frechet"]
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "tiny.json").write_text(json.dumps(found))
    page = write_report(tmp_path, tmp_path / "results.md", scale="tiny")
    jump = next(line for line in page.splitlines() if line.startswith(f"| {JUMP.label} | 4 |"))
    assert jump.endswith(" | — | — | — | — | — |")


def _samples(right: np.ndarray, features: np.ndarray) -> list[Samples]:
    pictures = np.zeros((len(right), 64, 64, 3), np.uint8)
    return [Samples(features, {"all": right, "objects": right}, pictures, right * 0 + 4, right > 2, 1.0, pictures)]


def test_a_difference_is_paired_by_prompt() -> None:
    rng = np.random.default_rng(0)
    right, features = (rng.random(200) < 0.5).astype(float), rng.normal(size=(200, 4))
    reference = Reference(features)
    slightly_worse = np.where(np.arange(200) < 12, 0.0, right)
    ours, rival = _samples(slightly_worse, features), _samples(right, features)
    found = difference("faithfulness", ours, rival, rival, reference)
    assert found.high <= 0
    assert found.high - found.low < 0.1, "unpaired, an interval of 200 coins would be twice as wide"
    assert difference("frechet", ours, rival, rival, reference).value == 0
    assert figures(rival, rival, reference)["faithfulness"]["value"] == right.mean()
    with pytest.raises(InputError, match="different prompts"):
        difference("frechet", ours, _samples(right[:9], features[:9]), rival, reference)


def test_every_study_compares_samplings_that_exist_and_claims_about_its_own_rows() -> None:
    for name, found in STUDIES.items():
        labels = [sampling.label for sampling in found.samplings]
        assert len(set(labels)) == len(labels), name
        assert {label for claim in found.claims for label in (claim.ours, claim.rival)} <= set(labels)
        assert found.paper.keys() <= set(labels)
    with pytest.raises(InputError, match="table1"):
        experiment("table9")


def test_the_command_line_names_what_there_is(tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["experiments", "run", "table9", "--work", str(tmp_path)]).exit_code == 1
    assert runner.invoke(app, ["experiments", "run", "table1", "--scale", "huge"]).exit_code == 1
    assert runner.invoke(app, ["experiments", "bound", "--scale", "huge"]).exit_code == 1
    missing = runner.invoke(app, ["experiments", "report", "--results", str(tmp_path), "--out", str(tmp_path / "r.md")])
    assert missing.exit_code == 1
    unknown = runner.invoke(app, ["experiments", "report", "--scale", "huge", "--results", str(tmp_path)])
    assert unknown.exit_code == 1
    assert "Expected: one of toy, small, paper" in unknown.stderr


@pytest.mark.parametrize("place", ["--results", "--work"])
def test_a_folder_that_cannot_be_written_is_told_before_the_first_run(tmp_path: Path, place: str) -> None:
    places = {each: str(tmp_path / each.strip("-")) for each in ("--results", "--work")}
    (tmp_path / place.strip("-")).write_text("a file in its place")
    given = [part for pair in places.items() for part in pair]
    refused = CliRunner().invoke(app, ["experiments", "run", "table1", "--device", "cpu", *given])
    assert refused.exit_code == 1
    assert f"cannot write {places[place]}" in refused.stderr
    assert "Fix: make room, or choose another folder\n" in refused.stderr
    assert "network calls" not in refused.stdout
    assert not list(tmp_path.rglob("*.npz"))


def test_a_page_of_another_scale_is_another_file_and_so_are_its_plots(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = json.loads((results / "tiny" / "tiny.json").read_text())
    for scale in ("toy", "small"):
        (tmp_path / "results" / scale).mkdir(parents=True)
        told = {**found, "scale": {**found["scale"], "name": scale}}
        (tmp_path / "results" / scale / "tiny.json").write_text(json.dumps(told))
    monkeypatch.chdir(tmp_path)
    for scale in ("small", "toy"):
        assert CliRunner().invoke(app, ["experiments", "report", "--scale", scale]).exit_code == 0
    assert {each.name for each in Path("docs").glob("*.md")} == {"results.md", "results-toy.md"}
    assert {each.name for each in Path("docs/images").glob("*.svg")} == {"results-tiny.svg", "results-toy-tiny.svg"}
    assert "(images/results-toy-tiny.svg)" in Path("docs/results-toy.md").read_text()


def test_sheets_are_linked_from_wherever_the_page_lies(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    page = tmp_path / "else where" / "page.md"
    text = write_report(root / "results", page, scale="small")
    sheets = re.findall(r"\]\(([^)]+\.png)\)", text)
    assert len(sheets) > 5
    assert not [link for link in sheets if not (page.parent / unquote(link)).exists()]


def test_the_committed_page_is_what_the_committed_results_say(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    (tmp_path / "results").symlink_to(root / "results")
    page = write_report(tmp_path / "results", tmp_path / "docs" / "results.md", scale="small")
    assert page == (root / "docs" / "results.md").read_text(), "run: redi experiments report"
