"""Claims about the paper's scale, in small: the studies' own code on a pipeline of SD 1.5's shape and COCO's files,
with CLIP, DINOv2 and a TorchScript network reading the pictures."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
)
from typer.testing import CliRunner

from redi.cli.app import app
from redi.errors import InputError
from redi.experiments import sampling
from redi.experiments.beforehand import check
from redi.experiments.bound import run_bound
from redi.experiments.gate import run_gate
from redi.experiments.laboratory import Laboratory
from redi.experiments.report import write_report
from redi.experiments.runner import run_study
from redi.experiments.sampling import Recording, Scale, Solver, plain, redi
from redi.experiments.studies import STUDIES, Claim, Study
from redi.experiments.subjects import Coco, Miniature
from redi.knowledge_base import KnowledgeBase
from redi.metrics.extractors import Extractor, load_extractor
from redi.metrics.perceptual import load_perceptual
from tiny_parts import clip_tokenizer
from tiny_pipelines import stable_diffusion

TINY = Scale("paper", prompts=6, entries=12, noises=1, replicates=2, reference=8)
RECORDING = Recording(Solver("dpm", 5), (1, 2), (3, 4))
FULL, JUMP = plain("dpm", 5), redi(RECORDING, 2, 4, neighbors=2)
TEXT = redi(RECORDING, 2, 4, neighbors=2, key="text")
STUDY = Study(
    "tiny",
    "A tiny study",
    (FULL, JUMP, TEXT),
    FULL,
    (Claim(JUMP.label, TEXT.label, "faithfulness"), Claim(JUMP.label, TEXT.label, "at_value")),
    at_value=True,
)
WORDS = ("cat", "dog", "horse", "boat", "tree", "house", "cup", "hat")


class Reader(torch.nn.Module):
    """Reads pictures as FID's Inception does, from 0 to 255."""

    def forward(self, pictures: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        """Return means of corners (b, 12)."""
        assert return_features
        return torch.nn.functional.adaptive_avg_pool2d(pictures / 255, 2).flatten(1)


class Looker(torch.nn.Module):
    """Looks at pictures as StyleGAN's VGG16 with LPIPS' weights does, from 0 to 255."""

    def forward(self, pictures: torch.Tensor, resize_images: bool = True, return_lpips: bool = False) -> torch.Tensor:
        """Return means of corners (b, 12)."""
        assert return_lpips
        assert not resize_images
        return torch.nn.functional.adaptive_avg_pool2d(pictures / 255, 2).flatten(1)


def coco(folder: Path) -> Path:
    """Write COCO's layout: every image has two captions, one caption is of two images and one of both halves."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2014").mkdir()
    colors = {"train": ("red", "blue", "green", "pink"), "val": ("grey", "black", "white", "gold", "brown", "violet")}
    for part, some in colors.items():
        captions = [f"a {color} {word}" for color in some for word in WORDS]
        captions[1] = captions[0]
        captions[2] = "the same in both"
        annotations = [
            {"image_id": place, "id": 10 * place + again, "caption": caption + " again" * again + ("\n" * again)}
            for place, caption in enumerate(captions)
            for again in range(2)
        ]
        told = {"images": [], "annotations": annotations}
        (folder / "annotations" / f"captions_{part}2014.json").write_text(json.dumps(told))
    rng = np.random.default_rng(0)
    for place in range(10):
        pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "val2014" / f"COCO_val2014_{place:012d}.jpg")
    return folder


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sd15/, coco/, clip/, dinov2/, inception.pt and lpips.pt."""
    folder = tmp_path_factory.mktemp("ground")
    coco(folder / "coco")
    stable_diffusion().save_pretrained(folder / "sd15")
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": 1}
    vision = {**small, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder / "clip"
    )
    tokenizer.save_pretrained(folder / "clip")
    Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    ).save_pretrained(folder / "dinov2")
    BitImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        folder / "dinov2"
    )
    torch.jit.script(Reader()).save(str(folder / "inception.pt"))
    torch.jit.script(Looker()).save(str(folder / "lpips.pt"))
    return folder


