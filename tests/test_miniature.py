"""Claims about the bundled model's data, training and shipped weights."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from redi.errors import InputError
from redi.miniature.architecture import GUIDANCE_SCALE
from redi.miniature.drawing import draw
from redi.miniature.evaluation import WEIGHTS, bundled_evaluator
from redi.miniature.evaluator import Reading
from redi.miniature.quality import faithful, reading_accuracy
from redi.miniature.scenes import (
    Description,
    ObjectDescription,
    arrange,
    caption,
    captioned_scenes,
    captions,
    random_description,
    restyled,
)
from redi.miniature.training import Stage, read_losses, train
from redi.miniature.training_run import STAGES, TrainingRun
from redi.miniature.vocabulary import BACKGROUNDS, COLORS, KINDS, SIZES, STYLES

CAR = ObjectDescription("car", "red", "small")
TREE = ObjectDescription("tree", "green")


def test_the_vocabulary_is_as_rich_as_promised() -> None:
    assert len(KINDS) >= 10
    assert len(COLORS) >= 8
    assert len(SIZES) == 2
    assert len(BACKGROUNDS) >= 6
    assert len(STYLES) >= 3


def test_a_held_out_caption_has_no_twin_in_a_base_of_80k() -> None:
    base = captions(80_000, seed=0, held_out=False)
    held_out = captions(2000, seed=0, held_out=True)
    assert len(base) == 80_000
    assert not base.keys() & held_out.keys()
    meanings = {description.canonical() for description in base.values()}
    assert not meanings & {description.canonical() for description in held_out.values()}


@pytest.mark.parametrize("seed", [0, 7])
def test_the_split_and_the_scenes_are_the_same_for_the_same_seed(seed: int) -> None:
    first, second = (list(itertools.islice(captioned_scenes(seed, held_out=True), 5)) for _ in range(2))
    assert first == second
    assert all(scene.description.held_out for _, scene in first)


def test_saying_the_same_in_another_order_is_the_same_description() -> None:
    one = Description((CAR, TREE), "left of", "beach", None)
    other = Description((TREE, CAR), "right of", "beach", None)
    assert one.canonical() == other.canonical()
    assert Description((CAR, TREE)).canonical() == Description((TREE, CAR)).canonical()
    assert one.canonical() != Description((TREE, CAR), "left of", "beach", None).canonical()


def test_captions_vary_in_wording_and_end_with_the_style() -> None:
    description = Description((CAR, TREE), "above", "night", "mosaic")
    rng = np.random.default_rng(0)
    said = {caption(description, rng) for _ in range(50)}
    assert len(said) > 20
    assert all(text.endswith("as a mosaic") for text in said)
    assert caption(description) == "a small red car above a green tree at night as a mosaic"


def test_relations_hold_in_the_arranged_scene_and_objects_do_not_overlap() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        scene = arrange(random_description(rng), rng)
        for one, other in itertools.combinations(scene.placements, 2):
            assert np.hypot(one.x - other.x, one.y - other.y) >= 0.9 * (one.radius + other.radius)
        seen = Reading(scene.background, scene.style or "plain", scene.placements)
        assert faithful(scene.description, seen).all


def test_every_style_changes_the_picture_clearly() -> None:
    description = Description((CAR, TREE), None, "meadow", None)
    pictures = {
        style: np.asarray(draw(arrange(restyled(description, style), np.random.default_rng(3))), np.float64)
        for style in (None, *STYLES)
    }
    assert all(picture.shape == (64, 64, 3) for picture in pictures.values())
    for one, other in itertools.combinations(pictures.values(), 2):
        assert np.abs(one - other).mean() > 5


def test_a_wrong_colour_or_a_missing_object_is_not_faithful() -> None:
    rng = np.random.default_rng(0)
    asked = Description((CAR, TREE), None, "beach", "mosaic")
    scene = arrange(asked, rng)
    seen = Reading("beach", "mosaic", scene.placements)
    assert faithful(asked, seen).all
    assert not faithful(asked, Reading("beach", "mosaic", scene.placements[:1])).objects
    other = Description((ObjectDescription("car", "blue", "small"), TREE), None, "beach", "mosaic")
    assert faithful(other, seen).kinds
    assert not faithful(other, seen).objects
    assert not faithful(asked, Reading("beach", "plain", scene.placements)).style


def _stage(steps: int) -> Stage:
    return Stage("line", steps, 4, 0.05, averaging=0.9)


def _line_loss(network: nn.Linear, stop_after: int | None = None):  # type: ignore[no-untyped-def]
    calls = itertools.count(1)

    def loss_of(generator: torch.Generator) -> Tensor:
        if stop_after is not None and next(calls) > stop_after:
            raise KeyboardInterrupt
        x = torch.randn(4, 1, generator=generator)
        return (network(x).float() - 3 * x).square().mean()

    return loss_of


def _train_line(folder: Path, stop_after: int | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = nn.Linear(1, 1)
    train(
        _stage(60), network, _line_loss(network, stop_after), folder, device=torch.device("cpu"), checkpoint_seconds=0
    )
    return network.state_dict()


def test_interrupted_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    undisturbed = _train_line(tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        _train_line(tmp_path / "two", stop_after=25)
    resumed = _train_line(tmp_path / "two")
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    assert [record["step"] for record in read_losses(tmp_path / "two" / "line.losses.jsonl")] == [20, 40, 60]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    _train_line(tmp_path)
    network = nn.Linear(1, 1)
    with pytest.raises(InputError, match="batch size 4"):
        train(Stage("line", 60, 8, 0.05), network, _line_loss(network), tmp_path, device=torch.device("cpu"))


def test_every_stage_trains_from_an_empty_folder_and_the_stock_pipeline_loads_the_result(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    run = TrainingRun(tmp_path, torch.device("cpu"), scenes=300)
    with pytest.raises(InputError, match="missing"):
        run.train("denoiser", steps=1)
    for name in STAGES:
        run.train(name, steps=2, batch_size=4)
    target = run.export()
    for made in ("losses.png", "samples.png"):
        assert (tmp_path / made).stat().st_size > 1000
    pipe = StableDiffusionPipeline.from_pretrained(target)
    assert pipe.vae.config.scaling_factor != 0.18215
    assert json.loads((target / "training.json").read_text())["stages"]["denoiser"]["stage"]["steps"] == 2


def test_a_further_training_goes_on_from_the_exported_weights_and_says_so(tmp_path: Path) -> None:
    run = TrainingRun(tmp_path / "further", torch.device("cpu"), scenes=64)
    run.start_from(WEIGHTS)
    run.start_from(WEIGHTS)  # the second call finds the folder in use by itself
    run.train("denoiser", steps=1, batch_size=4)
    further = run.unet().state_dict()
    before = load_file(WEIGHTS / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.allclose(value, before[name].float(), atol=0.01) for name, value in further.items())
    assert any(not torch.equal(value, before[name].float()) for name, value in further.items())
    record = json.loads((run.export() / "training.json").read_text())["stages"]
    assert record["denoiser"]["started_from"]["stage"]["steps"] > 1
    assert record["autoencoder"]["seconds"] > 1
    with pytest.raises(InputError, match="not empty"):
        TrainingRun(WEIGHTS, torch.device("cpu")).start_from(WEIGHTS)


def test_the_shipped_model_is_small_and_says_how_it_was_trained() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 25e6
    record = json.loads((WEIGHTS / "training.json").read_text())
    for name in ("text", "autoencoder", "denoiser", "evaluator"):
        stage = record["stages"][name]
        assert stage["seconds"] > 0
        assert stage["stage"]["steps"] > 0
        assert {"seed", "learning_rate"} <= stage["stage"].keys()
        assert len(stage["commit"]) == 40
        assert stage["final_loss"] > 0


def test_the_evaluator_reads_held_out_drawings() -> None:
    scenes = [scene for _, scene in itertools.islice(captioned_scenes(11, held_out=True), 400)]
    accuracy = reading_accuracy(scenes, bundled_evaluator().read([draw(scene) for scene in scenes]))
    for name in ("background", "style", "kind", "color", "size", "position"):
        assert (accuracy[name] or 0) >= 0.97, (name, accuracy)


def test_the_stock_pipeline_loads_the_model_and_draws_what_is_asked() -> None:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    assert {next(part.parameters()).dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    assert pipe.unet.config.in_channels == 4
    assert pipe.scheduler.config.prediction_type == "epsilon"
    asked = captions(24, seed=5, held_out=True, objects=1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(asked))]
    images = pipe(list(asked), num_inference_steps=15, guidance_scale=GUIDANCE_SCALE, generator=generators).images
    readings = bundled_evaluator().read(images)
    kinds = [
        faithful(description, reading).kinds for description, reading in zip(asked.values(), readings, strict=True)
    ]
    assert np.mean(kinds) > 0.9  # a random kind is right once in twelve
