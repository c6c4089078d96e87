"""Owns ``docs/results.md`` and its plots, written from the results' JSON alone; must not know how they were made."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from redi.errors import InputError
from redi.experiments.bank_section import bank_section
from redi.experiments.bound_section import bound_section
from redi.experiments.breaks_section import breaks_section
from redi.experiments.claims_section import claims_section
from redi.experiments.defaults_section import against_fewer_steps, defaults_section
from redi.experiments.earlier_rules import earlier_rules
from redi.experiments.estimates_section import estimates_section
from redi.experiments.figure6_section import figure6_section
from redi.experiments.gate_section import gate_section
from redi.experiments.kept_results import read_result
from redi.experiments.keys_section import keys_section
from redi.experiments.pareto_section import draw, pareto
from redi.experiments.plots import image_of, write_plots
from redi.experiments.runner import EXPERIMENTS
from redi.experiments.styles_section import styles_section
from redi.experiments.subjects import Miniature, subject_of
from redi.experiments.wording import FORMS, NAMES, banks, interval, twins
from redi.results import write_file

_NOTHING = "—"
_HEAD = """# Results

Written by `redi experiments report` from `results/`; no number here is typed. `redi experiments run <name>` makes them
again: {names}. `redi experiments rate` lets people judge pairs of pictures themselves.

{summary}Everything is of {model}, held-out prompts, over noise banks. *Frechet* is the Frechet distance to
{count:,} {reference} in the features of {extractor} (resized: {resize}), *faithful* {score},
*from full* the mean distance of these features to the run in full from the same noise,
*pixels* the root mean square of their difference, of 1, *diversity* the mean distance
of features between pictures of one prompt from several noises, *kernel* the kernel distance to the same pictures,
*abstained* the share of pictures that did not jump, *seconds* wall-clock per picture with everything but loading, on
whatever machine ran the study and with what else it did then (so they do not compare), *x_v apart* the distance
between the latents that a jump goes to and those of that run; {nothing} is what was not measured. Brackets are 95 %
bootstrap intervals over prompts; noises are not resampled.

*dpm-20* is DPM-Solver++(2M) with 20 steps, *trailing* and the like how they are spaced. *ReDi dpm-20 5->15* jumps from
the latents after 5 steps (the key) to an estimate of those after 15 (x_v), which the weights make of the H nearest
entries of the base: *least-squares* as in the paper, *kriging* as the library does. Every picture jumps, as in the
paper: the library's gate is measured in sections of its own.

What differs from the paper: {differs}the noise. The paper's algorithm draws one for each entry (its authors' code has
one for all, prompts too); here a base's entries share those of a bank, as many of each, and a prompt looks at the
entries of its own{alien}. Calls are counted as they are made: PNDM's first step takes two, so that what the paper calls
20 has 21.
"""
_MODEL = (
    "the model (its Stable Diffusion 1.5 on COCO, in Inception's features of 4,000 pictures; Frechet distances in "
    "other features, or of other numbers of pictures, do not compare), the base (its 82,000 entries), and "
)
"""What differs besides, of the bundled model."""
_OTHER = "the model, the features, the pictures and the base where they are not its own, and "


def write_report(results: Path, page: Path, *, scale: str) -> str:
    """Write the page, and the plots beside it; return the page.

    Args:
        results: Folder that :func:`redi.experiments.runner.run_study` wrote.
        page: The Markdown file; plots go to ``images/`` beside it, sheets are linked where they are.
        scale: Which results.

    Raises:
        InputError: There are none, one is damaged, or they are of several scales, models, extractors or references.
    """
    files = sorted((results / scale).glob("*.json"))
    if not files:
        raise InputError(
            f"no results in {results / scale}",
            expected="JSON files of redi experiments run",
            fix=f"redi experiments run table1 --scale {scale}",
        )
    found = [read_result(file, [*SECTIONS, "keys"]) for file in files]
    for file, each in zip(files, found, strict=True):
        if each["scale"]["name"] != scale:
            raise InputError(
                f"{file} is of the scale {each['scale']['name']}",
                expected=f"results of {scale}, so that they compare",
                fix=f"move it to {results / each['scale']['name']}",
            )
    found = [_linked(each, results, page) for each in found]
    found.sort(key=lambda each: list(EXPERIMENTS).index(each["study"]) if each["study"] in EXPERIMENTS else -1)
    by_study = {each["study"]: each for each in found}
    names = ", ".join(by_study)
    subject = _subject(found, results / scale)
    differs = _MODEL if subject["model"] == Miniature().told()["model"] else _OTHER
    summary, alien = _summary(by_study), _of_other_noises(by_study)
    head = _HEAD.format(
        names=names,
        summary=summary,
        differs=differs,
        alien=alien,
        nothing=_NOTHING,
        count=found[0]["scale"]["reference"],
        **subject,
    )
    parts = ["\n\n".join(textwrap.fill(each, 120, break_on_hyphens=False) for each in head.split("\n\n")) + "\n"]
    parts += filter(None, [claims_section(by_study), defaults_section(by_study), keys_section(by_study)])
    parts += [SECTIONS[each["kind"]](each, page.parent / "images") for each in found if each["kind"] != "keys"]
    text = "\n".join(parts)
    write_file(page, text.encode())
    return text


def _linked(result: Mapping[str, Any], results: Path, page: Path) -> dict[str, Any]:
    """Return the result with its sheets as the page links them, wherever it lies."""

    def link(sheet: str) -> str:
        return quote(Path(os.path.relpath(results / sheet, page.parent)).as_posix())

    linked = dict(result)
    if "sheet" in result:
        linked["sheet"] = link(result["sheet"])
    if "sheets" in result:
        linked["sheets"] = [{**each, "file": link(each["file"])} for each in result["sheets"]]
    return linked


def _summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the one paragraph that a reader needs, where rivals were measured."""
    return f"In short: {against_fewer_steps(results)}.\n\n" if "rivals" in results else ""


