"""Claims about building a knowledge base with a real pipeline (Algorithm 1)."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

from redi.attachment import intercept_calls, release
from redi.building import build, preview_path
from redi.building.units import default_unit_size
from redi.errors import IncompatibleError, InputError, KnowledgeBaseError, PlanError, RediWarning, UnsupportedError
from redi.knowledge_base import KnowledgeBase, NoiseBank
from redi.plan import Plan
from tiny import SCHEDULERS, scheduler, tiny_pipeline
from tiny_build import PLAN, POISON, PROMPTS, Interruption, build_tiny, count_calls, many_prompts, poison

ROWS = list(range(len(PROMPTS)))


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    return tiny_pipeline(tmp_path / "model")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, KnowledgeBase, list[int]]:
    """A pipeline that stays as it is, a base that it built, and the rows of its evaluations since."""
    folder = tmp_path_factory.mktemp("finished")
    pipe = tiny_pipeline(folder / "model")
    kb = build_tiny(pipe, folder / "kb")
    return pipe, kb, count_calls(pipe)


Finished = tuple[Any, KnowledgeBase, list[int]]


def plain_trajectory(pipe: Any, prompt: str, x_T: torch.Tensor, steps: int = 10, **call: Any) -> list[torch.Tensor]:
    """Return x after every call of the sampler, as Diffusers' own callback sees it; one image at a time."""
    seen: list[torch.Tensor] = []

    def keep(pipe: Any, index: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(tensors["latents"][0].float().clone())
        return tensors

    pipe(prompt, latents=x_T, num_inference_steps=steps, output_type="latent", callback_on_step_end=keep, **call)
    return seen


def same_entries(one: KnowledgeBase, other: KnowledgeBase) -> bool:
    rows = list(range(len(one)))
    if len(one) != len(other) or one.prompts(rows) != other.prompts(rows):
        return False
    pairs = [(one.keys(rows, step), other.keys(rows, step)) for step in PLAN.key_steps]
    pairs += [(one.values(rows, step), other.values(rows, step)) for step in PLAN.value_steps]
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_every_prompt_becomes_one_entry_from_noise_i_mod_M(finished: Finished) -> None:
    _, kb, _ = finished
    entries = kb.entries(ROWS)
    assert [entry.prompt for entry in entries] == PROMPTS
    assert [entry.noise_id for entry in entries] == [i % 3 for i in ROWS]
    assert [entry.seed for entry in entries] == [i % 3 for i in ROWS]
    assert kb.completed_units() == {0, 1, 2, 3}
    assert kb.verify().clean


@pytest.mark.parametrize("name", SCHEDULERS)
def test_keys_and_values_are_those_of_the_plain_run(tmp_path: Path, name: str) -> None:
    pipe = tiny_pipeline(tmp_path / "model", name)
    kb = build_tiny(pipe, tmp_path / "kb", PROMPTS[:7], noises=[11, 5], guidance_scale=4.0, negative_prompt="a mess")
    late = 1 if name == "pndm" else 0  # its first step takes two calls
    noises = NoiseBank.draw([11, 5], (4, 8, 8)).latents
    for row in range(7):
        seen = plain_trajectory(pipe, PROMPTS[row], noises[row % 2, None], guidance_scale=4.0, negative_prompt="a mess")
        for step in PLAN.key_steps:
            torch.testing.assert_close(kb.keys([row], step)[0], seen[step - 1 + late], rtol=1e-4, atol=1e-3)
        for step in PLAN.value_steps:
            torch.testing.assert_close(kb.values([row], step)[0], seen[step - 1 + late], rtol=2e-3, atol=1e-4)


def test_independent_noise_is_drawn_for_each_entry_and_named_by_its_seed(pipe: Any, tmp_path: Path) -> None:
    kb = build_tiny(pipe, tmp_path / "kb", PROMPTS[:5], noise="independent")
    assert [(entry.noise_id, entry.seed) for entry in kb.entries(range(5))] == [(-1, i) for i in range(5)]
    assert len(kb.noise_bank) == 0
    x_T = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    seen = plain_trajectory(pipe, PROMPTS[4], x_T)
    torch.testing.assert_close(kb.values([4], 8)[0], seen[8], rtol=2e-3, atol=1e-3)


def test_keys_of_step_1_keep_the_small_differences_between_prompts(pipe: Any, tmp_path: Path) -> None:
    kb = build_tiny(pipe, tmp_path / "kb", PROMPTS[:2], noises=1, guidance_scale=1.1)
    x_T = kb.noise_bank.latents
    one, other = (plain_trajectory(pipe, prompt, x_T, guidance_scale=1.1)[1] for prompt in PROMPTS[:2])
    assert torch.linalg.vector_norm(one - other) < 0.01 * torch.linalg.vector_norm(one)
    error = torch.linalg.vector_norm(kb.keys([0], 1)[0] - kb.keys([1], 1)[0] - (one - other))
    error_of_half = torch.linalg.vector_norm(one.half().float() - other.half().float() - (one - other))
    assert error < 0.1 * error_of_half


def test_recording_stops_at_the_last_value(pipe: Any, tmp_path: Path) -> None:
    rows = count_calls(pipe)
    build_tiny(pipe, tmp_path / "kb", PROMPTS[:4])
    assert rows == [2 * 3] * 4 + [2 * 4] * 9  # three noises to the key step 3, four prompts to the value step 8

    rows.clear()
    build_tiny(pipe, tmp_path / "whole", PROMPTS[:4], stop_at_value=False)
    assert rows == [2 * 3] * 4 + [2 * 4] * 11


def test_previews_show_the_finished_pictures(pipe: Any, tmp_path: Path) -> None:
    kb = build_tiny(pipe, tmp_path / "kb", PROMPTS[:7], previews=True)
    x_T = kb.noise_bank.latents[1:2]
    whole = pipe(PROMPTS[4], latents=x_T, num_inference_steps=10).images[0]
    path = preview_path(kb, kb.entries([4])[0])
    assert path is not None
    with Image.open(path) as preview:
        assert preview.size == whole.size == (16, 16)
        shown, full = (torch.tensor(list(image.convert("L").tobytes())).float() for image in (preview, whole))
    assert float((shown - full).abs().mean()) < 12

    bare = build_tiny(pipe, tmp_path / "bare", PROMPTS[:2])
    assert preview_path(bare, bare.entries([0])[0]) is None


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_an_interrupted_build_goes_on_where_it_was(
    finished: Finished, pipe: Any, tmp_path: Path, error: BaseException
) -> None:
    _, whole, _ = finished
    pipe.set_progress_bar_config(leave=False)
    before = vars(pipe.scheduler).keys() | vars(pipe.unet).keys()
    # references, first unit's two batches, second unit's second batch
    with Interruption(pipe, 4 + 18 + 9 + 3, error):
        build_tiny(pipe, tmp_path / "kb")
    assert vars(pipe.scheduler).keys() | vars(pipe.unet).keys() == before
    assert pipe._progress_bar_config == {"leave": False}
    assert KnowledgeBase.open(tmp_path / "kb").completed_units() == {0}

    rows = count_calls(pipe)
    kb = build_tiny(pipe, tmp_path / "kb")
    assert len(rows) == 9 * (2 + 2 + 1)
    assert same_entries(kb, whole)
    assert kb.verify().clean

    rows.clear()
    build_tiny(pipe, tmp_path / "kb")
    assert rows == []


def test_a_poisoned_prompt_is_skipped_counted_and_named_and_a_broken_model_is_not_blamed_on_prompts(
    pipe: Any, tmp_path: Path
) -> None:
    poisoned = [*PROMPTS[:9], POISON, *PROMPTS[9:12], POISON]  # the last unit is one poisoned prompt with another
    with poison(pipe), pytest.warns(RediWarning, match="2 entries were refused: 'a poisoned cup' .ValueError: poison"):
        kb = build_tiny(pipe, tmp_path / "kb", poisoned, unit_size=1, batch_size=1)
    assert len(kb) == 12
    assert [(each.unit, each.prompt) for each in kb.refused()] == [(9, POISON), (13, POISON)]
    with poison(pipe), pytest.warns(RediWarning, match="2 entries were refused"):
        together = build_tiny(pipe, tmp_path / "together", poisoned)
    assert together.prompts(range(12)) == kb.prompts(range(12)) == PROMPTS[:12]
    torch.testing.assert_close(together.keys(range(12), 3), kb.keys(range(12), 3), rtol=1e-2, atol=1e-2)
    with Interruption(pipe, 6, RuntimeError("a cable is out")):
        build_tiny(pipe, tmp_path / "broken")
    assert not KnowledgeBase.open(tmp_path / "broken").refused()


@pytest.mark.parametrize("address", ["gs://bucket/base", "az://bucket/base", Path("gs://bucket/base")])
def test_a_store_that_is_not_known_is_refused_by_name_before_any_call(
    finished: Finished, address: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, kb, rows = finished
    before = len(rows)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KnowledgeBaseError, match="a folder of a local or mounted disk, or s3://bucket/name"):
        build_tiny(pipe, address)
    with pytest.raises(KnowledgeBaseError, match="a folder of a local or mounted disk"):
        KnowledgeBase.open(address)
    with pytest.raises(KnowledgeBaseError, match="a folder of a local or mounted disk"):
        kb.save_pretrained(address)
    assert len(rows) == before
    assert list(tmp_path.iterdir()) == []


def test_leave_one_out_distances_are_there_at_the_end(finished: Finished) -> None:
    _, kb, _ = finished
    assert all(kb.leave_one_out(step).shape == (20,) for step in PLAN.key_steps)


def test_a_base_keeps_its_unit_size(pipe: Any, tmp_path: Path) -> None:
    with Interruption(pipe, 4 + 18 + 9 + 3, RuntimeError()):
        build_tiny(pipe, tmp_path / "kb")
    kb = build_tiny(pipe, tmp_path / "kb", unit_size=20, batch_size=3)
    assert kb.prompts(ROWS) == PROMPTS
    assert kb.completed_units() == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("changes", "sides"),
    [
        ({"prompts": PROMPTS[::-1]}, ["prompts.sha256"]),
        ({"prompts": PROMPTS[:-1]}, ["prompts.count", "20", "19"]),
        ({"plan": Plan(10, 3, (5, 8))}, ["plan.more_key_steps", "[1]", "[]"]),
        ({"noises": [7, 8]}, ["noise.seeds", "[0, 1, 2]", "[7, 8]"]),
        ({"noise": "independent"}, ["noise.kind", "shared", "independent"]),
        ({"guidance_scale": 3.0}, ["call.guidance_scale", "7.5", "3.0"]),
        ({"negative_prompt": "a dog"}, ["call.negative_prompt", "a dog"]),
        ({"height": 32}, ["latents.shape", "[4, 8, 8]", "[4, 16, 8]"]),
    ],
)
def test_another_build_in_the_same_folder_is_refused(
    finished: Finished, changes: dict[str, Any], sides: list[str]
) -> None:
    pipe, kb, rows = finished
    with pytest.raises(IncompatibleError) as error:
        build_tiny(pipe, kb.path, **changes)
    assert all(side in str(error.value) for side in sides)
    assert rows == []


