"""Owns the numbers of docs/operations.md, made from what benchmarks and the study ``smaller`` measured; types none.

``make bench-page`` writes them; a test compares them with the results that are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from redi.knowledge_base.indexing import LEAST_ENTRIES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "operations.md"
_BLOCK = re.compile(r"(<!-- figures: (\w+)[^\n]* -->\n).*?(<!-- end of figures -->)", re.DOTALL)
_ENTRIES = (10**4, 10**6, 10**8)
_LATENT = 2 * 4 * 64 * 64
"""Bytes of a float16 latent of Stable Diffusion 1.5."""
_NOISES = 16
_CALLS, _CALL_SECONDS = 41, 0.02
_CODECS = ("int8", "nf4")
Scaled = Callable[[int], float]


def filled(text: str) -> str:
    """Return the page with its blocks made again from the results that are kept.

    Raises:
        FileNotFoundError: A result is missing.
    """
    bench, small = ROOT / "results" / "bench", ROOT / "results" / "small"
    operations, search = (json.loads((bench / f"{name}.json").read_text()) for name in ("operations", "search"))
    blocks = {
        "expected": expected(operations, search),
        "codecs": codecs(json.loads((small / "smaller.json").read_text())),
    }
    return _BLOCK.sub(lambda found: f"{found[1]}\n{blocks[found[2]]}\n\n{found[3]}", text)


def expected(operations: Mapping[str, Any], search: Mapping[str, Any]) -> str:
    """Return the table of what a base of each size takes."""
    told = {each["name"]: each["value"] for each in operations["figures"]}
    whole = told["copy_float16_bytes_per_entry"]
    shared = [each for each in search["searches"] if each["keys"] == "shared"]
    small, *_, large = sorted(shared, key=lambda each: each["entries"])
    code, making = (large[name] / large["entries"] for name in ("bytes_codes", "seconds_making"))
    scan, coded = small["seconds_flat"][0] / small["entries"], large["seconds_ours"][0] / large["entries"]
    measured = "measured at 10⁴; the rest computed"
    of_search = (
        f"computed for {_NOISES} noises from `make bench-search` ({small['entries']:,} and {large['entries']:,})"
    )

    def indexed(entries: int) -> bool:
        return entries / _NOISES >= LEAST_ENTRIES

    rows: list[tuple[str, Scaled, Callable[[float], str], str]] = [
        *(
            (
                f"bytes, {name}",
                lambda n, each=told[f"copy_{codec}_bytes_per_entry"]: n * each,
                _bytes,
                f"{told[f'copy_{codec}_bytes_per_entry']:,.0f} an entry, {measured}",
            )
            for codec, name in (("float16", "float16"), ("int8", "int8 values"), ("nf4", "nf4 values"))
        ),
        ("one value step alone, float16", lambda n: n * 2 * _LATENT, _bytes, "computed"),
        ("an index's codes", lambda n: indexed(n) * (n * code + _NOISES * large["bytes_coder"]), _bytes, of_search),
        ("an index's copies of latents", lambda n: indexed(n) * n * 4 * _LATENT, _bytes, "computed"),
        ("GPU hours of a build", lambda n: n * _CALLS * _CALL_SECONDS / 3600, _short, "computed; see below"),
        ("storing what was built", lambda n: n / told["commit_entries_per_second"], _time, measured),
        ("making the index", lambda n: indexed(n) * n * making, _time, of_search),
        (
            "opening",
            lambda n: told["open_milliseconds"] / 1e3 if n == 10**4 else told["many_open_milliseconds"] / 1e9 * n,
            _time,
            "measured at 10⁴ and, with very small latents, at 10⁶; then computed",
        ),
        (
            "memory for unit, slot and noise of every entry",
            lambda n: 16 * n,
            _bytes,
            f"computed (16 bytes; while it is read {told['many_directory_bytes_per_entry']:.0f}, measured at 10⁶)",
        ),
        (
            "search for one picture",
            lambda n: n / _NOISES * (coded if indexed(n) else scan),
            _time,
            f"{of_search}; exact where there is no index",
        ),
        (
            "reading 2 neighbours' keys and values",
            lambda n: told["fetch_2_pairs_milliseconds"] / 1e3,
            _time,
            "measured at 10⁴ from a warm disk; its own latency comes on top",
        ),
        (
            "reading 64 neighbours' keys and values",
            lambda n: told["fetch_64_pairs_milliseconds"] / 1e3,
            _time,
            "likewise; "
            + ", ".join(f"{told[f'copy_{codec}_fetch_64_pairs_milliseconds']:.0f} ms of {codec}" for codec in _CODECS)
            + " values",
        ),
        *(
            (
                what,
                lambda n, speed=told[f"{name}_megabytes_per_second"]: n * whole / 1e6 / speed,
                _time,
                f"{told[f'{name}_megabytes_per_second']:.0f} MB a second, {measured}, for a disk that is as fast",
            )
            for what, name in (
                ("`--verify`: checksums of rows", "verify"),
                ("`--verify`: `hashes.json`", "hash"),
                ("`redi pull`, a copy as it is", "copy_float16"),
                ("`redi pull --values int8`", "copy_int8"),
                ("`redi pull --values nf4`", "copy_nf4"),
            )
        ),
    ]
    lines = ["| | 10⁴ | 10⁶ | 10⁸ | |", "|---|---|---|---|---|"]
    for what, scaled, form, how in rows:
        cells = [form(found) if (found := scaled(count)) else "none" for count in _ENTRIES]
        lines.append(f"| {what} | {' | '.join(cells)} | {how} |")
    return "\n".join(lines)


def codecs(smaller: Mapping[str, Any]) -> str:
    """Return the table of what values of fewer bits cost, as shares of what float16 has."""
    rows = {row["label"]: row for row in smaller["rows"]}
    found: dict[tuple[int, str], list[str]] = {}
    most = 0.0
    for claim in smaller["claims"]:
        jump = rows[claim["ours"]]["sampling"]["jump"]
        exact, apart = rows[claim["rival"]][claim["measure"]]["value"], claim["difference"]
        value, low, high = (100 * apart[end] / exact for end in ("value", "low", "high"))
        most = max(most, -value if claim["measure"] == "faithfulness" else value)
        cells = found.setdefault((jump["value_step"], jump["recording"]["values"]), [])
        cells.append(f"{value:+.1f} % [{low:+.1f}, {high:+.1f}]")
    lines = ["| value step | | Frechet distance | faithfulness | distance to the full run |", "|---|---|---|---|---|"]
    lines += [f"| {step} | {codec} | {' | '.join(cells)} |" for (step, codec), cells in found.items()]
    return "\n".join([*lines, "", f"The largest measured loss is {most:.1f} %; a codec may cost 1 % to be offered."])


def _bytes(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if number >= size:
            return f"{_short(number / size)} {unit}"
    return f"{_short(number / 1e6)} MB"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * size:
            return f"{_short(seconds / size)} {unit}"
    return f"{_short(seconds * 1e3)} ms"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"


def main() -> None:
    """Write the page's blocks again."""
    PAGE.write_text(filled(PAGE.read_text()))
