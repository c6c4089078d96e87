"""Owns the picture of a scene, drawn with Pillow at four times the size and reduced; must not know captions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from redi.miniature.scenes import IMAGE_SIZE, Placement, Scene
from redi.miniature.vocabulary import COLOR_RGB

Color = tuple[int, int, int]
Point = tuple[float, float]

_SCALE = 4
_CANVAS = IMAGE_SIZE * _SCALE
_PAPER: Color = (250, 247, 238)
_PALE: Color = (246, 244, 236)
_DARK: Color = (52, 48, 56)


def draw(scene: Scene) -> Image.Image:
    """Draw a scene as a 64x64 RGB picture."""
    rng = np.random.default_rng(scene.seed)
    lines_only = scene.style == "line drawing"
    canvas = Image.new("RGB", (_CANVAS, _CANVAS), _PAPER)
    pen = ImageDraw.Draw(canvas)
    _BACKGROUNDS[scene.background](pen, rng)
    if lines_only:
        canvas = Image.blend(canvas, Image.new("RGB", canvas.size, _PAPER), 0.72)
        pen = ImageDraw.Draw(canvas)
    for placement in scene.placements:
        _OBJECTS[placement.kind](_Brush(pen, placement, lines_only))
    if scene.style == "watercolour":
        canvas = _watercolour(canvas, rng)
    picture = canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
    return _mosaic(picture) if scene.style == "mosaic" else picture


def _shade(color: Color, factor: float) -> Color:
    target = 255 if factor > 0 else 0
    red, green, blue = (round(channel + (target - channel) * abs(factor)) for channel in color)
    return red, green, blue


class _Brush:
    """Draws in an object's own coordinates (-1..1, y down), filled or as lines only."""

    def __init__(self, pen: ImageDraw.ImageDraw, placement: Placement, lines_only: bool) -> None:
        self.pen, self.lines_only = pen, lines_only
        self.x, self.y, self.radius = (value * _SCALE for value in (placement.x, placement.y, placement.radius))
        self.color = COLOR_RGB[placement.color]
        self.outline = _shade(self.color, 0.75) if placement.color == "black" else _shade(self.color, -0.55)
        self.width = round(_SCALE * (2.2 if lines_only else 0.9))

    def _map(self, points: list[Point]) -> list[Point]:
        return [(self.x + px * self.radius, self.y + py * self.radius) for px, py in points]

    def polygon(self, points: list[Point], fill: Color | None = None) -> None:
        mapped = self._map(points)
        self.pen.polygon(mapped, fill=_PAPER if self.lines_only else fill or self.color)
        self.pen.line([*mapped, mapped[0], mapped[1]], fill=self._edge(), width=self.width, joint="curve")

    def ellipse(self, left: float, top: float, right: float, bottom: float, fill: Color | None = None) -> None:
        box = self._map([(left, top), (right, bottom)])
        inner = _PAPER if self.lines_only else fill or self.color
        self.pen.ellipse(box, fill=inner, outline=self._edge(), width=self.width)

    def dot(self, x: float, y: float, size: float, fill: Color) -> None:
        self.pen.ellipse(self._map([(x - size, y - size), (x + size, y + size)]), fill=fill)

    def line(self, points: list[Point], fill: Color | None = None, width: float = 1.2) -> None:
        color = self.color if self.lines_only else fill or self.outline
        self.pen.line(self._map(points), fill=color, width=round(_SCALE * width), joint="curve")

    def _edge(self) -> Color:
        return self.color if self.lines_only else self.outline


def _house(b: _Brush) -> None:
    b.polygon([(-0.75, -0.1), (0.75, -0.1), (0.75, 0.9), (-0.75, 0.9)])
    b.polygon([(-1, -0.1), (0, -0.95), (1, -0.1)], _shade(b.color, -0.25))
    b.polygon([(-0.2, 0.35), (0.2, 0.35), (0.2, 0.9), (-0.2, 0.9)], _PALE)


def _tree(b: _Brush) -> None:
    b.polygon([(-0.17, 0.2), (0.17, 0.2), (0.17, 0.98), (-0.17, 0.98)], (120, 84, 56))
    for top, half, bottom in ((-0.25, 0.85, 0.6), (-0.65, 0.68, 0.15), (-1.0, 0.5, -0.3)):
        b.polygon([(0, top), (half, bottom), (-half, bottom)])


def _car(b: _Brush) -> None:
    b.polygon([(-0.55, -0.05), (-0.35, -0.55), (0.3, -0.55), (0.6, -0.05)], _PALE)
    b.polygon([(-1, -0.08), (0.85, -0.08), (1, 0.15), (1, 0.5), (-1, 0.5)])
    for x in (-0.5, 0.5):
        b.ellipse(x - 0.26, 0.26, x + 0.26, 0.78, _DARK)
        b.dot(x, 0.52, 0.1, _PALE)


