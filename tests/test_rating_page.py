"""Claims about the rating page: its script runs in Node.js against a real server; only the document is a stand-in."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rated_folders import STYLE, served, write_folder
from redi.experiments.scores import read_scores

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not there")

_DOCUMENT = """
const [address] = process.argv.slice(2), assert = require("assert"), listeners = [];
const element = () => ({ children: [], append(each) { this.children.push(each); }, decode: async () => {} });
const elements = {}, made = name => elements[name] ??= element();
globalThis.document = { getElementById: made, createElement: element };
globalThis.addEventListener = (_, listener) => listeners.push(listener);
const real = fetch;
let sent = 0;
globalThis.fetch = (path, options) => { sent += options ? 1 : 0; return real(new URL(path, address), options); };
const asked = () => elements.question.textContent;
const key = (name, more = {}) => {
  const event = { key: name, target: {}, preventDefault() { this.prevented = true; }, ...more };
  listeners.forEach(each => each(event));
  return event;
};
const keys = names => { for (const name of names) key(name); };
const click = (number, detail = 1) => elements.scores.children[number - 1].onclick({ detail });
const left = async count => {
  for (let tries = 0; tries < 500; tries++) {
    if (elements["left-over"]?.textContent === `${count} pairs left`) return;
    await new Promise(done => setTimeout(done, 10));
  }
  throw new Error(`not ${count} pairs left: ${elements["left-over"]?.textContent} ${elements.prompt?.textContent}`);
};
(async () => {
  const page = await (await real(address)).text();
  (0, eval)(page.match(/<script>([^]*)<\\/script>/)[1]);
"""


def _drive(folder: Path, scores: Path, script: str, *options: str) -> None:
    """Open the page, then run a script that presses keys and clicks."""
    with served(folder, scores, *options) as address:
        whole = f"{_DOCUMENT}{script}\n}})().catch(error => {{ console.error(error); process.exit(1); }});"
        program = scores.with_suffix(".cjs")
        program.write_text(whole)
        done = subprocess.run(["node", program, address], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def test_aspect_by_aspect_left_then_right_and_the_style_free_picture_is_seen_when_layouts_are_asked_for(
    tmp_path: Path,
) -> None:
    styled, free = write_folder(tmp_path / "styled", style=STYLE), write_folder(tmp_path / "free")
    scores = tmp_path / "scores.jsonl"
    script = """
      await left(6);
      for (const [number, words] of [
        [5, "left picture show"], [4, "right picture show"], [3, "left picture keep"], [2, "right picture keep"],
        [1, "layout of the left"], [5, "layout of the right"],
      ]) {
        assert(asked().includes(words), asked());
        assert.equal(elements.reference.hidden, !words.includes("layout"));
        assert.equal(elements.left.className, words.includes("left") ? "asked" : "");
        assert.equal(elements.right.className, words.includes("left") ? "" : "asked");
        key(String(number));
      }
      await left(5);
    """
    _drive(styled, scores, script, "--style-free", str(free))
    (line,) = read_scores(scores)
    second = {"redi": "full", "full": "redi"}[line["first"]]
    in_order = [[each[line["first"]], each[second]] for each in line["scores"].values()]
    assert (list(line["scores"]), in_order) == (["faithfulness", "style", "layout"], [[5, 4], [3, 2], [1, 5]])


def test_held_keys_shortcuts_and_double_clicks_give_no_score_and_backspace_takes_one_back(tmp_path: Path) -> None:
    folder, scores = write_folder(tmp_path / "pictures"), tmp_path / "scores.jsonl"
    script = """
      await left(6);
      for (const held of ["repeat", "ctrlKey", "altKey", "metaKey"]) {
        key("4", { [held]: true });
        assert(asked().includes("left"), held);
      }
      keys(["Backspace", "6", "a", "12", ""]);
      assert(asked().includes("left"));
      assert(key("Enter", { repeat: true, target: { tagName: "BUTTON" } }).prevented);
      keys("4"); assert(asked().includes("right"));
      key("Backspace"); assert(asked().includes("left"));
      keys("5"); click(3); click(3, 2);  // its second click comes while the pair is sent
      await left(5);
      click(3, 2); assert(asked().includes("left"));  // or when the next pair is there
      click(1); click(1, 2);  // the same score for both, quickly
      await left(4);
      assert.equal(sent, 2);
      assert(!made("pictures").hidden);
    """
    _drive(folder, scores, script)
    given = [
        [line["scores"]["faithfulness"][maker] for maker in sorted(["redi", "full"], key=line["first"].__ne__)]
        for line in read_scores(scores)
    ]
    assert given == [[5, 3], [1, 1]]


def test_a_refusal_is_told_and_the_last_pair_ends_the_page(tmp_path: Path) -> None:
    folder, scores = write_folder(tmp_path / "pictures"), tmp_path / "scores.jsonl"
    script = """
      for (let count = 6; count > 1; count--) { await left(count); keys("53"); }
      await left(1);
      require("fs").appendFileSync(process.argv[1].replace(".cjs", ".jsonl"), "no JSON\\n");
      keys("53");
      while (!elements.prompt.textContent.includes("line 6")) await new Promise(done => setTimeout(done, 10));
      assert(elements.prompt.textContent.includes("reload"));
      keys("53"); key("Backspace");
    """
    _drive(folder, scores, script)
    whole = scores.read_text().removesuffix("no JSON\n")
    assert whole.count("\n") == 5
    scores.write_text(whole)
    script = """
      await left(1);
      keys("53");
      while (elements.prompt.textContent !== "Done. Thank you.") await new Promise(done => setTimeout(done, 10));
    """
    _drive(folder, scores, script)
    assert len(read_scores(scores)) == 6
