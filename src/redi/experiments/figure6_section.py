"""Owns the report's section on figure 6 of the paper, from the result's JSON; must not know how it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from redi.experiments.plots import bars, image_of, write_plots
from redi.experiments.wording import interval

_Row = Mapping[str, Any]
_MEASURES = {
    "frechet": ("Frechet distance (less is better)", ".2f"),
    "faithfulness": ("faithful (more is better)", ".1%"),
    "closeness": ("distance from full run (less is better)", ".2f"),
    "at_value": ("x_v apart (less is better)", ".2f"),
}
_AXES: Mapping[str, tuple[str, Callable[[_Row], Any]]] = {
    "size": ("entries", lambda row: row["entries"]),
    "value": ("value step", lambda row: row["value_step"]),
    "key": ("key step, value step as far from it", lambda row: row["key_step"]),
}


def figure6_section(result: Mapping[str, Any], images: Path) -> str:
    """Return the section, and draw its plots."""
    scale, full = result["scale"], result["full"]
    image = write_plots(image_of(result, images), partial(_draw, result), size=(11, 9))
    lines = [
        f"## Figure 6: base size, value step, key step, neighbours ({result['title']})",
        "",
        f"The paper's least squares, {scale['replicates']} banks of {scale['noises']} noises; pictures of "
        f"{result['queries']} held-out prompts in all, x_v",
        f"of {scale['replicates'] * scale['prompts']}. So few pictures make Frechet distances larger than those of the "
        "tables above; they compare with each",
        "other only, and the plot leaves their intervals out. The run in full has "
        f"{_cell(full, 'frechet')} and {_cell(full, 'faithfulness')} faithful. "
        "Smaller bases hold the",
        "first entries of each noise. *No difference* is where the interval of the",
        "difference, on the same prompts, holds zero.",
        "",
        f"| panel | entries | key | value | calls | H | {' | '.join(text for text, _ in _MEASURES.values())} |",
        "| --- |" + " ---: |" * (5 + len(_MEASURES)),
    ]
    for panel in _AXES:
        for row in _rows(result, panel):
            cells = [row[each] for each in ("entries", "key_step", "value_step")]
            cells += [f"{row['calls']:.4g}", row["neighbors"], *(_cell(row, measure) for measure in _MEASURES)]
            lines.append(f"| {panel} | {' | '.join(map(str, cells))} |")
    lines += ["", *(_verdict(result, panel) for panel in _AXES), _of_neighbors(result), ""]
    return "\n".join([*lines, f"![Figure 6, {result['title']}](images/{image.name})\n"])


def _rows(result: Mapping[str, Any], panel: str) -> list[_Row]:
    points = [tuple(point.values()) for point in result["panels"][panel]]
    found = {(row["share"], row["key_step"], row["value_step"], row["neighbors"]): row for row in result["rows"]}
    counts = sorted({row["neighbors"] for row in result["rows"]})
    return [found[(*point, count)] for point in points for count in counts]


def _verdict(result: Mapping[str, Any], panel: str) -> str:
    """Return how the ends of a panel compare, at the most neighbours, in words that the figures choose."""
    name, axis = _AXES[panel]
    most = max(row["neighbors"] for row in result["rows"])
    rows = [row for row in _rows(result, panel) if row["neighbors"] == most]
    first, last = rows[0], rows[-1]
    said = [
        f"{text.split(' (')[0]} {_value(first, measure)} to {_value(last, measure)}"
        f"{_sure(result['ends'][panel], measure)}"
        for measure, (text, _) in _MEASURES.items()
    ]
    return f"- *{name}*, {axis(first)} to {axis(last)}, H={most}: {', '.join(said)}."


def _of_neighbors(result: Mapping[str, Any]) -> str:
    """Return which number of neighbours is nearest to x_v, by point."""
    points: dict[Any, list[_Row]] = {}
    for row in result["rows"]:
        points.setdefault((row["share"], row["key_step"], row["value_step"]), []).append(row)
    best = [min(rows, key=lambda row: row["at_value"]["value"])["neighbors"] for rows in points.values()]
    return f"- *neighbours*: nearest to x_v with H={', '.join(map(str, sorted(set(best))))}, over {len(best)} points."


def _sure(ends: Mapping[str, Mapping[str, float]], measure: str) -> str:
    apart = ends[measure]
    return "" if apart["low"] > 0 or apart["high"] < 0 else " (no difference)"


def _value(row: _Row, measure: str) -> str:
    return f"{row[measure]['value']:{_MEASURES[measure][1]}}"


def _cell(row: _Row, measure: str) -> str:
    return interval(row[measure], _MEASURES[measure][1])


def _draw(result: Mapping[str, Any], figure: Any) -> None:
    """Draw three measures over the axis of each panel, a line for each H; without the intervals of Frechet distances,
    which are several times as high as the plot."""
    measures = ("faithfulness", "frechet", "closeness")
    axes: Any = figure.subplots(len(measures), len(_AXES))
    for column, (panel, (name, axis_of)) in zip(axes.T, _AXES.items(), strict=True):
        rows = _rows(result, panel)
        for count in sorted({row["neighbors"] for row in rows}):
            own = [row for row in rows if row["neighbors"] == count]
            for axis, measure in zip(column, measures, strict=True):
                found = [row[measure] for row in own]
                axis.errorbar(
                    [axis_of(row) for row in own],
                    [each["value"] for each in found],
                    yerr=None if measure == "frechet" else bars(found),
                    label=f"H={count}",
                    marker=".",
                    linewidth=1,
                    elinewidth=0.5,
                    capsize=2,
                )
        for axis, measure in zip(column, measures, strict=True):
            axis.set(xlabel=name, ylabel=_MEASURES[measure][0], xticks=sorted({axis_of(row) for row in rows}))
    axes[0][0].legend(fontsize=7)