def _boat(b: _Brush) -> None:
    b.line([(0, 0.3), (0, -1)], _DARK, 1.4)
    b.polygon([(0.08, -0.95), (0.85, 0.2), (0.08, 0.2)], _PALE)
    b.polygon([(-0.08, -0.7), (-0.65, 0.2), (-0.08, 0.2)], _PALE)
    b.polygon([(-1, 0.32), (1, 0.32), (0.62, 0.9), (-0.62, 0.9)])


def _fish(b: _Brush) -> None:
    b.polygon([(0.4, 0), (1, -0.55), (0.85, 0), (1, 0.55)])
    b.ellipse(-1, -0.52, 0.62, 0.52)
    b.dot(-0.58, -0.12, 0.15, _PALE)
    b.dot(-0.58, -0.12, 0.08, _DARK)
    b.line([(-0.25, -0.3), (-0.1, 0), (-0.25, 0.3)])


def _star(b: _Brush) -> None:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.44)
    b.polygon([(float(r * np.cos(a)), float(r * np.sin(a)) + 0.05) for r, a in zip(radii, angles, strict=True)])


def _heart(b: _Brush) -> None:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16.5
    b.polygon([(float(px) * 0.98, float(py)) for px, py in zip(x, y, strict=True)])


def _flower(b: _Brush) -> None:
    b.line([(0, 0.2), (0, 1)], (70, 110, 60), 1.6)
    for angle in np.arange(6) * np.pi / 3:
        x, y = 0.42 * float(np.cos(angle)), 0.42 * float(np.sin(angle)) - 0.3
        b.ellipse(x - 0.3, y - 0.3, x + 0.3, y + 0.3)
    b.dot(0, -0.3, 0.24, _PALE)


def _mushroom(b: _Brush) -> None:
    b.polygon([(-0.25, 0), (0.25, 0), (0.35, 0.9), (-0.35, 0.9)], _PALE)
    arc = np.linspace(np.pi, 2 * np.pi, 20)
    b.polygon([(float(np.cos(a)), 0.9 * float(np.sin(a)) + 0.12) for a in arc])
    for x, y in ((-0.45, -0.18), (0.05, -0.45), (0.5, -0.15)):
        b.dot(x, y, 0.14, _PALE)


def _umbrella(b: _Brush) -> None:
    b.line([(0, 0), (0, 0.8), (0.12, 0.95), (0.3, 0.85)], _DARK, 1.6)
    arc = np.linspace(np.pi, 2 * np.pi, 24)
    rim = [(0.66, 0.0), (0.33, 0.14), (0.0, 0.0), (-0.33, 0.14), (-0.66, 0.0)]
    b.polygon([*((float(np.cos(a)), 0.95 * float(np.sin(a)) + 0.12) for a in arc), *rim])


def _balloon(b: _Brush) -> None:
    b.line([(0, 0.4), (0.12, 0.65), (-0.08, 0.85), (0.05, 1)], _DARK, 1.0)
    b.ellipse(-0.66, -1, 0.66, 0.46)
    b.polygon([(-0.14, 0.6), (0, 0.42), (0.14, 0.6)])
    b.dot(-0.25, -0.55, 0.13, _PALE)


def _cat(b: _Brush) -> None:
    for side in (-1, 1):
        b.polygon([(side * 0.82, -0.95), (side * 0.84, 0.0), (side * 0.2, -0.5)])
    b.ellipse(-0.88, -0.62, 0.88, 0.85)
    for side in (-1, 1):
        b.dot(side * 0.35, -0.02, 0.16, _PALE)
        b.dot(side * 0.35, -0.02, 0.08, _DARK)
    b.line([(-0.3, 0.34), (0, 0.5), (0.3, 0.34)], _PALE if sum(b.color) < 300 else _DARK)


_OBJECTS: dict[str, Callable[[_Brush], None]] = {
    "house": _house,
    "tree": _tree,
    "car": _car,
    "boat": _boat,
    "fish": _fish,
    "star": _star,
    "heart": _heart,
    "flower": _flower,
    "mushroom": _mushroom,
    "umbrella": _umbrella,
    "balloon": _balloon,
    "cat": _cat,
}


def _fill(pen: ImageDraw.ImageDraw, top: float, bottom: float, color: Color) -> None:
    pen.rectangle([0, top * _CANVAS, _CANVAS, bottom * _CANVAS], fill=color)


