"""Owns the warning that rows are of weights whose constants have changed since; must not know how rows are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redi.retrieval.weights import COMBINERS


def earlier_rules(result: Mapping[str, Any]) -> list[str]:
    """Return a warning for each rule of weights whose constants have changed since some of its rows were made."""
    lines = []
    for name, combiner in sorted(COMBINERS.items()):
        rows = [row for row in result["rows"] if (row["sampling"]["jump"] or {}).get("weights") == name]
        today = repr(combiner())
        # Results from before rows told their rule: only kriging's has changed since.
        old = [row for row in rows if row.get("rule", "" if name == "kriging" else today) != today]
        if old:
            which = "The rows" if len(old) == len(rows) else f"{len(old)} of the {len(rows)} rows"
            then = ", ".join(dict.fromkeys(row.get("rule") or "earlier constants" for row in old))
            those = "" if len(old) == len(rows) else f": {', '.join(row['label'] for row in old)}"
            lines += [f"*{which} of {name} are of {then}, not of today's `{today}`{those}.*", ""]
    return lines
