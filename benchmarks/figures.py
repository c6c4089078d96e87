"""Owns how benchmarks tell their figures: one line each on standard output, the same as JSON, and an exit status."""

from __future__ import annotations

import json
import operator
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redi.results import write_json

_HOLDS = {">=": operator.ge, "<=": operator.le, "=": operator.eq}


@dataclass(frozen=True)
class Figure:
    """One measured number and the bar that it has to clear: ``>=x``, ``<=x`` or ``=x``."""

    name: str
    value: float
    bar: str

    @property
    def ok(self) -> bool:
        """Whether the value clears its bar; one that is not a number does not."""
        found = re.fullmatch(r"(>=|<=|=)(.+)", self.bar)
        if found is None:
            raise ValueError(f"bar {self.bar!r}: >=x, <=x or =x")
        return bool(_HOLDS[found[1]](self.value, float(found[2])))

    def __str__(self) -> str:
        value = str(self.value) if isinstance(self.value, int) else f"{self.value:.4g}"
        return f"{self.name} {value} {self.bar} {'ok' if self.ok else 'MISS'}"


def tell(figures: Sequence[Figure], path: Path, details: Mapping[str, Any] | None = None) -> int:
    """Write the figures to ``path``, print them last, and return the exit status: 0 if all are ok, else 1.

    Args:
        figures: What was measured.
        path: The JSON file; replaced whole.
        details: What the figures were computed from, for the file.
    """
    rows = [{**asdict(figure), "ok": figure.ok} for figure in figures]
    write_json(path, {"figures": rows, "machine": machine(), **json.loads(json.dumps(dict(details or {})))})
    for figure in figures:
        print(figure)
    return 0 if all(figure.ok for figure in figures) else 1


def machine() -> dict[str, Any]:
    """Return what a reader needs to judge a time: processor kind, cores, threads, versions."""
    import torch

    from redi.identity import library_versions

    return {
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": library_versions(),
    }
