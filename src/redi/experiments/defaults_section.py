"""Owns the lines that say why the library's defaults are what they are, from JSON; must not know how it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from redi.building.runner import build
from redi.experiments.estimators import NO_NEIGHBOURS
from redi.experiments.sampling import Recording, Solver, redi
from redi.experiments.studies import DPM, PNDM, PNDM_KEYS, SHORT, SHORT_TRAILING
from redi.plan import DEFAULT_PLAN
from redi.retrieval.weights import DEFAULT_WEIGHTS, combiner

Results = Mapping[str, Mapping[str, Any]]


def defaults_section(results: Results) -> str:
    """Return the section; a line whose study is not among the results says so.

    Args:
        results: By the name of their study.
    """
    lines = ["## Why the defaults are what they are", ""]
    for name, needed, tell in _LINES:
        missing = [study for study in needed if study not in results]
        said = f"not measured here (`redi experiments run {missing[0]}`)" if missing else tell(results)
        lines.append(f"- **{name}** {said}.")
    return "\n".join([*lines, ""])


def _plan(results: Results) -> str:
    plan = DEFAULT_PLAN
    recording = Recording(Solver("pndm", plan.num_inference_steps), (plan.key_step,), plan.value_steps[-1:])
    ours = _jump(results["table1"], recording, plan.key_step, plan.value_steps[-1], weights=DEFAULT_WEIGHTS)
    paper = _jump(results["table1"], PNDM, 10, 40, weights=DEFAULT_WEIGHTS)
    alone, usual = (_labelled(results["table1"], label) for label in ("pndm-20", "pndm-40"))
    whole = _labelled(results["rivals"], recording.solver.label)
    others = "; ".join(
        f"after {k} {_two(_jump(results['table1'], PNDM_KEYS, k, v, weights=DEFAULT_WEIGHTS))}"
        for k, v in zip(PNDM_KEYS.key_steps, PNDM_KEYS.value_steps, strict=True)
    )
    return (
        f"{ours['calls']:.0f} calls of PNDM instead of {usual['calls']:.0f}: {_two(ours)}, where those have "
        f"{_two(usual)}. Most of that is the shorter schedule: all of its steps take {whole['calls']:.0f} calls, and "
        f"PNDM alone with {alone['calls']:.0f} has {_two(alone)}. The paper's plan, from 10 to 40 of 50, has as many "
        f"calls and {_two(paper)}. Other keys with as many, as measured: {others}"
    )


def _weights(results: Results) -> str:
    ours, paper = (_jump(results["table2"], DPM, 5, 15, **each) for each in _RULES)
    late, theirs = (_jump(results["table1"], PNDM, 10, 40, **each) for each in _RULES)
    return (
        f"With {ours['calls']:.0f} calls of DPM-Solver++ they give {_two(ours)}, the paper's two neighbours "
        f"{_two(paper)}; with {late['calls']:.0f} calls of PNDM {_two(late)} against {_two(theirs)}"
    )


def _neighbors(results: Results) -> str:
    errors: dict[str, list[float]] = {}
    for row in results["estimates"]["rows"]:
        name = row["estimator"]
        if name == NO_NEIGHBOURS or (name.startswith("kriging, ") and name.count(",") == 1):
            errors.setdefault(name.removeprefix("kriging, "), []).append(row["error"]["value"])
    told = "; ".join(f"{name} {sum(found) / len(found):.3f}" for name, found in errors.items())
    apart = [
        row["against_default"] for row in results["estimates"]["pictures"][1:] if row["estimator"] != NO_NEIGHBOURS
    ]
    better = {name: sum(each[name]["high"] < 0 for each in apart) for name in ("frechet", "closeness")}
    faithful = sum(each["faithfulness"]["low"] > 0 for each in apart)
    return (
        f"The mean distance to the prompt's own x_v, as a share of the noise's mean's: {told or 'not among the rows'}. "
        f"Each more is read from the base for every picture, and of the {len(apart)} nearest estimates "
        f"{better['frechet']} make pictures of less Frechet distance, {faithful} more faithful ones, and "
        f"{better['closeness']} such as are nearer to the run in full"
        + ("" if better["frechet"] or faithful else ": nobody sees that, so none of them took the default's place")
    )


def _key(results: Results) -> str:
    ours, text = (_jump(results["table3"], DPM, 5, 10, neighbors=2, key=key) for key in ("trajectory", "text"))
    told = []
    for recording in (SHORT, SHORT_TRAILING):
        found = [(key, _jump(results["rivals"], recording, key, key + 4, weights=DEFAULT_WEIGHTS)) for key in (1, 2, 3)]
        told.append("; ".join(f"after {key} {_two(row)}" for key, row in found))
    return (
        f"With {ours['calls']:.0f} calls it has {_two(ours)}, {ours['closeness']['value']:.2f} from the run in full, "
        f"a text key {_two(text)}, {text['closeness']['value']:.2f} from it (Frechet distance does not see the "
        f"prompt). Of 10 steps, all at 6 calls: {told[0]}; on trailing timesteps {told[1]}"
    )


def _value_step(results: Results) -> str:
    rows = [(v, _jump(results["table2"], DPM, 5, v, weights=DEFAULT_WEIGHTS)) for v in (8, 10, 13, 15)]
    told = "; ".join(f"to {v} ({row['calls']:.0f} calls) {_two(row)}" for v, row in rows)
    return f"Of 20 steps, key after 5: {told}; the run in full {_two(_labelled(results['table2'], 'dpm-20'))}"


def _schedule(results: Results) -> str:
    told = []
    for value_step in (5, 8):
        leading, trailing = (
            _jump(results["rivals"], recording, 3, value_step, weights=DEFAULT_WEIGHTS)
            for recording in (SHORT, SHORT_TRAILING)
        )
        told.append(f"{_two(leading)} with {leading['calls']:.0f} calls, on trailing timesteps {_two(trailing)}")
    long = _jump(results["table2"], DPM, 5, 15, weights=DEFAULT_WEIGHTS)
    return f"A base of 10 steps gives {'; '.join(told)}; one of 20 steps {_two(long)} with {long['calls']:.0f}"


def against_fewer_steps(results: Results) -> str:
    """Return in a sentence how the best jump does against the best solver alone; README tells it too.

    Args:
        results: By the name of their study; ``rivals`` among them.
    """
    found = [each for each in results["rivals"]["best"] if 3 <= each["calls"] <= 8]
    told = []
    for measure, name in (("frechet", "Frechet distance"), ("faithfulness", "faithfulness")):
        counts = []
        for verdict, said in (("better", "ahead"), ("no difference", "even"), ("worse", "behind")):
            calls = [e["calls"] for e in found if (e["measure"], e["verdict"]) == (measure, verdict)]
            counts += [f"{said} with {listed(calls)}"] if calls else []
        told.append(f"in {name} it is {', '.join(counts)} calls" if counts else f"in {name} it was not compared")
    short = [
        e["calls"] for e in found if (e["measure"], e["rival_against_full"]["verdict"]) == ("faithfulness", "worse")
    ]
    told_short = f"with {listed(short)} calls only" if short else "with none of these numbers of calls"
    won = any((e["measure"], e["verdict"]) == ("faithfulness", "better") for e in found)
    room = "" if won or len(short) == len({e["calls"] for e in found}) else ", so that elsewhere little can be won"
    return (
        f"the best jump against the best solver alone with as many calls, on the same pictures: {'; '.join(told)} "
        "(even: the interval of the difference holds zero). Where it is behind, fewer steps of a well-spaced solver "
        f"are the better buy. The best solver alone is less faithful than {results['rivals']['full']} "
        f"{told_short}{room}"
    )


def listed(numbers: Sequence[int]) -> str:
    """Return numbers as a sentence names them: "3, 4 and 5"."""
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def _noises(results: Results) -> str:
    bank = results["bank"]
    most = {row["noises"]: row for row in bank["rows"] if not row["alien"]}
    alien = next(row for row in bank["rows"] if row["alien"])
    told = ", ".join(f"{row['loss']['value']:.3f} with {noises}" for noises, row in most.items())
    return (
        f"So many different pictures one prompt can have. What that costs: x_v's loss, of {bank['scale']['entries']} "
        f"entries in all, is {told} noises; with entries of other noises alone {alien['loss']['value']:.3f}"
    )


def _values(results: Results) -> str:
    exact, less = (
        _jump(
            results["smaller"], Recording(DPM.solver, DPM.key_steps, DPM.value_steps, values=values), 5, 10, neighbors=2
        )
        for values in ("float16", "int8")
    )
    return (
        f"As recorded, because a copy of fewer bits can always be made and never taken back: int8 has half the bytes "
        f"and {_two(less)} where they have {_two(exact)}"
    )


def _gate(results: Results) -> str:
    gate = results["gate"]
    kept = sum(row["verdict"] == "kept" for row in gate["promises"])
    won, lost = (sum(row["against_fixed"] == each for row in gate["promises"]) for each in ("better", "worse"))
    areas = [
        f"{row['area']:.2f} to {row['value_step']}"
        for row in gate["scores"]
        if row["score"] == "distance" and row["area"] is not None
    ]
    shipped = f". {_shipped_gate(results['breaks'])}" if "breaks" in results else ""
    return (
        "A limit to how far away a neighbour may be, as a quantile of the base's own distances, so that it means the "
        f"same on every model. How well the distance tells harm: ROC areas of {', '.join(areas)} (0.5 is chance). "
        f"Calibrated plans keep the loss asked for in {kept} of {len(gate['promises'])} cases, and lose less "
        f"than fixed plans of as many calls in {won}, more in {lost}{shipped}"
    )


def _shipped_gate(breaks: Mapping[str, Any]) -> str:
    """Return what the default gate does to one jump, over all prompts."""
    groups = [row for row in breaks["rows"] if row["panel"] == "objects"]
    count = sum(row["n"] for row in groups)
    right = {way: sum(row["n"] * row[way] for row in groups) / count for way in ("jump", "gated")}
    calls = {way: sum(row["n"] * row["calls"][way] for row in groups) / count for way in right}
    return (
        f"With the default one, {breaks['jump'].removeprefix('ReDi ')} takes {calls['gated']:.2f} calls instead of "
        f"{calls['jump']:.2f} and is {right['gated']:.1%} faithful instead of {right['jump']:.1%}"
    )


_RULES: tuple[dict[str, Any], ...] = ({"weights": DEFAULT_WEIGHTS}, {"neighbors": 2})
_LINES: tuple[tuple[str, tuple[str, ...], Callable[[Results], str]], ...] = (
    (
        f"Plan of `redi build`: {DEFAULT_PLAN.num_inference_steps} steps, key after {DEFAULT_PLAN.key_step}, values "
        f"after {listed(DEFAULT_PLAN.value_steps)}.",
        ("table1", "rivals"),
        _plan,
    ),
    (f"Weights: {DEFAULT_WEIGHTS}, not least squares.", ("table1", "table2"), _weights),
    (f"Neighbours: {combiner(DEFAULT_WEIGHTS).default_neighbors}.", ("estimates",), _neighbors),
    ("Key: the trajectory, not the text, after few steps.", ("table3", "rivals"), _key),
    ("Value step: a little after the key.", ("table2",), _value_step),
    ("Schedule: a short one.", ("rivals", "table2"), _schedule),
    ("Against fewer steps:", ("rivals",), against_fewer_steps),
    ("Gate.", ("gate",), _gate),
    (f"Noises: {signature(build).parameters['noises'].default}.", ("bank",), _noises),
    ("Values: float16.", ("smaller",), _values),
)


def _jump(result: Mapping[str, Any], recording: Recording, key_step: int, value_step: int, **options: Any) -> Any:
    return _labelled(result, redi(recording, key_step, value_step, **options).label)


def _labelled(result: Mapping[str, Any], label: str) -> Any:
    return next(row for row in result["rows"] if row["label"] == label)


def _two(row: Mapping[str, Any]) -> str:
    return f"Frechet {row['frechet']['value']:.2f}, {row['faithfulness']['value']:.1%} faithful"
