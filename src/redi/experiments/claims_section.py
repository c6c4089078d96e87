"""Owns the table of what was claimed, whether it holds and why where it doesn't, from JSON; must not know how it was
made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from redi.experiments.bound_section import BOUND
from redi.experiments.defaults_section import listed
from redi.experiments.estimators import NO_NEIGHBOURS
from redi.experiments.pareto_section import REACHED, as_good_as_the_full, fewest_calls, near_the_full
from redi.experiments.quality import best
from redi.experiments.styles_section import MEASURES as STYLED
from redi.experiments.wording import FORMS, NAMES, interval

Results = Mapping[str, Mapping[str, Any]]
_HOLDS = {True: "yes", False: "no"}
_SHARE, _FEW = 0.65, 5


def claims_section(results: Results) -> str:
    """Return the section; a claim whose study is not among the results says so.

    Args:
        results: By the name of their study.
    """
    lines = ["## What was claimed, and what holds", "", "| claim | measured | holds |", "| --- | --- | --- |"]
    for study, tell in _CLAIMS:
        if study in results:
            lines += [f"| {' | '.join(cells)} |" for cells in tell(results[study])]
        else:
            lines.append(f"| claims of {study} | not measured here (`redi experiments run {study}`) | — |")
    return "\n".join([*lines, "", *_why(results), ""])


Cells = tuple[str, str, str]


def _tested(result: Mapping[str, Any]) -> list[Cells]:
    """Return a line for each pair of samplings that a table's claims compare."""
    pairs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for claim in result["claims"]:
        pairs.setdefault((claim["ours"], claim["rival"]), []).append(claim)
    calls = {row["label"]: row["calls"] for row in result["rows"]}
    found = []
    for (ours, rival), claims in pairs.items():
        said = f"{ours} ({calls[ours]:.4g} calls) is no worse than {rival} ({calls[rival]:.4g})"
        found.append((said, "; ".join(map(_difference, claims)), _holds([c["verdict"] != "worse" for c in claims])))
    return found


def _difference(claim: Mapping[str, Any]) -> str:
    return f"{NAMES[claim['measure']]} {interval(claim['difference'], FORMS[claim['measure']], sign='+')}"


def _holds(each: Sequence[bool]) -> str:
    return _HOLDS[all(each)] if all(each) or not any(each) else f"in {sum(each)} of {len(each)}"


def _of_few_calls(result: Mapping[str, Any]) -> list[Cells]:
    """Return lines on jumps of few calls against the run in full and against solvers alone."""
    claim = (
        "some jump of at most 8 calls is within 3 % of the full run's Frechet distance and 3 points of its faithfulness"
    )
    found = [(claim, near_the_full(result), _HOLDS[bool(as_good_as_the_full(result))])]
    for measure in ("frechet", "faithfulness"):
        few = [each for each in result["best"] if each["measure"] == measure and 3 <= each["calls"] <= 8]
        counts = {verdict: sum(each["verdict"] == verdict for each in few) for verdict in ("better", "worse")}
        even = len(few) - sum(counts.values())
        said = f"better with {counts['better']}, even with {even}, worse with {counts['worse']} of these numbers"
        claim = f"with 3 to 8 calls the best jump beats the best solver alone in {NAMES[measure]}"
        found.append((claim, said, _HOLDS[counts["better"] == len(few)]))
    for measure in ("frechet", "faithfulness"):
        needed = {calls: fewest_calls(result["rows"], measure, calls) for calls in REACHED}
        said = "; ".join(
            f"{'no jump' if few is None else f'{few:.4g}'} instead of {calls}" for calls, few in needed.items()
        )
        claim = (
            f"a jump needs at most {_SHARE} times the calls of the best solver alone for what that reaches with "
            f"{listed(REACHED)} calls, in {NAMES[measure]}, as measured (whatever the intervals)"
        )
        found.append((claim, said, _holds([few is not None and few <= _SHARE * n for n, few in needed.items()])))
    return found


