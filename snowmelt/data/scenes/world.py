"""What a scene may hold. Lengths are fractions of the image's side, x to the right and y down."""

from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 190, 70),
    "blue": (50, 90, 245),
    "yellow": (245, 215, 50),
    "purple": (180, 60, 220),
    "white": (240, 240, 240),
}
BACKGROUND = (24, 24, 32)
SIZES = {"small": 0.12, "large": 0.175}
"""Radii."""

ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
POSITIONS = tuple(f"{row} {column}".strip() or "centre" for row in ROWS for column in COLUMNS)
SPACING = 0.3
"""Between the centres of the nine positions, the middle one being the image's."""

JITTER, RESIZE = 0.02, 0.08
"""How far a thing may lie from its position's centre along each axis, and by what fraction its radius may differ."""

HELD_OUT_COLOURS = {"circle": "green", "square": "purple", "triangle": "yellow", "cross": "blue"}
HELD_OUT_POSITIONS = {"circle": "bottom right", "square": "top", "triangle": "left", "cross": "top right"}
"""Combinations with a shape that no training image shows."""

KINDS = {"one": 0.7, "several": 0.15, "pair": 0.15}
"""Probabilities of scenes with one thing, with two or three alike, and with two whose relation counts.

They are those of a draw, before combinations that are held out, or that aren't, are passed over.
"""

TRAINING_KINDS = {"one": 0.3, "several": 0.35, "pair": 0.35}
"""The same in the training set, which shows more of what is hard to learn."""

RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


@dataclass(frozen=True)
class Thing:
    """A shape somewhere. A reader that can't tell its shape or colour says None."""

    shape: str | None
    colour: str | None
    radius: float
    x: float
    y: float

    @property
    def size(self) -> str:
        """The size whose radius is nearer, by ratio."""
        return min(SIZES, key=lambda size: abs(np.log(self.radius / SIZES[size])))

    @property
    def position(self) -> str:
        """The nearest of the nine positions."""
        column, row = (int(np.clip(round((v - 0.5) / SPACING), -1, 1)) + 1 for v in (self.x, self.y))
        return POSITIONS[3 * row + column]


@dataclass(frozen=True)
class Scene:
    """Things, and for a pair of them the first's relation to the second."""

    things: tuple[Thing, ...]
    relation: str | None = None

    @property
    def held_out(self) -> bool:
        """Whether it shows a combination that training doesn't."""
        return any(
            HELD_OUT_COLOURS[str(t.shape)] == t.colour or HELD_OUT_POSITIONS[str(t.shape)] == t.position
            for t in self.things
        )


def draw_scene(rng: np.random.Generator, held_out: bool, kinds: dict[str, float] = KINDS) -> Scene:
    """A random scene.

    Args:
        rng: source of randomness.
        held_out: one with a combination that training doesn't show, else one without.
        kinds: probabilities of the kinds before those of the other sort are rejected.
    """
    while True:
        kind = rng.choice(list(kinds), p=list(kinds.values()))
        scene = _DRAWN[kind](rng)
        if scene.held_out == held_out:
            return scene


def relation(a: Thing, b: Thing) -> str:
    """Where `a` lies, seen from `b`: along the axis on which they are further apart."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _one(rng: np.random.Generator) -> Scene:
    return Scene((_thing(rng, *_kind(rng), rng.choice(list(SIZES)), *rng.integers(-1, 2, 2)),))


def _several(rng: np.random.Generator) -> Scene:
    """Two or three alike, none next to another in its row or column."""
    kind, count = _kind(rng), rng.integers(2, 4)
    while True:
        cells = [(int(i) % 3 - 1, int(i) // 3 - 1) for i in rng.permutation(9)[:count]]
        if all(abs(a[0] - b[0]) + abs(a[1] - b[1]) > 1 for a in cells for b in cells if a != b):
            return Scene(tuple(_thing(rng, *kind, "small", *cell) for cell in cells))


def _pair(rng: np.random.Generator) -> Scene:
    """Two unlike things on opposite sides, at most one step apart along the other axis."""
    first, second = _kind(rng), _kind(rng)
    while first == second:
        second = _kind(rng)
    name = str(rng.choice(list(RELATIONS)))
    dx, dy = RELATIONS[name]
    along = [(-1, 0), (0, -1), (0, 0), (0, 1), (1, 0)][rng.integers(5)]  # places of the two on the other axis
    cells = [(s * dx + o * abs(dy), s * dy + o * abs(dx)) for s, o in zip((1, -1), along, strict=True)]
    sizes = rng.choice(list(SIZES), 2)
    things = [_thing(rng, *k, s, *c) for k, s, c in zip((first, second), sizes, cells, strict=True)]
    return Scene(tuple(things), name)


def _kind(rng: np.random.Generator) -> tuple[str, str]:
    return str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS)))


def _thing(rng: np.random.Generator, shape: str, colour: str, size: str, column: int, row: int) -> Thing:
    x, y = 0.5 + SPACING * np.array([column, row]) + rng.uniform(-JITTER, JITTER, 2)
    return Thing(shape, colour, SIZES[size] * rng.uniform(1 - RESIZE, 1 + RESIZE), float(x), float(y))


_DRAWN = {"one": _one, "several": _several, "pair": _pair}