def _of_other_noises(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return why entries of other noises are not looked at, where it was measured."""
    losses = [row["loss"]["value"] for row in results.get("bank", {"rows": []})["rows"] if row["alien"]]
    return f" (those of other noises leave {losses[0]:.0%} of x_v's distance to the mean)" if losses else ""


def _subject(found: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, str]:
    """Return what the results are of."""
    of = {json.dumps(subject_of(each), sort_keys=True) for each in found}
    if len(of) > 1:
        raise InputError(
            f"results of {len(of)} models, extractors or references in {folder}",
            expected="results that compare",
            fix="keep each in a folder of its own: redi experiments run --results <folder>",
        )
    told: Mapping[str, str] = json.loads(of.pop())
    return told


def _comparison(result: Mapping[str, Any], images: Path) -> str:
    """Return the section of a study that compares samplings, and draw its plot if it has one."""
    lines = [
        f"## {result['title']}",
        "",
        f"{banks(result['scale'])}, {twins(result)}. The run in full is {result['full']}.",
        "",
        *_table(result),
        "",
        *([*textwrap.wrap(result["remark"], 120, break_on_hyphens=False), ""] if result["remark"] else []),
    ]
    if any("lpips" in row for row in result["rows"]):
        where = "of pictures of at most 64 pixels a side"
        lines += [f"*LPIPS* is the mean to the run in full, {where}, by {result['lpips']}.", ""]
    lines += earlier_rules(result)
    if result["claims"]:
        lines += ["| claim | difference | verdict |", "| --- | --- | --- |"]
        lines += [_claim(claim) for claim in result["claims"]]
        lines.append("")
    if "sheet" in result:
        lines.append(f"![{result['title']}: the first prompts]({result['sheet']})\n")
    if result["plot"]:
        image = write_plots(image_of(result, images), partial(draw, result), size=(13, 4.4))
        lines += [f"![{result['title']}](images/{image.name})\n", *pareto(result), ""]
    return "\n".join(lines)


def _table(result: Mapping[str, Any]) -> list[str]:
    paper = result["paper"]
    apart, looks = (any(name in row for row in result["rows"]) for name in ("at_value", "lpips"))
    names = [
        "sampling",
        "calls",
        "Frechet",
        "faithful",
        "from full",
        "pixels",
        *(["LPIPS"] if looks else []),
        "diversity",
        "kernel",
        "abstained",
        "seconds",
        *(["x_v apart"] if apart else []),
        *(["paper's FID"] if paper else []),
    ]
    lines = [f"| {' | '.join(names)} |", "| --- |" + " ---: |" * (len(names) - 1)]
    for row in result["rows"]:
        cells = [
            row["label"],
            f"{row['calls']:.4g}",
            _measured(row, "frechet", ".2f"),
            _measured(row, "faithfulness", ".1%"),
            _measured(row, "closeness", ".2f"),
            _measured(row, "pixels", ".3f"),
            *([_measured(row, "lpips", ".3f")] if looks else []),
            _measured(row, "diversity", ".2f"),
            _measured(row, "kernel", ".2f"),
            f"{1 - row['jumped']:.0%}" if row["sampling"]["jump"] and "jumped" in row else _NOTHING,
            f"{row['seconds']:.2f}" if "seconds" in row else _NOTHING,
            *([_measured(row, "at_value", ".2f")] if apart else []),
            *([f"{paper[row['label']]:.3f}" if row["label"] in paper else ""] if paper else []),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _measured(row: Mapping[str, Any], measure: str, form: str) -> str:
    return interval(row[measure], form) if measure in row else _NOTHING


def _claim(claim: Mapping[str, Any]) -> str:
    said = f"{claim['ours']} no worse than {claim['rival']} in {NAMES[claim['measure']]}"
    return f"| {said} | {interval(claim['difference'], FORMS[claim['measure']])} | {claim['verdict']} |"


SECTIONS: Mapping[str, Callable[[Mapping[str, Any], Path], str]] = {
    "comparison": _comparison,
    "estimates": estimates_section,
    "bound": bound_section,
    "gate": gate_section,
    "bank": bank_section,
    "breaks": breaks_section,
    "figure6": figure6_section,
    "styles": styles_section,
}
"""By kind of result: what returns its section of the page, given the result, with its sheets as the page links them,
and the folder of images; those of "keys" share one that stands before."""
