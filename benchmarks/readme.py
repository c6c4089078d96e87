"""Owns the README's figures and picture, made from what ``make demo`` and ``make bench`` left and from the results of
``rivals``; nothing is typed in."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from redi.experiments.defaults_section import against_fewer_steps

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"(<!-- figures: [^\n]* -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def figures(demo: dict[str, Any], bench: dict[str, Any], rivals: dict[str, Any]) -> str:
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
    machine = bench["machine"]
    measured = f"{machine['cores']} cores ({machine['processor']})" if not machine["gpu"] else machine["gpu"]
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
        f"`make bench`, on {measured}, the fastest of {len(bench['pndm']['seconds_plain'])} runs of each:",
        "",
        _line(["figure", "value", "bar", ""]),
        _line(["---", "---:", "---:", "---"]),
        *(
            _line([f"`{each['name']}`", f"{each['value']:.3g}", each["bar"], "ok" if each["ok"] else "**MISS**"])
            for each in bench["figures"]
        ),
        "",
        *fewer_steps(rivals),
    ]
    return "\n".join(lines)


def fewer_steps(rivals: dict[str, Any]) -> list[str]:
    """Return the lines about the rival that everybody has: fewer steps."""
    pictures = next(row["n"] for row in rivals["rows"] if row["label"] == rivals["full"])
    return [
        f"The rival that everybody has is fewer steps ([measured](docs/results.md) on {pictures} pictures a point of "
        f"the bundled model): {against_fewer_steps({'rivals': rivals})}.",
        "",
        "![The best jump and the best solver alone, by network calls](docs/images/results-rivals.png)",
        "",
    ]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Rewrite the README's block and copy the picture."""
    sources = [ROOT / each for each in ("demo/report.json", "bench/results.json", "results/small/rivals.json")]
    for source in sources:
        if not source.is_file():
            print(f"{source.relative_to(ROOT)} is not there: run make demo bench first", file=sys.stderr)
            return 1
    demo, bench, rivals = (json.loads(source.read_text()) for source in sources)
    readme = ROOT / "README.md"
    readme.write_text(_BLOCK.sub(lambda block: block[1] + figures(demo, bench, rivals) + block[2], readme.read_text()))
    (ROOT / "docs" / "images").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / "demo" / "comparison.png", ROOT / "docs" / "images" / "demo.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
