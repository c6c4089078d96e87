"""Owns what each experiment runs, for its cost, by its name; must not know how it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from redi.experiments import bank, bound, breaks, estimates, figure6, gate, runner, styles
from redi.experiments.bills import Cost, Work, cost
from redi.experiments.quality import COMPARED_CALLS
from redi.experiments.sampling import Scale
from redi.experiments.studies import DPM, SHORT, STUDIES, Study

_FRECHET = "frechet"


def total(works: Iterable[Work], scale: Scale) -> Cost:
    """Return what works take together, with nothing there yet: what two of them need is made once."""
    works = list(works)
    return cost(
        Work(
            samplings=tuple(each for one in works for each in one.samplings),
            diversity=tuple(each for one in works for each in one.diversity),
            at_value=tuple(each for one in works for each in one.at_value),
            recordings=tuple(each for one in works for each in one.recordings),
            routes=tuple(each for one in works for each in one.routes),
            drifts=tuple(each for one in works for each in one.drifts),
            others={name: each for one in works for name, each in one.others.items()},
        ),
        scale,
    )


def _study(study: Study, scale: Scale) -> Work:
    rows = len(study.samplings)
    claims = sum(claim.measure == _FRECHET for claim in study.claims) + 2 * len(COMPARED_CALLS) * study.plot
    return replace(
        runner.work(study, study.samplings, study.claims),
        frechets=(rows + 2 * claims) * scale.resamples,
        kernels=rows * scale.resamples,
    )


def _figure6(name: str, scale: Scale) -> Work:
    return figure6.work(scale, name, figure6.FIGURES[name])


WORKS: Mapping[str, Callable[[Scale], Work]] = {
    **{name: partial(_study, each) for name, each in STUDIES.items()},
    "estimates": partial(estimates.work, recording=SHORT),
    "styles": partial(styles.work, recording=styles.RECORDING),
    "bound": partial(bound.work, recording=DPM),
    "gate": lambda scale: gate.work(DPM),
    "bank": partial(bank.work, recording=bank.RECORDING),
    "breaks": partial(breaks.work, recording=SHORT),
    **{name: partial(_figure6, name) for name in figure6.FIGURES},
}
"""By the name of the experiment."""
