"""Owns the sheets of the worst pictures of the study of where it breaks; must not know how outcomes are come by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from redi.comparison import Column
from redi.experiments.sheets import sheet

DISTANCE, FARTHEST = "distance to the nearest entry", "farthest quarter"
WORDING, AS_IN_BASE = "wording", "as in the base"
ENTRIES = "entries of the base"
_SHEETS: Mapping[str, tuple[str, str, str]] = {
    "breaks": ("objects", "*", "Of all held-out prompts, whole bases"),
    "breaks-objects": ("objects", "3", "Of prompts for three objects"),
    "breaks-far": (DISTANCE, FARTHEST, "Of the quarter of the prompts that is farthest from the base"),
    "breaks-wording": (WORDING, f"!{AS_IN_BASE}", "Of prompts in other words than the base's"),
    "breaks-guidance": ("guidance", "*", "Of guidance 1 to 10"),
    "breaks-entries": (ENTRIES, "*", "Of small bases, of fewer entries than neighbours too"),
}
"""By the name of the file: panel, group (of all "*", all but "!...") and what the pictures are of."""
_WORST = 20
_WORDS = {0.0: "wrong", 1.0: "right"}
_Numbers = NDArray[np.float64]

Panels = Mapping[str, Mapping[str, Sequence["Outcome"]]]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of some prompts (n): in full, when every picture jumps, and with the default gate.

    Attributes:
        right: By way, "full", "jump" and "gated": (n) 1 where the judge finds everything, else 0.
        apart: By way, but "full": (n) distance of features to the run in full.
        calls: By way: (n).
        pictures: By way: (n, h, w, 3), 0 to 255.
        prompts: The n texts.
    """

    right: Mapping[str, _Numbers]
    apart: Mapping[str, _Numbers]
    calls: Mapping[str, _Numbers]
    pictures: Mapping[str, NDArray[np.uint8]]
    prompts: NDArray[np.str_]

    def part(self, places: NDArray[np.intp]) -> Outcome:
        """Return that of the prompts at some places."""
        right, apart, calls = (
            {way: each[places] for way, each in one.items()} for one in (self.right, self.apart, self.calls)
        )
        pictures = {way: each[places] for way, each in self.pictures.items()}
        return Outcome(right, apart, calls, pictures, self.prompts[places])


def worst_sheets(panels: Panels) -> dict[str, tuple[str, Image.Image]]:
    """Return sheets of the pictures that are farthest from their run in full, worst first.

    Args:
        panels: Outcomes of each replicate, by panel and group.

    Returns:
        By the name of the file: what the pictures are of, and the sheet. Of no pictures there is none.
    """
    sheets = {}
    for name, (panel, only, about) in _SHEETS.items():
        found = [
            (group, outcome)
            for group, outcomes in panels[panel].items()
            if only in ("*", group) or (only.startswith("!") and group != only[1:])
            for outcome in outcomes
        ]
        apart = [
            (far, group, outcome, place)
            for group, outcome in found
            for place, far in enumerate(outcome.apart["jump"].tolist())
        ]
        apart.sort(key=lambda each: -each[0])
        named = len({group for group, _ in found}) > 1 and panel != "objects"
        columns = [_column(outcome, place, group if named else "") for _, group, outcome, place in apart[:_WORST]]
        if columns:
            heading = f"{about}: the {len(columns)} pictures farthest from their run in full"
            sheets[name] = about, sheet(columns, ["full", "ReDi"], per_band=5, heading=heading)
    return sheets


def _column(outcome: Outcome, place: int, group: str) -> Column:
    pictures = tuple(Image.fromarray(outcome.pictures[way][place]) for way in ("full", "jump"))
    full, jump = (_WORDS[float(outcome.right[way][place])] for way in ("full", "jump"))
    title = f"{group}: {outcome.prompts[place]}" if group else str(outcome.prompts[place])
    return Column(title, pictures, (full, f"{jump}, {outcome.apart['jump'][place]:.1f} away"))
