"""Folders of pictures to rate, and the page of one served by a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from PIL import Image

COUNT = 6
COLORS = {"ours": (200, 0, 0), "full": (0, 0, 200)}
STYLE = "by Claude Monet"


def write_folder(folder: Path, *, style: str | None = None, base: str = "a-base") -> Path:
    """Write pictures of one prompt: they are told apart by file and noise, not by prompt."""
    folder.mkdir()
    prompt = "a cat" if style is None else f"a cat {style}"
    images = []
    for place in range(COUNT):
        names = {"ours": f"{place:03d}-a-cat.png", "full": f"{place:03d}-a-cat-full.png"}
        for maker, name in names.items():
            red, green, blue = COLORS[maker]
            other = (red, green + (0 if style is None else 9), blue)
            Image.new("RGB", (4, 4), other).save(folder / name)
        full = {"file": names["full"]}
        images.append({"prompt": prompt, "noise_id": place, "seed": 5 + place, "file": names["ours"], "full": full})
    settings = {"command": "generate"} if style is None else {"command": "stylize", "style": style}
    report: dict[str, Any] = {"knowledge_base": {"id": base}, "settings": settings, "images": images}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@contextmanager
def served(folder: Path, scores: Path, *options: str) -> Iterator[str]:
    """Serve in a process of its own, and kill it with -9."""
    command = [sys.executable, "-u", "-c", "from redi.cli import main; main()", "experiments", "rate", str(folder)]
    command += ["--scores", str(scores), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def get(address: str) -> bytes:
    with urlopen(address, timeout=10) as answer:
        return bytes(answer.read())


def post(address: str, told: object) -> None:
    urlopen(Request(address + "score", json.dumps(told).encode()), timeout=10).close()
