"""Owns the measurement of search in large bases, against a centred ``faiss.IndexFlatL2``, on one thread.

Run from the repository: ``python benchmarks/search.py [--out bench]``. Keys are synthetic: for shared noise a signal
of rank 1,024 with a power law in 256 clusters beside white noise, as latents of one noise are; for independent noise
such a signal of unit variance under noise of each key's own, in the shares that Stable Diffusion 1.5 has after 10 of 50
steps (timestep 800: 0.192 and 0.981). They lie in float16 in mapped files. Searches of both kinds take turns, so that
neither profits from a warm cache.

- ``search.<keys>.<n>.recall``: of the 2 nearest, over queries that are no entries, against an exact scan.
- ``search.<keys>.<n>.speed_1`` and ``speed_16``: times faster than IndexFlatL2, one query and 16 at once.
- ``search.shared.<n>.bytes``: bytes of float16 keys over bytes of codes and of what made them.
- ``search.growth.search``: time of a search, largest over least n. ``search.growth.index``: of making the index, per
  entry (every key is read and coded, so less than the same for each is not to be had).
- ``search.fetch``: time of reading 2 keys and values from the index's copies, over that of gathering them from a map.
- ``search.readers``: memory (PSS) of three processes that search the same index, over that of one (largest n).
- ``search.million.gigabytes``: most memory of a process that indexes and searches a million keys of 1,024 numbers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from figures import Figure, tell
from torch import Tensor

from redi.knowledge_base.coded_index import CodedIndex
from redi.knowledge_base.codes import code_files, coder_of, open_codes, write_codes
from redi.knowledge_base.packed_rows import PackedRows, pack
from redi.knowledge_base.recall import choose, scan
from redi.knowledge_base.rows import crcs

RANK, CLUSTERS, CHUNK = 1024, 256, 512
SIGNAL, NOISE = 0.192, 0.981
PROCESSES = multiprocessing.get_context("spawn")


class Keys:
    """Synthetic keys of ``size`` numbers; the same seed gives the same."""

    def __init__(self, kind: str, size: int) -> None:
        self.kind, self.size, rank = kind, size, min(RANK, size // 4)
        generator = torch.Generator().manual_seed(1)
        spectrum = torch.arange(1, rank + 1).float().rsqrt()
        self.spectrum = 18 * spectrum / spectrum.norm()
        self.basis = torch.linalg.qr(torch.randn(size, rank, generator=generator)).Q.T.contiguous()
        self.clusters = torch.randn(CLUSTERS, rank, generator=generator) * self.spectrum

    def draw(self, count: int, seed: int) -> Tensor:
        """Return (count, size) float32."""
        generator = torch.Generator().manual_seed(seed)
        cluster = self.clusters[torch.randint(CLUSTERS, (count,), generator=generator)]
        signal = cluster + torch.randn(count, len(self.spectrum), generator=generator) * self.spectrum
        noise = torch.randn(count, self.size, generator=generator)
        if self.kind == "independent":
            # Cluster and member have the spectrum's energy each: 1 per number of the two together.
            unit = (self.size / 2) ** 0.5 / self.spectrum.norm()
            return SIGNAL * unit * (signal @ self.basis) + NOISE * noise
        return signal @ self.basis + 0.05 * noise

    def store(self, folder: Path, count: int) -> PackedRows:
        """Write ``count`` keys as copies of a base's rows, and map them."""
        folder.mkdir(exist_ok=True)
        sums: list[Any] = []

        def parts() -> Any:
            for start in range(0, count, CHUNK):
                part = self.draw(min(CHUNK, count - start), 100 + start).half().numpy()
                sums.append(crcs(part))
                yield part

        pack(folder, "key_1", 0, parts(), self.size)
        return PackedRows(folder, self.size, {"key_1": np.concatenate(sums)})


def reader(packed: PackedRows) -> Callable[[Tensor], Tensor]:
    return lambda places: packed.keys("key_1", places)


