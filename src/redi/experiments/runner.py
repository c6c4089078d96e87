"""Owns running a study and writing its results as JSON; must not know how they are shown."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from redi.comparison import Column
from redi.errors import InputError
from redi.experiments.bank import run_bank
from redi.experiments.bills import Work, diverse
from redi.experiments.bound import run_bound
from redi.experiments.breaks import run_breaks
from redi.experiments.estimates import run_estimates
from redi.experiments.figure6 import FIGURES, run_figure6
from redi.experiments.gate import run_gate
from redi.experiments.kept_results import read_result
from redi.experiments.laboratory import Laboratory
from redi.experiments.quality import COMPARED_CALLS, MORE_IS_BETTER, best, difference, figures
from redi.experiments.sample_files import SHOWN, Samples
from redi.experiments.sampling import Sampling, says
from redi.experiments.sheets import sheet
from redi.experiments.studies import COMPARED, STUDIES, Claim, Study
from redi.experiments.styles import run_styles
from redi.experiments.subjects import subject_of
from redi.identity import library_versions
from redi.metrics import mean_interval
from redi.results import write_json, write_picture
from redi.retrieval.weights import combiner

_SHEET_CALLS = (3, 4, 6, 8, 10)
_NO_LPIPS = "no LPIPS"
_AT_VALUE = "at_value"


class Experiment(Protocol):
    """Runs what is missing of one experiment, writes ``results/<scale>/<name>.json`` and returns what it holds: at
    least ``study`` (its name), ``kind`` (which section of the report shows it), ``scale`` and ``versions``."""

    def __call__(self, laboratory: Laboratory, results: Path, *, tell: Callable[[str], None]) -> dict[str, Any]:
        """Tell the cost first, then each figure as it comes."""
        ...


def run_study(
    study: Study, laboratory: Laboratory, results: Path, *, tell: Callable[[str], None], only: str = "*"
) -> dict[str, Any]:
    """Run what is missing of a study, and write ``results/<scale>/<study>.json`` and its sheet of pictures.

    Args:
        study: What to compare.
        laboratory: Runs and keeps samples.
        results: Folder of the results.
        tell: Told the cost before the first run, and each figure as it comes.
        only: Pattern (as of a shell) of the labels of rows to run; of the others, what the file says is kept, and so
            are claims on them. A row that the file lacks, or has of another sampling, is run. The sheet is made again
            if all that it shows is there.

    Returns:
        What the JSON file holds.

    Raises:
        InputError: No row is called so, or the file is of another scale, model or LPIPS.
    """
    lpips = laboratory.subject.lpips
    scale, file = laboratory.scale, results / laboratory.scale.name / f"{study.name}.json"
    earlier = _earlier(study, laboratory, file, only)
    kept = _kept(study, earlier["rows"], only, tell)
    to_run = [sampling for sampling in study.samplings if sampling.label not in kept]
    untouched = {
        (told["ours"], told["rival"], told["measure"]): told
        for told in earlier["claims"]
        if {told["ours"], told["rival"]} <= kept.keys()
    }
    to_test = [claim for claim in study.claims if (claim.ours, claim.rival, claim.measure) not in untouched]
    tell(f"{study.name}: {laboratory.bill(work(study, to_run, to_test))}")
    full = _replicates(laboratory, study.full)
    rows = []
    for sampling in study.samplings:
        if sampling.label in kept:
            rows.append(kept[sampling.label])
            continue
        samples = _replicates(laboratory, sampling)
        found = figures(samples, full, laboratory.reference, resamples=scale.resamples, lpips=lpips)
        if study.at_value and sampling.jump is not None:
            found["at_value"] = asdict(mean_interval(_at_value(laboratory, sampling)))
        if scale.spread and diverse(sampling):
            spread = [laboratory.diversity(sampling, replicate) for replicate in range(scale.replicates)]
            found["diversity"] = asdict(mean_interval(np.concatenate(spread)))
        rule = {"rule": repr(combiner(sampling.jump.weights))} if sampling.jump else {}
        rows.append({"label": sampling.label, "sampling": asdict(sampling), **rule, **found})
        told = (f"{name} {found[name]['value']:.3f}" for name in COMPARED if name in found)
        tell(f"{sampling.label}: {found['calls']:.1f} calls, {', '.join(told)}")
    known = [told for told in earlier.get("best", []) if {told["ours"], told["rival"]} <= kept.keys()]
    result = {
        "study": study.name,
        "kind": study.kind,
        "title": study.title,
        "scale": asdict(scale),
        "subject": laboratory.subject.told(),
        **({"lpips": _lpips(laboratory)} if lpips else {}),
        "full": study.full.label,
        "twins": sum(laboratory.twins(replicate) for replicate in range(scale.replicates)),
        "versions": library_versions(),
        "rows": rows,
        "claims": [
            untouched.get((claim.ours, claim.rival, claim.measure)) or _verdict(claim, study, full, laboratory)
            for claim in study.claims
        ],
        "best": _best(study, rows, full, laboratory, tell, known) if study.plot else [],
        "paper": dict(study.paper),
        "remark": study.remark,
        "plot": study.plot,
    }
    shown, picture = _shown(study, rows), file.with_suffix(".png")
    if only == "*" or all(map(laboratory.has, shown)):
        write_picture(picture, _sheet(study, laboratory, shown))
    if picture.exists():
        result["sheet"] = f"{scale.name}/{picture.name}"
    write_json(file, result)
    return result


def work(study: Study, rows: Sequence[Sampling], claims: Sequence[Claim]) -> Work:
    """Return what some rows of a study and tests of some claims run: these ask for both sides, kept rows or not."""
    by_label = {sampling.label: sampling for sampling in study.samplings}
    sides = [(by_label[label], claim.measure) for claim in claims for label in (claim.ours, claim.rival)]
    compared = [sampling for sampling, measure in sides if measure != _AT_VALUE]
    apart = [sampling for sampling, measure in sides if measure == _AT_VALUE]
    return Work(
        (study.full, *rows, *compared),
        diversity=tuple(rows),
        at_value=(*(rows if study.at_value else ()), *apart),
    )


def _earlier(study: Study, laboratory: Laboratory, file: Path, only: str) -> dict[str, Any]:
    """Return what is kept of an earlier run, before anything is run."""
    if not any(fnmatchcase(sampling.label, only) for sampling in study.samplings):
        raise InputError(
            f"rows {only!r} of {study.name}", expected=f"a pattern of its labels, such as {study.samplings[-1].label!r}"
        )
    if only == "*" or not file.exists():
        return {"rows": [], "claims": [], "best": []}
    found = read_result(file, [study.kind])
    told = found["scale"], subject_of(found), found.get("lpips", _NO_LPIPS)
    ours = asdict(laboratory.scale), laboratory.subject.told(), _lpips(laboratory) or _NO_LPIPS
    if told != tuple(json.loads(json.dumps(ours))):
        raise InputError(
            f"{file}, which is of {told}",
            expected=f"results of {ours}, so that rows compare",
            fix="the same scale, model and features, another folder of results, or the whole study",
        )
    return found


def _lpips(laboratory: Laboratory) -> str:
    """Return what results say of the weights of LPIPS; empty without."""
    lpips = laboratory.subject.lpips
    return f"{lpips.name} {lpips.identity}" if lpips else ""


def _kept(
    study: Study, rows: Sequence[dict[str, Any]], only: str, tell: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Return by label the rows that are not run: a label does not say all of a sampling (a base's steps, a gate)."""
    others = {row["label"]: row for row in rows if not fnmatchcase(row["label"], only)}
    found = {}
    for sampling in study.samplings:
        row = others.get(sampling.label)
        if row is None:
            continue
        if says(row["sampling"], sampling):
            found[sampling.label] = row
        else:
            tell(f"{sampling.label}: the file's row is of another sampling of that name, so it is run again")
    return found