def _strokes(
    pen: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    count: int,
    area: tuple[float, float],
    shape: list[Point],
    color: Color,
) -> None:
    """Scatter ``count`` small strokes between two heights of the picture."""
    for _ in range(count):
        x, y = rng.uniform(0, 1) * _CANVAS, rng.uniform(*area) * _CANVAS
        pen.line([(x + px * _SCALE, y + py * _SCALE) for px, py in shape], fill=color, width=round(_SCALE * 1.1))


def _meadow(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.35, 0.55)
    _fill(pen, 0, horizon, (182, 222, 246))
    _fill(pen, horizon, 1, (146, 204, 108))
    _strokes(pen, rng, 16, (horizon + 0.05, 0.97), [(-1.5, -3), (0, 0), (1.5, -3)], (84, 150, 64))


def _beach(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.3, 0.45)
    _fill(pen, 0, horizon, (196, 230, 248))
    _fill(pen, horizon, horizon + 0.2, (86, 176, 216))
    _fill(pen, horizon + 0.2, 1, (244, 222, 168))
    _strokes(pen, rng, 5, (horizon + 0.03, horizon + 0.17), [(-3, 0), (3, 0)], (232, 246, 250))


def _desert(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    _fill(pen, 0, 1, (252, 236, 196))
    for height, color in ((rng.uniform(0.4, 0.5), (238, 190, 120)), (rng.uniform(0.65, 0.75), (222, 162, 92))):
        phase, x = rng.uniform(0, 2 * np.pi), np.linspace(0, 1, 33)
        y = height + 0.06 * np.sin(2 * np.pi * x + phase)
        ridge = [(float(px) * _CANVAS, float(py) * _CANVAS) for px, py in zip(x, y, strict=True)]
        pen.polygon([*ridge, (_CANVAS, _CANVAS), (0, _CANVAS)], fill=color)


def _snow(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.4, 0.6)
    _fill(pen, 0, horizon, (168, 184, 204))
    _fill(pen, horizon, 1, (240, 244, 250))
    for _ in range(26):
        x, y = rng.uniform(0, _CANVAS, size=2)
        pen.ellipse([x - 3.6, y - 3.6, x + 3.6, y + 3.6], fill=(255, 255, 255))


def _sea(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    _fill(pen, 0, 1, (78, 158, 204))
    wave = [(-5, 1), (-2.5, -1), (0, 1), (2.5, -1), (5, 1)]
    _strokes(pen, rng, 20, (0.03, 0.97), [(float(x), float(y)) for x, y in wave], (150, 208, 234))


def _night(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    _fill(pen, 0, 1, (30, 34, 84))
    for _ in range(30):
        x, y = rng.uniform(0, _CANVAS, size=2)
        pen.ellipse([x - 2.8, y - 2.8, x + 2.8, y + 2.8], fill=(246, 240, 200))


def _wall(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    _fill(pen, 0, 1, (196, 128, 104))
    offset, mortar = int(rng.integers(0, 12)) * _SCALE, (228, 206, 192)
    for row in range(9):
        y = row * 8 * _SCALE
        pen.line([(0, y), (_CANVAS, y)], fill=mortar, width=_SCALE)
        for column in range(-1, 6):
            x = offset + (column * 16 + (row % 2) * 8) * _SCALE
            pen.line([(x, y), (x, y + 8 * _SCALE)], fill=mortar, width=_SCALE)


_BACKGROUNDS: dict[str, Callable[[ImageDraw.ImageDraw, np.random.Generator], None]] = {
    "meadow": _meadow,
    "beach": _beach,
    "desert": _desert,
    "snow": _snow,
    "sea": _sea,
    "night": _night,
    "wall": _wall,
}


def _watercolour(canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blur the edges, thin the paint, and let the pigment pool in soft patches."""
    small = canvas.resize((_CANVAS // 2, _CANVAS // 2), Image.Resampling.BOX)
    soft = small.filter(ImageFilter.GaussianBlur(1.5))
    pigment = Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).resize(soft.size, Image.Resampling.BICUBIC)
    thin = Image.blend(soft, Image.new("RGB", soft.size, (255, 253, 248)), 0.15)
    pale = Image.blend(soft, Image.new("RGB", soft.size, (255, 253, 248)), 0.45)
    return Image.composite(pale, thin, pigment)


def _mosaic(picture: Image.Image) -> Image.Image:
    """Lay the picture in 4-pixel tiles: tile colour, a lit and a shaded edge, dark joints."""
    tile = IMAGE_SIZE // 4
    tiles = picture.resize((tile, tile), Image.Resampling.BOX).resize(picture.size, Image.Resampling.NEAREST)
    values: NDArray[np.float32] = np.asarray(Image.blend(picture, tiles, 0.4), np.float32).copy()
    values[0::4] *= 0.62
    values[:, 0::4] *= 0.62
    values[1::4] += 22
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))