def test_another_model_or_scheduler_in_the_same_folder_is_refused(finished: Finished, pipe: Any) -> None:
    _, kb, _ = finished
    pipe.scheduler = scheduler("dpm")
    with pytest.raises(IncompatibleError, match="DPMSolverMultistepScheduler"):
        build_tiny(pipe, kb.path)
    pipe.scheduler = scheduler("pndm")
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(1.01)
    with pytest.raises(IncompatibleError, match=r"weights\.unet"):
        build_tiny(pipe, kb.path)


def test_not_finite_latents_are_refused_and_named_and_the_build_goes_on(pipe: Any, tmp_path: Path) -> None:
    broken = pipe.tokenizer.convert_tokens_to_ids("z")
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight[broken] = torch.nan
    prompts = [*PROMPTS[:3], "a cozy cat", *PROMPTS[3:9], "a lazy dog", "a tree"]
    with pytest.warns(UserWarning, match="2 entries were refused: 'a cozy cat' .*; 'a lazy dog' "):
        kb = build_tiny(pipe, tmp_path / "kb", prompts)
    assert kb.prompts(range(10)) == [prompt for prompt in prompts if "z" not in prompt]
    assert [(each.unit, each.slot) for each in kb.refused()] == [(0, 3), (1, 4)]
    assert kb.verify().clean

    clean = build_tiny(pipe, tmp_path / "clean", [prompt.replace("z", "x") for prompt in prompts])
    kept = [0, 1, 2, 4, 5, 6, 7, 8, 9, 11]
    torch.testing.assert_close(kb.values(range(10), 8), clean.values(kept, 8), rtol=1e-3, atol=1e-4)


