"""Owns the report's section on where retrieval breaks, from the result's JSON; must not know how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redi.experiments.wording import interval


def breaks_section(result: Mapping[str, Any], images: Path) -> str:
    """Return the section; its sheet lies with the results."""
    scale = result["scale"]
    entries = round(result["share"] * scale["entries"])
    lines = [
        f"## Where it breaks ({result['jump']})",
        "",
        f"Against the run in full of the same prompts from the same noises, {scale['replicates']} banks. Objects, "
        f"style and distance split the {scale['prompts']} held-out prompts of each bank into groups, with "
        f"{scale['entries']} entries; the other panels have {entries} entries, but where the group says how many, and "
        f"the first {result['queries']} prompts of each, but for those that name a {result['lacking']}: all that do. "
        "*From full* is the distance of features to the run in full. *Gated* is the same with the default gate, where "
        "a picture may run in full. - marks what is worse than the run in full outside the interval.",
        "",
        "| panel | group | n | full | jump | difference | from full | gated | from full | calls |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        cells = (
            row["panel"],
            row["group"],
            f"{row['n']}",
            f"{row['full']:.1%}",
            f"{row['jump']:.1%}",
            _difference(row["difference"]),
            interval(row["closeness"], ".2f"),
            f"{row['gated']:.1%}{' -' if row['gated_difference']['high'] < 0 else ''}",
            interval(row["gated_closeness"], ".2f"),
            f"{row['calls']['gated']:.1f} of {row['calls']['full']:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    # One group stands in several panels: what the study's own prompts, entries and guidance are.
    groups = list({json.dumps({**row, "panel": "", "group": ""}): row for row in result["rows"]}.values())
    broken = [row for row in groups if row["difference"]["high"] < 0]
    broken.sort(key=lambda row: row["difference"]["value"])
    worst = "; ".join(f"{row['panel']}: {row['group']} ({row['difference']['value']:+.1%})" for row in broken[:5])
    kept = [row for row in broken if row["gated_difference"]["high"] >= 0]
    said = f"Fewer right pictures, outside the interval, in {len(broken)} of {len(groups)} groups"
    said += f", most in {worst}. With the gate it is no difference in {len(kept)} of them." if broken else "."
    return "\n".join([*lines, "", said, "", *_sheets(result), ""])


def _sheets(result: Mapping[str, Any]) -> list[str]:
    """Return the first sheet as an image and the others as links."""
    first, *more = result["sheets"]
    others = ", ".join(f"[{one['about'].removeprefix('Of ')}]({one['file']})" for one in more)
    shown = f"![The worst pictures]({first['file']})"
    return [*([f"The worst twenty of other prompts: {others}.", ""] if more else []), shown]


def _difference(found: Mapping[str, float]) -> str:
    return interval(found, "+.1%") + (" -" if found["high"] < 0 else "")