@pytest.fixture(scope="module")
def subject(ground: Path) -> Coco:
    clip, inception = (load_extractor(ground / name, device="cpu") for name in ("clip", "inception.pt"))
    lpips = load_perceptual(ground / "lpips.pt", device="cpu")
    return Coco(str(ground / "sd15"), ground / "coco", inception, clip, lpips=lpips)


@pytest.fixture(scope="module")
def laboratory(subject: Coco, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("work"), TINY, "cpu", batch_size=3, subject=subject)


def pictures(*sides: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)) for width, height in sides]


def test_a_study_runs_on_it_as_on_the_miniature(laboratory: Laboratory, tmp_path: Path) -> None:
    told: list[str] = []
    run_study(STUDY, laboratory, tmp_path, tell=told.append)
    assert told[0].startswith("tiny: ")
    at_value = 4 + 2 + 4
    calls = 2 * (6 * (5 + 3 + 3 + at_value) + 12 * 4)
    assert f"{calls:,} network calls of one picture to make" in told[0]
    found = json.loads((tmp_path / "paper" / "tiny.json").read_text())
    assert found["subject"]["extractor"] == "Inception pool features (inception.pt)"
    assert found["subject"]["resize"] == "PIL bicubic to 299x299"
    assert found["lpips"].startswith("LPIPS (lpips.pt) ")
    assert [row["lpips"]["value"] > 0 for row in found["rows"]] == [False, True, True], "the first is the run in full"
    assert found["subject"]["reference"].startswith("pictures of COCO's validation set")
    assert found["twins"] == 0
    rows = {row["label"]: row for row in found["rows"]}
    assert rows[FULL.label]["calls"] == 5
    assert rows[JUMP.label]["calls"] == rows[TEXT.label]["calls"] == 3
    assert rows[FULL.label]["closeness"]["value"] == 0
    assert rows[JUMP.label]["closeness"]["value"] > 0
    assert -1 <= rows[JUMP.label]["faithfulness"]["value"] <= 1
    assert "objects" not in rows[JUMP.label], "nobody judges that"
    assert "diversity" not in rows[JUMP.label], "there is one noise"
    assert len(found["claims"]) == 2
    page = write_report(tmp_path, tmp_path / "results.md", scale="paper")
    assert "Everything is of sd15 in float32" in page
    assert "the CLIP score" in page
    assert "(resized: PIL bicubic to 299x299)" in page
    again: list[str] = []
    run_study(STUDY, laboratory, tmp_path, tell=again.append)
    assert again[0].startswith("tiny: 0 network calls"), "everything is kept"


def test_rows_are_kept_only_of_the_same_lpips(laboratory: Laboratory, subject: Coco, tmp_path: Path) -> None:
    run_study(STUDY, laboratory, tmp_path, tell=lambda line: None)
    assert subject.lpips is not None
    for lpips, expected in ((None, "no LPIPS"), (replace(subject.lpips, identity="others"), "LPIPS.* others")):
        other = replace(laboratory, subject=replace(subject, lpips=lpips))
        with pytest.raises(InputError, match=f"Expected: results of .*{expected}.*so that rows compare"):
            run_study(STUDY, other, tmp_path, tell=pytest.fail, only=TEXT.label)


