"""Owns soaking one base: processes grow, read and compact it and are killed for half an hour; must not know how.

Run from the repository: ``python benchmarks/soak.py [--minutes 30] [--out bench]``. Prints ``name value bar ok|MISS``
lines, writes the same as JSON, and exits 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from figures import Figure, tell

from soaking import soak

_BARS = {"lost": "=0", "doubled": "=0", "damaged": "=0", "foreign": "=0", "memory_ratio": "<=1.1"}


def main() -> int:
    """Run, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--out", type=Path, default=Path("bench"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        groups = max(10, int(20 * options.minutes))
        found = asdict(soak(Path(folder), 60 * options.minutes, groups, options.seed))
    figures = [Figure(name, found[name], bar) for name, bar in _BARS.items()]
    figures.insert(0, Figure("kills", found["kills"], f">={max(1, int(8 * options.minutes))}"))
    return tell(figures, options.out / "soak.json", {"minutes": options.minutes, "seed": options.seed, **found})


if __name__ == "__main__":
    sys.exit(main())
