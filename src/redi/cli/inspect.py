"""Owns ``redi inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redi.errors import InputError

if TYPE_CHECKING:
    from redi.knowledge_base import Entry, KnowledgeBase

_PREVIEW_COLUMNS = 32
_NOT_SIGNED = (
    "the base has changed since it was built or saved, so rows were checked, and of the files only data of the table "
    "that was there before; redi compact signs it again"
)
_CHANGED = "none: changed since it was built or saved"
_IN_A_BUCKET = "none: head.json of the bucket names every file with its hash"
_CELL = "\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m▀"


def inspect(
    kb: Annotated[Path, typer.Argument(help="Folder of the knowledge base, or s3://bucket/name.", metavar="FOLDER")],
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read every row again (checksums, numbers, ids), and compare every file with hashes.json, unless "
            "the base has grown since it was signed; exit 1 if damaged.",
        ),
    ] = False,
    entry: Annotated[
        str | None, typer.Option(help="Show one entry, by its place (from 0) or the start of its id.", metavar="N|ID")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what a knowledge base holds.

    \b
    Example:
      redi inspect my-base
      redi inspect my-base --verify
      redi inspect my-base --entry 42
    """
    from redi.knowledge_base import KnowledgeBase, compare_files, read_hashes

    base = KnowledgeBase.open(kb)
    facts = _facts_of_entry(base, entry) if entry is not None else _facts(base)
    if verify:
        found, files = base.verify(), compare_files(base.path)
        clean = found.clean and not files
        facts["verified"] = {
            "entries read": found.entries,
            "doubled": found.duplicates,
            "refused": found.refused,
            "damaged": [*files, *found.damaged],
        }
        if read_hashes(base.path) is None and base.address == str(base.path):
            facts["verified"]["not signed"] = _NOT_SIGNED
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _print(facts if entry is not None else _in_words(facts))
    if verify:
        typer.echo("clean" if clean else "damaged", err=as_json)
        raise typer.Exit(0 if clean else 1)


def _facts(base: KnowledgeBase) -> dict[str, Any]:
    """Return what is known of a base, with numbers as numbers: sizes in bytes, quantiles by their percents."""
    from redi.knowledge_base import read_hashes
    from redi.knowledge_base.guard import bytes_below
    from redi.knowledge_base.layout import columns_of

    manifest = base.manifest
    identity, plan, columns = manifest.identity, base.plan, columns_of(manifest)
    information, scheduler = _object(identity, "information"), _object(identity, "scheduler")
    hashes, more = read_hashes(base.path), base.count_of_more()
    latents = {name.replace("_", " after step "): columns.codec(name) for name in columns.names}
    return {
        "knowledge base": base.address,
        "id": manifest.kb_id,
        "created": manifest.created,
        "entries": len(base) - more,
        "prompts": _object(information, "prompts").get("count"),
        "grown or merged in": more,
        "refused": len(base.refused()),
        "size": bytes_below(base.path),
        "bytes an entry": {name: codec.width(columns.size) for name, codec in latents.items()},
        "kept as": {name: codec.name for name, codec in latents.items()},
        "model": information.get("model"),
        "pipeline": identity.get("pipeline"),
        "dtype": identity.get("dtype"),
        "scheduler": scheduler.get("class"),
        "steps": plan.num_inference_steps,
        "key steps": list(plan.key_steps),
        "value steps": list(plan.value_steps),
        "call": _object(identity, "call"),
        "noise": manifest.noise["kind"],
        "noises in the bank": len(base.noise_bank),
        "latent": list(manifest.latent_shape),
        "distance to the nearest other entry": {f"key step {step}": _distances(base, step) for step in plan.key_steps},
        "built with": manifest.library_versions,
        "signature": hashes.signature if hashes else None,
    }