def test_a_model_that_gives_only_nan_leaves_an_empty_base(pipe: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        pipe.unet.conv_out.bias[0] = torch.nan
    with pytest.warns(UserWarning, match="7 entries were refused"):
        kb = build_tiny(pipe, tmp_path / "kb", PROMPTS[:7])
    assert len(kb) == 0
    assert kb.verify().clean


def test_a_prompt_over_the_tokenizers_length_is_built_with_a_warning(pipe: Any, tmp_path: Path) -> None:
    long = "a very " + "very " * 10 + "old cat"
    with pytest.warns(UserWarning, match=r"1 of 2 prompts, which have more than its 24 tokens: 'a very very"):
        kb = build_tiny(pipe, tmp_path / "kb", ["a cat", long])
    assert kb.prompts([1]) == [long]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_tiny(pipe, tmp_path / "short", ["a cat", "a b c d e f g h i j k"])


def test_a_second_builder_is_refused(pipe: Any, tmp_path: Path) -> None:
    other = tiny_pipeline(tmp_path / "model")
    refusals: list[str] = []

    def build_too(*_: object) -> None:
        handle.remove()
        try:
            build_tiny(other, tmp_path / "kb")
        except KnowledgeBaseError as error:
            refusals.append(str(error))

    with Interruption(pipe, 12, RuntimeError()):
        build_tiny(pipe, tmp_path / "kb")
    handle = pipe.unet.register_forward_pre_hook(build_too)
    kb = build_tiny(pipe, tmp_path / "kb")
    assert len(refusals) == 1
    assert "is being built by" in refusals[0]
    assert len(kb) == 20
    assert kb.verify().clean


def test_an_enabled_pipeline_is_recorded_in_full(pipe: Any, tmp_path: Path) -> None:
    stock = build_tiny(pipe, tmp_path / "stock", PROMPTS[:4])

    def around(*_: object) -> None:
        raise AssertionError("the build went through the interception")

    intercept_calls(pipe, around)
    kb = build_tiny(pipe, tmp_path / "kb", PROMPTS[:4])
    release(pipe)
    assert same_entries(kb, stock)


def test_half_precision_pipelines_are_recorded_in_their_own_precision(pipe: Any, tmp_path: Path) -> None:
    pipe.to(torch.bfloat16)
    kb = build_tiny(pipe, tmp_path / "kb", PROMPTS[:4])
    assert kb.manifest.identity["dtype"] == "bfloat16"
    seen = plain_trajectory(pipe, PROMPTS[1], kb.noise_bank.latents[1:2].bfloat16())
    torch.testing.assert_close(kb.values([1], 8)[0], seen[8], rtol=2e-2, atol=2e-2)


def test_the_manifest_tells_what_was_built(pipe: Any, tmp_path: Path) -> None:
    build_tiny(pipe, tmp_path / "kb", PROMPTS[:2], model_id="tiny/model", revision="abc")
    fields = json.loads((tmp_path / "kb" / "manifest.json").read_text())
    assert fields["plan"] == PLAN.to_dict()
    assert fields["noise"]["seeds"] == [0, 1, 2]
    information = fields["identity"]["information"]
    assert (information["model"], information["revision"]) == ("tiny/model", "abc")
    assert information["prompts"]["count"] == 2
    assert fields["library_versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompts": []}, InputError, "no prompts"),
        ({"prompts": "a cat"}, InputError, "list of strings"),
        ({"prompts": ["a cat", 3]}, InputError, "prompt 1 is a int"),
        ({"prompts": ["a \ud800"]}, InputError, "UTF-8"),
        ({"plan": (10, 3, 8)}, PlanError, "a redi.Plan"),
        ({"noises": 0}, InputError, "at least 1 noise"),
        ({"noises": []}, InputError, "at least one"),
        ({"noises": [3, 3]}, InputError, "different seeds"),
        ({"noises": 2.5}, InputError, "a number of noises"),
        ({"noise": "pink"}, InputError, "'shared' or 'independent'"),
        ({"noise": "independent", "noises": [1]}, InputError, "no seeds"),
        ({"batch_size": 0}, InputError, "batch_size=0"),
        ({"unit_size": 0}, InputError, "unit_size=0"),
        ({"guidance_scale": "7"}, InputError, "a number"),
        ({"guidance_scale": float("nan")}, InputError, "a finite number"),
        ({"negative_prompt": ["x"]}, InputError, "one text"),
        ({"height": 17}, InputError, "divisible by 8"),
        ({"num_inference_steps": 12}, PlanError, "the plan's"),
        ({"noisy": 3}, InputError, "noisy as an argument of every call"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    finished: Finished, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    pipe, _, rows = finished
    with pytest.raises(error, match=message):
        build_tiny(pipe, tmp_path / "kb", **changes)
    assert rows == []
    assert not (tmp_path / "kb").exists()


def test_what_cannot_be_recorded_is_refused(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="text-to-image pipeline of the same model"):
        build_tiny(StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False), tmp_path / "kb")
    with pytest.raises(UnsupportedError, match="a Diffusers pipeline"):
        build_tiny(pipe.unet, tmp_path / "kb")
    with pytest.raises(UnsupportedError, match=r"(?s)CustomPipeline.*StableDiffusionPipeline"):
        build_tiny(type("CustomPipeline", (StableDiffusionPipeline,), {})(**pipe.components), tmp_path / "kb")
    pipe.scheduler = EulerAncestralDiscreteScheduler()
    with pytest.raises(UnsupportedError, match="EulerAncestralDiscreteScheduler"):
        build_tiny(pipe, tmp_path / "kb")


