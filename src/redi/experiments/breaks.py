"""Owns the study of where retrieval breaks; must not know how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from redi.enabling import DEFAULT_QUANTILE
from redi.experiments.bills import Cost, Route, Work
from redi.experiments.gate import scores_at_key
from redi.experiments.laboratory import Laboratory
from redi.experiments.sample_files import Samples
from redi.experiments.sampling import Recording, Sampling, Scale, fingerprint, redi
from redi.experiments.studies import SHORT
from redi.experiments.subjects import Miniature
from redi.experiments.worst import AS_IN_BASE, DISTANCE, ENTRIES, FARTHEST, WORDING, Outcome, worst_sheets
from redi.generating import full, generate
from redi.identity import library_versions
from redi.metrics import mean_interval
from redi.miniature.scenes import Description
from redi.results import write_json, write_picture
from redi.retrieval import DEFAULT_WEIGHTS, combiner

_QUERIES = 50
"""Of each replicate, where a group needs runs of its own."""

_VALUE_STEP = 7
_GUIDANCES = (1.0, 2.0, 4.0, 7.0, 10.0)
_SHARE, _SHARES = 0.25, (0.004, 0.016, 0.064, 0.25)
_LACKING = "cat"
_INFINITE = float("inf")
_Numbers = NDArray[np.float64]


def run_breaks(
    laboratory: Laboratory, results: Path, *, tell: Callable[[str], None], recording: Recording = SHORT
) -> dict[str, Any]:
    """Compare jumps with runs in full, paired, for prompts and bases that should be hard.

    Args:
        laboratory: Has the base and the prompts, of the bundled model.
        results: Folder of the results.
        tell: Told the cost first, then each figure as it comes.
        recording: The base: jumps go from its last key step to the value step nearest to 7.

    Returns:
        What the JSON file holds.
    """
    scale, samplings, of_others = laboratory.scale, _ways(recording), own(recording)
    tell(f"breaks: at most {laboratory.bill(work(scale, recording))}")
    panels: dict[str, dict[str, list[Outcome]]] = {}
    for replicate in range(scale.replicates):
        samples = {way: laboratory.sample(sampling, replicate) for way, sampling in samplings.items()}
        of_all = _of_samples(samples, list(laboratory.prompts(replicate)))
        found = {
            panel: {name: of_all.part(places) for name, places in groups.items()}
            for panel, groups in _parts(laboratory, recording, replicate).items()
        }
        for panel, outcomes in (found | _others(laboratory, of_others, replicate)).items():
            for name, outcome in outcomes.items():
                panels.setdefault(panel, {}).setdefault(name, []).append(outcome)
    rows = [_row(panel, name, found) for panel, groups in panels.items() for name, found in groups.items()]
    for row in rows:
        tell(f"{row['panel']}, {row['group']}: {row['difference']['value']:+.1%} faithful, n={row['n']}")
    sheets = worst_sheets(panels)
    result = {
        "study": "breaks",
        "kind": "breaks",
        "scale": asdict(scale),
        "subject": laboratory.subject.told(),
        "jump": samplings["jump"].label,
        "rule": repr(combiner(DEFAULT_WEIGHTS)),
        "queries": min(_QUERIES, scale.prompts),
        "share": _SHARE,
        "lacking": _LACKING,
        "versions": library_versions(),
        "rows": rows,
        "sheets": [{"file": f"{scale.name}/{name}.png", "about": about} for name, (about, _) in sheets.items()],
    }
    write_json(results / scale.name / "breaks.json", result)
    for name, (_, sheet) in sheets.items():
        write_picture(results / scale.name / f"{name}.png", sheet)
    return result


def work(scale: Scale, recording: Recording) -> Work:
    """Return what the study runs, at most."""
    route = Route(recording.solver, recording.key_steps[-1:])
    others = {"breaks": _rest(scale, own(recording))}
    return Work(tuple(_ways(recording).values()), recordings=(recording,), routes=(route,), others=others)


def _ways(recording: Recording) -> dict[str, Sampling]:
    """Return the run in full, the jump for all and the jump with the default gate."""
    solver, key_step = recording.solver, recording.key_steps[-1]
    return {
        "full": Sampling(solver),
        "jump": redi(recording, key_step, _value_step(recording), weights=DEFAULT_WEIGHTS),
        "gated": redi(recording, key_step, _value_step(recording), weights=DEFAULT_WEIGHTS, quantile=DEFAULT_QUANTILE),
    }


def own(recording: Recording) -> Recording:
    """Return the recording of the bases that groups have of their own."""
    return Recording(recording.solver, recording.key_steps[-1:], (_value_step(recording),), share=_SHARE)


def _value_step(recording: Recording) -> int:
    return min(recording.value_steps, key=lambda each: abs(each - _VALUE_STEP))


def _parts(laboratory: Laboratory, recording: Recording, replicate: int) -> dict[str, dict[str, NDArray[np.intp]]]:
    """Return places of the replicate's prompts, by panel and group."""
    asked: list[Description] = list(laboratory.prompts(replicate).values())
    distances = scores_at_key(laboratory, recording, replicate)["distance"]
    order = np.argsort(distances, kind="stable")
    quarters = dict(
        zip(("nearest quarter", "second quarter", "third quarter", FARTHEST), np.array_split(order, 4), strict=True)
    )
    return {
        "objects": {f"{count}": _places(len(each.objects) == count for each in asked) for count in (1, 2, 3)},
        "style": {
            "none asked": _places(each.style is None for each in asked),
            "one asked": _places(each.style is not None for each in asked),
        },
        DISTANCE: quarters,
    }


