"""Claims about estimators of x_v: exact where they must be, compared on the same queries, shown from JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from redi.errors import UnsupportedError
from redi.experiments.estimates import DEFAULT, run_estimates
from redi.experiments.estimators import ESTIMATORS, NO_NEIGHBOURS, Softmax, mean_of_noise, no_neighbours
from redi.experiments.laboratory import Laboratory
from redi.experiments.predictions import last_prediction
from redi.experiments.report import write_report
from redi.experiments.sampling import Recording, Scale, Solver
from redi.experiments.wider_estimators import WIDER, Seen, kriging
from redi.pipelines import MINIATURE, load_pipeline
from redi.solvers import twin

TINY = Scale("tiny", prompts=4, entries=12, noises=2, replicates=1, reference=40)
SMOOTH = [name for name in ESTIMATORS if "kriging" in name or "regression" in name or "ridge" in name]


def _linear(count: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys (count, 64) of three directions, which four neighbours can tell, and values under one linear map."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(64, 3, generator=torch.Generator().manual_seed(9))).Q.T
    keys = 3 + torch.randn(count, 3, generator=draw) @ directions
    return keys, keys @ torch.randn(64, 64, generator=torch.Generator().manual_seed(8)) / 8


@pytest.mark.parametrize("name", SMOOTH)
def test_a_linear_map_from_key_to_value_is_found_by_what_claims_to_regress(name: str) -> None:
    (keys, values), (queries, truth) = _linear(300), _linear(5, seed=1)
    unit = (mean_of_noise(queries, keys, values) - truth).norm()
    assert (ESTIMATORS[name](queries, keys, values) - truth).norm() < 0.35 * unit


def test_every_estimator_knows_more_than_the_noise_alone() -> None:
    (keys, values), (queries, truth) = _linear(300), _linear(5, seed=1)
    unit, *others = ESTIMATORS.values()
    known = (unit(queries, keys, values) - truth).norm()
    assert all((each(queries, keys, values) - truth).norm() < known for each in others)


@pytest.mark.parametrize("name", WIDER)
def test_wider_estimators_find_a_linear_map_and_an_entrys_own_value(name: str) -> None:
    (keys, values), (queries, truth) = _linear(300), _linear(5, seed=1)
    texts, asking = torch.zeros(300, 2), torch.zeros(5, 2)
    texts[:, 0], asking[:, 0] = torch.linspace(0, 1e-3, 300), torch.linspace(0, 1e-3, 5)
    entries = Seen(keys, 0.9 * keys, texts)
    unit = (mean_of_noise(queries, keys, values) - truth).norm()
    found = WIDER[name](entries, Seen(queries, 0.9 * queries, asking), values)
    assert (found - truth).norm() < 0.35 * unit
    own = WIDER[name](entries, Seen(keys[:3], 0.9 * keys[:3], texts[:3]), values)
    assert (own - values[:3]).norm() < 0.05 * unit


def test_what_is_left_of_the_step_before_is_carried_by_a_scale_of_its_own() -> None:
    draw = torch.Generator().manual_seed(3)
    keys, before, queries, earlier = (torch.randn(count, 64, generator=draw) for count in (200, 200, 5, 5))
    values = 0.5 * keys - 2.0 * before  # of white noise the weights tell nothing
    texts = torch.zeros(200, 1)
    one, two = (
        kriging(Seen(keys, before, texts), Seen(queries, earlier, texts[:5]), values, carried=carried)
        for carried in (("keys",), ("keys", "before"))
    )
    truth = 0.5 * queries - 2.0 * earlier
    assert (two - truth).norm() < 0.01 * truth.norm() < (one - truth).norm()


def test_without_neighbours_the_keys_offset_is_scaled_as_entries_show() -> None:
    draw = torch.Generator().manual_seed(2)
    keys, queries = torch.randn(50, 8, generator=draw), torch.randn(3, 8, generator=draw)
    values = 5 + 0.5 * (keys - keys.mean(0))
    torch.testing.assert_close(no_neighbours(queries, keys, values), 5 + 0.5 * (queries - keys.mean(0)))


def test_softmax_weighs_neighbours_by_their_distance() -> None:
    keys = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    made = Softmax().combine(torch.zeros(2), keys, torch.tensor([[1.0], [2.0], [4.0]]))
    parts = torch.tensor([-0.5, -2.0, -2.0], dtype=torch.float64).exp()
    torch.testing.assert_close(made.weights, parts / parts.sum())
    assert float(made.values) == pytest.approx(float((parts * torch.tensor([1.0, 2.0, 4.0])).sum() / parts.sum()))
    own = Softmax().combine(keys[0], keys, torch.tensor([[1.0], [2.0], [4.0]]))
    assert float(own.values) == pytest.approx(1)
    assert own.residual == pytest.approx(0)


@pytest.mark.parametrize("name", ["dpm", "unipc", "deis", "pndm", "ddim"])
def test_the_last_prediction_is_found_from_the_latents_alone(name: str) -> None:
    pipe = load_pipeline(MINIATURE, scheduler=name, device="cpu")
    scheduler, seen, clean = pipe.scheduler, [], []
    scheduler.set_timesteps(8)
    fresh = twin(scheduler)
    draw = torch.Generator().manual_seed(5)
    at = scheduler.init_noise_sigma * torch.randn(2, 4, 16, 16, generator=draw, dtype=torch.float64)
    steps = 3
    for timestep in scheduler.timesteps[: steps + (name == "pndm")]:
        seen.append(at)
        noise = torch.randn(at.shape, generator=draw, dtype=torch.float64)
        alpha = scheduler.alphas_cumprod[int(timestep)].double()
        scaled = scheduler.scale_model_input(at, timestep)
        clean.append((scaled - (1 - alpha).sqrt() * noise) / alpha.sqrt())
        at = scheduler.step(noise, timestep, at).prev_sample
    if name in ("pndm", "ddim"):
        with pytest.raises(UnsupportedError, match="one call a step"):
            last_prediction(fresh, [*seen, at])
        return
    torch.testing.assert_close(last_prediction(fresh, [*seen, at]), clean[-1], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    laboratory = Laboratory(tmp_path_factory.mktemp("work"), TINY, "cpu", batch_size=4)
    run_estimates(laboratory, folder, tell=lambda line: None, recording=Recording(Solver("dpm", 6), (1, 2), (3, 4)))
    return folder


def test_errors_are_told_in_units_of_the_noises_mean_and_against_the_default(results: Path) -> None:
    rows = json.loads((results / "tiny" / "estimates.json").read_text())["rows"]
    by_name = {(row["estimator"], row["key_step"]): row for row in rows}
    unit, *_ = ESTIMATORS
    assert by_name[unit, 1]["error"]["value"] == pytest.approx(1)
    assert by_name[DEFAULT, 2]["against_default"] == {"value": 0, "low": 0, "high": 0}
    assert by_name[DEFAULT, 2]["error"]["value"] < 1
    assert any("ahead" in name for name, key_step in by_name if key_step == 2)
    (predicted,) = {name for name, _ in by_name if "predictions of x_0" in name}
    after_one, after_two = (by_name[predicted, step]["against_default"] for step in (1, 2))
    assert after_one["value"] == pytest.approx(0, abs=2e-3), "after one step of one noise x_0 is a multiple of the key"
    assert abs(after_two["value"]) > 2e-3


def test_pictures_are_made_of_what_is_nearer_than_the_default(results: Path) -> None:
    found = json.loads((results / "tiny" / "estimates.json").read_text())
    default, alone, *others = found["pictures"]
    assert (default["estimator"], alone["estimator"]) == (DEFAULT, NO_NEIGHBOURS)
    assert all(each == {"value": 0, "low": 0, "high": 0} for each in default["against_default"].values())
    for row in others:
        apart = [each["against_default"] for each in found["rows"] if each["estimator"] == row["estimator"]]
        assert not any(each["low"] > 0 for each in apart)
        assert any(each["high"] < 0 for each in apart)


def test_the_section_shows_every_estimator(results: Path, tmp_path: Path) -> None:
    page = write_report(results, tmp_path / "results.md", scale="tiny")
    assert all(f"| {name} |" in page for name in ESTIMATORS)