def _in_words(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a base as a person reads them."""
    from redi.knowledge_base.bucket import is_address

    entries, prompts, more, size = (facts[each] for each in ("entries", "prompts", "grown or merged in", "size"))
    each = {name: f"{width} ({facts['kept as'][name]})" for name, width in facts["bytes an entry"].items()}
    each["folder"] = f"{size / (entries + more):.0f}" if entries + more else "no entries yet"
    words = {
        "entries": f"{entries}" + (f" of {prompts} prompts" if prompts else ""),
        "size": f"{size / 1e6:.1f} MB",
        "bytes an entry": each,
        "key steps": ", ".join(map(str, facts["key steps"])),
        "value steps": ", ".join(map(str, facts["value steps"])),
        "noise": f"{facts['noise']}, {facts['noises in the bank']} in the bank",
        "latent": " x ".join(map(str, facts["latent"])),
        "distance to the nearest other entry": {
            name: known if isinstance(known, str) else ", ".join(f"{at} {found:.4g}" for at, found in known.items())
            for name, known in facts["distance to the nearest other entry"].items()
        },
        "signature": facts["signature"] or (_IN_A_BUCKET if is_address(facts["knowledge base"]) else _CHANGED),
    }
    hidden = {"prompts", "kept as", "noises in the bank", *(() if more else ("grown or merged in",))}
    return {name: words.get(name, fact) for name, fact in facts.items() if name not in hidden}


def _object(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an object of a manifest; a base that somebody else wrote may have anything in its place."""
    found = fields.get(name)
    return found if isinstance(found, dict) else {}


def _distances(base: KnowledgeBase, key_step: int) -> dict[str, float] | str:
    """Return quantiles of the leave-one-out distances, or why there are none."""
    from redi.errors import KnowledgeBaseError

    try:
        known = base.leave_one_out(key_step)
    except KnowledgeBaseError as error:
        return f"not known: {error.got}"
    if not len(known):
        return "not known: no two entries share a noise"
    quantiles = known.quantile(known.new_tensor((0.05, 0.5, 0.95))).tolist()
    return dict(zip(("5 %", "median", "95 %"), quantiles, strict=True))


def _facts_of_entry(base: KnowledgeBase, asked: str) -> dict[str, Any]:
    row, entry = _found(base, asked)
    from redi.building import preview_path

    preview = preview_path(base, entry)
    norms = {f"key {step}": float(base.keys([row], step).norm()) for step in base.plan.key_steps}
    norms |= {f"value {step}": float(base.values([row], step).norm()) for step in base.plan.value_steps}
    return {
        "entry": row,
        "id": entry.entry_id.hex(),
        "prompt": entry.prompt,
        "noise": entry.noise_id,
        "seed": entry.seed,
        "unit": entry.unit,
        "slot": entry.slot,
        "norm": norms,
        "preview": str(preview) if preview else "none (build with --previews)",
    }


def _found(base: KnowledgeBase, asked: str) -> tuple[int, Entry]:
    """Return the place and facts of the entry that a place or the start of an id names."""
    count = len(base)
    if asked.isdigit() and int(asked) < count:
        return int(asked), base.entries([int(asked)])[0]
    wanted = asked.lower()
    found = [
        (start + place, entry)
        for start in range(0, count, 4096)
        for place, entry in enumerate(base.entries(range(start, min(start + 4096, count))))
        if wanted and entry.entry_id.hex().startswith(wanted)
    ]
    if len(found) != 1:
        raise InputError(
            f"entry {asked!r}: {len(found)} entries have it",
            expected=f"a place from 0 to {count - 1}, or the start of one id",
        )
    return found[0]


def _print(facts: dict[str, Any]) -> None:
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        lines = _lines(value)
        typer.echo(f"{name:<{width}}{printable(lines[0])}")
        for line in lines[1:]:
            typer.echo(" " * width + printable(line))
    preview = Path(str(facts.get("preview", "")))
    if preview.is_file():
        _show(preview)


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{name}: {_rounded(item)}" for name, item in value.items()] or ["-"]
    return ["-" if value is None else str(value)]


def _rounded(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else repr(value) if value == "" else str(value)


def printable(text: str) -> str:
    """Return text without what steers a terminal, which a stranger's prompts may contain."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _show(preview: Path) -> None:
    """Draw a picture in half blocks, if somebody looks."""
    import sys

    if not sys.stdout.isatty():
        return
    import numpy as np
    from PIL import Image

    with Image.open(preview) as opened:
        small = opened.convert("RGB").resize((_PREVIEW_COLUMNS, _PREVIEW_COLUMNS))
    lines = np.asarray(small).tolist()
    for above, below in zip(lines[::2], lines[1::2], strict=True):
        cells = (_CELL.format(*upper, *lower) for upper, lower in zip(above, below, strict=True))
        typer.echo("".join(cells) + "\x1b[0m")
