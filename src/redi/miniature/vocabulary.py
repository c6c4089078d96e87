"""Owns what a scene can hold and the English words for it; must not know how anything is drawn or learned."""

from __future__ import annotations

KINDS: dict[str, tuple[str, ...]] = {
    "house": ("house", "cottage"),
    "tree": ("tree",),
    "car": ("car", "automobile"),
    "boat": ("boat", "sailboat"),
    "fish": ("fish",),
    "star": ("star",),
    "heart": ("heart",),
    "flower": ("flower", "blossom"),
    "mushroom": ("mushroom", "toadstool"),
    "umbrella": ("umbrella", "parasol"),
    "balloon": ("balloon",),
    "cat": ("cat", "kitty"),
}
"""Kinds of objects and the nouns for each; the first noun is the usual one."""

COLORS: dict[str, tuple[str, ...]] = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "black": ("black",),
}
"""Colours and the adjectives for each."""

COLOR_RGB: dict[str, tuple[int, int, int]] = {
    "red": (218, 38, 40),
    "orange": (248, 140, 24),
    "yellow": (252, 222, 48),
    "green": (40, 150, 62),
    "blue": (40, 84, 214),
    "purple": (134, 52, 170),
    "pink": (252, 152, 196),
    "black": (38, 36, 42),
}
"""The fill colour of each colour word, 0-255."""

SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
}
"""Sizes and the adjectives for each."""

SIZE_RADIUS: dict[str, tuple[float, float]] = {"small": (9.0, 10.5), "large": (13.5, 15.5)}
"""Range of an object's radius in pixels of the 64-pixel picture."""

BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "meadow": ("in a meadow", "on the grass", "in a green field"),
    "beach": ("on a beach", "at the beach", "on the sand by the water"),
    "desert": ("in the desert", "among the dunes", "in a sandy desert"),
    "snow": ("in the snow", "on a snowy field", "on a winter day"),
    "sea": ("in the sea", "on the ocean", "among the waves"),
    "night": ("at night", "under the stars", "in the night sky"),
    "wall": ("in front of a brick wall", "by a brick wall", "against a wall"),
}
"""Backgrounds and the phrases for each."""

STYLES: dict[str, str] = {
    "line drawing": "as a line drawing",
    "mosaic": "as a mosaic",
    "watercolour": "as a watercolour",
}
"""Styles and the suffix that asks for each; a picture without a suffix is plain."""

PLAIN = "plain"

RELATIONS: dict[str, tuple[str, ...]] = {
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
"""Relations of the first object to the second, and the phrases for each."""

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
