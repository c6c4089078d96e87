"""Owns the report's section on the gate and calibration, from the result's JSON; must not know how it was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from redi.experiments.plots import bars, image_of, write_plots
from redi.experiments.wording import banks, interval


def gate_section(result: Mapping[str, Any], images: Path) -> str:
    """Return the section, and draw its plot."""
    image = write_plots(image_of(result, images), partial(_draw, result), size=(10, 4))
    lines = [
        f"## The gate ({result['solver']}, key after {result['key_step']}, `{result['weights']}`)",
        "",
        f"{banks(result['scale'])}.",
        "*Harmed*: the evaluator finds everything in the run in full and not after the jump. *ROC area*: how often a",
        "harmed picture has the higher score of a harmed and an unharmed one (0.5 is chance). *Rank correlation*:",
        "Spearman's, of the score and the loss, which is the distance of features to the run in full.",
        "",
        "| value step | score | harmed | ROC area | rank correlation with the loss |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for row in result["scores"]:
        harmed = "" if row["harmed"] is None else f"{row['harmed']:.1%}"
        said = (harmed, "" if row["area"] is None else f"{row['area']:.2f}", f"{row['rank']:.2f}")
        lines.append(f"| {row['value_step']} | {row['score']} | {' | '.join(said)} |")
    lines += [
        "",
        "`redi calibrate` on half of the prompts, asked for a mean loss, and what the other half came to, over",
        f"{result['splits']} random splits of each bank. *Kept*: the interval of the loss does not lie above what was",
        "asked. *Above* is the share of splits whose mean on the other half was above it, which a half can be by",
        "chance. *Fixed* is the loss of the best fixed plan at the same mean calls, or of two of them, one of which",
        "is drawn for each picture so that they come to as many calls; *apart* the difference on the same prompts. Of",
        f"the gates chosen {_took(result['promises'])}.",
        "",
        "| asked | loss | above | mean calls | promise | fixed | apart | against it |",
        "| ---: | ---: | ---: | ---: | --- | ---: | ---: | --- |",
    ]
    for row in result["promises"]:
        cells = (
            f"{row['asked']:.2g}",
            interval(row["loss"], ".3f"),
            f"{row['broken_splits']:.0%}",
            f"{row['calls']:.1f}",
            row["verdict"],
            f"{row['fixed_loss']:.3f}",
            interval(row["difference"], ".3f", sign="+"),
            row["against_fixed"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"![Loss over calls](images/{image.name})\n"])


def _took(promises: Sequence[Mapping[str, Any]]) -> str:
    """Tell what the gates looked at."""
    counts = Counter[str]()
    for row in promises:
        counts.update(row["scores"])
    return " and ".join(f"{count / counts.total():.0%} look at the {name}" for name, count in counts.most_common())


def _draw(result: Mapping[str, Any], figure: Any) -> None:
    """Draw loss over calls and delivered over asked loss."""
    promises, fixed = result["promises"], result["fixed"]
    over_calls, kept = figure.subplots(1, 2)
    told = [row["loss"] for row in promises]
    spread = bars(told)
    means = [each["value"] for each in told]
    over_calls.errorbar([row["calls"] for row in promises], means, spread, marker="o", capsize=2, label="calibrated")
    calls = [each["calls"] for each in fixed]
    over_calls.plot(calls, [each["loss"] for each in fixed], "s", label="one value step for all")
    over_calls.plot(calls, result["lots"], "--", color="tab:orange", label="two of them at random")
    over_calls.set(xlabel="mean network calls", ylabel="mean distance to the full run")
    over_calls.legend()
    asked = [row["asked"] for row in promises]
    kept.errorbar(asked, means, spread, marker="o", capsize=2, label="delivered on fresh prompts")
    kept.plot(asked, asked, color="black", linewidth=1, label="asked")
    kept.set(xlabel="loss asked for", ylabel="loss delivered")
    kept.legend()
