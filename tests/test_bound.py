"""Claims about the study of the bound: measured at the right places, predictors in their order, a page from JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from redi.experiments.bills import Cost
from redi.experiments.bound import network_calls, predictions, run_bound, work
from redi.experiments.laboratory import Laboratory
from redi.experiments.report import write_report
from redi.experiments.sampling import Recording, Scale, Solver
from redi.metrics import rank_correlation

TINY = Scale("tiny", prompts=4, entries=12, noises=2, replicates=1, reference=40)
RECORDING = Recording(Solver("dpm", 6), (2,), (3, 4))


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("work"), TINY, "cpu", batch_size=4)


@pytest.fixture(scope="module")
def results(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    run_bound(laboratory, folder, tell=lambda line: None, recording=RECORDING)
    return folder


def test_the_distance_at_the_key_is_that_of_the_search_and_two_prompts_drift_apart(
    laboratory: Laboratory, results: Path
) -> None:
    found = laboratory.divergence(RECORDING, 0, 4)
    assert found.apart.shape == found.rates.shape == found.gaps.shape == (3, 4)
    assert (np.diff(found.clock) > 0).all()
    assert (found.gaps > 0).all()
    assert (found.rates > 0).all()
    base, pipe = laboratory.base(RECORDING, 0), laboratory._pipeline(RECORDING.solver)
    keys = base.keys(range(len(base)), 2)
    noise_ids = [entry.noise_id for entry in base.entries(range(len(base)))]
    latents = pipe(
        list(laboratory.prompts(0)),
        num_inference_steps=6,
        guidance_scale=base.manifest.identity["call"]["guidance_scale"],
        latents=base.noise_bank.latents[[0, 1, 0, 1]],
        output_type="latent",
        callback_on_step_end=_stop_after(2),
    ).images
    for place, query in enumerate(latents):
        same = [row for row, noise_id in enumerate(noise_ids) if noise_id == place % 2]
        nearest = (keys[same] - query).flatten(1).norm(dim=1).min().item()
        assert found.apart[0, place] == pytest.approx(nearest, rel=1e-2), "up to the base's float16"


def test_the_networks_are_as_before(laboratory: Laboratory, results: Path) -> None:
    network = Laboratory(laboratory.folder, TINY, "cpu")._pipeline(RECORDING.solver).unet
    shared = laboratory._pipeline(RECORDING.solver).unet
    assert {type(each) for each in shared.attn_processors.values()} == {
        type(each) for each in network.attn_processors.values()
    }
    assert all(each.requires_grad for each in shared.parameters())


def _stop_after(steps: int):  # type: ignore[no-untyped-def]
    """Return a callback that holds the latents of a step to the end of the run."""
    kept = {}

    def hold(pipe, step, timestep, told):  # type: ignore[no-untyped-def]
        if step + 1 == steps:
            kept["latents"] = told["latents"]
        return {"latents": kept.get("latents", told["latents"])}

    return hold


def test_a_rate_of_other_iterations_is_measured_anew(
    laboratory: Laboratory, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = work(TINY, RECORDING)
    assert laboratory.cost(needed) == Cost(0, 0), "what is there is not billed"
    monkeypatch.setattr("redi.experiments.laboratory.ITERATIONS", 3)
    assert laboratory.cost(needed) == Cost(network_calls(TINY, RECORDING), 0)


def test_bounds_grow_with_what_they_count(laboratory: Laboratory, results: Path) -> None:
    found = laboratory.divergence(RECORDING, 0, 4)
    key, one_rate, chained, both, alone = predictions(found, 2).values()
    assert (key < chained).all()
    assert (chained <= one_rate).all()
    assert (chained < both).all()
    assert (key < alone).all()
    assert (alone < both).all()
    assert np.array_equal(key, found.apart[0])


def test_rank_correlation_is_spearmans() -> None:
    one = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert rank_correlation(one, np.exp(one)) == pytest.approx(1)
    assert rank_correlation(one, -one) == pytest.approx(-1)
    assert rank_correlation(one, np.array([2.0, 1.0, 4.0, 3.0, 5.0])) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert rank_correlation(np.array([1.0, 1.0, 2.0]), np.array([3.0, 3.0, 9.0])) == pytest.approx(1), "ties share"
    assert rank_correlation(one, np.ones(5)) == 0


def test_the_page_says_what_the_result_says(results: Path, tmp_path: Path) -> None:
    found = json.loads((results / "tiny" / "bound.json").read_text())
    assert found["queries"] == 4
    assert {row["value_step"] for row in found["rows"]} == {3, 4}
    assert len(found["rows"]) == 10
    pages = [write_report(results, tmp_path / name / "results.md", scale="tiny") for name in ("one", "two")]
    assert pages[0] == pages[1]
    assert "| 4 | L of each step, and mu |" in pages[0]
    plots = [(tmp_path / name / "images" / "results-tiny-bound.svg").read_bytes() for name in ("one", "two")]
    assert plots[0] == plots[1]
