"""Owns fuzzing the reader of knowledge bases with atheris, guided by coverage; must not know what a base is used for.

Run from the repository: ``python benchmarks/fuzz.py [--minutes 10]``. It needs atheris, which redi does not install:
``python -m pip install atheris``. Every input names a file of a small saved base and what shall be in it; the base is
opened, read whole and copied. Anything but numbers or an error of redi stops the run, as does a process of more than
3 GB; the input is then left beside the figures, and ``--input FILE`` runs it again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from figures import Figure, tell

MEMORY_MEGABYTES = 3072
_FUZZ = "--in-this-process"


def fuzz(corpus: Path, seconds: int, leave: Path, given: Path | None) -> None:
    """Feed inputs until the time is over; libFuzzer then ends this process, with status 0 if nothing was found."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed. Fix: python -m pip install atheris")
    with atheris.instrument_imports(include=["redi"]):
        from damaging import Victim

    victim = Victim(Path(tempfile.mkdtemp(dir=corpus.parent)))
    for number, name in enumerate(victim.names):
        (corpus / f"whole-{number}").write_bytes(bytes([number]) + victim.whole[name])

    def one(data: bytes) -> None:
        if data:
            victim.outcome(victim.names[data[0] % len(victim.names)], data[1:], copy_too=True)

    options = [f"-rss_limit_mb={MEMORY_MEGABYTES}", f"-max_total_time={seconds}", "-max_len=16384", "-verbosity=0"]
    inputs = [str(given)] if given else [str(corpus)]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={leave}/", "-print_final_stats=1", *inputs], one)
    atheris.Fuzz()


def main() -> int:
    """Run in a process of its own, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--input", type=Path, help="run one input that an earlier run has left")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument(_FUZZ, type=Path, dest="corpus", help=argparse.SUPPRESS)
    options = parser.parse_args()
    seconds = round(60 * options.minutes)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.corpus:
        fuzz(options.corpus, seconds, options.out.resolve(), options.input)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        command = [sys.executable, __file__, *sys.argv[1:], _FUZZ, str(corpus)]
        started = time.perf_counter()
        ran = subprocess.run(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "RUST_BACKTRACE": "0"})
        lasted = time.perf_counter() - started
    stats = {}
    for line in ran.stderr.splitlines():
        name, _, value = line.removeprefix("stat::").partition(":")
        if line.startswith("stat::") and value.strip().isdigit():
            stats[name] = int(value)
    if ran.returncode or not stats:
        print(ran.stderr[-6000:], file=sys.stderr)
    figures = [
        Figure("fuzz_exit_status", ran.returncode, "=0"),
        Figure("fuzz_inputs", stats.get("number_of_executed_units", 0), ">=1"),
        Figure("fuzz_peak_megabytes", stats.get("peak_rss_mb", 0), f"<={MEMORY_MEGABYTES}"),
    ]
    return tell(figures, options.out / "fuzz.json", {"seconds": lasted, **stats})


if __name__ == "__main__":
    sys.exit(main())
