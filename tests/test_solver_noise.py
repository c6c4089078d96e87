"""Claims about samplers that add noise: refused, unless who asks for them says that he knows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import closed_form
import redi
from redi.engine import Jump, run
from redi.errors import UnsupportedError
from redi.solvers import facts_for
from solver_cases import SD
from solver_table import MEANS, X_T
from tiny import PROMPTS, Watcher, generate, noise, tiny_pipeline

PLAN = redi.Plan(6, key_step=2, value_steps=(4,))

NOISY: list[tuple[str, dict[str, Any]]] = [
    ("EulerAncestralDiscrete", {}),
    ("KDPM2AncestralDiscrete", {}),
    ("DDPM", {"clip_sample": False}),
    ("LCM", {"clip_sample": False}),
    ("SASolver", {}),
    ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverSinglestep", {"algorithm_type": "sde-dpmsolver++"}),
    ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}),
]


def noisy(kind: str, settings: dict[str, Any]) -> Any:
    return getattr(diffusers, f"{kind}Scheduler")(**({} if "Flow" in kind else SD), **settings)


def seeded() -> dict[str, Any]:
    return {"generator": torch.Generator().manual_seed(0)}


@pytest.mark.parametrize(("kind", "settings"), NOISY)
def test_a_sampler_that_adds_noise_is_refused(kind: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="allow_stochastic=True"):
        facts_for(noisy(kind, settings))


@pytest.mark.parametrize(("kind", "settings"), NOISY)
@pytest.mark.filterwarnings("ignore")
def test_one_that_is_allowed_runs_as_without_redi_where_nothing_jumps(kind: str, settings: dict[str, Any]) -> None:
    pipe = closed_form.loop(noisy(kind, settings))
    plain = pipe(MEANS, X_T, 8, **seeded())
    with run(pipe, Watcher(2), allow_stochastic=True):
        assert torch.equal(pipe(MEANS, X_T, 8, **seeded()), plain)


@pytest.mark.parametrize(("kind", "settings"), NOISY)
def test_one_that_is_allowed_jumps_with_a_warning(kind: str, settings: dict[str, Any]) -> None:
    pipe, own = closed_form.loop(noisy(kind, settings)), Watcher()
    facts = facts_for(pipe.scheduler, allow_stochastic=True)
    jumping = Watcher(2, lambda latents: [Jump(6, value) for value in own.seen[6]])
    with pytest.warns(UserWarning, match="adds noise"), run(pipe, own, allow_stochastic=True):
        pipe(MEANS, X_T, 8, **seeded())
    with pytest.warns(UserWarning, match="adds noise"), run(pipe, jumping, allow_stochastic=True) as statistics:
        ended = pipe(MEANS, X_T, 8, **seeded())
    paid = facts.call_index(2) + facts.total_calls(8) - facts.call_index(6)
    assert statistics.calls == [paid, paid]
    assert ended.isfinite().all()


@pytest.mark.parametrize("kind", ["EulerAncestralDiscrete", "KDPM2AncestralDiscrete"])
@pytest.mark.filterwarnings("ignore")
def test_images_of_a_batch_that_parts_draw_from_their_own_generators(tmp_path: Path, kind: str) -> None:
    pipe = tiny_pipeline(tmp_path)
    pipe.scheduler = noisy(kind, {})
    x_T, values = noise(1, 2, 3, 4), noise(5, 6, 7, 8)
    decisions = [Jump(5, values[0]), None, Jump(6, values[2]), None]

    def made(images: list[int]) -> torch.Tensor:
        policy = Watcher(2, lambda latents: [decisions[image] for image in images])
        generators = [torch.Generator().manual_seed(image) for image in images]
        with run(pipe, policy, allow_stochastic=True):
            return generate(pipe, [PROMPTS[image] for image in images], x_T[images], 8, generator=generators)

    alone = torch.cat([made([image]) for image in range(4)])
    assert float((made([0, 1, 2, 3]) - alone).abs().max()) < 2e-5 * float(alone.abs().max())


def test_an_argument_that_adds_noise_is_refused_and_may_be_allowed() -> None:
    pipe = closed_form.loop(diffusers.DDIMScheduler(**SD, clip_sample=False))
    with run(pipe, Watcher()), pytest.raises(UnsupportedError, match=r"eta=0\.5"):
        pipe(MEANS, X_T, 8, eta=0.5, **seeded())
    with run(pipe, Watcher(), allow_stochastic=True), pytest.warns(UserWarning, match=r"eta=0\.5"):
        pipe(MEANS, X_T, 8, eta=0.5, **seeded())


def test_every_verb_refuses_an_ancestral_sampler_until_it_is_allowed(tmp_path: Path) -> None:
    pipe = tiny_pipeline(tmp_path / "model")
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    prompts = ["a red cat", "a blue dog"]

    def build(**more: Any) -> redi.KnowledgeBase:
        return redi.build(pipe, prompts, tmp_path / "base", plan=PLAN, noises=1, progress=False, **more)

    with pytest.raises(UnsupportedError, match="allow_stochastic=True"):
        build()
    with pytest.warns(UserWarning, match="adds noise"):
        base = build(allow_stochastic=True)
    for verb in (redi.enable, lambda pipe, base: redi.generate(pipe, base, prompts)):
        with pytest.raises(UnsupportedError, match="allow_stochastic=True"):
            verb(pipe, base)
    options: dict[str, Any] = {"max_distance": math.inf, "allow_stochastic": True}
    with pytest.warns(UserWarning, match="adds noise"):
        made = redi.generate(pipe, base, prompts, compare=True, progress=False, **options)
    assert [each.report.calls for each in made] == [4, 4]
    with redi.enable(pipe, base, **options), pytest.warns(UserWarning, match="adds noise"):
        pipe(prompts, output_type="latent")
