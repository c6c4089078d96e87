"""Owns what is rated blind: pairs in random order, what is asked of them, a session that outlives a kill; must not know
how the pictures were made, nor the page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from redi.errors import InputError
from redi.experiments.scores import SCORES, append_line, read_scores

_ENDING = ".png"


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt, and who made each, in the order in which they are shown.

    Attributes:
        name: Its own.
        prompt: The content description, without a style.
        makers: Of the first picture and of the second.
        files: Of the first picture and of the second.
        reference: The style-free picture that layouts are compared with.
    """

    name: str
    prompt: str
    makers: tuple[str, str]
    files: tuple[Path, Path]
    reference: Path | None = None


@dataclass(frozen=True)
class Task:
    """What there is to rate.

    Attributes:
        pairs: In the order of showing.
        questions: By aspect, in the order of asking; ``{side}`` is where left or right goes.
        folder: A hash over prompts and pictures, which tells one folder's scores from another's.
    """

    pairs: Sequence[Pair]
    questions: Mapping[str, str]
    folder: str


@dataclass(frozen=True)
class Session:
    """One rater's task and the scores given so far.

    Args:
        task: What is rated.
        scores: File of JSON lines, one a pair; made when the first score comes.
    """

    task: Task
    scores: Path
    _lock: Any = field(default_factory=Lock, init=False, repr=False, compare=False)

    def rated(self) -> set[int]:
        """Return the places of the pairs that have scores.

        Raises:
            InputError: The file of scores does not read, or is of another folder or of other questions.
        """
        lines = read_scores(self.scores)
        check_folder(self.task, self.scores, lines)
        asked = list(self.task.questions)
        other = next((list(line["scores"]) for line in lines if set(line["scores"]) != set(asked)), None)
        if other is not None:
            raise InputError(
                f"{self.scores} has scores of {', '.join(other)}; asked for {', '.join(asked)}",
                expected="the same questions throughout",
                fix="--style-free as before, or another file with --scores",
            )
        names = {line["picture"] for line in lines}
        return {place for place, pair in enumerate(self.task.pairs) if pair.name in names}

    def next(self) -> dict[str, Any]:
        """Return what the page may know of the next pair, never who made it, and how many are left."""
        rated = self.rated()
        left = [place for place in range(len(self.task.pairs)) if place not in rated]
        if not left:
            return {"left_over": 0}
        questions = [{"aspect": aspect, "text": text} for aspect, text in self.task.questions.items()]
        prompt = self.task.pairs[left[0]].prompt
        return {"left_over": len(left), "place": left[0], "prompt": prompt, "questions": questions}

    def score(self, told: Any) -> None:
        """Keep the scores of a pair; a pair that has some keeps them.

        Args:
            told: ``{"place": a pair's, "scores": {aspect: [of its first picture, of its second]}}``, from the page.

        Raises:
            InputError: It is something else, or the file cannot be written.
        """
        pairs, asked = self.task.pairs, self.task.questions
        expected = f"a place below {len(pairs)} and two whole scores of 1 to 5 for each of {', '.join(asked)}"
        place, scores = (told.get("place"), told.get("scores")) if isinstance(told, Mapping) else (None, None)
        if type(place) is not int or place not in range(len(pairs)):
            raise InputError(f"scores {told!r:.100}", expected=expected)
        if not isinstance(scores, Mapping) or scores.keys() != asked.keys():
            raise InputError(f"scores {told!r:.100}", expected=expected)
        for given in scores.values():
            if not isinstance(given, list) or [type(each) for each in given] != [int, int] or not {*given} <= SCORES:
                raise InputError(f"scores {told!r:.100}", expected=expected)
        with self._lock:
            if place in self.rated():
                return
            pair = pairs[place]
            line = {
                "folder": self.task.folder,
                "picture": pair.name,
                "prompt": pair.prompt,
                "first": pair.makers[0],
                "scores": {aspect: dict(zip(pair.makers, scores[aspect], strict=True)) for aspect in asked},
            }
            append_line(self.scores, json.dumps(line, ensure_ascii=False))


def task_of(folder: Path, *, style_free: Path | None = None, seed: int) -> Task:
    """Return what to rate of a folder, in an order that the seed alone decides, so that a session can go on.

    Args:
        folder: What ``redi generate --compare`` or ``redi stylize --compare`` wrote; only the latter has a style.
        style_free: What ``redi generate --compare`` wrote for the same prompts and noises: layouts are compared with
            its runs in full.
        seed: Of the order of pairs and of their sides.

    Raises:
        InputError: A report does not read or has no pair, a picture is not there, or the folders do not go together.
    """
    report = _read(folder)
    found = [picture for picture in report.pictures if picture.full is not None]
    if not found:
        raise InputError(
            f"no pairs in {folder}", expected="pictures with their runs in full", fix="redi generate --compare"
        )
    references = {} if style_free is None else _references(report, found, folder, style_free)
    rng = np.random.default_rng(seed)
    pairs = []
    for place in rng.permutation(len(found)):
        picture = found[place]
        sides = [("redi", picture.file), ("full", picture.full or picture.file)]
        first, second = sides if rng.random() < 0.5 else sides[::-1]
        name = picture.file.name
        pairs.append(Pair(name, picture.prompt, (first[0], second[0]), (first[1], second[1]), references.get(name)))
    return Task(pairs, _questions(report.style, style_free is not None), _hash(report.style, found))


