"""The checker: an image to the things in it, and whether they are what a prompt claims.

It is made for images that a network drew: blurred edges, shades that are nearly right, specks.
"""

from dataclasses import replace

import numpy as np
from scipy import ndimage

from snowmelt.data.scenes.drawing import COVERS, coverage
from snowmelt.data.scenes.wording import Prompt
from snowmelt.data.scenes.world import BACKGROUND, COLOURS, Thing, relation

ATTRIBUTES = ("shape", "colour", "count", "size", "position", "relation")

LEAST_AREA = 0.006  # of the image; the least thing drawn has 0.027
FARTHEST_COLOUR = 80.0  # of 255 * sqrt(3); the two nearest colours are 136 apart
LEAST_OVERLAP = 0.75  # of a region with the best template, intersection over union
BLURS = (0.0, 0.025, 0.04)  # fractions of the side by which templates are blurred as an image may be


def read_scene(image: np.ndarray) -> list[Thing]:
    """The things in an image, uint8 (H, H, 3), largest first.

    A thing is a connected region that stands out from the background. Its colour is the nearest, by its direction from
    the background's, of those drawn; its shape, size and place are those of the template, of the region's area and
    centroid, that overlaps it best.
    """
    side = len(image)
    pixels = image.astype(float) - BACKGROUND
    # How far each pixel lies on the way from the background to each colour.
    fractions = np.clip(pixels @ (_AXES / (_AXES**2).sum(1, keepdims=True)).T, 0, 1)  # (H, H, colours)
    regions, count = ndimage.label(fractions.max(-1) > 0.5, np.ones((3, 3)))
    things = []
    for region in range(1, count + 1):
        inside = regions == region
        if inside.mean() < LEAST_AREA:
            continue
        mean = pixels[inside].mean(0)
        nearest = int((_AXES @ mean / np.linalg.norm(_AXES, axis=1)).argmax())
        alpha = np.where(ndimage.binary_dilation(inside, iterations=2), fractions[..., nearest], 0)
        thing, template = _fitted(alpha, side)
        shade = (pixels * template[..., None]).sum((0, 1)) / (template**2).sum()  # least squares
        known = np.linalg.norm(_AXES[nearest] - shade) < FARTHEST_COLOUR
        things.append(replace(thing, colour=list(COLOURS)[nearest] if known else None))
    return sorted(things, key=lambda thing: -thing.radius)


def judge(prompt: Prompt, things: list[Thing]) -> dict[str, bool]:
    """Whether each attribute that a prompt claims, of `ATTRIBUTES`, is right in an image that shows these things."""
    shapes, colours = zip(*prompt.things, strict=True)
    verdict = {
        "shape": {t.shape for t in things} == set(shapes),
        "colour": {t.colour for t in things} == set(colours),
        "count": len(things) == len(prompt.things),
    }
    if prompt.size:
        verdict["size"] = {t.size for t in things} == {prompt.size}
    if prompt.position:
        verdict["position"] = {t.position for t in things} == {prompt.position}
    if prompt.relation:
        found = {(t.shape, t.colour): t for t in things}
        a, b = (found.get(kind) for kind in prompt.things)
        verdict["relation"] = a is not None and b is not None and relation(a, b) == prompt.relation
    return verdict


def _fitted(alpha: np.ndarray, side: int) -> tuple[Thing, np.ndarray]:
    """The thing, its colour unknown, of a region whose pixels are covered by `alpha`, (H, H), and its template."""
    area = alpha.mean()
    y, x = ((np.array(ndimage.center_of_mass(alpha)) + 0.5) / side).tolist()
    best, best_template = Thing(None, None, float(np.sqrt(area / np.pi)), x, y), (alpha > 0.5).astype(float)
    overlap = LEAST_OVERLAP
    for shape, (unit, low) in _UNITS.items():
        radius = float(np.sqrt(area / unit))
        sharp = coverage(shape, radius, x, y - low * radius, side)
        for blur in BLURS:
            template = ndimage.gaussian_filter(sharp, blur * side) if blur else sharp
            match = np.minimum(alpha, template).sum() / np.maximum(alpha, template).sum()
            if match > overlap:
                best, best_template, overlap = Thing(shape, None, radius, x, y - low * radius), template, match
    return best, best_template


def _unit(shape: str) -> tuple[float, float]:
    """Area of a shape of radius 1, and how far below its centre the centroid lies."""
    points = 1.2 * ((np.arange(800) + 0.5) / 400 - 1)
    inside = COVERS[shape](points[None, :], points[:, None])
    return float(2.4**2 * inside.mean()), float((points[:, None] * inside).sum() / inside.sum())


_UNITS = {shape: _unit(shape) for shape in COVERS}
_AXES = np.array(list(COLOURS.values()), float) - BACKGROUND  # (colours, 3)
