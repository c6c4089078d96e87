"""Owns rating pictures blind, in a browser: pairs in random order, scores of 1 to 5 kept line by line; must not know
how the pictures were made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from redi.errors import InputError
from redi.metrics import mean_interval

SCORES = range(1, 6)
_ENDING = ".png"
_MOST_BYTES = 1000

_PAGE = """<!doctype html>
<meta charset="utf-8"><title>Rate pictures</title>
<style>
body { font: 18px sans-serif; text-align: center; margin: 2em }
img { width: 320px; image-rendering: pixelated; margin: 1em; border: 4px solid transparent }
img.asked { border-color: #36c }
button { font-size: 18px; margin: .2em; padding: .3em 1em }
</style>
<p id="prompt"></p>
<div><img id="left" alt="left picture"><img id="right" alt="right picture"></div>
<p id="question"></p>
<div id="scores"></div>
<p id="left-over"></p>
<script>
let pair = null, asked = 0, given = [];
const at = name => document.getElementById(name);
const show = () => {
  at("left").className = asked === 0 ? "asked" : "";
  at("right").className = asked === 1 ? "asked" : "";
  at("question").textContent = `How well does the ${asked ? "right" : "left"} picture show this? 1 (not) to 5 (fully)`;
};
const next = async () => {
  pair = await (await fetch("/next")).json();
  asked = 0; given = [];
  at("left-over").textContent = `${pair.left_over} pairs left`;
  if (!pair.left_over) {
    for (const name of ["prompt", "question", "scores"]) at(name).textContent = "";
    at("prompt").textContent = "Done. Thank you.";
    at("left").hidden = at("right").hidden = true;
    pair = null;
    return;
  }
  at("prompt").textContent = pair.prompt;
  at("left").src = `/picture/${pair.place}/0`;
  at("right").src = `/picture/${pair.place}/1`;
  show();
};
const score = async number => {
  if (!pair) return;
  given.push(number);
  if (++asked < 2) return show();
  const told = { place: pair.place, scores: given };
  pair = null;
  const answer = await fetch("/score", { method: "POST", body: JSON.stringify(told) });
  if (!answer.ok) alert(await answer.text());
  await next();
};
for (const number of [1, 2, 3, 4, 5]) {
  const button = document.createElement("button");
  button.textContent = number;
  button.onclick = () => score(number);
  at("scores").append(button);
}
addEventListener("keydown", event => { if ("12345".includes(event.key) && event.key) score(Number(event.key)); });
next();
</script>
"""


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt, and who made each, in the order in which they are shown; the name is its own."""

    name: str
    prompt: str
    makers: tuple[str, str]
    files: tuple[Path, Path]


@dataclass(frozen=True)
class Session:
    """One rater's pairs and the scores given so far.

    Args:
        pairs: In the order of showing.
        scores: File of JSON lines, one a pair; made when the first score comes.
    """

    pairs: Sequence[Pair]
    scores: Path
    _lock: Any = field(default_factory=Lock, init=False, repr=False, compare=False)

    def rated(self) -> set[int]:
        """Return the places of the pairs that have scores."""
        names = {each["picture"] for each in read_scores(self.scores)}
        return {place for place, pair in enumerate(self.pairs) if pair.name in names}

    def next(self) -> dict[str, Any]:
        """Return what the page may know of the next pair, never who made it, and how many are left."""
        rated = self.rated()
        left = [place for place in range(len(self.pairs)) if place not in rated]
        if not left:
            return {"left_over": 0}
        return {"left_over": len(left), "place": left[0], "prompt": self.pairs[left[0]].prompt}

    def score(self, told: Any) -> None:
        """Keep the scores of a pair; a pair that has some keeps them.

        Args:
            told: ``{"place": a pair's, "scores": [of its first picture, of its second]}``, as the page sends it.

        Raises:
            InputError: It is something else, or the file cannot be written.
        """
        expected = f"a place below {len(self.pairs)} and two whole scores of 1 to 5"
        if not isinstance(told, Mapping) or not isinstance(scores := told.get("scores"), list) or len(scores) != 2:
            raise InputError(f"scores {told!r:.100}", expected=expected)
        place = told.get("place")
        if type(place) is not int or place not in range(len(self.pairs)):
            raise InputError(f"scores {told!r:.100}", expected=expected)
        if not all(type(each) is int and each in SCORES for each in scores):
            raise InputError(f"scores {told!r:.100}", expected=expected)
        with self._lock:
            if place in self.rated():
                return
            pair = self.pairs[place]
            line = {
                "picture": pair.name,
                "prompt": pair.prompt,
                "scores": dict(zip(pair.makers, scores, strict=True)),
                "first": pair.makers[0],
            }
            _append(self.scores, json.dumps(line, ensure_ascii=False))


def pairs_of(folder: Path, *, seed: int) -> list[Pair]:
    """Return the pairs that a folder holds, in an order that the seed alone decides, so that a session can go on.

    The folder is one of ``redi generate --compare``: its report names each picture and its run in full.

    Raises:
        InputError: There is no such report, or it has no pair.
    """
    report = folder / "report.json"
    try:
        images = json.loads(report.read_text())["images"]
        found = [
            (str(each["prompt"]), folder / Path(each["file"]).name, folder / Path(each["full"]["file"]).name)
            for each in images
            if "full" in each and str(each["file"]).endswith(_ENDING)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"no report of pictures in {folder}: {error}",
            expected="a folder that redi generate --compare wrote",
            fix="redi generate --prompts prompts.txt --kb base --compare --out pictures",
        ) from error
    if not found:
        raise InputError(
            f"no pairs in {folder}", expected="pictures with their runs in full", fix="redi generate --compare"
        )
    rng = np.random.default_rng(seed)
    pairs = []
    for place in rng.permutation(len(found)):
        prompt, ours, full = found[place]
        sides = [("redi", ours), ("full", full)]
        first, second = sides if rng.random() < 0.5 else sides[::-1]
        pairs.append(Pair(ours.name, prompt, (first[0], second[0]), (first[1], second[1])))
    return pairs


def server(session: Session, *, port: int) -> ThreadingHTTPServer:
    """Return a server of the page on localhost, not yet started; port 0 is a free one.

    Raises:
        InputError: The port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = self.path.strip("/").split("/")
            if parts == [""]:
                self._answer(_PAGE.encode(), "text/html; charset=utf-8")
            elif parts == ["next"]:
                self._answer(json.dumps(session.next()).encode(), "application/json")
            elif (file := _picture(session, parts)) is not None:
                self._answer(file.read_bytes(), "image/png")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != "/score" or not length.isdecimal() or int(length) > _MOST_BYTES:
                self.send_error(HTTPStatus.BAD_REQUEST)
                return
            try:
                session.score(json.loads(self.rfile.read(int(length))))
            except (InputError, ValueError) as error:
                self._answer(str(error).encode(), "text/plain; charset=utf-8", HTTPStatus.BAD_REQUEST)
            else:
                self._answer(b"{}", "application/json")

        def _answer(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: the terminal tells where the page is."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise InputError(
            f"cannot listen on port {port}: {error.strerror}", expected="a free port", fix="--port 0"
        ) from error


def summary(scores: Path) -> dict[str, Any]:
    """Return the mean score of each maker and of their paired difference, with intervals over prompts.

    Raises:
        InputError: Fewer than 2 pairs are rated.
    """
    found = [each["scores"] for each in read_scores(scores)]
    if len(found) < 2:
        raise InputError(f"{len(found)} rated pairs in {scores}", expected="at least 2", fix="redi experiments rate")
    by_maker = {maker: np.asarray([each[maker] for each in found], np.float64) for maker in ("redi", "full")}
    return {
        "pairs": len(found),
        **{maker: mean_interval(each) for maker, each in by_maker.items()},
        "difference": mean_interval(by_maker["redi"] - by_maker["full"]),
    }


def read_scores(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of scores; a last one that was cut off is not there yet."""
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines() if line]


def _append(path: Path, line: str) -> None:
    """Add a line, whole on the disk before it counts; what a killed writer left of a line is dropped first."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            kept, newline, _ = file.read().rpartition(b"\n")
            file.truncate(len(kept) + len(newline))
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}", expected="a file of scores", fix="--scores"
        ) from error


def _picture(session: Session, parts: Sequence[str]) -> Path | None:
    """Return the file of ``picture/<place>/<side>``; the address names neither maker nor file."""
    if len(parts) != 3 or parts[0] != "picture" or not all(part.isdecimal() and len(part) < 9 for part in parts[1:]):
        return None
    place, side = int(parts[1]), int(parts[2])
    if place >= len(session.pairs) or side > 1:
        return None
    file = session.pairs[place].files[side]
    return file if file.is_file() else None
