"""Owns the row of numbers that every generated image leaves behind; must not know files or pipelines."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redi.errors import InputError


@dataclass(frozen=True)
class Neighbor:
    """One retrieved entry: its prompt, its L2 distance to the query, and its weight."""

    prompt: str
    distance: float
    weight: float | None


@dataclass(frozen=True)
class Report:
    """What happened to one image.

    Attributes:
        prompt: The image's prompt.
        noise_id: Which noise of the bank it started from; None if its noise was not of the bank.
        seed: The seed of that noise; None if unknown.
        jumped: Whether the image jumped.
        reason: Why it abstained, and where its run was interrupted; None if it jumped and ran to the end.
        key_step: Completed steps at the query.
        value_step: Completed steps after the jump; None if it abstained.
        num_inference_steps: Steps of the schedule.
        sampler: Class name of the scheduler.
        neighbors: Retrieved entries, nearest first; their weight is None if the image abstained.
        residual: What the weights leave of the query (see ``Combination.residual``), None if it abstained.
        condition_number: Of the system solved, None if it abstained.
        weight_sum: Sum of the weights, None if it abstained.
        variance: Kriging's variance, None for other combiners or if it abstained.
        calls: Network evaluations made for this image.
        full_calls: Network evaluations of the run without redi.
        network_ms: Milliseconds in the network, of the whole batch.
        retrieval_ms: Milliseconds in search, weights and gate, of the whole batch.
        rest_ms: Milliseconds in the rest of the pipeline call, of the whole batch.
        carried: How much of what the weights leave of the query was carried over the jump (see
            ``Combination.carried``), None if it abstained.
    """

    prompt: str
    noise_id: int | None
    seed: int | None
    jumped: bool
    reason: str | None
    key_step: int
    value_step: int | None
    num_inference_steps: int
    sampler: str
    neighbors: tuple[Neighbor, ...]
    residual: float | None
    condition_number: float | None
    weight_sum: float | None
    variance: float | None
    calls: int
    full_calls: int
    network_ms: float
    retrieval_ms: float
    rest_ms: float
    carried: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a form that any JSON writer takes; numbers that are not finite become None."""
        fields = dataclasses.asdict(self)
        fields["neighbors"] = [_jsonable(neighbor) for neighbor in fields["neighbors"]]
        return _jsonable(fields)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Report:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InputError: A field is missing or unknown.
        """
        try:
            neighbors = tuple(Neighbor(**neighbor) for neighbor in fields["neighbors"])
            return cls(**{**fields, "neighbors": neighbors})
        except (KeyError, TypeError) as error:
            raise InputError(
                f"a report that does not read: {error}", expected="the fields that Report.to_dict writes"
            ) from error


def format_reports(reports: Sequence[Report], *, width: int = 120) -> str:
    """Return a plain-text table with one line per image, and a line of totals.

    Args:
        reports: In the order of the images.
        width: Characters per line; long prompts and reasons are wrapped.
    """
    if not reports:
        return "no image has been generated yet"
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, ratio in (("prompt", 3), ("noise", None), ("decision", 2), ("nearest", 3)):
        table.add_column(name, ratio=ratio, overflow="fold")
    for name in ("distance", "weights", "residual", "calls", "ms network / retrieval / rest"):
        table.add_column(name, justify="right", no_wrap=name not in ("weights", "ms network / retrieval / rest"))
    for report in reports:
        table.add_row(*(_plain(cell) for cell in _cells(report)))
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join([*(line for line in lines if line), _totals(reports)])


def _cells(report: Report) -> list[str]:
    """Return the cells of one table row, in the order of the columns."""
    nearest = report.neighbors[0] if report.neighbors else None
    if report.jumped:
        decision = f"{report.key_step} -> {report.value_step} of {report.num_inference_steps}"
        decision += f", {report.reason}" if report.reason else ""
    else:
        decision = f"abstained: {report.reason}"
    noise = "-" if report.noise_id is None else f"{report.noise_id}"
    return [
        report.prompt,
        noise if report.seed is None else f"{noise} (seed {report.seed})",
        decision,
        nearest.prompt if nearest else "-",
        f"{nearest.distance:.3g}" if nearest else "-",
        "-" if report.weight_sum is None else f"{len(report.neighbors)}, sum {report.weight_sum:.2f}",
        "-" if report.residual is None else f"{report.residual:.2f}",
        f"{report.calls}/{report.full_calls}",
        f"{report.network_ms:.0f} / {report.retrieval_ms:.1f} / {report.rest_ms:.0f}",
    ]


def _totals(reports: Sequence[Report]) -> str:
    """Return the line below the table."""
    calls, full = sum(report.calls for report in reports), sum(report.full_calls for report in reports)
    jumped = sum(report.jumped for report in reports)
    saved = f", {full / calls:.2f}x fewer" if calls else ""
    return f"{jumped} of {len(reports)} jumped; {calls} calls instead of {full}{saved}; sampler {reports[0].sampler}"


def _plain(cell: str) -> Any:
    """Return a cell that rich does not read as markup (a prompt may hold square brackets)."""
    from rich.text import Text

    return Text(cell)


def _jsonable(fields: dict[str, Any]) -> dict[str, Any]:
    """Replace numbers that JSON has no word for by None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }
