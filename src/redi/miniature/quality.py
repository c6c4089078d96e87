"""Owns whether pictures show what captions ask, and how well the evaluator reads; must not know who made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redi.miniature.evaluator import Reading
from redi.miniature.scenes import Description, Scene
from redi.miniature.vocabulary import PLAIN

_NEAR = 6.0
"""Pixels within which a position counts as read right."""


@dataclass(frozen=True)
class Faithfulness:
    """Which parts of a caption a picture shows; None where the caption does not say.

    Attributes:
        objects: Every object is there, in its colour, and no other kind is.
        kinds: Every object is there and no other kind is.
        sizes: Every size that is said is right, among the objects that are there.
        relation: The relation that is said holds.
        background: The background that is said is there.
        style: The style that is asked for (plain when none is) is there.
    """

    objects: bool
    kinds: bool
    sizes: bool | None
    relation: bool | None
    background: bool | None
    style: bool

    @property
    def content(self) -> bool:
        """Whether everything that the caption says is right, apart from the style."""
        return self.objects and not any(part is False for part in (self.sizes, self.relation, self.background))

    @property
    def all(self) -> bool:
        """Whether everything that the caption says is right."""
        return self.content and self.style


def faithful(description: Description, reading: Reading) -> Faithfulness:
    """Compare what a caption asks for with what the evaluator sees."""
    seen = {item.kind: item for item in reading.objects}
    kinds = set(seen) == {item.kind for item in description.objects}
    objects = kinds and all(seen[item.kind].color == item.color for item in description.objects)
    sized = [item for item in description.objects if item.size is not None]
    sizes = all(item.kind in seen and seen[item.kind].size == item.size for item in sized) if sized else None
    background = None if description.background is None else reading.background == description.background
    style = reading.style == (description.style or PLAIN)
    return Faithfulness(objects, kinds, sizes, _relation_holds(description, reading), background, style)


def layout_similarity(one: Reading, other: Reading) -> float:
    """Return the share, of the kinds that are seen in either picture, that both have within 6 pixels; 1 of nothing."""
    first, second = ({item.kind: item for item in reading.objects} for reading in (one, other))
    kinds = first.keys() | second.keys()
    both = [(first[kind], second[kind]) for kind in first.keys() & second.keys()]
    near = sum(bool(np.hypot(a.x - b.x, a.y - b.y) <= _NEAR) for a, b in both)
    return near / len(kinds) if kinds else 1.0


def summarize(descriptions: Sequence[Description], readings: Sequence[Reading]) -> dict[str, float | None]:
    """Return shares of pictures, by attribute and by number of objects; None where no caption says it."""
    found = [faithful(description, reading) for description, reading in zip(descriptions, readings, strict=True)]
    shares = {
        f"objects_of_{count}": _share(
            [f.objects for d, f in zip(descriptions, found, strict=True) if len(d.objects) == count]
        )
        for count in (1, 2, 3)
    }
    shares["style_when_asked"] = _share([f.style for d, f in zip(descriptions, found, strict=True) if d.style])
    for name in ("objects", "kinds", "sizes", "relation", "background", "style", "all"):
        shares[name] = _share([getattr(f, name) for f in found])
    return shares


def reading_accuracy(scenes: Sequence[Scene], readings: Sequence[Reading]) -> dict[str, float | None]:
    """Return how often the evaluator reads each attribute of drawn scenes right.

    ``kind`` is the share of (scene, kind) pairs whose presence is read right among those that are there or are seen;
    ``color``, ``size`` and ``position`` (within 6 pixels) are shares of the objects that are there; ``scene`` is the
    share of scenes with every attribute right.
    """
    right: dict[str, list[bool]] = {
        name: [] for name in ("background", "style", "kind", "color", "size", "position", "scene")
    }
    for scene, reading in zip(scenes, readings, strict=True):
        seen = {item.kind: item for item in reading.objects}
        there = {item.kind: item for item in scene.placements}
        one: dict[str, list[bool]] = {
            "background": [reading.background == scene.background],
            "style": [reading.style == (scene.style or PLAIN)],
            "kind": [kind in seen and kind in there for kind in seen.keys() | there.keys()],
            "color": [k in seen and seen[k].color == item.color for k, item in there.items()],
            "size": [k in seen and seen[k].size == item.size for k, item in there.items()],
            "position": [
                k in seen and np.hypot(seen[k].x - item.x, seen[k].y - item.y) <= _NEAR for k, item in there.items()
            ],
        }
        one["scene"] = [all(all(parts) for parts in one.values())]
        for name, parts in one.items():
            right[name] += [bool(part) for part in parts]
    return {name: _share(parts) for name, parts in right.items()}


def _share(parts: Sequence[bool | None]) -> float | None:
    said = [part for part in parts if part is not None]
    return float(np.mean(said)) if said else None


def _relation_holds(description: Description, reading: Reading) -> bool | None:
    if description.relation is None:
        return None
    seen = {item.kind: item for item in reading.objects}
    first, second = (seen.get(item.kind) for item in description.objects)
    if first is None or second is None:
        return False
    dx, dy = second.x - first.x, second.y - first.y
    return {"left of": dx > 0, "right of": dx < 0, "above": dy > 0, "below": dy < 0}[description.relation]
