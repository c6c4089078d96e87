"""Owns the README's figures and picture, made from what ``make demo`` and ``make bench`` left and from the results of
``rivals``; nothing is typed in.

What they left is kept in ``results/bench/`` without what it says of each picture, and the figures are written from
there, so that they can be written again anywhere; as long as no ``make bench`` was kept, its table is not there.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from redi.comparison import first_band
from redi.experiments.defaults_section import against_fewer_steps
from redi.results import write_json, write_picture

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "results" / "bench"
_LEFT = {"demo.json": "demo/report.json", "bench.json": "bench/results.json"}
"""What is kept, and where it was left."""
_ACROSS = 6
"""Pictures side by side in the demo's comparison."""
_BLOCK = re.compile(r"(<!-- figures: [^\n]* -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def figures(demo: dict[str, Any], bench: dict[str, Any] | None, rivals: dict[str, Any]) -> str:
    """Return the block of Markdown between the markers."""
    outcomes = demo["outcomes"]
    shares = list(outcomes[0]["faithfulness"])
    heading = ["", "calls", "seconds", "retrieval ms", *shares]
    rows = [
        [
            outcome["name"],
            f"{outcome['calls']:.1f}",
            f"{outcome['seconds']:.1f}",
            "-" if outcome["value_step"] is None else f"{outcome['retrieval_ms']:.2f}",
            *(
                "-" if outcome["faithfulness"][name] is None else f"{outcome['faithfulness'][name]:.0%}"
                for name in shares
            ),
        ]
        for outcome in outcomes
    ]
    lines = [
        f"`make demo`, {outcomes[0]['prompts']} held-out prompts, a base of {demo['entries']} entries, "
        f"{demo['scheduler']} with {demo['plan']['num_inference_steps']} steps, {demo['weights']} weights; "
        "calls and retrieval of one picture, "
        "seconds of all, and the share of pictures in which the evaluator sees what the prompt asks for:",
        "",
        _line(heading),
        _line(["---", *["---:"] * (len(heading) - 1)]),
        *map(_line, rows),
        "",
        *(_benchmarks(bench) if bench else []),
        *fewer_steps(rivals),
    ]
    return "\n".join(lines)


def _benchmarks(bench: dict[str, Any]) -> list[str]:
    machine = bench["machine"]
    measured = f"{machine['cores']} cores ({machine['processor']})" if not machine["gpu"] else machine["gpu"]
    return [
        f"`make bench`, on {measured}, the fastest of {len(bench['pndm']['seconds_plain'])} runs of each:",
        "",
        _line(["figure", "value", "bar", ""]),
        _line(["---", "---:", "---:", "---"]),
        *(
            _line([f"`{each['name']}`", f"{each['value']:.3g}", each["bar"], "ok" if each["ok"] else "**MISS**"])
            for each in bench["figures"]
        ),
        "",
    ]


def fewer_steps(rivals: dict[str, Any]) -> list[str]:
    """Return the lines about the rival that everybody has: fewer steps."""
    pictures = next(row["n"] for row in rivals["rows"] if row["label"] == rivals["full"])
    return [
        f"The rival that everybody has is fewer steps ([measured](docs/results.md) on {pictures} pictures a point of "
        f"the bundled model): {against_fewer_steps({'rivals': rivals})}.",
        "",
        "![The best jump and the best solver alone, by network calls; bars are each row's own intervals]"
        "(docs/images/results-rivals.png)",
        "",
    ]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def block(readme: str) -> str:
    """Return the README with its figures written again from what is kept.

    Raises:
        FileNotFoundError: No ``make demo`` was kept.
    """
    sources = (KEPT / "demo.json", ROOT / "results" / "small" / "rivals.json")
    demo, rivals = (json.loads(source.read_text()) for source in sources)
    kept = KEPT / "bench.json"
    bench = json.loads(kept.read_text()) if kept.is_file() else None
    return _BLOCK.sub(lambda found: found[1] + figures(demo, bench, rivals) + found[2], readme)


def main() -> int:
    """Keep what there is, rewrite the README's block and its picture."""
    for name, left in _LEFT.items():
        if (ROOT / left).is_file():
            told = json.loads((ROOT / left).read_text())
            write_json(KEPT / name, {key: value for key, value in told.items() if key != "pictures"})
    if not (KEPT / "demo.json").is_file():
        print(f"{_LEFT['demo.json']} is not there: run make demo first", file=sys.stderr)
        return 1
    readme, picture = ROOT / "README.md", ROOT / "demo" / "comparison.png"
    readme.write_text(block(readme.read_text()))
    if picture.is_file():
        prompts = json.loads((KEPT / "demo.json").read_text())["outcomes"][0]["prompts"]
        shown = first_band(Image.open(picture), -(-prompts // _ACROSS))
        write_picture(ROOT / "docs" / "images" / "demo.png", shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
