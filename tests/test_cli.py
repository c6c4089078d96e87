"""The command line: what it writes, what it prints, how it ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from redi.cli import options
from redi.cli.app import app
from redi.knowledge_base import KnowledgeBase
from redi.pipelines import SCHEDULERS
from redi.plan import DEFAULT_PLAN, PAPER_PLAN, Plan
from redi.retrieval import DEFAULT_WEIGHTS
from tiny import tiny_pipeline

PROMPTS = ("a red cat", "a blue dog", "a green house", "a yellow boat", "a pink fish", "a black star")
PLAN = ("--steps", "6", "--key-step", "2", "--value-steps", "3,4")
COMMANDS = (
    (),
    ("build",),
    ("build", "status"),
    ("inspect",),
    ("generate",),
    ("stylize",),
    ("demo",),
    ("miniature", "train"),
    ("miniature", "export"),
    ("miniature", "evaluate"),
)


def redi(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(folder / "vocabulary").save_pretrained(folder / "tiny")
    return folder / "tiny"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


@pytest.fixture(scope="module")
def kb(model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kb") / "kb"
    more = ("--noises", "2", "--key-steps", "1,2", "--previews", "--batch-size", "4", "--unit-size", "4")
    result = redi("build", "--model", model, "--prompts", prompts, "--out", folder, *PLAN, *more)
    assert result.exit_code == 0, result.output
    assert f"{folder}: 6 entries" in result.stdout
    return folder


@pytest.mark.parametrize(
    ("given", "plan"),
    [
        ((), DEFAULT_PLAN),
        (("--key-step", "10"), PAPER_PLAN),
        (("--value-steps", "20,30"), Plan(50, 10, (20, 30))),
        (("--steps", "60", "--key-steps", "1,5"), Plan(60, 5, (20, 30, 40), (1,))),
    ],
    ids=["none", "a key", "values", "steps and keys"],
)
def test_a_build_without_a_plan_takes_the_one_that_did_best_and_what_a_plan_leaves_out_is_the_papers(
    given: tuple[str, ...], plan: Plan, model: Path, prompts: Path, tmp_path: Path
) -> None:
    command = ("build", "--model", model, "--prompts", prompts, "--out", tmp_path / "kb", "--noises", "2", *given)
    assert redi(*command).exit_code == 0
    assert KnowledgeBase.open(tmp_path / "kb").plan == plan


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: tuple[str, ...]) -> None:
    result = redi(*command, "--help")
    assert result.exit_code == 0
    assert "Example:" in result.stdout


def test_help_takes_less_than_half_a_second_and_imports_no_torch() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", _HELP], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 0.5


_HELP = """
import sys
from redi.cli import main
sys.argv = ["redi", "build", "--help"]
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {"torch", "diffusers", "transformers", "lance", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


def test_a_base_that_is_built_again_stays_as_it_is(kb: Path, model: Path, prompts: Path) -> None:
    more = ("--noises", "2", "--key-steps", "1,2", "--previews", "--batch-size", "2")
    result = redi("build", "--model", model, "--prompts", prompts, "--out", kb, *PLAN, *more)
    assert result.exit_code == 0, result.output
    assert "6 entries" in result.stdout
    assert KnowledgeBase.open(kb).plan.key_steps == (1, 2)


def test_status_tells_how_far_a_build_is_and_who_builds(kb: Path) -> None:
    idle = json.loads(redi("build", "status", kb, "--json").stdout)
    assert (idle["units_done"], idle["units"], idle["entries"], idle["prompts"]) == (2, 2, 6, 6)
    assert (idle["refused"], idle["builder"]) == (0, None)
    assert idle["last_commit"]
    with KnowledgeBase.open(kb).lock():
        told = redi("build", "status", kb).stdout
    assert "units: 2 of 2\nentries: 6 of 6\n" in told
    assert f"builder: process {os.getpid()} on " in told


def test_a_base_cannot_go_on_with_other_arguments(kb: Path, model: Path, prompts: Path) -> None:
    result = redi("build", "--model", model, "--prompts", prompts, "--out", kb, *PLAN, "--noises", "3")
    assert result.exit_code == 1
    assert "error: " in result.stderr


def test_inspect_tells_what_the_base_holds(kb: Path, model: Path) -> None:
    result = redi("inspect", kb)
    assert result.exit_code == 0, result.output
    for fact in (
        "6 of 6 prompts",
        str(model),
        "PNDMScheduler",
        "key step 1: 5 %",
        "shared, 2 in the bank",
        "4 x 8 x 8",
    ):
        assert fact in result.stdout
    facts = json.loads(redi("inspect", kb, "--json").stdout)
    assert facts["call"]["guidance_scale"] == 7.5


def test_inspect_gives_a_program_numbers(kb: Path) -> None:
    facts = json.loads(redi("inspect", kb, "--json").stdout)
    assert (facts["entries"], facts["prompts"], facts["grown or merged in"], facts["noises in the bank"]) == (
        6,
        6,
        0,
        2,
    )
    assert (facts["key steps"], facts["value steps"], facts["latent"]) == ([1, 2], [3, 4], [4, 8, 8])
    assert facts["bytes an entry"]["value after step 4"] == 2 * 4 * 8 * 8
    assert facts["kept as"]["value after step 4"] == "float16"
    assert facts["size"] == sum(file.stat().st_size for file in kb.rglob("*") if file.is_file())
    near = facts["distance to the nearest other entry"]["key step 1"]
    assert near["5 %"] <= near["median"] <= near["95 %"]


def test_inspect_shows_an_entry_by_its_place_and_by_its_id(kb: Path) -> None:
    by_place = json.loads(redi("inspect", kb, "--entry", 3, "--json").stdout)
    assert by_place["prompt"] == PROMPTS[3]
    assert Image.open(by_place["preview"]).size == (16, 16)
    by_id = json.loads(redi("inspect", kb, "--entry", by_place["id"][:12], "--json").stdout)
    assert by_id == by_place
    assert redi("inspect", kb, "--entry", "99999999").exit_code == 1


def test_verify_ends_with_0_when_clean_and_1_when_damaged(kb: Path, model: Path, tmp_path: Path) -> None:
    assert redi("inspect", kb, "--verify").exit_code == 0
    one = tmp_path / "one.txt"
    one.write_text("a red cat\na blue cat")
    folder = tmp_path / "kb"
    assert redi("build", "--model", model, "--prompts", one, "--out", folder, *PLAN, "--noises", 1).exit_code == 0
    table = max((folder / "entries.lance").rglob("*.lance"), key=lambda file: file.stat().st_size)
    data = bytearray(table.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 64] = bytes(64)
    table.write_bytes(data)
    result = redi("inspect", folder, "--verify")
    assert result.exit_code == 1
    assert "damaged" in result.stdout


def test_generate_writes_a_picture_for_each_prompt_and_a_report(kb: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text('{"prompt": "a black cat"}\n')
    result = redi(
        "generate", "a red dog", "--prompts", more, "--kb", kb, "--max-distance", "inf", "--out", tmp_path / "o"
    )
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert [image["prompt"] for image in report["images"]] == ["a red dog", "a black cat"]
    for image in report["images"]:
        assert image["jumped"]
        assert (image["calls"], image["full_calls"]) == (5, 7)
        assert Image.open(tmp_path / "o" / image["file"]).size == (16, 16)
    assert report["settings"]["max_distance"] == "inf"
    assert sorted(file.suffix for file in (tmp_path / "o").iterdir()) == [".json", ".png", ".png"]
    assert "2 of 2 jumped; 10 calls instead of 14" in result.stdout


def test_compare_writes_the_full_runs_and_both_side_by_side(kb: Path, tmp_path: Path) -> None:
    result = redi("generate", PROMPTS[0], "--kb", kb, "--compare", "--max-distance", 0, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    image = json.loads((tmp_path / "report.json").read_text())["images"][0]
    assert not image["jumped"]
    assert image["full"]["calls"] == image["calls"] == 7
    assert (tmp_path / image["file"]).read_bytes() == (tmp_path / image["full"]["file"]).read_bytes()
    assert Image.open(tmp_path / "comparison.png").height > 2 * 160


def test_the_same_seed_gives_the_same_picture(kb: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        redi("generate", "a red dog", "--kb", kb, "--seed", 5, "--out", tmp_path / name)
    name = "000-a-red-dog.png"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_stylize_names_the_style_in_the_report(kb: Path, tmp_path: Path) -> None:
    result = redi(
        "stylize", "a red cat", "--style", "as a star", "--kb", kb, "--max-distance", "inf", "--out", tmp_path
    )
    assert result.exit_code == 0, result.output
    image = json.loads((tmp_path / "report.json").read_text())["images"][0]
    assert image["prompt"] == "a red cat as a star"
    assert image["jumped"]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_base_of_any_scheduler_opens_its_own_pipeline(
    scheduler: str, model: Path, prompts: Path, tmp_path: Path
) -> None:
    folder, asked = tmp_path / "kb", ("--scheduler", scheduler, "--noises", 2)
    built = redi("build", "--model", model, "--prompts", prompts, "--out", folder, *PLAN, *asked)
    assert built.exit_code == 0, built.output
    made = redi("generate", "a red dog", "--kb", folder, "--out", tmp_path / "o", "--max-distance", "inf", "--strict")
    assert made.exit_code == 0, made.output
    image = json.loads((tmp_path / "o" / "report.json").read_text())["images"][0]
    assert image["jumped"]
    assert image["sampler"] == SCHEDULERS[scheduler].class_name


def test_another_model_is_refused_with_both_sides(kb: Path, tmp_path: Path) -> None:
    import torch

    other = tiny_pipeline(tmp_path / "vocabulary")
    with torch.no_grad():
        next(iter(other.unet.parameters())).add_(1.0)
    other.save_pretrained(tmp_path / "other")
    result = redi("generate", "a red dog", "--kb", kb, "--model", tmp_path / "other", "--out", tmp_path / "o")
    assert result.exit_code == 1
    assert "weights.unet:" in result.stderr
    assert "knowledge base: " in result.stderr
    assert "pipeline: " in result.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "a cat", "--kb", "nowhere"), "no knowledge base at nowhere"),
        (("generate", "--kb", "{kb}"), "no prompts"),
        (("generate", "a cat", "--kb", "{kb}", "--value-step", "5"), "value_step=5"),
        (("generate", "a cat", "--kb", "{kb}", "--neighbors", "0"), "neighbors=0"),
        (("generate", "a cat", "--kb", "{kb}", "--weights", "magic"), "magic"),
        (("generate", "a cat", "--kb", "{kb}", "--quantile", "2"), "quantile=2"),
        (("generate", "a cat", "--kb", "{kb}", "--quantile", "5:0.9"), "value_step=5"),
        (("generate", "a cat", "--kb", "{kb}", "--model", "nowhere"), "model 'nowhere' is not there"),
        (("generate", "a cat", "--kb", "{kb}", "--device", "gramophone"), "device 'gramophone'"),
        (("generate", "a cat", "--kb", "{kb}", "--out", "{prompts}/below"), "cannot write"),
        (("stylize", "a cat", "--style", " ", "--kb", "{kb}"), "style=' '"),
        (("build", "--prompts", "{empty}", "--out", "x"), "is empty"),
        (
            ("build", "--prompts", "{prompts}", "--out", "x", "--key-step", "20"),
            "key step 20 is not before value step 20",
        ),
        (("build", "--prompts", "{prompts}", "--out", "x", "--value-steps", "50"), "value step 50"),
        (("build", "--prompts", "{prompts}", "--out", "x", "--workers", "2"), "--workers without --ray"),
        (("build", "--prompts", "{prompts}", "--out", "x", "--model", "{prompts}"), "is not there"),
        (("inspect", "nowhere"), "no knowledge base at nowhere"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_ends_with_1_and_says_what_to_do(
    arguments: tuple[str, ...], message: str, kb: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    named = {"kb": kb, "prompts": prompts, "empty": tmp_path / "empty.txt"}
    result = redi(*(argument.format(**named) for argument in arguments))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].strip()
    assert "error: " in result.stderr
    assert message in result.stderr
    assert "Expected: " in result.stderr or "Fix: " in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("build",),
        ("build", "--prompts", "p.txt", "--out", "x", "--scheduler", "magic"),
        ("build", "--prompts", "p.txt", "--out", "x", "--value-steps", "ten"),
        ("build", "--prompts", "p.txt", "--out", "x", "--noise", "white"),
        ("generate", "a cat"),
        ("generate", "a cat", "--kb", "x", "--quantile", "near"),
        ("generate", "a cat", "--kb", "x", "--max-distance", "8:1,8:2"),
        ("generate", "a cat", "--kb", "x", "--seed", "-1"),
        ("paint",),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    assert redi(*arguments).exit_code == 2


def test_a_long_prompt_is_warned_of_in_one_line(kb: Path, tmp_path: Path) -> None:
    result = redi("generate", "cat " * 40, "--kb", kb, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    warned = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert any("the model will not read the end" in line for line in warned)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_ends_a_build_with_130_and_the_same_command_goes_on(model: Path, tmp_path: Path) -> None:
    prompts, folder = tmp_path / "prompts.txt", tmp_path / "kb"
    prompts.write_text("\n".join(_MANY))
    command = ("build", "--model", model, "--prompts", prompts, "--out", folder, *PLAN, "--noises", 2)
    small = ("--batch-size", 2, "--unit-size", 2)
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a job in the background is deaf
    arguments = [sys.executable, "-c", f"{heard}; from redi.cli import main; main()", *map(str, (*command, *small))]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and not _any_unit(folder):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted: the entries so far are kept; the same command goes on with them"
    assert "Traceback" not in said
    assert len(KnowledgeBase.open(folder)) < len(_MANY)

    assert redi(*command).exit_code == 0
    assert len(KnowledgeBase.open(folder)) == len(_MANY)
    assert redi("inspect", folder, "--verify").exit_code == 0


_MANY = [
    f"{prompt} {where} {place}"
    for prompt in PROMPTS
    for where in ("here", "there")
    for place in ("up", "down", "near", "far", "on top", "inside", "outside", "behind", "in front", "between")
]


def _any_unit(folder: Path) -> bool:
    # Opening the base would take as long as building it.
    return (folder / "manifest.json").exists() and any(folder.glob("entries.lance/data/*.lance"))


def test_the_weights_named_in_help_are_the_librarys_own_default() -> None:
    assert options.DEFAULT_WEIGHTS == DEFAULT_WEIGHTS
