"""Owns what each experiment runs, for its cost: samplings, bases and other calls; must not know how it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import add

from redi.experiments import bank, bound, breaks, estimates, figure6, styles
from redi.experiments.bills import Cost, after, cost
from redi.experiments.quality import COMPARED_CALLS
from redi.experiments.sampling import Recording, Sampling, Scale, Solver, plain, redi
from redi.experiments.studies import DPM, SHORT, STUDIES, Study

_FRECHET = "frechet"


@dataclass(frozen=True)
class Work:
    """What an experiment runs at a scale.

    Attributes:
        samplings: Of all prompts.
        diversity: Whether that is measured of them.
        at_value: Whether their jumps' distances at x_v are.
        recordings: Bases that are needed besides.
        others: Other calls and latents of one replicate, by what they are: what has the same name is run once.
        frechets: Frechet distances of all pictures.
        kernels: Kernel distances of them.
    """

    samplings: tuple[Sampling, ...] = ()
    diversity: bool = False
    at_value: bool = False
    recordings: tuple[Recording, ...] = ()
    others: Mapping[str, Cost] = field(default_factory=dict)
    frechets: int = 0
    kernels: int = 0


def total(works: Iterable[Work], scale: Scale) -> Cost:
    """Return what works take together, with nothing there yet: what two of them need is made once."""
    works = list(works)
    every = _samplings(works)
    recordings = list(dict.fromkeys(each for one in works for each in one.recordings))
    spread = _samplings(one for one in works if one.diversity)
    measured = _samplings(one for one in works if one.at_value)
    found = cost(every, scale, recordings=recordings)
    for some, with_more in (
        (spread, cost(spread, scale, diversity=True)),
        (measured, cost(measured, scale, at_value=True)),
    ):
        found += Cost(with_more.calls - cost(some, scale).calls, 0)
    others = {name: each for one in works for name, each in one.others.items()}
    return found + reduce(add, others.values(), Cost(0, 0)) * scale.replicates


def _samplings(works: Iterable[Work]) -> list[Sampling]:
    return list(dict.fromkeys(each for one in works for each in one.samplings))


def _study(study: Study, scale: Scale) -> Work:
    rows = len(study.samplings)
    claims = sum(claim.measure == _FRECHET for claim in study.claims) + 2 * len(COMPARED_CALLS) * study.plot
    return Work(
        (study.full, *study.samplings),
        diversity=True,
        at_value=study.at_value,
        frechets=(rows + 2 * claims) * scale.resamples,
        kernels=rows * scale.resamples,
    )


def _estimates(scale: Scale) -> Work:
    pictures = Cost(estimates.pictures_calls(SHORT) * scale.prompts, 0)
    paths = _paths(SHORT.solver, scale, [estimates.path(SHORT)])
    return Work((plain("dpm", 10),), recordings=(SHORT,), others={**paths, "estimates": pictures})


def _styles(scale: Scale) -> Work:
    calls = styles.runs(styles.RECORDING) * min(styles.QUERIES, scale.prompts)
    return Work(recordings=(styles.RECORDING,), others={"styles": Cost(calls, 0)})


def _bound(scale: Scale) -> Work:
    return Work(recordings=(DPM,), others={"bound": Cost(bound.network_calls(scale, DPM), 0)})


def _gate(scale: Scale) -> Work:
    key_step = DPM.key_steps[-1]
    jumps = [redi(DPM, key_step, step, weights="kriging") for step in DPM.value_steps]
    return Work((plain("dpm", 20), *jumps), others=_paths(DPM.solver, scale, [(key_step,)]))


def _bank(scale: Scale) -> Work:
    return Work(others={"bank": bank.cost_of(scale, bank.RECORDING)})


def _breaks(scale: Scale) -> Work:
    paths = _paths(SHORT.solver, scale, [SHORT.key_steps[-1:]])
    return Work(tuple(breaks.ways(SHORT).values()), others={**paths, "breaks": breaks.rest(scale, breaks.own(SHORT))})


def _figure6(name: str, scale: Scale) -> Work:
    figure = figure6.FIGURES[name]
    solver = figure.recording.solver
    paths = _paths(solver, scale, [(*figure.recording.key_steps, *figure.recording.value_steps)])
    others = {**paths, name: Cost(figure6.going_on_calls(figure, scale), 0)}
    return Work((Sampling(solver),), recordings=(figure.recording,), others=others)


def _paths(solver: Solver, scale: Scale, several: Iterable[tuple[int, ...]]) -> dict[str, Cost]:
    """Return what running all prompts to the last of some steps takes, by solver and steps."""
    return {f"{solver} {steps}": Cost(scale.prompts * after(solver, max(steps)), 0) for steps in several}


WORKS: Mapping[str, Callable[[Scale], Work]] = {
    **{name: partial(_study, each) for name, each in STUDIES.items()},
    "estimates": _estimates,
    "styles": _styles,
    "bound": _bound,
    "gate": _gate,
    "bank": _bank,
    "breaks": _breaks,
    **{name: partial(_figure6, name) for name in figure6.FIGURES},
}
"""By the name of the experiment."""
