"""Claims about the gate and reports."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from redi.errors import InputError, RetrievalError
from redi.retrieval import Gate, Neighbor, Report, format_reports

# --- gate ---


def test_gate_without_limits_lets_every_neighbour_pass() -> None:
    assert Gate().threshold() == math.inf
    assert Gate().decide(1e9) is None


def test_gate_decides_at_its_distance() -> None:
    gate = Gate(max_distance=2.0)
    assert gate.decide(2.0) is None
    assert gate.decide(2.1) == "too far: nearest neighbour at 2.1, limit 2"


def test_gate_of_distance_zero_lets_only_the_same_key_pass() -> None:
    assert Gate(max_distance=0).decide(0.0) is None
    assert Gate(max_distance=0).decide(1e-6) is not None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_gate_quantile_is_numpys(distances: list[float], quantile: float) -> None:
    expected = np.quantile(np.array(distances), quantile)
    measured = Gate(quantile=quantile).threshold(torch.tensor(distances, dtype=torch.float64))
    assert measured == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_gate_quantile_leaves_entries_without_a_neighbour_out() -> None:
    assert Gate(quantile=1.0).threshold(torch.tensor([1.0, math.inf, 3.0])) == 3


def test_gate_resolves_its_quantile_to_a_distance() -> None:
    gate = Gate(quantile=0.5).resolve(torch.tensor([1.0, 2.0, 3.0]))
    assert gate == Gate(max_distance=2.0)
    assert gate.resolve() == gate


@pytest.mark.parametrize("distances", [None, torch.empty(0), torch.tensor([math.inf])])
def test_gate_quantile_needs_distances(distances: Tensor | None) -> None:
    with pytest.raises(RetrievalError, match="without leave-one-out distances"):
        Gate(quantile=0.9).threshold(distances)


def test_gate_that_is_not_resolved_refuses_to_decide() -> None:
    with pytest.raises(RetrievalError, match="resolve"):
        Gate(quantile=0.9).decide(1.0)


@pytest.mark.parametrize("gate", [Gate(), Gate(max_distance=1.0)])
def test_gate_abstains_without_a_neighbour_or_a_number(gate: Gate) -> None:
    assert gate.decide(math.inf) == "no neighbour"
    assert "not a number" in str(gate.decide(math.nan))


@pytest.mark.parametrize(
    "limits",
    [{"max_distance": -1.0}, {"max_distance": math.nan}, {"quantile": 1.1}, {"max_distance": 1.0, "quantile": 0.5}],
)
def test_gate_refuses_limits_that_mean_nothing(limits: dict[str, float]) -> None:
    with pytest.raises(RetrievalError, match=next(iter(limits))):
        Gate(**limits)


# --- report ---

JUMPED = Report(
    prompt="a red [bold] house",
    noise_id=3,
    seed=1027,
    jumped=True,
    reason=None,
    key_step=10,
    value_step=40,
    num_inference_steps=50,
    sampler="PNDMScheduler",
    neighbors=(Neighbor("a red hut", 1.25, 0.75), Neighbor("a blue house", 2.5, 0.2)),
    residual=0.5,
    condition_number=12.0,
    weight_sum=0.95,
    variance=None,
    calls=21,
    full_calls=51,
    network_ms=400.0,
    retrieval_ms=2.5,
    rest_ms=30.0,
)
ABSTAINED = dataclasses.replace(
    JUMPED,
    jumped=False,
    reason="too far",
    value_step=None,
    residual=None,
    condition_number=None,
    weight_sum=None,
    neighbors=(Neighbor("a tree", 9.0, None),),
    calls=51,
)


@pytest.mark.parametrize("report", [JUMPED, ABSTAINED])
def test_report_survives_json(report: Report) -> None:
    assert Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report


def test_report_writes_numbers_that_are_not_finite_as_null() -> None:
    fields = dataclasses.replace(ABSTAINED, residual=math.inf, neighbors=(Neighbor("a", math.inf, None),)).to_dict()
    assert fields["residual"] is None
    assert fields["neighbors"][0]["distance"] is None


@pytest.mark.parametrize("change", [{"speed": 1}, {"neighbors": [{"text": "a"}]}, {"neighbors": 3}])
def test_report_refuses_fields_it_does_not_know(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="does not read"):
        Report.from_dict({**JUMPED.to_dict(), **change})


def test_table_shows_what_happened_to_each_image() -> None:
    text = format_reports([JUMPED, ABSTAINED], width=200)
    for shown in ("a red [bold] house", "3 (seed 1027)", "10 -> 40 of 50", "a red hut", "1.25", "sum 0.95", "21/51"):
        assert shown in text
    assert "abstained: too far" in text
    assert text.splitlines()[-1] == "1 of 2 jumped; 72 calls instead of 102, 1.42x fewer; sampler PNDMScheduler"
    assert "\x1b" not in text
    assert max(map(len, format_reports([JUMPED], width=120).splitlines())) <= 120


def test_table_of_nothing_says_so() -> None:
    assert format_reports([]) == "no image has been generated yet"
