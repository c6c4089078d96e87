"""Owns the table of schedulers that redi has been tested with, and admitting another; must not know the engine."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers

from redi.errors import UnsupportedError, warn
from redi.solvers.facts import (
    BlockFacts,
    CorrectingFacts,
    EDMMultistepFacts,
    IPNDMFacts,
    LMSFacts,
    MultistepFacts,
    PLMSFacts,
    SAFacts,
    SolverFacts,
    TwoCallFacts,
)

ADMITTING_TEST = "tests/test_solver_table.py::test_a_jump_costs_at_most_half_of_the_full_runs_error_more"

_Settings = dict[str, tuple[Any, ...] | None]


def _free(*names: str) -> _Settings:
    return dict.fromkeys(names)


_BETAS = _free("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "steps_offset")
_SPACINGS: _Settings = {"timestep_spacing": ("linspace", "leading", "trailing")}
_SIGMAS: _Settings = dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), (False, True))
_FLOW: _Settings = {"use_flow_sigmas": (False, True), **_free("flow_shift", "use_dynamic_shifting", "time_shift_type")}
_FINAL: _Settings = {"final_sigmas_type": ("zero", "sigma_min")}
_ZERO_SNR: _Settings = {"rescale_betas_zero_snr": (False, True)}
_UNCLIPPED: _Settings = {"thresholding": (False,), **_free("dynamic_thresholding_ratio", "sample_max_value")}
_EDM: _Settings = {**_free("sigma_min", "sigma_max", "sigma_data", "rho", "num_train_timesteps"), **_FINAL}


def _predicts(*more: str) -> _Settings:
    return {"prediction_type": ("epsilon", "v_prediction", *more)}


_DPM: _Settings = {
    **_BETAS,
    **_SIGMAS,
    **_FLOW,
    **_FINAL,
    **_UNCLIPPED,
    **_predicts("sample", "flow_prediction"),
    **_free("lambda_min_clipped", "lower_order_final"),
    "algorithm_type": ("dpmsolver++", "dpmsolver"),
    "solver_type": ("midpoint", "heun"),
    "solver_order": (1, 2, 3),
}
_SDE = {"algorithm_type": ("sde-dpmsolver++", "sde-dpmsolver")}

_FACTS: dict[str, SolverFacts] = {
    "DDIMScheduler": SolverFacts(
        {**_BETAS, **_SPACINGS, **_ZERO_SNR, **_UNCLIPPED, **_predicts("sample")}
        | _free("clip_sample", "clip_sample_range", "set_alpha_to_one"),
        noisy_arguments=("eta",),
    ),
    "PNDMScheduler": PLMSFacts(
        {**_BETAS, **_SPACINGS, **_predicts(), **_free("set_alpha_to_one"), "skip_prk_steps": (True,)}
    ),
    "DPMSolverMultistepScheduler": MultistepFacts(
        {**_DPM, **_SPACINGS, **_ZERO_SNR, **_free("euler_at_final"), "use_lu_lambdas": (False, True)},
        noisy_settings=_SDE,
    ),
    "DPMSolverSinglestepScheduler": BlockFacts(_DPM, noisy_settings=_SDE),
    "UniPCMultistepScheduler": CorrectingFacts(
        {**_BETAS, **_SPACINGS, **_SIGMAS, **_FLOW, **_FINAL, **_ZERO_SNR, **_UNCLIPPED}
        | {**_predicts("sample", "flow_prediction"), "solver_order": (1, 2, 3), "solver_type": ("bh2", "bh1")}
        | {"predict_x0": (True, False), **_free("lower_order_final", "sigma_min", "sigma_max", "shift_terminal")},
    ),
    "DEISMultistepScheduler": MultistepFacts(
        {**_BETAS, **_SPACINGS, **_SIGMAS, **_FLOW, **_UNCLIPPED, **_predicts("sample", "flow_prediction")}
        | {"solver_order": (1, 2, 3), **_free("lower_order_final", "algorithm_type", "solver_type")},
    ),
    "LMSDiscreteScheduler": LMSFacts({**_BETAS, **_SPACINGS, **_SIGMAS, **_predicts("sample")}),
    "IPNDMScheduler": IPNDMFacts(_free("num_train_timesteps", "trained_betas")),
    "EulerDiscreteScheduler": SolverFacts(
        {**_BETAS, **_SPACINGS, **_SIGMAS, **_FINAL, **_ZERO_SNR, **_predicts()}
        | {"timestep_type": ("discrete",), **_free("interpolation_type", "sigma_min", "sigma_max")},
        noisy_arguments=("s_churn",),
    ),
    "EDMEulerScheduler": SolverFacts(
        {**_EDM, **_predicts(), "sigma_schedule": ("karras", "exponential")},
        noisy_arguments=("s_churn",),
    ),
    "EDMDPMSolverMultistepScheduler": EDMMultistepFacts(
        {**_EDM, **_UNCLIPPED, **_predicts(), "sigma_schedule": ("karras", "exponential"), "solver_order": (1, 2)}
        | {"solver_type": ("midpoint", "heun"), **_free("lower_order_final", "euler_at_final")}
        | {"algorithm_type": ("dpmsolver++",)},
        noisy_settings=_SDE,
    ),
    "HeunDiscreteScheduler": TwoCallFacts(
        {**_BETAS, **_SPACINGS, **_SIGMAS, **_predicts(), **_free("clip_sample", "clip_sample_range")},
    ),
    "KDPM2DiscreteScheduler": TwoCallFacts({**_BETAS, **_SPACINGS, **_SIGMAS, **_predicts()}),
    "SASolverScheduler": SAFacts(
        {**_BETAS, **_SPACINGS, **_SIGMAS, **_FLOW, **_UNCLIPPED, **_predicts("sample", "flow_prediction")}
        | {"predictor_order": (1, 2, 3), "corrector_order": (1, 2, 3), "algorithm_type": ("data_prediction",)}
        | _free("lower_order_final", "lambda_min_clipped", "tau_func"),
    ),
    "FlowMatchEulerDiscreteScheduler": SolverFacts(
        {**_SIGMAS, "stochastic_sampling": (False,)}
        | _free("num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift", "time_shift_type")
        | _free("base_image_seq_len", "max_image_seq_len", "shift_terminal"),
        noisy_settings={"stochastic_sampling": (True,)},
        noisy_arguments=("s_churn",),
    ),
    "FlowMatchHeunDiscreteScheduler": TwoCallFacts(_free("num_train_timesteps", "shift"), noisy_arguments=("s_churn",)),
    "EulerAncestralDiscreteScheduler": SolverFacts({**_BETAS, **_SPACINGS, **_ZERO_SNR, **_predicts()}, noisy=True),
    "KDPM2AncestralDiscreteScheduler": TwoCallFacts({**_BETAS, **_SPACINGS, **_SIGMAS, **_predicts()}, noisy=True),
    "DDPMScheduler": SolverFacts(
        {**_BETAS, **_SPACINGS, **_ZERO_SNR, **_UNCLIPPED, **_predicts("sample")}
        | {"variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")}
        | _free("clip_sample", "clip_sample_range"),
        noisy=True,
    ),
    "LCMScheduler": SolverFacts(
        {**_BETAS, **_SPACINGS, **_ZERO_SNR, **_UNCLIPPED, **_predicts("sample"), **_free("original_inference_steps")}
        | _free("clip_sample", "clip_sample_range", "set_alpha_to_one", "timestep_scaling"),
        noisy=True,
    ),
}
"""By the class's name in Diffusers."""


