"""Owns the page on which pictures are rated, and its server on this machine; must not tell who made a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from redi.errors import InputError
from redi.experiments.rating import Session

_MOST_BYTES = 1000

PAGE = """<!doctype html>
<meta charset="utf-8"><title>Rate pictures</title><link rel="icon" href="data:,">
<style>
body { font: 18px sans-serif; text-align: center; margin: 2em }
#pictures { display: flex; justify-content: center; align-items: flex-start }
img { width: 320px; max-width: 29vw; image-rendering: pixelated; margin: .5em; border: 4px solid transparent }
[hidden] { display: none !important }
img.asked { border-color: #36c }
button { font-size: 18px; margin: .2em; padding: .3em 1em }
#keys, #left-over { color: #666; font-size: 15px }
</style>
<p id="prompt"></p>
<div id="pictures">
<img id="left" alt="left picture">
<img id="reference" alt="picture to compare layouts with" hidden>
<img id="right" alt="right picture">
</div>
<p id="question"></p>
<div id="scores"></div>
<p id="keys">Keys: 1 to 5 score the picture with the frame, Backspace takes back the last score of these two.</p>
<p id="left-over"></p>
<script>
let pair = null, given = [];  // the scores of the pair: aspect by aspect, left then right
const at = name => document.getElementById(name);
const show = () => {
  const place = Math.floor(given.length / 2), side = given.length % 2 ? "right" : "left";
  const question = pair.questions[place];
  for (const each of ["left", "right"]) at(each).className = each === side ? "asked" : "";
  at("question").textContent = question.text.replace("{side}", side);
  at("reference").hidden = question.aspect !== "layout";
};
const end = text => {
  pair = null;
  for (const name of ["question", "keys", "left-over"]) at(name).textContent = "";
  for (const name of ["pictures", "scores"]) at(name).hidden = true;
  at("prompt").textContent = text;
};
const asked = async (address, options) => {
  const answer = await fetch(address, options);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
};
const next = async () => {
  const told = await asked("/next");
  if (!told.left_over) return end("Done. Thank you.");
  const pictures = { left: `/picture/${told.place}/0`, right: `/picture/${told.place}/1` };
  if (told.questions.some(each => each.aspect === "layout")) pictures.reference = `/reference/${told.place}`;
  for (const name in pictures) at(name).src = pictures[name];
  await Promise.all(Object.keys(pictures).map(name => at(name).decode()));  // no score before they are seen
  at("prompt").textContent = told.prompt;
  at("left-over").textContent = `${told.left_over} pairs left`;
  pair = told;
  given = [];
  show();
};
const score = async number => {
  if (!pair) return;
  given.push(number);
  if (given.length < 2 * pair.questions.length) return show();
  const scores = {};
  pair.questions.forEach((each, place) => { scores[each.aspect] = given.slice(2 * place, 2 * place + 2); });
  const told = { place: pair.place, scores };
  pair = null;
  await asked("/score", { method: "POST", body: JSON.stringify(told) });
  await next();
};
const takeBack = () => {
  if (!pair || !given.length) return;
  given.pop();
  show();
};
const orTell = promise => promise.catch(error => end(`${error.message} - reload the page to go on.`));
for (const number of [1, 2, 3, 4, 5]) {
  const button = document.createElement("button");
  button.textContent = number;
  // The second click of a double click that ended a pair is none of the next pair's.
  button.onclick = event => { if (given.length || event.detail < 2) orTell(score(number)); };
  at("scores").append(button);
}
addEventListener("keydown", event => {
  if (event.repeat && event.target.tagName === "BUTTON") event.preventDefault();  // a held key clicks once
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Backspace") takeBack();
  else if (/^[1-5]$/.test(event.key)) orTell(score(Number(event.key)));
});
orTell(next());
</script>
"""


def server(session: Session, *, port: int) -> ThreadingHTTPServer:
    """Return a server of the page on localhost, not yet started; port 0 is a free one.

    Raises:
        InputError: The port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = self.path.strip("/").split("/")
            if parts == [""]:
                self._answer(PAGE.encode(), "text/html; charset=utf-8")
            elif parts == ["next"]:
                self._answer_json(session.next)
            elif (file := _picture(session, parts)) is not None:
                self._answer(file.read_bytes(), "image/png")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != "/score" or not length.isdecimal() or int(length) > _MOST_BYTES:
                self.send_error(HTTPStatus.BAD_REQUEST)
                return
            body = self.rfile.read(int(length))
            self._answer_json(lambda: session.score(json.loads(body)))

        def _answer_json(self, ask: Any) -> None:
            """Answer what the session says, or why it refuses."""
            try:
                content = json.dumps(ask() or {}).encode()
            except (InputError, ValueError, RecursionError) as error:
                self._answer(str(error).encode(), "text/plain; charset=utf-8", HTTPStatus.BAD_REQUEST)
            else:
                self._answer(content, "application/json")

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


def _picture(session: Session, parts: Sequence[str]) -> Path | None:
    """Return the file of ``picture/<place>/<side>`` or ``reference/<place>``; neither names a maker or a file."""
    kind, numbers = parts[0], parts[1:]
    if not all(number.isdecimal() and len(number) < 9 for number in numbers):
        return None
    pairs = session.task.pairs
    if len(numbers) != {"picture": 2, "reference": 1}.get(kind) or int(numbers[0]) >= len(pairs):
        return None
    pair = pairs[int(numbers[0])]
    if kind == "reference":
        return _there(pair.reference)
    return _there(pair.files[int(numbers[1])]) if int(numbers[1]) < 2 else None


def _there(file: Path | None) -> Path | None:
    return file if file is not None and file.is_file() else None
