"""Claims about the command line with pipelines that make other things than Stable Diffusion's pictures."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from redi.cli.app import app
from tiny_pipelines import TEXT_TO_ANYTHING

PLAN = ("--steps", 6, "--key-step", 2, "--value-steps", "3,4", "--noises", 1)


def redi(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def generated(name: str, folder: Path, *more: object) -> dict[str, Any]:
    """Save a tiny model, build with it, generate and compare, and return the report."""
    tiny = TEXT_TO_ANYTHING[name]
    tiny.build().save_pretrained(folder / "model")
    (folder / "prompts.txt").write_text("a red cat\na blue dog\n")
    call = [each for name, value in tiny.call.items() for each in ("--argument", f"{name}={json.dumps(value)}")]
    source = ("--model", folder / "model", "--prompts", folder / "prompts.txt", "--out", folder / "kb")
    built = redi("build", *source, *PLAN, *call, *more)
    assert built.exit_code == 0, built.output
    out = folder / "out"
    made = redi("generate", "a red cat", "--kb", folder / "kb", "--max-distance", "inf", "--compare", "--out", out)
    assert made.exit_code == 0, made.output
    report = json.loads((out / "report.json").read_text())
    assert [each["jumped"] for each in report["images"]] == [True]
    assert (out / "comparison.png").exists() == (tiny.output != "audios")
    assert ("compared in" in made.stdout) == (tiny.output != "audios")
    return {"out": out, **report["images"][0]}


def test_a_flow_model_is_opened_with_its_own_sampler_and_makes_a_picture(tmp_path: Path) -> None:
    record = generated("Flux", tmp_path, "--guidance", 2.5)
    assert record["sampler"] == "FlowMatchEulerDiscreteScheduler"
    with Image.open(record["out"] / record["file"]) as picture:
        assert (picture.format, picture.size) == ("PNG", (16, 16))
    facts = json.loads(redi("inspect", tmp_path / "kb", "--json").stdout)
    assert facts["call"].items() >= {"guidance_scale": 2.5, "height": 16, "max_sequence_length": 24}.items()
    assert facts["latent"] == [16, 16]


def test_a_video_is_written_as_an_animation(tmp_path: Path) -> None:
    record = generated("Wan", tmp_path, "--previews")
    for file in (record["file"], record["full"]["file"]):
        with Image.open(record["out"] / file) as video:
            assert (video.format, video.n_frames, video.size) == ("WEBP", 5, (32, 32))
    assert len(list((tmp_path / "kb" / "previews").rglob("*.webp"))) == 2


def test_sound_is_written_as_wav_at_the_models_rate(tmp_path: Path) -> None:
    record = generated("StableAudio", tmp_path)
    with wave.open(str(record["out"] / record["file"])) as sound:
        assert (sound.getnchannels(), sound.getframerate()) == (
            2,
            TEXT_TO_ANYTHING["StableAudio"].build().vae.config.sampling_rate,
        )
        assert sound.getnframes() > 0


@pytest.mark.parametrize("argument", ["height", "=3", "he ight=3", "prompt=a cat"])
def test_an_argument_that_is_none_of_a_call_is_refused(tmp_path: Path, argument: str) -> None:
    (tmp_path / "prompts.txt").write_text("a red cat\n")
    TEXT_TO_ANYTHING["StableDiffusion"].build().save_pretrained(tmp_path / "model")
    source = ("--model", tmp_path / "model", "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "kb")
    result = redi("build", *source, *PLAN, "--argument", argument)
    assert result.exit_code != 0
    assert not (tmp_path / "kb").exists()
