"""Owns the files that generating leaves behind, pictures and one JSON report; must not know how they were made."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redi.errors import InputError
from redi.samples import encoded, shown

if TYPE_CHECKING:
    from PIL.Image import Image

    from redi.comparison import Column
    from redi.generating import Generation
    from redi.knowledge_base import KnowledgeBase
    from redi.retrieval import Report

REPORT, COMPARISON = "report.json", "comparison.png"
_PER_BAND = 6


def write_results(
    folder: Path,
    base: KnowledgeBase,
    generations: Sequence[Generation],
    *,
    batch_size: int,
    settings: Mapping[str, Any],
    sampling_rate: int | None = None,
) -> dict[str, Any]:
    """Write every sample, the comparison if there are full runs to be seen, and last the report; return the report.

    Args:
        folder: Made if it is not there; files of the same names are replaced.
        base: What they were generated with.
        generations: In the order of the prompts.
        batch_size: Pictures per pipeline call, for the milliseconds of one picture.
        settings: What was asked for, for the report.
        sampling_rate: Of sound.

    Raises:
        InputError: The folder cannot be written.
    """
    count = len(generations)
    records, columns = [], []
    for place, each in enumerate(generations):
        name = f"{place:03d}-{_slug(each.report.prompt)}"
        ending, content = encoded(each.output, sampling_rate)
        record = {
            "file": f"{name}{ending}",
            **each.report.to_dict(),
            "milliseconds": per_picture(_total(each.report), count, place, batch_size),
        }
        write_file(folder / record["file"], content)
        if each.full_output is not None and each.full_report is not None:
            ending, content = encoded(each.full_output, sampling_rate)
            record["full"] = {
                "file": f"{name}-full{ending}",
                "calls": each.full_report.calls,
                "milliseconds": per_picture(_total(each.full_report), count, place, batch_size),
            }
            write_file(folder / record["full"]["file"], content)
            columns += _columns(each, record)
        records.append(record)
    if columns:
        from redi.comparison import page

        write_picture(folder / COMPARISON, page(columns, ("full", "ReDi"), per_band=_PER_BAND))
    import redi

    report = {
        "redi": redi.__version__,
        "knowledge_base": {"path": str(base.path), "id": base.manifest.kb_id, "entries": len(base)},
        "settings": {name: _plain(value) for name, value in settings.items()},
        "images": records,
    }
    write_json(folder / REPORT, report)
    return report


def per_picture(of_batch: float, count: int, place: int, batch_size: int) -> float:
    """Return one picture's part of what was measured of its whole batch.

    Args:
        of_batch: Measured of the batch, such as milliseconds.
        count: Pictures in all.
        place: The picture's.
        batch_size: Pictures per pipeline call.
    """
    start = place - place % batch_size
    return of_batch / min(batch_size, count - start)


def write_picture(path: Path, image: Image) -> None:
    """Write a PNG, whole or not at all.

    Raises:
        InputError: It cannot be written.
    """
    buffer = BytesIO()
    image.save(buffer, "PNG")
    write_file(path, buffer.getvalue())


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all.

    Raises:
        InputError: It cannot be written.
    """
    write_file(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def check_folder(folder: Path) -> None:
    """Make a folder and try to write into it, before there is something to lose.

    Raises:
        InputError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part; make its folder.

    Raises:
        InputError: It cannot be written; the old one stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(name).chmod(0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {path}: {error.strerror or error}",
        expected="a folder, room on the disk and permission to write",
        fix="make room, or choose another folder",
    )


def _total(report: Report) -> float:
    return report.network_ms + report.retrieval_ms + report.rest_ms


def _columns(each: Generation, record: Mapping[str, Any]) -> list[Column]:
    """Return what the comparison shows of a sample; nothing of sound."""
    from redi.comparison import Column

    pictures = [picture for output in (each.full_output, each.output) if (picture := shown(output)) is not None]
    report = each.report
    nearest = f", nearest at {report.neighbors[0].distance:.3g}" if report.neighbors else ""
    decided = nearest if report.jumped else ", abstained"
    notes = (
        f"{record['full']['calls']} calls, {record['full']['milliseconds']:.0f} ms",
        f"{report.calls} calls, {record['milliseconds']:.0f} ms{decided}",
    )
    return [Column(report.prompt, tuple(pictures), notes)] if pictures else []


def _plain(value: Any) -> Any:
    """Return a setting as JSON keeps it; infinity has no number there."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _slug(prompt: str) -> str:
    """Return a piece of a file name that tells the prompt to a reader."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].rstrip("-") or "picture"
