"""Scenes to pixels, by arithmetic alone: the same on every machine, and the checker's templates too."""

from collections.abc import Callable

import numpy as np

from snowmelt.data.scenes.world import BACKGROUND, COLOURS, Scene

SAMPLES = 4
"""Points per pixel and axis at which a shape is asked whether it covers them."""

REACH = 1.1
"""No shape goes beyond this many radii from its centre along an axis."""

Cover = Callable[[np.ndarray, np.ndarray], np.ndarray]

COVERS: dict[str, Cover] = {
    # Whether the shape of radius 1 around (0, 0) covers (u, v), v down.
    "circle": lambda u, v: u * u + v * v <= 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.88,
    "triangle": lambda u, v: (abs(u) <= 0.55 * (v + 1)) & (v <= 1),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= 0.36) & (np.maximum(abs(u), abs(v)) <= 1),
}


def coverage(shape: str, radius: float, x: float, y: float, side: int) -> np.ndarray:
    """The fraction of each pixel that a shape covers, float64 (side, side) in [0, 1].

    Args:
        shape: a key of `COVERS`.
        radius: as a fraction of the image's side.
        x: of its centre, to the right, as a fraction of the side.
        y: of its centre, down, as a fraction of the side.
        side: of the image in pixels.
    """
    (columns, u), (rows, v) = (_points(centre, radius, side) for centre in (x, y))
    inside = COVERS[shape](u[None, :], v[:, None])
    fraction = np.zeros((side, side))
    fraction[rows, columns] = inside.reshape(len(v) // SAMPLES, SAMPLES, len(u) // SAMPLES, SAMPLES).mean((1, 3))
    return fraction


def draw(scene: Scene, side: int = 64) -> np.ndarray:
    """A scene as an image, antialiased, uint8 (side, side, 3)."""
    pixels = np.full((side, side, 3), BACKGROUND, np.float64)
    for thing in scene.things:
        fraction = coverage(str(thing.shape), thing.radius, thing.x, thing.y, side)[..., None]
        pixels += fraction * (np.array(COLOURS[str(thing.colour)]) - pixels)
    return np.rint(pixels).astype(np.uint8)


def _points(centre: float, radius: float, side: int) -> tuple[slice, np.ndarray]:
    """Along an axis: the pixels that a shape may reach, and their points in units of its radius."""
    first = max(0, int((centre - REACH * radius) * side))
    end = min(side, int((centre + REACH * radius) * side) + 1)
    points = (np.arange(first * SAMPLES, end * SAMPLES) + 0.5) / (side * SAMPLES)
    return slice(first, end), (points - centre) / radius