def _of_chains(result: Mapping[str, Any]) -> list[Cells]:
    """Return lines on chains of jumps against solvers alone with as many calls, and against chains by no neighbours."""
    rows = {row["label"]: row for row in result["rows"]}
    compared: dict[tuple[str, bool], dict[str, list[str]]] = {}
    for claim in result["claims"]:
        alone = rows[claim["rival"]]["sampling"]["chain"] is None
        verdicts = compared.setdefault((claim["ours"], alone), {}).setdefault(claim["measure"], [])
        verdicts.append(claim["verdict"])
    found = []
    for (ours, alone), measures in compared.items():
        told = {each: [verdict == "better" for verdict in measures[each]] for each in ("frechet", "faithfulness")}
        said = "; ".join(
            f"{NAMES[measure]} better than {each.count('better')}, even with {each.count('no difference')}, "
            f"worse than {each.count('worse')}"
            for measure, each in measures.items()
        )
        many = len(measures["frechet"])
        rivals = f"each of {many} solvers alone with as many" if alone else "the same by no neighbours"
        holds = _holds([won for each in told.values() for won in each])
        beat = f"beat {rivals} in Frechet and faithful"
        found.append((f"several jumps, {ours} ({rows[ours]['calls']:.4g} calls), {beat}", said, holds))
    return found


def _of_retrieval(result: Mapping[str, Any]) -> list[Cells]:
    """Return a line on what neighbours are good for: the same jump with none."""
    found = []
    for row in (row for row in result["pictures"] if row["estimator"] == NO_NEIGHBOURS):
        apart, (key_step, value_step) = row["against_default"], result["place"]
        told = [{"measure": name, "difference": apart[name]} for name in ("frechet", "faithfulness", "closeness")]
        found.append(
            (
                f"a jump by neighbours, {result['solver']} {key_step}->{value_step}, is better than the same by none "
                "(the noise's mean value and the key's offset, scaled)",
                f"by none: {'; '.join(map(_difference, told))}",
                _holds([apart["frechet"]["low"] > 0, apart["faithfulness"]["high"] < 0, apart["closeness"]["low"] > 0]),
            )
        )
    return found


def _of_the_gate(result: Mapping[str, Any]) -> list[Cells]:
    kept = [row["verdict"] == "kept" for row in result["promises"]]
    against = [row["against_fixed"] for row in result["promises"]]
    won = [verdict == "better" for verdict in against]
    said = (
        f"better {sum(won)}, even {against.count('no difference')}, worse {against.count('worse')} times of {len(won)}"
    )
    return [
        ("`redi calibrate` keeps the loss asked for", f"kept {sum(kept)} times of {len(kept)}", _holds(kept)),
        (
            "its plans lose less than the best that fixed plans of as many calls do, one for all or two at random",
            said,
            _holds(won),
        ),
    ]


def _of_the_bound(result: Mapping[str, Any]) -> list[Cells]:
    """Return a line on the paper's section 7: whether the bound tells more than the distance that it starts from."""
    rows = [row for row in result["rows"] if row["predictor"] == BOUND]
    ratios, ranks = [row["ratio"] for row in rows], [row["correlation"]["value"] for row in rows]
    gains = [row["gain"] for row in rows]
    said = (
        f"too large by {min(ratios):.3g} to {max(ratios):.3g} times; rank correlation {min(ranks):.2f} to "
        f"{max(ranks):.2f}, higher than the distance's at {sum(each['low'] > 0 for each in gains)} of {len(rows)} "
        f"value steps, lower at {sum(each['high'] < 0 for each in gains)}"
    )
    claim = "the error bound tells how far apart trajectories come better than the distance at the key (section 7)"
    return [(claim, said, _holds([each["low"] > 0 for each in gains]))]


def _of_styles(result: Mapping[str, Any]) -> list[Cells]:
    """Return a line for each jump to a style, on figure 4: comparable content and style, a layout more alike."""
    found = []
    for row in (row for row in result["rows"] if row["style"] == "all" and row["label"].startswith("ReDi")):
        apart = {name: row[f"{measure}_against_full"] for measure, name in STYLED.items()}
        said = "; ".join(f"{name} {interval(each, '.1%', sign='+')}" for name, each in apart.items())
        held = [apart["content"]["high"] >= 0, apart["style"]["high"] >= 0, apart["layout"]["low"] > 0]
        claim = f"a new style, {row['label']}: content and style no worse than in full, layout more alike (figure 4)"
        found.append((claim, said, _holds(held)))
    return found


