"""Owns what ``redi generate`` and ``redi stylize`` have in common: open, run, write, tell."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from redi.errors import InputError


def run_and_write(
    command: str,
    prompt: list[str] | None,
    prompt_file: Path | None,
    kb: Path,
    out: Path,
    *,
    style: str | None = None,
    model: str | None,
    device: str | None,
    seed: int,
    batch_size: int,
    compare: bool,
    **rule: Any,
) -> None:
    """Generate what the command asks for; ``rule`` as of :func:`redi.enable`.

    Raises:
        RediError: As of :func:`redi.generate`.
    """
    texts = _prompts(prompt, prompt_file)
    from redi.enabling import open_base
    from redi.generating import generate, stylize
    from redi.pipelines import pipeline_for
    from redi.results import COMPARISON, REPORT, write_results
    from redi.retrieval import format_reports
    from redi.samples import shown

    base = open_base(kb)
    pipe = pipeline_for(base, model=model, device=device)
    common: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "compare": compare, **rule}
    made = generate(pipe, base, texts, **common) if style is None else stylize(pipe, base, texts, style, **common)
    if rule.get("grow"):
        common["grow"] = asdict(rule["grow"])
        typer.echo(f"{base.address} holds {len(base.current())} entries, {len(base)} before")
    settings = {"command": command, **({} if style is None else {"style": style}), **common}
    rate = getattr(getattr(getattr(pipe, "vae", None), "config", None), "sampling_rate", None)
    write_results(out, base, made, batch_size=batch_size, settings=settings, sampling_rate=rate)
    compared = compare and shown(made[0].output) is not None
    typer.echo(format_reports([each.report for each in made]))
    typer.echo(f"{len(made)} pictures and {REPORT} are in {out}" + (f", compared in {COMPARISON}" if compared else ""))


def _prompts(given: list[str] | None, file: Path | None) -> list[str]:
    from redi.building.prompts import read_prompts

    texts = [*(given or []), *(read_prompts(file) if file else [])]
    if not texts:
        raise InputError(
            "no prompts", expected="prompts as arguments or in a file", fix='"a red cat", or --prompts FILE'
        )
    return texts
