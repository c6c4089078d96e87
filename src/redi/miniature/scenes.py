"""Owns descriptions (what a caption says), captions (how it says it) and scenes (where things are), and the split
between base and held-out descriptions; must not know how a scene is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from redi.miniature.vocabulary import BACKGROUNDS, COLORS, KINDS, OPPOSITE, RELATIONS, SIZE_RADIUS, SIZES, STYLES

IMAGE_SIZE = 64
HELD_OUT_SHARE = 0.08

_MARGIN = 1.0
_GAP = 0.92
_RELATION_DISTANCE = 15.0


@dataclass(frozen=True)
class ObjectDescription:
    """What a caption says of one object; ``size`` is None when it does not say."""

    kind: str
    color: str
    size: str | None = None


@dataclass(frozen=True)
class Description:
    """What a caption says: one to three objects of different kinds, and optionally a relation of the first object
    to the second, a background, a style. What is None is free."""

    objects: tuple[ObjectDescription, ...]
    relation: str | None = None
    background: str | None = None
    style: str | None = None

    def canonical(self) -> str:
        """Return one text for all descriptions that ask for the same thing, whatever the order of its parts."""
        objects, relation = list(self.objects), self.relation
        if relation is None:
            objects.sort(key=lambda item: (item.kind, item.color, item.size or ""))
        elif objects[0].kind > objects[1].kind:
            objects[:2], relation = objects[1::-1], OPPOSITE[relation]
        parts = [f"{item.size or 'any'} {item.color} {item.kind}" for item in objects]
        return "|".join([*parts, relation or "", self.background or "", self.style or ""])

    @property
    def held_out(self) -> bool:
        """Whether this description is kept away from training and from knowledge bases."""
        digest = hashlib.blake2b(self.canonical().encode(), digest_size=8, person=b"redi-split").digest()
        return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**64


@dataclass(frozen=True)
class Placement:
    """One drawn object: its centre and radius in pixels of the 64-pixel picture."""

    kind: str
    color: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Everything that the drawing needs; ``seed`` decides horizon, stars, tufts and pigment."""

    description: Description
    placements: tuple[Placement, ...]
    background: str
    style: str | None
    seed: int


def random_description(rng: np.random.Generator, *, objects: int | None = None) -> Description:
    """Draw a description: 40 % one object, 40 % two, 20 % three, unless ``objects`` says how many."""
    count = objects if objects is not None else int(rng.choice((1, 2, 3), p=(0.4, 0.4, 0.2)))
    kinds = rng.choice(list(KINDS), size=count, replace=False)
    described = tuple(
        ObjectDescription(str(kind), str(rng.choice(list(COLORS))), _maybe(rng, 0.5, list(SIZES))) for kind in kinds
    )
    relation = _maybe(rng, 0.5, list(RELATIONS)) if count == 2 else None
    return Description(described, relation, _maybe(rng, 0.75, list(BACKGROUNDS)), _maybe(rng, 1 / 3, list(STYLES)))


def descriptions(seed: int, *, held_out: bool, objects: int | None = None) -> Iterator[Description]:
    """Yield descriptions of one side of the split, the same ones for the same seed."""
    rng = np.random.default_rng([seed, int(held_out)])
    while True:
        description = random_description(rng, objects=objects)
        if description.held_out == held_out:
            yield description


def caption(description: Description, rng: np.random.Generator | None = None) -> str:
    """Say a description in English; with ``rng`` in varied wording, without it in the plainest one."""
    phrases = [_object_phrase(item, rng) for item in description.objects]
    if description.relation is not None:
        text = f"{phrases[0]} {_pick(rng, RELATIONS[description.relation])} {phrases[1]}"
    elif len(phrases) == 1:
        text = phrases[0]
    else:
        join = _pick(rng, (" and ", " with ")) if len(phrases) == 2 else " and "
        text = ", ".join(phrases[:-1]) + join + phrases[-1]
    text = _pick(rng, ("", "", "a picture of ", "there is ")) + text
    if description.background is not None:
        where = _pick(rng, BACKGROUNDS[description.background])
        text = f"{where}, {text}" if rng is not None and rng.random() < 0.25 else f"{text} {where}"
    if description.style is not None:
        text += _pick(rng, (" ", ", ")) + STYLES[description.style]
    return text


def arrange(description: Description, rng: np.random.Generator) -> Scene:
    """Place the described objects at random, without overlap, and choose what the caption leaves free."""
    sizes = [item.size or str(rng.choice(list(SIZES))) for item in description.objects]
    radii = [float(rng.uniform(*SIZE_RADIUS[size])) for size in sizes]
    background = description.background or str(rng.choice(list(BACKGROUNDS)))
    while True:
        centers = [tuple(rng.uniform(r + _MARGIN, IMAGE_SIZE - r - _MARGIN, size=2)) for r in radii]
        if _apart(centers, radii) and _related(description.relation, centers):
            break
    placements = tuple(
        Placement(item.kind, item.color, size, float(x), float(y), radius)
        for item, size, radius, (x, y) in zip(description.objects, sizes, radii, centers, strict=True)
    )
    return Scene(description, placements, background, description.style, int(rng.integers(2**31)))


def captioned_scenes(seed: int, *, held_out: bool) -> Iterator[tuple[str, Scene]]:
    """Yield (caption, scene) pairs of one side of the split, the same ones for the same seed."""
    rng = np.random.default_rng([seed, int(held_out), 1])
    for description in descriptions(seed, held_out=held_out):
        yield caption(description, rng), arrange(description, rng)


def captions(count: int, *, seed: int, held_out: bool, objects: int | None = None) -> dict[str, Description]:
    """Return ``count`` different captions and what each one asks for; held-out ones say nothing a base caption says."""
    rng = np.random.default_rng([seed, int(held_out), 2])
    found: dict[str, Description] = {}
    for description in descriptions(seed, held_out=held_out, objects=objects) if count else ():
        found.setdefault(caption(description, rng), description)
        if len(found) == count:
            return found
    return found


def restyled(description: Description, style: str | None) -> Description:
    """Return the same content in another style."""
    return replace(description, style=style)


def _maybe(rng: np.random.Generator, probability: float, options: list[str]) -> str | None:
    return str(rng.choice(options)) if rng.random() < probability else None


def _pick(rng: np.random.Generator | None, options: tuple[str, ...]) -> str:
    return options[0] if rng is None else options[int(rng.integers(len(options)))]


def _object_phrase(item: ObjectDescription, rng: np.random.Generator | None) -> str:
    words = [_pick(rng, COLORS[item.color]), _pick(rng, KINDS[item.kind])]
    if item.size is not None:
        words.insert(0, _pick(rng, SIZES[item.size]))
    article = "the" if rng is not None and rng.random() < 0.15 else ("an" if words[0][0] in "aeiou" else "a")
    return " ".join([article, *words])


def _apart(centers: list[tuple[float, ...]], radii: list[float]) -> bool:
    return all(
        np.hypot(centers[i][0] - centers[j][0], centers[i][1] - centers[j][1]) >= _GAP * (radii[i] + radii[j])
        for i in range(len(radii))
        for j in range(i)
    )


def _related(relation: str | None, centers: list[tuple[float, ...]]) -> bool:
    if relation is None:
        return True
    dx, dy = centers[1][0] - centers[0][0], centers[1][1] - centers[0][1]
    along, across = {"left of": (dx, dy), "right of": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[relation]
    return bool(along >= max(_RELATION_DISTANCE, abs(across)))
