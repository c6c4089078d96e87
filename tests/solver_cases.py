"""Owns which solvers, with which settings, are held against the closed form; must not know how they are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers

SD: Mapping[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_SNR: Mapping[str, Any] = {
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}
FLOW: Mapping[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
EXPONENTIAL: Mapping[str, Any] = {"use_exponential_sigmas": True}
KARRAS: Mapping[str, Any] = {"use_karras_sigmas": True}
BETA: Mapping[str, Any] = {"use_beta_sigmas": True}
SIGMA_MIN: Mapping[str, Any] = {"final_sigmas_type": "sigma_min"}


def no_noise(timestep: int) -> int:
    """Return SA-Solver's tau of an ODE."""
    return 0


@dataclass(frozen=True)
class Case:
    """One solver with one set of settings, its schedule, and where it jumps."""

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 20
    key_step: int = 5
    value_steps: tuple[int, ...] = (8, 10, 13, 15)

    def scheduler(self) -> Any:
        """Return a fresh scheduler with Stable Diffusion's noise schedule, where it has one to set."""
        kind = getattr(diffusers, self.kind + "Scheduler")
        own = {} if self.kind.startswith(("FlowMatch", "EDM", "IPNDM")) else SD
        return kind(**{**own, **self.settings})

    @property
    def name(self) -> str:
        """The class and its settings, as the table tells them."""
        return f"{self.kind} {self.told}".strip()

    @property
    def told(self) -> str:
        """The settings in words."""
        return ", ".join(_told(name, value) for name, value in self.settings.items()) or "defaults"


def _told(name: str, value: Any) -> str:
    if value is no_noise:
        return "no noise"
    if isinstance(value, bool):
        return name.removeprefix("use_") if value else f"no {name}"
    return f"{name} {value}" if not isinstance(value, str) else value


def _cases(kind: str, *settings: Mapping[str, Any], **place: Any) -> list[Case]:
    return [Case(kind, each, **place) for each in settings]


def _predict(kind: str) -> Mapping[str, Any]:
    return {"prediction_type": kind}


def _spaced(kind: str) -> Mapping[str, Any]:
    return {"timestep_spacing": kind, **({"steps_offset": 1} if kind == "leading" else {})}


V, DATA = _predict("v_prediction"), _predict("sample")
UNCLIPPED, PLMS, STILL = {"clip_sample": False}, {"skip_prk_steps": True}, {"tau_func": no_noise}
LEADING, LINSPACE, TRAILING = _spaced("leading"), _spaced("linspace"), _spaced("trailing")
PAPER: Mapping[str, Any] = {"steps": 50, "key_step": 10, "value_steps": (20, 30, 40)}

CASES: list[Case] = [
    *_cases("DDIM", *({**UNCLIPPED, **each} for each in (LEADING, LINSPACE, TRAILING, V, DATA, ZERO_SNR))),
    *_cases("PNDM", {**PLMS, **LEADING}, {**PLMS, **LEADING, **V}, **PAPER),
    *_cases("PNDM", {**PLMS, **LINSPACE}, {**PLMS, **TRAILING}),
    *_cases(
        "DPMSolverMultistep",
        {},
        {"solver_order": 1},
        {"solver_order": 3, **SIGMA_MIN},
        {"solver_type": "heun"},
        {"algorithm_type": "dpmsolver", **SIGMA_MIN},
        *(KARRAS, EXPONENTIAL, BETA, {"use_lu_lambdas": True}, FLOW, LEADING, TRAILING, V, DATA, ZERO_SNR),
        {"solver_order": 3, **KARRAS},
    ),
    *_cases("DPMSolverSinglestep", *({}, KARRAS, EXPONENTIAL, BETA, V, FLOW, DATA), value_steps=(8, 10, 14)),
    *_cases(
        "DPMSolverSinglestep", {"solver_order": 1}, {"algorithm_type": "dpmsolver", **SIGMA_MIN, "solver_order": 1}
    ),
    *_cases("DPMSolverSinglestep", {"solver_type": "heun"}, FLOW, value_steps=(9, 13)),
    *_cases("DPMSolverSinglestep", {"solver_order": 3, "lower_order_final": True}, value_steps=(6, 9, 15)),
    *_cases("DPMSolverSinglestep", {"solver_order": 3, "lower_order_final": True}, value_steps=(7, 8, 14)),
    *_cases(
        "UniPCMultistep",
        {},
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_type": "bh1", **SIGMA_MIN},
        {"predict_x0": False, **SIGMA_MIN},
        *(KARRAS, EXPONENTIAL, BETA, FLOW, {"solver_order": 3, **FLOW}, LEADING, TRAILING, V, DATA, ZERO_SNR),
    ),
    *_cases("DEISMultistep", {}, {"solver_order": 1}, {"solver_order": 3}),
    *_cases("DEISMultistep", *(KARRAS, EXPONENTIAL, BETA, FLOW, LEADING, TRAILING, V, DATA)),
    *_cases("LMSDiscrete", *({}, KARRAS, EXPONENTIAL, BETA, LEADING, TRAILING, V, DATA)),
    *_cases("IPNDM", {}),
    *_cases("EulerDiscrete", *({}, KARRAS, EXPONENTIAL, BETA, LEADING, TRAILING, {**V, **SIGMA_MIN}, ZERO_SNR)),
    *_cases("EDMEuler", {}, {"sigma_schedule": "exponential", **V}, SIGMA_MIN),
    *_cases("EDMDPMSolverMultistep", {}, {"solver_order": 1}, {"solver_type": "heun"}, SIGMA_MIN),
    *_cases("EDMDPMSolverMultistep", {"sigma_schedule": "exponential", **V}),
    *_cases("HeunDiscrete", *({}, KARRAS, EXPONENTIAL, BETA, LEADING, TRAILING, V)),
    *_cases("KDPM2Discrete", *({}, KARRAS, EXPONENTIAL, BETA, LEADING, TRAILING, V)),
    *_cases(
        "SASolver",
        *({**STILL, **each} for each in ({}, KARRAS, EXPONENTIAL, BETA, FLOW, LEADING, TRAILING, V, DATA)),
        *({**STILL, "predictor_order": order, "corrector_order": order} for order in (1, 3)),
    ),
    *_cases("FlowMatchEulerDiscrete", *({}, {"shift": 3.0}, KARRAS, EXPONENTIAL, BETA)),
    *_cases("FlowMatchHeunDiscrete", {}, {"shift": 3.0}),
]