def seconds(works: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Return the median seconds of each, taking turns."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + 1):
        for work, found in zip(works, taken, strict=True):
            started = time.perf_counter()
            work()
            found.append(time.perf_counter() - started)
    return [statistics.median(found[1:]) for found in taken]


def measure(kind: str, size: int, count: int, folder: Path, repeats: int) -> dict[str, Any]:
    """Make an index of ``count`` keys, and compare it with IndexFlatL2."""
    keys = Keys(kind, size)
    packed = keys.store(folder, count)
    read = reader(packed)
    started = time.perf_counter()
    choice = choose(read, count, size)
    making = time.perf_counter() - started
    if choice.coder is None or choice.codes is None:
        raise SystemExit(f"no index reaches the bar for {count} {kind} keys")
    codes = folder / "codes"
    write_codes(codes, choice.coder, choice.codes)
    coder = coder_of(choice.coder.tensors(), size)
    ours = CodedIndex(coder, open_codes(codes, coder, count), read, torch.arange(count), choice.measured)
    torch.save({"tensors": coder.tensors(), "measured": choice.measured}, folder / "coder.pt")

    queries = keys.draw(128, 7)
    truth = scan(read, count, queries, 2, coder.center)
    found = ours.search(queries, 2)[0]
    recall = float((truth[:, :, None] == found[:, None, :]).any(dim=2).float().mean())

    flat = faiss.IndexFlatL2(size)
    for part in torch.split(torch.arange(count), CHUNK):
        flat.add(read(part).sub_(coder.center).numpy())
    centred = (queries - coder.center).numpy()
    place = iter(range(10**9))

    def batch(width: int, which: int) -> Callable[[], Any]:
        def work() -> None:
            start = next(place) * width % (len(queries) - width + 1)
            if which:
                ours.search(queries[start : start + width], 2)
            else:
                flat.search(centred[start : start + width], 2)

        return work

    flat_1, ours_1 = seconds([batch(1, 0), batch(1, 1)], repeats)
    flat_16, ours_16 = seconds([batch(16, 0), batch(16, 1)], max(3, repeats // 4))
    return {
        "keys": kind,
        "entries": count,
        "method": coder.name,
        "measured": [vars(each) for each in choice.measured],
        "recall": recall,
        "seconds_making": making,
        "seconds_flat": [flat_1, flat_16],
        "seconds_ours": [ours_1, ours_16],
        "bytes_keys": 2 * count * size,
        "bytes_codes": sum(file.stat().st_size for file in code_files(codes, coder)),
        "bytes_coder": sum(each.numel() * each.element_size() for each in coder.tensors().values()),
    }


def fetch(folder: Path, size: int, count: int, repeats: int) -> tuple[float, float]:
    """Return the seconds of reading 2 keys and 2 values, ours and by a gather from a map."""
    mapped = np.memmap(folder / "key_1.f16", dtype="<f2", mode="r", shape=(count, size))
    (folder / "value_2.f16").hardlink_to(folder / "key_1.f16")
    sums = crcs(np.asarray(mapped))
    packed = PackedRows(folder, size, {"key_1": sums, "value_2": sums})
    rows = np.random.default_rng(0).integers(0, count, (10 * repeats + 1, 2))
    for pair in rows:  # each row is checked once
        packed.latents(pair, "key_1", "value_2")
    turn = [iter(rows), iter(rows)]

    def ours() -> None:
        packed.latents(next(turn[0]), "key_1", "value_2")

    def gather() -> None:
        pair = next(turn[1])
        mapped[pair], mapped[pair]

    found = seconds([ours, gather], 10 * repeats)
    return found[0], found[1]


def one_reader(folder: Path, size: int, count: int, ready: Any, go: Any) -> None:
    """Search until told to stop, with all keys touched."""
    torch.set_num_threads(1)
    stored = torch.load(folder / "coder.pt", weights_only=False)
    packed = PackedRows(folder, size, {"key_1": np.zeros(count, dtype=np.uint32)})
    coder = coder_of(stored["tensors"], size)
    index = CodedIndex(
        coder, open_codes(folder / "codes", coder, count), reader(packed), torch.arange(count), stored["measured"]
    )
    index.search(torch.zeros(1, size), 2)
    for part in torch.split(torch.arange(count), CHUNK):
        packed.keys("key_1", part)
    ready.release()
    go.wait()


def pss(pids: list[int]) -> float:
    """Return the proportional memory of processes in megabytes."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def readers(folder: Path, size: int, count: int, number: int) -> float:
    """Return the sum of PSS in megabytes of so many processes that search the same index."""
    ready, go = PROCESSES.Semaphore(0), PROCESSES.Event()
    started = [
        PROCESSES.Process(target=one_reader, args=(folder, size, count, ready, go), daemon=True) for _ in range(number)
    ]
    for process in started:
        process.start()
    for _ in started:
        ready.acquire()
    found = pss([process.pid for process in started if process.pid])
    go.set()
    for process in started:
        process.join()
    return found


def million(folder: Path, count: int, told: Any) -> None:
    """Index and search ``count`` keys of 1,024 numbers; tell the most memory taken, in gigabytes, and how it went."""
    torch.set_num_threads(1)
    keys = Keys("shared", 1024)
    packed = keys.store(folder, count)
    started = time.perf_counter()
    choice = choose(reader(packed), count, 1024)
    making = time.perf_counter() - started
    if choice.coder is None or choice.codes is None:
        raise SystemExit("no index reaches the bar")
    write_codes(folder / "codes", choice.coder, choice.codes)
    codes = open_codes(folder / "codes", choice.coder, count)
    index = CodedIndex(choice.coder, codes, reader(packed), torch.arange(count), choice.measured)
    queries = keys.draw(32, 7)
    started = time.perf_counter()
    for query in queries:
        index.search(query[None], 2)
    taken = (time.perf_counter() - started) / len(queries)
    with open("/proc/self/status") as file:
        most = next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024**2
    told.put({"gigabytes": most, "seconds_making": making, "seconds_search": taken, "method": choice.coder.name})


def main() -> int:
    """Measure, print, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--size", type=int, default=16384)
    parser.add_argument("--entries", type=int, nargs="+", default=[20_000, 80_000])
    parser.add_argument("--million", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    figures: list[Figure] = []
    found: list[dict[str, Any]] = []
    details: dict[str, Any] = {"size": options.size, "searches": found}
    options.out.mkdir(parents=True, exist_ok=True)
    for kind, counts, bars in (
        ("shared", options.entries, (">=20", ">=10")),
        ("independent", options.entries[:1], (">=6", ">=2.2")),
    ):
        for count in counts:
            with tempfile.TemporaryDirectory(dir=options.out) as name:
                folder = Path(name)
                one = measure(kind, options.size, count, folder, options.repeats)
                found.append(one)
                print(one, file=sys.stderr, flush=True)
                figures.append(Figure(f"search.{kind}.{count}.recall", one["recall"], ">=0.99"))
                for place, bar in enumerate(bars):
                    speed = one["seconds_flat"][place] / one["seconds_ours"][place]
                    figures.append(Figure(f"search.{kind}.{count}.speed_{(1, 16)[place]}", speed, bar))
                if kind == "shared":
                    share = one["bytes_keys"] / (one["bytes_codes"] + one["bytes_coder"])
                    figures.append(Figure(f"search.shared.{count}.bytes", share, ">=60"))
                if kind == "shared" and count == options.entries[0]:
                    ours, gather = fetch(folder, options.size, count, options.repeats)
                    details["seconds_fetch"] = [ours, gather]
                    figures.append(Figure("search.fetch", ours / gather, "<=3"))
                if kind == "shared" and count == options.entries[-1]:
                    memory = [readers(folder, options.size, count, number) for number in (1, 3)]
                    details["megabytes_readers"] = memory
                    figures.append(Figure("search.readers", memory[1] / memory[0], "<=1.3"))
    small, large = found[0], found[len(options.entries) - 1]
    if large is not small:
        figures.append(Figure("search.growth.search", large["seconds_ours"][0] / small["seconds_ours"][0], "<=3"))
        making = [each["seconds_making"] / each["entries"] for each in (large, small)]
        figures.append(Figure("search.growth.index", making[0] / making[1], "<=1.25"))
    with tempfile.TemporaryDirectory(dir=options.out) as name:
        told = PROCESSES.Queue()
        process = PROCESSES.Process(target=million, args=(Path(name), options.million, told))
        process.start()
        details["million"] = told.get()
        process.join()
    figures.append(Figure("search.million.gigabytes", details["million"]["gigabytes"], "<=8"))
    return tell(figures, options.out / "search.json", details)


if __name__ == "__main__":
    sys.exit(main())