def test_weights_of_every_kind_of_file_are_told_apart(subject: Coco, tmp_path: Path) -> None:
    found = []
    for content in (None, b"some", b"others"):
        folder = tmp_path / "model"
        shutil.copytree(subject.model, folder, dirs_exist_ok=True)
        if content:
            (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(content)
        found.append(replace(subject, model=str(folder)).weights)
    assert len(set(found)) == 3


@pytest.mark.parametrize(("most", "count"), [("_PART", 3), ("_PART_CALLS", 3 * FULL.solver.steps)])
def test_every_part_of_a_sampling_is_kept_as_it_is_done(
    laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: str, count: int
) -> None:
    whole = laboratory.sample(FULL, 0)
    monkeypatch.setattr(f"redi.experiments.laboratory.{most}", count)
    other = Laboratory(tmp_path, TINY, "cpu", batch_size=3, subject=laboratory.subject)
    run, runs = Laboratory._run, []

    def interrupted(self: Laboratory, *arguments: object) -> object:
        runs.append(arguments)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return run(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Laboratory, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        other.sample(FULL, 0)
    assert len(list(tmp_path.rglob("part-*.npz"))) == 1
    parted = other.sample(FULL, 0)
    assert len(runs) == 3, "the first part is not run again"
    np.testing.assert_array_equal(parted.pictures, whole.pictures)
    np.testing.assert_allclose(parted.features, whole.features)
    assert not list(tmp_path.rglob("part-*.npz"))


def test_the_gate_tells_the_loss_where_nobody_judges(laboratory: Laboratory, tmp_path: Path) -> None:
    enough = replace(laboratory, scale=replace(TINY, prompts=40))
    found = run_gate(enough, tmp_path, tell=lambda line: None, recording=RECORDING)
    assert all(row["harmed"] is None and row["area"] is None for row in found["scores"])
    assert found["fixed"][-1] == {"calls": 5.0, "loss": 0.0}
    assert "## The gate" in write_report(tmp_path, tmp_path / "results.md", scale="paper")


def test_the_bound_is_measured_on_it(laboratory: Laboratory, tmp_path: Path) -> None:
    told: list[str] = []
    recording = Recording(Solver("dpm", 5), (2,), (3,))
    found = run_bound(laboratory, tmp_path, tell=told.append, recording=recording)
    assert found["queries"] == 12
    assert "hours at 20 calls a second (assumed, as of one A100" in told[0]
    assert "## Section 5: the error bound" in write_report(tmp_path, tmp_path / "results.md", scale="paper")


def test_bases_hold_one_caption_of_each_training_image_and_prompts_none_of_them(
    laboratory: Laboratory, subject: Coco
) -> None:
    training, held_out = subject.base_prompts(0, 32, True), subject.prompts(0, 47)
    assert len(set(training)) == 32
    assert "a red cat again" in training, "where an image's first caption was another's, its next"
    assert "the same in both" in training
    assert "the same in both" not in held_out
    assert not set(training) & held_out.keys()
    assert subject.base_prompts(0, 9, True) != subject.base_prompts(1, 9, True)
    with pytest.raises(InputError, match=r"32 captions that differ in .*captions_train2014\.json"):
        subject.base_prompts(0, 33, True)
    base = laboratory.base(RECORDING, 0)
    assert isinstance(base, KnowledgeBase)
    assert base.manifest.identity["call"]["guidance_scale"] == 7.5
    assert set(base.prompts(range(12))) == set(subject.base_prompts(0, 12, True))


def test_real_pictures_are_middle_squares_and_must_be_enough(subject: Coco) -> None:
    assert {each.size for each in subject.reference(10)} == {(20, 20)}
    with pytest.raises(InputError, match="10 pictures"):
        list(subject.reference(11))


@pytest.mark.parametrize("name", ["./nosuch", "empty", "bare"])
def test_a_model_that_is_not_there_is_told_before_any_work(subject: Coco, tmp_path: Path, name: str) -> None:
    for folder in ("empty", "bare"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bare" / "model_index.json").write_text("{}")
    model = name if name == "./nosuch" else str(tmp_path / name)
    own = Laboratory(tmp_path / "work", TINY, "cpu", subject=replace(subject, model=model))
    said = {"./nosuch": "is not there", "empty": "holds no pipeline", "bare": "does not load"}[name]
    with pytest.raises(InputError, match=f"{model}.* {said}"):
        run_study(STUDY, own, tmp_path, tell=pytest.fail)
    assert not (tmp_path / "work").exists()


def test_too_little_of_coco_is_told_before_the_first_run(subject: Coco, tmp_path: Path) -> None:
    own = Laboratory(tmp_path / "work", TINY, "cpu", subject=subject)
    check("table2", own, tmp_path)
    for changes, said in (
        ({"reference": 11}, r"10 pictures in .*val2014\n.*at least 11"),
        ({"entries": 33}, r"32 captions that differ in .*train2014"),
        ({"prompts": 48}, r"47 captions that differ in .*val2014"),
    ):
        with pytest.raises(InputError, match=said):
            check("table2", replace(own, scale=replace(TINY, **changes)), tmp_path)
    check("bound", replace(own, scale=replace(TINY, reference=11)), tmp_path)
    given = ["--coco", str(subject.folder), "--features", str(subject.folder.parent / "clip"), "--device", "cpu"]
    places = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    start = ["experiments", "run", "table2", "--scale", "paper", "--model", subject.model, *given, *places]
    refused = CliRunner().invoke(app, start)
    assert refused.exit_code == 1
    assert "Expected: at least 82000" in refused.stderr
    assert "network calls" not in refused.stdout
    assert not list((tmp_path / "work").iterdir())


def test_extractors_read_as_their_networks_do(ground: Path) -> None:
    shown = pictures((40, 32), (32, 32), (33, 50))
    clip, dinov2, inception = (
        load_extractor(ground / name, device="cpu") for name in ("clip", "dinov2", "inception.pt")
    )
    assert clip.features(shown).shape == (3, 8)
    assert dinov2.features(shown).shape == (3, 16)
    assert clip.resize == "PIL bicubic to 32, centre 32x32"
    assert dinov2.resize == "PIL bicubic to 28, centre 28x28"
    expected = [
        torch.nn.functional.adaptive_avg_pool2d(
            torch.from_numpy(np.array(each.resize((299, 299), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 255, 2
        ).flatten()
        for each in shown
    ]
    np.testing.assert_allclose(inception.features(shown), torch.stack(expected), rtol=1e-5)
    model, processor = (
        CLIPModel.from_pretrained(ground / "clip"),
        CLIPImageProcessorPil.from_pretrained(ground / "clip"),
    )
    tokens = clip_tokenizer()(["a cat", "a dog on a boat", "hat"], padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, pixel_values=processor(images=shown, return_tensors="pt")["pixel_values"])
    cosines = (out.text_embeds * out.image_embeds).sum(1)
    np.testing.assert_allclose(clip.score(["a cat", "a dog on a boat", "hat"], shown), cosines, atol=1e-5)
    assert len({each.identity for each in (clip, dinov2, inception)}) == 3
    with pytest.raises(InputError, match="reads text"):
        dinov2.score(["a cat"], shown[:1])


def test_other_weights_are_refused(ground: Path, tmp_path: Path, subject: Coco) -> None:
    for name, content in {"none": None, "other": '{"model_type": "bert"}', "bare": '{"model_type": "clip"}'}.items():
        (tmp_path / name).mkdir()
        if content:
            (tmp_path / name / "config.json").write_text(content)
        with pytest.raises(InputError, match="CLIP or DINOv2"):
            load_extractor(tmp_path / name, device="cpu")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "pickled.pt")
    with pytest.raises(InputError, match="is not TorchScript"):
        load_extractor(tmp_path / "pickled.pt", device="cpu")
    with pytest.raises(InputError, match="scores by Inception"):
        Coco(subject.model, subject.folder, subject.extractor, subject.extractor)
    shutil.copytree(ground / "coco", tmp_path / "coco")
    (tmp_path / "coco" / "annotations" / "captions_val2014.json").unlink()
    with pytest.raises(InputError, match=r"captions_val2014\.json is not there"):
        Coco(subject.model, tmp_path / "coco", subject.extractor, subject.scorer)


def test_the_miniature_is_measured_in_other_features_with_the_same_bases(ground: Path, tmp_path: Path) -> None:
    scale = Scale("tiny", prompts=4, entries=8, noises=2, replicates=1, reference=8)
    extractor: Extractor = load_extractor(ground / "inception.pt", device="cpu")
    jump = redi(Recording(Solver("dpm", 3), (1,), (2,)), 1, 2, neighbors=1)
    own = Laboratory(tmp_path, scale, "cpu")
    other = Laboratory(tmp_path, scale, "cpu", subject=Miniature(extractor))
    assert own.sample(jump, 0).features.shape == (4, 128)
    assert other.sample(jump, 0).features.shape == (4, 12)
    assert other.reference.features.shape == (8, 12)
    np.testing.assert_array_equal(own.sample(jump, 0).faithful["all"], other.sample(jump, 0).faithful["all"])
    assert len(list((tmp_path / "bases").iterdir())) == 1


def test_results_of_two_subjects_make_no_page(tmp_path: Path) -> None:
    root = Path(__file__).parents[1] / "results" / "small"
    (tmp_path / "small").mkdir()
    for name in ("table3", "smaller"):
        found = json.loads((root / f"{name}.json").read_text())
        found |= {} if name == "table3" else {"subject": {**Miniature().told(), "extractor": "another"}}
        (tmp_path / "small" / f"{name}.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match="results of 2 models"):
        write_report(tmp_path, tmp_path / "results.md", scale="small")


def test_the_command_line_runs_the_papers_scale(ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sampling.SCALES, "paper", TINY)
    monkeypatch.setitem(STUDIES, "table2", STUDY)
    places = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results"), "--device", "cpu"]
    given = ["--model", str(ground / "sd15"), "--coco", str(ground / "coco"), "--features", str(ground / "dinov2")]
    start, runner = ["experiments", "run", "table3", "--scale", "paper", *places], CliRunner()
    monkeypatch.setattr(
        "redi.experiments.runner.EXPERIMENTS", {"table3": lambda *a, **k: run_study(STUDY, *a, **k), "styles": run_gate}
    )
    no_clip = runner.invoke(app, [*start, *given])
    assert isinstance(no_clip.exception, InputError) or no_clip.exit_code == 1
    alone = runner.invoke(app, start)
    assert alone.exit_code == 1
    of_the_miniature = ["experiments", "run", "styles", *start[3:], *given, "--features", str(ground / "clip")]
    assert "styles, --scale paper" in runner.invoke(app, of_the_miniature).stderr
    assert "styles, --scale paper" in runner.invoke(app, of_the_miniature[:-2]).stderr, "which needs no CLIP either"
    done = runner.invoke(app, [*start, *given, "--features", str(ground / "clip")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "results" / "paper" / "tiny.json").read_text())
    assert found["subject"]["extractor"] == "DINOv2 class tokens (dinov2)"
    assert "network calls of one picture to make" in done.output


def test_lpips_is_the_squared_distance_of_what_its_weights_see(ground: Path) -> None:
    assert load_perceptual(ground / "inception.pt", device="cpu") is None
    assert load_perceptual(ground / "clip", device="cpu") is None
    lpips = load_perceptual(ground / "lpips.pt", device="cpu")
    assert lpips is not None
    one, other = (np.random.default_rng(seed).integers(0, 256, (40, 8, 8, 3), np.uint8) for seed in (0, 1))
    seen = [each.reshape(40, 2, 4, 2, 4, 3).mean((2, 4)) / 255 for each in (one, other)]
    expected = ((seen[0] - seen[1]) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(lpips.distances(one, other), expected, rtol=1e-5)
    (ground / "no.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="is not TorchScript"):
        load_perceptual(ground / "no.pt", device="cpu")