def _others(laboratory: Laboratory, own: Recording, replicate: int) -> dict[str, dict[str, Outcome]]:
    """Return outcomes on bases and wordings of their own, by panel and group."""
    held_out: dict[str, Description] = dict(laboratory.prompts(replicate))
    few = list(held_out.items())[:_QUERIES]
    ask = partial(_compared, replicate=replicate)
    lacking = [(text, asked) for text, asked in held_out.items() if any(o.kind == _LACKING for o in asked.objects)]
    subject = cast(Miniature, laboratory.subject)  # others of it look at pictures with the same eyes
    without = replace(laboratory, subject=replace(subject, without=_LACKING))
    least = 2 * laboratory.scale.noises / laboratory.scale.entries  # fewer have no distances for the gate
    shares = dict.fromkeys(max(least, share) for share in _SHARES)
    return {
        WORDING: {
            AS_IN_BASE: ask(laboratory, own, few),
            "a request around it": ask(laboratory, own, [(f"please draw me {text}, thank you", a) for text, a in few]),
            "keywords": ask(laboratory, own, [(keywords(asked), asked) for _, asked in few]),
        },
        f"prompts with a {_LACKING}": {
            "the base has some": ask(laboratory, own, lacking),
            "the base has none": ask(without, own, lacking),
        },
        ENTRIES: {
            str(round(share * laboratory.scale.entries)): ask(laboratory, replace(own, share=share), few)
            for share in shares
        },
        "guidance": {
            f"{each:g}": ask(replace(laboratory, subject=replace(subject, guidance=each)), own, few)
            for each in _GUIDANCES
        },
    }


def keywords(asked: Description) -> str:
    """Return what a caption asks for as people write it who think of search engines."""
    parts = [" ".join(filter(None, (each.size, each.color, each.kind))) for each in asked.objects]
    return ", ".join([*parts, *filter(None, (asked.relation, asked.background, asked.style))])


def _compared(
    laboratory: Laboratory, recording: Recording, asked: Sequence[tuple[str, Description]], *, replicate: int
) -> Outcome:
    """Run prompts in full, jumping, and with the default gate, on a recording's base."""
    prompts, noise_ids = [text for text, _ in asked], laboratory.noise_ids(len(asked))
    subject, told = laboratory.subject, {str(place): each for place, (_, each) in enumerate(asked)}
    key = fingerprint(prompts)
    jump = partial(generate, prompts=prompts, noise_ids=noise_ids, progress=False, weights=DEFAULT_WEIGHTS)
    makers = {
        "full": partial(full, prompts=prompts, noise_ids=noise_ids, progress=False),
        "jump": partial(jump, max_distance=_INFINITE),
        "gated": partial(jump, quantile=DEFAULT_QUANTILE),
    }
    rule = repr(combiner(DEFAULT_WEIGHTS))
    constants = {"full": "", "jump": rule, "gated": f"{rule} {DEFAULT_QUANTILE}"}  # other ones make other pictures
    made = {
        way: laboratory.pictures(recording, replicate, f"breaks {way} {key} {constants[way]}", make)
        for way, make in makers.items()
    }
    pictures = {way: [Image.fromarray(each) for each in found.pictures] for way, found in made.items()}
    return _outcome(
        {way: subject.judge(told, each)["all"] for way, each in pictures.items()},
        {way: subject.features(each) for way, each in pictures.items()},
        {way: each.calls for way, each in made.items()},
        {way: each.pictures for way, each in made.items()},
        prompts,
    )


def _of_samples(samples: Mapping[str, Samples], prompts: Sequence[str]) -> Outcome:
    return _outcome(
        {way: each.faithful["all"] for way, each in samples.items()},
        {way: each.features for way, each in samples.items()},
        {way: each.calls for way, each in samples.items()},
        {way: each.pictures for way, each in samples.items()},
        prompts,
    )


def _outcome(
    right: Mapping[str, _Numbers],
    features: Mapping[str, _Numbers],
    calls: Mapping[str, _Numbers],
    pictures: Mapping[str, NDArray[np.uint8]],
    prompts: Sequence[str],
) -> Outcome:
    apart = {way: np.linalg.norm(features[way] - features["full"], axis=1) for way in ("jump", "gated")}
    return Outcome(right, apart, calls, pictures, np.asarray(prompts))


def _row(panel: str, name: str, found: Sequence[Outcome]) -> dict[str, Any]:
    right = {way: np.concatenate([each.right[way] for each in found]) for way in ("full", "jump", "gated")}
    apart = {way: np.concatenate([each.apart[way] for each in found]) for way in ("jump", "gated")}
    calls = {way: np.concatenate([each.calls[way] for each in found]) for way in ("full", "jump", "gated")}
    return {
        "panel": panel,
        "group": name,
        "n": len(right["full"]),
        "full": float(right["full"].mean()),
        "jump": float(right["jump"].mean()),
        "difference": asdict(mean_interval(right["jump"] - right["full"])),
        "closeness": asdict(mean_interval(apart["jump"])),
        "gated": float(right["gated"].mean()),
        "gated_difference": asdict(mean_interval(right["gated"] - right["full"])),
        "gated_closeness": asdict(mean_interval(apart["gated"])),
        "calls": {way: float(each.mean()) for way, each in calls.items()},
    }


def _places(told: Iterable[bool]) -> NDArray[np.intp]:
    return np.flatnonzero(list(told))


def _rest(scale: Scale, own: Recording) -> Cost:
    """Return at most what bases and runs of their own take of one replicate."""
    entries = round(((len(_GUIDANCES) + 1) * _SHARE + sum(_SHARES)) * scale.entries)
    groups = 3 + 2 + len(_SHARES) + len(_GUIDANCES)
    runs = groups * min(_QUERIES, scale.prompts) * 3 * own.solver.steps
    return Cost(entries * max(own.value_steps) + runs, 2 * entries)
