"""Writes docs/pipelines.md from what the claims about pipelines find: ``python tests/pipeline_table.py <file>``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from pipeline_claims import CLAIMS, PIPELINES, PLAN, Matrix
from pipelines_refused import REFUSED
from tiny_pipelines import Tiny

_HEAD = f"""# Pipelines

The real classes of Diffusers, unmodified, with tiny random weights. Every cell is what a test found
([`tests/pipeline_claims.py`](../tests/pipeline_claims.py), where each claim is one function); `make docs` writes this
file, and a test compares it with the outcomes. Plan: {PLAN.num_inference_steps} steps, jump from step {PLAN.key_step}
to {PLAN.value_steps[0]}, classifier-free guidance unless told otherwise.

"""
_LEGEND = """
| column | what is claimed |
|---|---|
"""
_FOOT = """
"to 0.1 %" and "to 10 %" are relative distances to the untouched run. Where a multistep solver restarts after the jump
the exact value is not met to the last bit ([design](design.md)): these networks are random and the tail is two steps
long, so this is near the worst case. Single-step solvers lose nothing. A base keeps float16, which is what is left of
its own entry.

The callback runs in ghost steps too, so that it sees the whole schedule.

## Pictures

A base that is built with pictures (ControlNet's `image=`) writes down their hash, and serves calls with the same ones.
Inpainting at `strength=1` starts from the bank's noise. Image-to-image starts from a noised picture, which no bank
holds: its base has independent noises, and is recorded with the engine
([`tests/pipeline_claims.py`](../tests/pipeline_claims.py) shows how); `redi.build` refuses it, and inpainting.

## Blocks

A modular pipeline's guider is part of the identity of a base, as `guidance_scale` is elsewhere. Diffusers does not save
it: put it back before you enable a base on a pipeline that was loaded.
Guidance for a part of the schedule costs nothing while images sleep. A guider with momentum is refused where it would
jump, because the steps that sleep have no answers to add up ([`tests/test_modular.py`](../tests/test_modular.py)).

## Refused

What redi says, with tiny instances of the real classes, in place of a wrong sample:

| pipeline | why |
|---|---|
"""


def markdown(matrix: Matrix) -> str:
    """Return the document."""
    rows = []
    for pipeline in PIPELINES:
        scheduler = type(matrix.case(pipeline).pipe().scheduler).__name__.removesuffix("Scheduler")
        rows.append([pipeline, scheduler, *matrix.row(pipeline)])
    header = ["pipeline", "scheduler", *CLAIMS]
    lines = [header, ["---"] * len(header), *rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    legend = "".join(f"| {name} | {_first_sentence(claim.__doc__)} |\n" for name, claim in CLAIMS.items())
    refused = "".join(f"| {name} | {each.refusal(Tiny(each.make).build())} |\n" for name, each in REFUSED.items())
    return _HEAD + table + _LEGEND + legend + _FOOT + refused


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(sys.argv[1]).write_text(markdown(Matrix(Path(folder))))