def facts_for(scheduler: Any, *, allow_stochastic: bool = False) -> SolverFacts:
    """Return the facts of a scheduler instance.

    Args:
        scheduler: Of Diffusers, or of a class that was registered.
        allow_stochastic: Admit samplers that add noise; with them a jump follows no theory, and the random numbers
            after it are not those of the full run.

    Raises:
        UnsupportedError: The class, or one of its settings, has not been tested with redi, or it adds noise and that
            is not allowed.
    """
    facts = _known(type(scheduler))
    if facts is None:
        raise UnsupportedError(
            f"scheduler {type(scheduler).__name__}",
            expected=f"a scheduler that has passed {ADMITTING_TEST}: {', '.join(admitted_names())}",
            fix="pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config), "
            "or admit yours: redi.solvers.register (docs/solvers.md says what it must promise)",
        )
    for setting, value, tested in _untested(scheduler, facts):
        raise UnsupportedError(
            f"{type(scheduler).__name__} with {setting}={value!r}",
            expected=f"{setting} in {tested}, the values that have passed {ADMITTING_TEST}",
            fix=f"{type(scheduler).__name__}.from_config(pipe.scheduler.config, {setting}={tested[0]!r})",
        )
    noise = facts.noise_of(scheduler)
    if noise and not allow_stochastic:
        refuse_noise(f"{type(scheduler).__name__} with {noise}")
    return facts


def admitted_names() -> list[str]:
    """Return the names of the admitted classes that add no noise of themselves."""
    return [name for name, facts in _FACTS.items() if not facts.noisy]


def refuse_noise(what: str) -> None:
    """Refuse a sampler, or an argument of its, that adds noise.

    Raises:
        UnsupportedError: Always.
    """
    raise UnsupportedError(
        what,
        expected="a deterministic sampler: trajectories of an ODE can be retrieved, noise not",
        fix="drop it or take another sampler; or allow_stochastic=True, if you know that the theory does not hold",
    )


def warn_of_noise(what: str) -> None:
    """Warn of a stochastic sampler that was allowed."""
    warn(
        f"{what} adds noise. ReDi's theory is of ODEs: a jump goes on from x_v with random numbers that are not those "
        "of the full run, so that the picture is another one even if x_v is exact."
    )


def admit(kind: type, facts: SolverFacts) -> None:
    """Put a class into the table; who calls this has tested it."""
    _FACTS[kind.__name__] = facts
    _REGISTERED[kind.__name__] = kind


_REGISTERED: dict[str, type] = {}
"""Classes of users, which Diffusers does not hold."""


def class_named(name: str) -> Any:
    """Return the admitted scheduler class of a name; None if there is none."""
    return (_REGISTERED.get(name) or getattr(diffusers, name)) if name in _FACTS else None


def _known(kind: type) -> SolverFacts | None:
    """Return the facts of a class itself: a subclass may do anything."""
    return _FACTS.get(kind.__name__) if class_named(kind.__name__) is kind else None


def _untested(scheduler: Any, facts: SolverFacts) -> list[tuple[str, Any, tuple[Any, ...]]]:
    """Return the settings that nobody tested: name, value, tested values."""
    found = []
    for name, parameter in inspect.signature(type(scheduler).__init__).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        tested: tuple[Any, ...] | None = facts.settings.get(name, (parameter.default,))
        value = scheduler.config.get(name, parameter.default)
        if tested is not None and not _among(value, (*tested, *facts.noisy_settings.get(name, ()))):
            found.append((name, value, tested))
    return found


def _among(value: Any, tested: tuple[Any, ...]) -> bool:
    """Tell whether a value is tested; configs that were read from JSON hold lists for tuples."""
    return any(value is each or bool(value == each) for each in tested)
