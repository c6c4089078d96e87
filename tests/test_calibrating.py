"""Claims about a base's calibration: measured by running, kept beside it, used when asked, refused when stale."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import redi
from recording import PROMPTS, record
from redi import calibrations
from redi.calibrating import calibrate, calls_to_make
from redi.calibrations import FILE_NAME, Way, read, write
from redi.cli.app import app
from redi.errors import InputError, KnowledgeBaseError, RediWarning, RetrievalError
from redi.generating import full
from redi.knowledge_base import EntryBatch, KnowledgeBase, compare_files, read_hashes
from redi.knowledge_base.ledger import BuilderLock
from redi.retrieval import Gate, Kriging
from tiny import tiny_pipeline
from tiny_build import many_prompts

PLAN = redi.Plan(8, key_step=2, value_steps=(4, 6))
ASKED = many_prompts(24)
KRIGED: dict[str, Any] = {"weights": Kriging(), "neighbors": 6}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_pipeline(tmp_path_factory.mktemp("model"), "ddim")


@pytest.fixture(scope="module")
def base(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    """A base that is calibrated for kriging."""
    made = record(tmp_path_factory.mktemp("ground") / "base", pipe, PLAN)
    calibrate(pipe, made, ASKED, progress=False, **KRIGED)
    return made


def test_losses_are_distances_between_the_jumped_and_the_full_pictures(pipe: Any, base: KnowledgeBase) -> None:
    found = calibrate(pipe, base, ASKED, progress=False, **KRIGED).measured
    jumped = redi.generate(pipe, base, ASKED, value_step=6, max_distance=1e9, progress=False, **KRIGED)
    pairs = zip(jumped, full(pipe, base, ASKED, progress=False), strict=True)
    apart = [np.asarray(one.image, float) / 255 - np.asarray(other.image, float) / 255 for one, other in pairs]
    assert found.losses[6] == pytest.approx([np.sqrt((each**2).mean()) for each in apart], abs=1e-6)
    assert found.scores["distance"] == pytest.approx([each.report.neighbors[0].distance for each in jumped])
    assert found.scores["residual"] == pytest.approx([each.report.residual for each in jumped])
    assert found.scores["variance"] == pytest.approx([each.report.variance for each in jumped])
    assert (dict(found.calls), found.full_calls) == ({4: 6, 6: 4}, 8)
    assert calls_to_make(base, 24) == 24 * (8 + 6 + 4)


def test_a_measure_of_ones_own_is_asked(pipe: Any, base: KnowledgeBase, tmp_path: Path) -> None:
    copied = KnowledgeBase.open(shutil.copytree(base.path, tmp_path / "base"))

    def brightness(samples: Any, in_full: Any) -> Any:
        return np.asarray([abs(np.mean(a) - np.mean(b)) for a, b in zip(samples, in_full, strict=True)])

    found = calibrate(pipe, copied, ASKED, weights="least-squares", measure=brightness, progress=False)
    assert found.measure == "brightness"
    assert found.way.neighbors == 2
    assert "variance" not in found.measured.scores, "least squares have none"
    kept = json.loads((copied.path / FILE_NAME).read_text())["calibrations"]
    assert len(kept) == 2, "another way to jump does not replace the first"
    with pytest.raises(InputError, match="measure 'beauty'"):
        calibrate(pipe, copied, ASKED, measure="beauty")


def test_the_promised_gate_is_the_one_that_runs(pipe: Any, base: KnowledgeBase) -> None:
    found = calibrate(pipe, base, ASKED, progress=False, **KRIGED)
    max_loss = float(found.measured.losses[6].mean())
    choice = found.choose(max_loss)
    made = redi.generate(pipe, base, ASKED, max_loss=max_loss, progress=False, **KRIGED)
    assert sum(each.report.jumped for each in made) > 0
    expected = choice.steps(found.measured.scores[choice.score])
    assert [each.report.value_step or 0 for each in made] == expected.tolist()


@pytest.mark.parametrize("limit", ["max_residual", "max_variance"])
def test_a_gate_on_what_the_weights_tell_decides_each_image_alone(pipe: Any, base: KnowledgeBase, limit: str) -> None:
    anyhow = redi.generate(pipe, base, ASKED[:8], value_step=6, max_distance=1e9, progress=False, **KRIGED)
    told = [getattr(each.report, limit.removeprefix("max_")) for each in anyhow]
    middle = float(np.median(told))
    with redi.enable(pipe, base, max_distance=1e9, **KRIGED) as enabled:
        rule = enabled.rule
    gated = redi.jumping.JumpRule(rule.key_step, {6: Gate(**{limit: middle})}, rule.neighbors, rule.combiner)
    enabled.rule = gated
    redi.attachment.intercept_calls(pipe, enabled)
    try:
        noises = base.noise_bank.latents[[each.report.noise_id for each in anyhow]]
        pipe(ASKED[:8], latents=noises)
    finally:
        redi.disable(pipe)
    assert [each.jumped for each in enabled.reports] == [score <= middle for score in told]
    assert all("not explained" in (each.reason or "") for each in enabled.reports if not each.jumped)


def test_max_loss_is_refused_where_nothing_was_promised(pipe: Any, base: KnowledgeBase, tmp_path: Path) -> None:
    with pytest.raises(KnowledgeBaseError, match=r"tells nothing of key step 2, 64 neighbours, Kriging"):
        redi.enable(pipe, base, max_loss=0.1)
    with pytest.raises(RetrievalError, match="no picture that may jump"):
        redi.enable(pipe, base, max_loss=1e-9, **KRIGED)
    with pytest.raises(InputError, match="max_loss alone"):
        redi.enable(pipe, base, max_loss=0.1, value_step=6, **KRIGED)
    bare = record(tmp_path / "bare", pipe, PLAN)
    with pytest.raises(KnowledgeBaseError, match="not calibrated"):
        redi.enable(pipe, bare, max_loss=0.1)
    with pytest.raises(InputError, match="0 calibration prompts"), pytest.warns(RediWarning, match="6 of 6"):
        calibrate(pipe, bare, PROMPTS)
    assert not (bare.path / FILE_NAME).exists()


def test_a_base_that_grew_or_a_damaged_file_is_refused(pipe: Any, base: KnowledgeBase, tmp_path: Path) -> None:
    grown = KnowledgeBase.open(shutil.copytree(base.path, tmp_path / "grown"))
    path = grown.path / FILE_NAME
    whole = path.read_text()
    for broken, said in (
        (whole[:-9], "cannot be read"),
        (whole.replace('"format_version": 1', '"format_version": 9'), "version 9"),
        (whole.replace('"losses"', '"loses"'), "damaged"),
        ("[]", "damaged"),
    ):
        path.write_text(broken)
        with pytest.raises(KnowledgeBaseError, match=said):
            redi.enable(pipe, grown, max_loss=0.1, **KRIGED)
    with path.open("wb") as file:
        file.truncate(1 << 34)  # 16 GB of nothing
    with pytest.raises(KnowledgeBaseError, match=f"{1 << 34} bytes"):
        redi.enable(pipe, grown, max_loss=0.1, **KRIGED)
    path.write_text(whole)
    keys = {2: torch.zeros(1, 4, 8, 8)}
    grown.add_unit(99, EntryBatch(["a new one"], [0], [11], keys, dict.fromkeys((4, 6), keys[2])))
    with pytest.raises(KnowledgeBaseError, match="measured on 18 entries"):
        redi.enable(pipe, grown, max_loss=0.1, **KRIGED)


def test_a_calibration_waits_for_who_writes_and_leaves_the_base_signed(
    base: KnowledgeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = KnowledgeBase.open(shutil.copytree(base.path, tmp_path / "signed"))
    signed.compact()
    way = Way.of(2, 6, Kriging())
    write(signed, read(signed, way))
    assert read_hashes(signed.path) is not None
    assert compare_files(signed.path) == []
    monkeypatch.setattr(calibrations, "WAIT", 0.0, raising=False)
    before = read_hashes(signed.path)
    with BuilderLock(signed.path / "lock").held(), pytest.raises(KnowledgeBaseError, match="being built by"):
        write(signed, read(signed, way))
    assert read_hashes(signed.path) == before


def test_the_command_measures_once_and_generate_uses_it(tmp_path: Path) -> None:
    tiny_pipeline(tmp_path / "vocabulary", "ddim").save_pretrained(tmp_path / "tiny")
    for name, texts in (("held", ASKED[:20]), ("base", PROMPTS)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    plan = ("--steps", 8, "--key-step", 2, "--value-steps", "4,6", "--noises", 2)
    kb = tmp_path / "kb"
    made = run("build", "--model", tmp_path / "tiny", "--prompts", tmp_path / "base.txt", "--out", kb, *plan)
    assert made.exit_code == 0, made.output
    without = run("calibrate", kb)
    assert without.exit_code == 1
    assert "no prompts to measure with" in without.stderr
    for wrong in (-1, 0, "nan"):
        refused = run("calibrate", kb, "--prompts", tmp_path / "held.txt", "--max-loss", wrong)
        assert refused.exit_code == 1
        assert "a number above 0" in refused.stderr
        assert "steps of one picture to run" not in refused.stdout, "before anything is measured"
        assert not (kb / FILE_NAME).exists()
    first = run("calibrate", kb, "--prompts", tmp_path / "held.txt", "--max-loss", 0.9)
    assert first.exit_code == 0, first.output
    assert f"20 prompts, {20 * (8 + 6 + 4)} steps of one picture to run" in first.stdout
    assert "max loss 0.9: 4." in first.stdout, "nearly every picture makes four calls"
    again = run("calibrate", kb, "--max-loss", 0.9)
    assert "measured before with 20 prompts" in again.stdout
    assert run("calibrate", kb, "--max-loss", 1e-9).exit_code == 1
    result = run("generate", ASKED[21], "--kb", kb, "--max-loss", 0.9, "--out", tmp_path / "pictures")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "pictures" / "report.json").read_text())
    assert report["settings"]["max_loss"] == 0.9
    assert report["images"][0]["value_step"] == 6
