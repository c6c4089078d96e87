"""Owns reading the JSON that experiments write; must not know how a section shows it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from redi.errors import InputError

_OF_ALL = {"study": str, "kind": str, "scale": dict, "versions": dict}
_ROWS = {kind: {"rows": list, "claims": list} for kind in ("comparison", "keys")}
"""What a result has besides, of the kinds of which rows are kept when others are run again."""


def read_result(file: Path, kinds: Collection[str]) -> dict[str, Any]:
    """Return what an experiment wrote.

    Args:
        file: The JSON file.
        kinds: Of results that are known there.

    Raises:
        InputError: It does not read, is something else, or is of another kind.
    """
    try:
        found: Any = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, f"is damaged: {error}") from error
    if not isinstance(found, dict):
        raise _damaged(file, f"holds {found!r:.60}")
    if found.get("kind") not in kinds:
        raise _damaged(file, f"is of kind {found.get('kind')!r}, not one of {', '.join(sorted(kinds))}")
    fields = _OF_ALL | _ROWS.get(found["kind"], {})
    wrong = [name for name, kind in fields.items() if not isinstance(found.get(name), kind)]
    if not wrong and not isinstance(found["scale"].get("name"), str):
        wrong = ["scale"]
    if wrong:
        raise _damaged(file, f"does not tell {', '.join(wrong)}")
    return found


def _damaged(file: Path, said: str) -> InputError:
    return InputError(
        f"{file} {said}",
        expected="what redi experiments run wrote, whole",
        fix=f"remove it, and run it again: redi experiments run {file.stem} --scale {file.parent.name}",
    )