def check_folder(task: Task, scores: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a file's lines if one is of another folder.

    Raises:
        InputError: One is.
    """
    if any(line["folder"] != task.folder for line in lines):
        raise InputError(
            f"{scores} has scores of other pictures",
            expected="scores of this folder, its pictures as they were",
            fix="the folder that they were given for, or another file with --scores",
        )


@dataclass(frozen=True)
class _Picture:
    """What a report tells of one picture; its noise is a place in the bank and a seed, None where unknown."""

    prompt: str
    noise: tuple[int | None, int | None]
    file: Path
    full: Path | None


@dataclass(frozen=True)
class _Report:
    """What a folder's report tells: the pictures, their base's id, and the words of the style, if there is one."""

    base: Any
    style: str | None
    pictures: Sequence[_Picture]


def _read(folder: Path) -> _Report:
    """Read the report of a folder, its prompts without the style."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        style = report.get("settings", {}).get("style")
        pictures = []
        for image in report["images"]:
            full = folder / Path(image["full"]["file"]).name if "full" in image else None
            prompt, file = image["prompt"], folder / Path(image["file"]).name
            if style is not None and not (isinstance(style, str) and prompt.endswith(f" {style}")):
                raise ValueError(f"prompt {prompt!r} does not end with the style {style!r}")
            content = prompt if style is None else prompt.removesuffix(f" {style}")
            if file.suffix == _ENDING:
                pictures.append(_Picture(content, (image.get("noise_id"), image.get("seed")), file, full))
        return _Report(report.get("knowledge_base", {}).get("id"), style, pictures)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"no report of pictures in {folder}: {error}",
            expected="a folder that redi generate --compare or redi stylize --compare wrote",
            fix="redi generate --prompts prompts.txt --kb base --compare --out pictures",
        ) from error


def _references(report: _Report, found: Sequence[_Picture], folder: Path, style_free: Path) -> dict[str, Path]:
    """Return the style-free picture of each picture, by its name: the run in full of its prompt from its noise."""
    if report.style is None:
        raise InputError(
            f"--style-free with {folder}, which has no style", expected="a folder that redi stylize --compare wrote"
        )
    other = _read(style_free)
    fix = "redi generate --compare with the same prompts, --kb and --seed"
    if other.style is not None:
        raise InputError(f"{style_free} has the style {other.style!r}", expected="pictures without a style", fix=fix)
    if other.base != report.base:
        raise InputError(
            f"{style_free} was made with another base than {folder}", expected="the same noises and steps", fix=fix
        )
    by_noise = {(each.prompt, each.noise): each for each in other.pictures}
    prompts = {each.prompt for each in other.pictures}
    references = {}
    for picture in found:
        same = by_noise.get((picture.prompt, picture.noise))
        if same is None:
            what = "from another noise" if picture.prompt in prompts else "not"
            raise InputError(
                f"{picture.prompt!r} of {folder} is {what} in {style_free}",
                expected="the same prompts from the same noises",
                fix=fix,
            )
        if same.full is None:
            raise InputError(f"{picture.prompt!r} in {style_free} has no run in full", expected="one", fix=fix)
        _bytes(same.full)
        references[picture.file.name] = same.full
    return references


def _questions(style: str | None, layout: bool) -> dict[str, str]:
    """Return what is asked, by aspect (section 6.3 of the paper)."""
    questions = {"faithfulness": "How well does the {side} picture show this? 1 (not) to 5 (fully)"}
    if style is not None:
        questions["style"] = f"How well does the {{side}} picture keep to the style '{style}'? 1 (not) to 5 (fully)"
    if layout:
        questions["layout"] = (
            "How similar is the layout of the {side} picture to that of the one in the middle? 1 (not) to 5 (fully)"
        )
    return questions


def _hash(style: str | None, found: Sequence[_Picture]) -> str:
    told = hashlib.sha256(json.dumps(style).encode())
    for picture in found:
        told.update(json.dumps([picture.file.name, picture.prompt]).encode())
        for file in (picture.file, picture.full or picture.file):
            told.update(hashlib.sha256(_bytes(file)).digest())
    return told.hexdigest()


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {file}: {error.strerror}", expected="every picture that the report names"
        ) from error