def _replicates(laboratory: Laboratory, sampling: Sampling) -> list[Samples]:
    return [laboratory.sample(sampling, replicate) for replicate in range(laboratory.scale.replicates)]


def _at_value(laboratory: Laboratory, sampling: Sampling) -> NDArray[np.float64]:
    return np.concatenate([laboratory.at_value(sampling, each) for each in range(laboratory.scale.replicates)])


def _verdict(claim: Claim, study: Study, full: list[Samples], laboratory: Laboratory) -> dict[str, Any]:
    """Return the claim and whether it holds: ours is not worse outside the interval of the difference."""
    by_label = {sampling.label: sampling for sampling in study.samplings}
    ours, rival = by_label[claim.ours], by_label[claim.rival]
    if claim.measure == _AT_VALUE:
        found = mean_interval(_at_value(laboratory, ours) - _at_value(laboratory, rival))
    else:
        found = difference(
            claim.measure,
            _replicates(laboratory, ours),
            _replicates(laboratory, rival),
            full,
            laboratory.reference,
            resamples=laboratory.scale.resamples,
        )
    above, below = found.low > 0, found.high < 0
    worse, better = (below, above) if claim.measure in MORE_IS_BETTER else (above, below)
    return {
        **asdict(claim),
        "difference": asdict(found),
        "verdict": "worse" if worse else "better" if better else "no difference",
    }