def _of_figure6(result: Mapping[str, Any]) -> list[Cells]:
    """Return a line on the paper's figure 6, whose four sentences are told of faithfulness and of x_v."""
    ends = {panel: result["ends"][panel]["faithfulness"] for panel in ("size", "value", "key")}
    points: dict[Any, dict[int, float]] = {}
    for row in result["rows"]:
        place = (row["share"], row["key_step"], row["value_step"])
        points.setdefault(place, {})[row["neighbors"]] = row["at_value"]["value"]
    most = max(row["neighbors"] for row in result["rows"])
    nearer = sum(each[most] < each[1] for each in points.values())
    names = {"size": "largest base", "value": "longest jump", "key": "latest key"}
    told = [f"{names[panel]} {interval(each, '.1%', sign='+')}" for panel, each in ends.items()]
    said = f"faithful, against the other end: {'; '.join(told)}; H={most} nearer than 1 at {nearer} of {len(points)}"
    held = [ends["size"]["low"] > 0, ends["value"]["high"] < 0, ends["key"]["high"] < 0, nearer == len(points)]
    claim = (
        f"figure 6, {result['title']}: a larger base is better, a longer jump and a later key are worse, "
        "more neighbours are nearer to x_v"
    )
    return [(claim, said, _holds(held))]


def _why(results: Results) -> list[str]:
    """Return what keeps jumps from doing better, and what was tried, as far as it was measured."""
    said = []
    if "bank" in results:
        rows = [row for row in results["bank"]["rows"] if not row["alien"] and row["noises"] == 1]
        few, many = rows[0], rows[-1]
        said.append(
            f"More entries: with {few['entries']} of a noise the estimate of x_v is off by "
            f"{few['loss']['value']:.0%} of what the mean of the noise's values is off by, with {many['entries']} by "
            f"{many['loss']['value']:.0%}."
        )
    if "estimates" in results:
        errors: dict[str, list[float]] = {}
        for row in results["estimates"]["rows"]:
            errors.setdefault(row["estimator"], []).append(row["error"]["value"])
        most, default = max(map(len, errors.values())), results["estimates"]["default"]
        means = {name: sum(each) / most for name, each in errors.items() if len(each) == most}
        name = min(means, key=means.__getitem__)
        without = f", without any neighbours by {means[NO_NEIGHBOURS]:.1%}" if NO_NEIGHBOURS in means else ""
        said.append(
            f"Other estimates of x_v from the same entries: the best of {len(errors)}, *{name}*, is off by "
            f"{means[name]:.1%} of that, *{default}* by {means[default]:.1%}{without}."
        )
    if "breaks" in results:
        objects = [row for row in results["breaks"]["rows"] if row["panel"] == "objects"]
        told = ", ".join(f"{row['difference']['value']:+.1%} with {row['group']}" for row in objects)
        said.append(f"Several objects in a picture: faithful, against the run in full, {told}.")
    if "rivals" in results:
        rivals = results["rivals"]
        (full,) = (row for row in rivals["rows"] if row["label"] == rivals["full"])
        alone = best(rivals["rows"], "faithfulness", _FEW, jumps=False)
        if alone:
            said.append(
                f"What is left to win: {alone['label']} alone is {alone['faithfulness']['value']:.1%} "
                f"faithful with {_FEW} calls, {full['label']} {full['faithfulness']['value']:.1%} with "
                f"{full['calls']:.0f}."
            )
    return ["Beside that:", "", *(f"- {each}" for each in said)] if said else []


_CLAIMS: tuple[tuple[str, Callable[[Mapping[str, Any]], list[Cells]]], ...] = (
    ("table1", _tested),
    ("table2", _tested),
    ("table3", _tested),
    ("rivals", _of_few_calls),
    ("chains", _of_chains),
    ("estimates", _of_retrieval),
    ("gate", _of_the_gate),
    ("styles", _of_styles),
    ("bound", _of_the_bound),
    ("figure6-short", _of_figure6),
    ("figure6", _of_figure6),
    ("figure6-pndm", _of_figure6),
)
"""The study of each claim, and what tells of it."""
