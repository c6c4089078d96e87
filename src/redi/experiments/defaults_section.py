"""Owns the lines that say why the library's defaults are what they are, from JSON; must not know how it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from redi.building.runner import build
from redi.experiments.estimators import NO_NEIGHBOURS
from redi.experiments.sampling import Recording, Solver, redi
from redi.experiments.studies import DPM, PNDM, SHORT, SHORT_TRAILING
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
    return (
        f"{ours['calls']:.0f} calls of PNDM: {_two(ours)}; the paper's plan from 10 to 40 of 50 {_two(paper)}; PNDM "
        f"alone {_two(alone)} with as many, {_two(usual)} with {usual['calls']:.0f}"
    )


def _weights(results: Results) -> str:
    ours, paper = (_jump(results["table2"], DPM, 5, 15, **each) for each in _RULES)
    late, theirs = (_jump(results["table1"], PNDM, 10, 40, **each) for each in _RULES)
    return (
        f"at 10 calls of DPM-Solver++ they give {_two(ours)} against {_two(paper)} of the paper's two neighbours; "
        f"at 21 calls of PNDM {_two(late)} against {_two(theirs)}"
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
        f"the mean distance to the prompt's own x_v, as a share of the noise's mean's: {told or 'not among the rows'}; "
        "more are a little nearer, and each of them is read from the base for every picture. Of the "
        f"{len(apart)} estimates that are nearer, {better['frechet']} make pictures of less Frechet distance, "
        f"{faithful} more faithful ones, and {better['closeness']} such as are nearer to the run in full"
    )


def _key(results: Results) -> str:
    ours, text = (_jump(results["table3"], DPM, 5, 10, neighbors=2, key=key) for key in ("trajectory", "text"))
    return (
        f"at 15 calls {ours['faithfulness']['value']:.1%} faithful and {ours['closeness']['value']:.2f} from the run "
        f"in full, against {text['faithfulness']['value']:.1%} and {text['closeness']['value']:.2f} of a text key"
    )


def _key_step(results: Results) -> str:
    told = []
    for recording in (SHORT, SHORT_TRAILING):
        found = [(key, _jump(results["rivals"], recording, key, key + 4, weights=DEFAULT_WEIGHTS)) for key in (1, 2, 3)]
        told.append("; ".join(f"after {key} {_two(row)}" for key, row in found))
    return f"of 10 steps, all at 6 calls: {told[0]}; on trailing timesteps {told[1]}"


def _value_step(results: Results) -> str:
    rows = [(v, _jump(results["table2"], DPM, 5, v, weights=DEFAULT_WEIGHTS)) for v in (8, 10, 13, 15)]
    told = "; ".join(f"to {v} ({row['calls']:.0f} calls) {_two(row)}" for v, row in rows)
    return f"of 20 steps, key after 5: {told}; the run in full {_two(_labelled(results['table2'], 'dpm-20'))}"


def _schedule(results: Results) -> str:
    short, trailing = (
        _jump(results["rivals"], recording, 3, 5, weights=DEFAULT_WEIGHTS) for recording in (SHORT, SHORT_TRAILING)
    )
    long = _jump(results["table2"], DPM, 5, 15, weights=DEFAULT_WEIGHTS)
    return (
        f"a base of 10 steps gives {_two(short)} with {short['calls']:.0f} calls, with trailing instead of leading "
        f"timesteps {_two(trailing)}; one of 20 {_two(long)} with 10"
    )


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
        told.append(f"in {name} it is {', '.join(counts)} calls")
    short = [
        e["calls"] for e in found if (e["measure"], e["rival_against_full"]["verdict"]) == ("faithfulness", "worse")
    ]
    room = f"with {listed(short)} calls only" if short else "with none of these"
    return (
        f"the best jump against the best solver alone with as many calls, on the same pictures: {'; '.join(told)} "
        "(even: the interval of the difference holds zero). Where it is behind, fewer steps of a well-spaced solver "
        "are the better buy on this model, which a few steps already serve: in faithfulness the best solver alone is "
        f"behind {results['rivals']['full']} {room}, and elsewhere leaves no room"
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
        f"so many pictures of one prompt differ. What that costs is little: x_v's loss, of {bank['scale']['entries']} "
        f"entries, is {told} noises; entries of other noises are of no use ({alien['loss']['value']:.3f})"
    )


def _values(results: Results) -> str:
    exact, less = (
        _jump(
            results["smaller"], Recording(DPM.solver, DPM.key_steps, DPM.value_steps, values=values), 5, 10, neighbors=2
        )
        for values in ("float16", "int8")
    )
    return f"float16; int8 takes half the bytes at {_two(less)} against {_two(exact)}"


def _gate(results: Results) -> str:
    gate = results["gate"]
    kept = sum(row["verdict"] == "kept" for row in gate["promises"])
    won, lost = (sum(row["against_fixed"] == each for row in gate["promises"]) for each in ("better", "worse"))
    areas = [f"{row['area']:.2f}" for row in gate["scores"] if row["score"] == "distance" and row["area"] is not None]
    return (
        f"a quantile of the base's own distances; the distance tells harmed pictures with ROC areas of "
        f"{', '.join(areas)}; calibrated, the loss asked for is kept in {kept} of {len(gate['promises'])} cases and "
        f"every fixed plan, and lots between two of them, beaten in {won} and not reached in {lost}: on this model the "
        "scores say little of the loss"
    )


_RULES: tuple[dict[str, Any], ...] = ({"weights": DEFAULT_WEIGHTS}, {"neighbors": 2})
_LINES: tuple[tuple[str, tuple[str, ...], Callable[[Results], str]], ...] = (
    (
        f"Plan of `redi build`: {DEFAULT_PLAN.num_inference_steps} steps, key after {DEFAULT_PLAN.key_step}, values "
        f"after {listed(DEFAULT_PLAN.value_steps)}.",
        ("table1",),
        _plan,
    ),
    (f"Weights: {DEFAULT_WEIGHTS}, not least squares.", ("table1", "table2"), _weights),
    (f"Neighbours: {combiner(DEFAULT_WEIGHTS).default_neighbors}.", ("estimates",), _neighbors),
    ("Key: the trajectory, not the text.", ("table3",), _key),
    ("Key step: early; a later one makes no more faithful pictures with as many calls.", ("rivals",), _key_step),
    ("Value step: a little after the key; the farther the jump, the more is lost.", ("table2",), _value_step),
    ("Schedule: a short one; on trailing timesteps where the scheduler has them.", ("rivals", "table2"), _schedule),
    ("Against fewer steps:", ("rivals",), against_fewer_steps),
    ("Gate:", ("gate",), _gate),
    (f"Noises: {signature(build).parameters['noises'].default}.", ("bank",), _noises),
    ("Values:", ("smaller",), _values),
)


def _jump(result: Mapping[str, Any], recording: Recording, key_step: int, value_step: int, **options: Any) -> Any:
    return _labelled(result, redi(recording, key_step, value_step, **options).label)


def _labelled(result: Mapping[str, Any], label: str) -> Any:
    return next(row for row in result["rows"] if row["label"] == label)


def _two(row: Mapping[str, Any]) -> str:
    return f"Frechet {row['frechet']['value']:.2f}, {row['faithfulness']['value']:.1%} faithful"