def _best(
    study: Study,
    rows: list[dict[str, Any]],
    full: list[Samples],
    laboratory: Laboratory,
    tell: Callable[[str], None],
    known: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return how the best jump differs from the best solver alone, at each number of calls and in each measure; and how
    that solver differs from the run in full, which says what room a jump has. What is known already is kept."""
    found = {(each["calls"], each["measure"], each["ours"], each["rival"]): each for each in known}
    places = []
    for calls, measure in itertools.product(COMPARED_CALLS, COMPARED):
        ours, alone = (best(rows, measure, calls, jumps=jumps) for jumps in (True, False))
        if ours and alone:
            places.append((calls, measure, ours["label"], alone["label"]))
    missing = [place for place in places if place not in found]
    compared = {label for *_, ours, rival in missing for label in (ours, rival)}
    tell(f"the best: {laboratory.bill(Work(tuple(each for each in study.samplings if each.label in compared)))}")
    for calls, measure, ours, rival in missing:
        claim, of_rival = Claim(ours, rival, measure), Claim(rival, study.full.label, measure)
        alone = _verdict(of_rival, study, full, laboratory)
        room = {"difference": alone["difference"], "verdict": alone["verdict"]}
        verdict = _verdict(claim, study, full, laboratory)
        found[calls, measure, ours, rival] = {"calls": calls, **verdict, "rival_against_full": room}
    return [found[place] for place in places]


def _shown(study: Study, rows: list[dict[str, Any]]) -> list[Sampling]:
    """Return the samplings of the sheet: those that the study names or, of many that are drawn over calls, the most
    faithful jump and solver alone at some numbers of calls; else all."""
    by_label = {each.label: each for each in (study.full, *study.samplings)}
    if study.plot:
        found = [best(rows, "faithfulness", calls, jumps=jumps) for calls in _SHEET_CALLS for jumps in (False, True)]
        return [study.full, *(by_label[row["label"]] for row in found if row)]
    return [study.full, *(by_label[label] for label in study.shown)] if study.shown else list(by_label.values())


def _sheet(study: Study, laboratory: Laboratory, shown: list[Sampling]) -> Image.Image:
    """Return the first prompts' pictures, one row per sampling."""
    prompts = list(laboratory.prompts(0))[:SHOWN]
    made = {each.label: laboratory.sample(each, 0) for each in shown}
    columns = [
        Column(
            prompt,
            tuple(Image.fromarray(each.shown[place]) for each in made.values()),
            tuple(f"{each.calls[place]:.0f} calls" for each in made.values()),
        )
        for place, prompt in enumerate(prompts)
    ]
    return sheet(columns, list(made), per_band=SHOWN, heading=study.title)


OF_THE_MINIATURE = ("styles", "breaks")
"""Experiments that ask its evaluator."""

EXPERIMENTS: Mapping[str, Experiment] = {
    **{name: partial(run_study, each) for name, each in STUDIES.items()},
    "estimates": run_estimates,
    "styles": run_styles,
    "bound": run_bound,
    "gate": run_gate,
    "bank": run_bank,
    "breaks": run_breaks,
    **{name: partial(run_figure6, name=name, figure=each) for name, each in FIGURES.items()},
}
"""By name, in the order of the report."""


def experiment(name: str) -> Experiment:
    """Return an experiment by its name.

    Raises:
        InputError: There is none of that name.
    """
    if name not in EXPERIMENTS:
        raise InputError(f"experiment {name!r}", expected=f"one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]
