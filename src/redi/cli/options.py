"""Owns the options that several commands take, and how their values are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from redi.pipelines import DTYPES, MINIATURE, SCHEDULERS

DEFAULT_WEIGHTS = "kriging"
"""The library's own default, told here again: importing it would load torch before --help is shown."""


def steps(text: str) -> tuple[int, ...]:
    """Read step numbers separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of steps such as 20,30,40") from None


def limit(text: str | None) -> float | dict[int, float] | None:
    """Read one number, or a number for each of several value steps such as ``30:9,40:4``."""
    if text is None:
        return None
    try:
        if ":" not in text:
            return float(text)
        parts = [part.split(":") for part in text.split(",")]
        found = {int(step): float(number) for step, number in parts}
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor limits of value steps such as 30:9,40:4") from None
    if len(found) != len(parts):
        raise typer.BadParameter(f"{text!r} names a value step twice")
    return found


def arguments(given: list[str] | None) -> dict[str, Any]:
    """Read arguments of a pipeline's call such as ``height=512`` or ``negative_prompt_2=fog``: JSON, or else text."""
    found: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not name.isidentifier() or not equals or name in found:
            raise typer.BadParameter(f"{text!r} is not one argument of a pipeline's call such as height=512")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def checked_arguments(given: list[str] | None) -> list[str] | None:
    """Refuse, as wrong usage, what :func:`arguments` cannot read."""
    arguments(given)
    return given


def checked_limit(text: str | None) -> str | None:
    """Refuse, as wrong usage, what :func:`limit` cannot read."""
    limit(text)
    return text


def checked_steps(text: str | None) -> str | None:
    """Refuse, as wrong usage, what :func:`steps` cannot read."""
    if text is not None:
        steps(text)
    return text


def one_of(names: Collection[str]) -> Callable[[str | None], str | None]:
    """Return a callback that takes these names only."""

    def check(name: str | None) -> str | None:
        if name is not None and name not in names:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(names)}")
        return name

    return check


def size(text: str | None) -> int | None:
    """Read bytes such as ``500MB`` or ``2GB``."""
    units = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    if text is None:
        return None
    number, unit = text[:-2], text[-2:]
    try:
        return int(float(number) * units[unit])
    except (KeyError, ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is not a size such as 500MB or 2GB") from None


def checked_size(text: str | None) -> str | None:
    """Refuse, as wrong usage, what :func:`size` cannot read."""
    size(text)
    return text


Prompts = Annotated[list[str] | None, typer.Argument(help="One picture is made for each.", metavar="PROMPT...")]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts", help="File with more prompts: .txt, .jsonl, .csv, .parquet, or COCO's .json.", metavar="FILE"
    ),
]
Base = Annotated[
    Path, typer.Option("--kb", help="Folder of the knowledge base, or s3://bucket/name.", metavar="FOLDER")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", help="Where the model is.  [default: where the base's manifest says]", metavar="FOLDER|HUB-ID"
    ),
]
NewModel = Annotated[str, typer.Option("--model", help="What to build with.", metavar=f"FOLDER|HUB-ID|{MINIATURE}")]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        help="The sampler.  [default: the model's own]",
        metavar="|".join(SCHEDULERS),
        callback=one_of(SCHEDULERS),
    ),
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", help="Numbers the model computes with.", metavar="|".join(DTYPES), callback=one_of(DTYPES)),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="Where to compute, as torch names it.  [default: cuda if there, else cpu]", metavar="DEVICE"
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Pictures in one pipeline call.", min=1, metavar="N")]
KeyStep = Annotated[
    int | None,
    typer.Option("--key-step", help="Completed steps before the base is asked.  [default: the base's]", metavar="N"),
]
ValueStep = Annotated[
    int | None,
    typer.Option("--value-step", help="Completed steps to go on from.  [default: the base's last]", metavar="N"),
]
Neighbors = Annotated[
    int | None,
    typer.Option("--neighbors", help="Entries to combine (H).  [default: what the weights like]", metavar="N"),
]
Weights = Annotated[
    str,
    typer.Option("--weights", help="How entries are combined.", metavar="kriging|least-squares|affine|nearest"),
]
MaxDistance = Annotated[
    str | None,
    typer.Option(
        "--max-distance",
        help="A picture whose nearest entry is further away runs in full; inf: no limit. Or, in place of --value-step, "
        "one limit for each of several value steps: a picture goes on from the latest one whose limit it meets.",
        metavar="X|STEP:X,...",
        callback=checked_limit,
    ),
]
Quantile = Annotated[
    str | None,
    typer.Option(
        "--quantile",
        help="The same, as quantiles (0 to 1) of the base's own distances.",
        metavar="X|STEP:X,...",
        callback=checked_limit,
    ),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(
        "--max-loss",
        help="In place of --value-step and a limit: let each picture choose its own step so that the mean loss stays "
        "below this, at the fewest calls. Needs redi calibrate.",
        metavar="X",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Chooses the noises from the base's bank.", min=0, metavar="N")]
Compare = Annotated[
    bool, typer.Option("--compare", help="Also run in full from the same noise, and write both side by side.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Fail where a picture would run in full because its retrieval failed.")
]
Out = Annotated[Path, typer.Option("--out", help="Folder for pictures and report.", metavar="FOLDER")]
Grow = Annotated[
    bool, typer.Option("--grow", help="Add pictures that run in full to the base, in the background and for nothing.")
]
Capacity = Annotated[
    int | None,
    typer.Option("--capacity", help="With --grow: entries that the base may hold.", min=1, metavar="N"),
]
CapacitySize = Annotated[
    str | None,
    typer.Option("--capacity-size", help="The same as a size, such as 2GB.", metavar="SIZE", callback=checked_size),
]
Eviction = Annotated[
    str | None,
    typer.Option(
        "--eviction",
        help="With --grow: what goes when the base is full. aged: what saves least, halved every week; "
        "nirvana: what has saved least; none: nothing, and nothing more is added.",
        metavar="aged|nirvana|lru|fifo|none",
        callback=one_of(("aged", "nirvana", "lru", "fifo", "none")),
        show_default="aged",
    ),
]
