"""Claims about the report's summaries: the best at each number of calls, and lines that follow the results."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from redi.experiments.claims_section import claims_section
from redi.experiments.defaults_section import defaults_section
from redi.experiments.estimators import NO_NEIGHBOURS
from redi.experiments.keys_section import keys_section
from redi.experiments.pareto_section import pareto
from redi.experiments.sampling import Recording, Solver, redi
from redi.experiments.studies import STUDIES, Study
from redi.retrieval import DEFAULT_WEIGHTS

RESULTS = Path(__file__).parents[1] / "results" / "small"


def row(label: str, calls: float, frechet: float, faithful: float, *, jump: bool = False) -> dict[str, Any]:
    def about(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    return {
        "label": label,
        "calls": calls,
        "sampling": {"jump": {} if jump else None},
        "frechet": about(frechet),
        "closeness": about(frechet),
        "faithfulness": about(faithful),
    }


ROWS = [
    row("dpm-4", 4, 3, 0.3),
    row("unipc-4", 4, 2, 0.2),
    row("dpm-8", 8, 1, 0.8),
    row("ReDi a", 4, 1, 0.35, jump=True),
    row("ReDi b", 8, 1.5, 0.5, jump=True),
]


def best(calls: int, measure: str, verdict: str) -> dict[str, Any]:
    return {"calls": calls, "measure": measure, "verdict": verdict}


RESULT = {
    "rows": ROWS,
    "full": "dpm-8",
    "best": [best(4, "frechet", "better"), best(4, "faithfulness", "no difference"), best(8, "frechet", "worse")],
}


def test_the_best_at_each_number_of_calls_is_told_with_a_verdict() -> None:
    (four,), (eight,) = ([line for line in pareto(RESULT) if line.startswith(f"| {calls} |")] for calls in (4, 8))
    assert "| 2.00 (unipc-4) | 1.00 (a) | better |" in four
    assert "| 30.0% (dpm-4) | 35.0% (a) | even |" in four
    assert "| 1.00 (dpm-8) | 1.50 (b) | worse |" in eight


def test_how_many_calls_reach_what_a_solver_alone_reaches() -> None:
    (line,) = (line for line in pareto(RESULT) if line.startswith("| 8 calls |"))
    assert line == "| 8 calls | 4 (0.50) | none of these | 4 (0.50) |"


def test_jumps_that_are_as_good_as_the_run_in_full_are_named() -> None:
    assert pareto(RESULT)[-1].endswith("jumps none; of solvers alone dpm-8 (8) with fewest.")
    near = row("ReDi c", 6, 1.02, 0.78, jump=True)
    assert pareto({**RESULT, "rows": [*ROWS, near]})[-1].endswith(
        "jumps c (6); of solvers alone dpm-8 (8) with fewest."
    )


def test_keys_are_compared_by_pairs_of_as_many_calls() -> None:
    def jump(step: int, value: int, **options: Any) -> dict[str, Any]:
        sampling = redi(Recording(Solver("dpm", 9), (1, 3), (3, 4, 6)), step, value, weights="kriging", **options)
        told = row(sampling.label, 9 - value + step, 3.0 - step / 4, 0.8 - step / 100, jump=True)
        return {**told, "sampling": asdict(sampling)}

    none, first, last = jump(0, 3, key="text"), jump(1, 4), jump(3, 6)
    verdicts = {(last["label"], first["label"]): ("no difference", "worse", "better")}
    verdicts[first["label"], none["label"]] = ("better", "better", "better")
    claims = [
        {"ours": ours, "rival": rival, "measure": measure, "verdict": verdict}
        for (ours, rival), each in verdicts.items()
        for measure, verdict in zip(("frechet", "faithfulness", "closeness"), each, strict=True)
    ]
    scale = {"replicates": 3, "noises": 4, "entries": 2000, "prompts": 200}
    rows = [ROWS[0], none, first, last]
    result = {"kind": "keys", "title": "T", "full": "dpm-8", "scale": scale, "twins": 0, "rows": rows}
    result |= {"claims": claims}
    page = keys_section({"keys": result})
    (line,) = (each for each in page.splitlines() if each.startswith("| dpm-9 |"))
    assert line == (
        "| dpm-9 | 6 | 3.00, 80.0%, 3.00 | 2.75, 79.0%, 2.75 | 2.25, 77.0%, 2.25 "
        "| even, worse, better | better, better, better |"
    )
    text = page.replace("\n", " ")
    assert "200 held-out prompts, 0 of which are in a base word for word; the run in full is dpm-8." in page
    assert "against the earliest, in Frechet better 0, even 1, worse 0; in faithful better 0, even 0, worse 1;" in text
    assert "against none, in Frechet better 1, even 0, worse 0;" in text
    assert keys_section({"rivals": {"kind": "comparison", "rows": ROWS}}) == ""


def test_lines_follow_the_results_and_say_what_is_not_measured() -> None:
    results = {file.stem: json.loads(file.read_text()) for file in RESULTS.glob("*.json")}
    page = defaults_section(results)
    assert f"Weights: {DEFAULT_WEIGHTS}" in page
    (other,) = (each for each in results["table2"]["rows"] if each["label"] == f"ReDi dpm-20 5->15 {DEFAULT_WEIGHTS}")
    other["faithfulness"]["value"] = 0.123
    assert "12.3% faithful" in defaults_section(results)
    assert defaults_section({}).count("not measured here (`redi experiments run ") == page.count("\n- **")


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_kept_results_are_of_the_rows_and_claims_of_their_study(study: Study) -> None:
    kept = json.loads((RESULTS / f"{study.name}.json").read_text())
    assert [row["label"] for row in kept["rows"]] == [each.label for each in study.samplings]
    told = [(each["ours"], each["rival"], each["measure"]) for each in kept["claims"]]
    assert told == [(each.ours, each.rival, each.measure) for each in study.claims]
    assert (kept["paper"], kept["remark"]) == (dict(study.paper), study.remark)


def results_of_chains(*verdicts: str) -> dict[str, Any]:
    row = {"calls": 3.0, "sampling": {"chain": None}}
    claims = [
        {"ours": "ours", "rival": "alone", "measure": measure, "verdict": verdict}
        for measure, verdict in zip(("frechet", "faithfulness", "closeness"), verdicts, strict=True)
    ]
    return {"rows": [{"label": "ours", **row, "sampling": {"chain": {}}}, {"label": "alone", **row}], "claims": claims}


def test_what_was_claimed_is_told_with_whether_it_holds() -> None:
    def holds(results: dict[str, Any], claim: str) -> str:
        (line,) = (line for line in claims_section(results).splitlines() if claim in line)
        return line.split(" | ")[-1].removesuffix(" |")

    results = {file.stem: json.loads(file.read_text()) for file in RESULTS.glob("*.json")}
    table = results["table2"]
    ours, rival = "ReDi dpm-20 5->15 least-squares H=2 (10 calls)", "dpm-17"
    assert holds(results, f"| {ours} is no worse than {rival}") == "no"
    of_it = [claim for claim in table["claims"] if f"{claim['ours']} (10 calls)" == ours]
    of_it[0]["verdict"] = "no difference"
    assert holds(results, f"| {ours} is no worse than {rival}") == f"in 1 of {len(of_it)}"
    for claim in of_it:
        claim["verdict"] = "better"
    assert holds(results, f"| {ours} is no worse than {rival}") == "yes"

    results = {"rivals": RESULT}
    assert holds(results, "within 3 % of the full run's Frechet") == "no"
    assert holds(results, "beats the best solver alone in Frechet") == "no", "worse with 8 calls"
    assert holds({"rivals": {**RESULT, "best": [best(4, "frechet", "better")]}}, "solver alone in Frechet") == "yes"
    assert holds(results, "10 calls, in Frechet") == "in 1 of 3"
    assert holds(results, "10 calls, in faithful") == "no"
    assert "Beside that" not in claims_section({}), "nothing was measured"
    assert claims_section({}).count("not measured here (`redi experiments run ") == 12

    chains = results_of_chains("better", "better", "no difference")
    assert holds({"chains": chains}, "several jumps, ours (3 calls), beat each of 1 solvers alone") == "yes"
    assert "no neighbours" not in claims_section({"chains": chains}).split("Beside that")[0]
    chains["claims"][1]["verdict"] = "worse"
    assert holds({"chains": chains}, "several jumps, ours (3 calls), beat each of 1 solvers alone") == "in 1 of 2"

    estimates = json.loads((RESULTS / "estimates.json").read_text())
    (alone,) = (each for each in estimates["pictures"] if each["estimator"] == NO_NEIGHBOURS)
    for measure, apart in (("frechet", 1), ("faithfulness", -0.5), ("closeness", 1)):
        alone["against_default"][measure] = {"value": apart, "low": apart - 0.1, "high": apart + 0.1}
    assert holds({"estimates": estimates}, "is better than the same by none") == "yes"
    alone["against_default"]["faithfulness"]["high"] = 0.1
    assert holds({"estimates": estimates}, "is better than the same by none") == "in 2 of 3"


def test_the_papers_other_claims_are_told_with_whether_they_hold() -> None:
    results = {file.stem: json.loads(file.read_text()) for file in RESULTS.glob("*.json")}

    def holds(study: str) -> set[str]:
        lines = claims_section({study: results[study]}).splitlines()
        return {line.split(" | ")[-1].removesuffix(" |") for line in lines if "not measured" not in line[1:]} - {
            "holds",
            "---",
        }

    for row in results["bound"]["rows"]:
        row["gain"] = {"value": 0.2, "low": 0.1, "high": 0.3}
    assert "yes" in holds("bound")
    results["bound"]["rows"][-1]["gain"]["low"] = -0.1
    for row in results["styles"]["rows"]:
        for measure in ("faithfulness", "style_right", "layout"):
            row[f"{measure}_against_full"] = {"value": 0.2, "low": 0.1, "high": 0.3}
    assert holds("styles") >= {"yes"}
    for row in results["styles"]["rows"]:
        row["layout_against_full"]["low"] = -0.1
    assert holds("styles") >= {"in 2 of 3"}
    figure = results["figure6"]
    figure["ends"]["size"]["faithfulness"] = {"value": 0.2, "low": 0.1, "high": 0.3}
    assert "yes" in holds("figure6")
    figure["ends"]["key"]["faithfulness"]["high"] = 0.1
    assert "in 3 of 4" in holds("figure6")