def test_a_folder_with_other_files_is_refused_before_anything_runs(pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("Chapter 1")
    rows = count_calls(pipe)
    with pytest.raises(KnowledgeBaseError, match=r"thesis\.tex"):
        build_tiny(pipe, tmp_path / "mine")
    assert rows == []


def test_a_unit_holds_whole_batches_of_64_entries_or_more(pipe: Any, tmp_path: Path) -> None:
    kb = build(pipe, many_prompts(75), tmp_path / "kb", plan=Plan(3, 1, 2), noises=2, batch_size=24, progress=False)
    assert kb.manifest.identity["information"]["unit_size"] == 72
    assert kb.completed_units() == {0, 1}


@pytest.mark.parametrize(
    ("prompts", "batch_size", "size"),
    [
        (1, 1, 64),
        (4096, 16, 64),
        (4097 * 2, 16, 128),
        (16384, 16, 256),
        (10**6, 16, 256),
        (10**6, 48, 288),
        (10, 300, 300),
    ],
)
def test_a_large_build_has_units_of_a_few_hundred(prompts: int, batch_size: int, size: int) -> None:
    assert default_unit_size(prompts, batch_size) == size


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, redi.building; redi.building.read_prompts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_progress_counts_entries_with_those_that_are_there_already(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, kb, _ = finished
    build_tiny(pipe, kb.path, progress=True)
    assert "20/20" in capsys.readouterr().err
    build_tiny(pipe, kb.path)
    assert capsys.readouterr().err == ""
