"""Scenes in words, and what the words claim."""

from dataclasses import dataclass

import numpy as np

from snowmelt.data.scenes.world import HELD_OUT_COLOURS, HELD_OUT_POSITIONS, Scene, draw_scene

WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
CENTRE = ("in the middle", "at the center", "in the centre")
EDGE = ("at the {}", "at the {} edge", "on the {} side")
CORNER = ("at the {}", "in the {} corner", "at the {} corner")
COUNTS = {2: ("two", "2", "a pair of"), 3: ("three", "3", "a trio of")}
ONE = (
    "a {size} {colour} {shape} {where}",
    "a {colour} {shape} {where}, {size}",
    "{where}, a {size} {colour} {shape}",
    "a picture of a {size} {colour} {shape} {where}",
    "there is a {size} {colour} {shape} {where}",
    "a {size} {colour} {shape}",
    "a {colour} {shape} {where}",
    "a {colour} {shape}",
)
ONE_SHARES = (0.2, 0.15, 0.15, 0.15, 0.15, 0.08, 0.08, 0.04)
SEVERAL = ("{count} {colour} {shape}", "{count} {size} {colour} {shape}", "a picture of {count} {colour} {shape}")
PAIR = ("{first} {relation} {second}", "there is {first} {relation} {second}", "{second} with {first} {converse}")
RELATION_WORDS = {
    "left of": (("left of", "to the left of"), "to its left"),
    "right of": (("right of", "to the right of"), "to its right"),
    "above": (("above", "over"), "above it"),
    "below": (("below", "under"), "below it"),
}


@dataclass(frozen=True)
class Prompt:
    """A caption, and what it claims: things as (shape, colour), and whatever else it says of them."""

    text: str
    things: tuple[tuple[str, str], ...]
    size: str | None = None
    position: str | None = None
    relation: str | None = None


def describe(scene: Scene, rng: np.random.Generator) -> Prompt:
    """One of the wordings of a scene. Of single things a few leave out the size or the position."""
    kinds = tuple((str(t.shape), str(t.colour)) for t in scene.things)
    first = scene.things[0]
    words = {
        "shape": f"{first.shape}" if len(kinds) == 1 else f"{first.shape}{'es' if first.shape == 'cross' else 's'}",
        "colour": first.colour,
        "size": rng.choice(WORDS[first.size]),
        "where": _where(first.position, rng),
    }
    if scene.relation:
        relations, converse = RELATION_WORDS[scene.relation]
        a, b = (f"a {colour} {shape}" for shape, colour in kinds)
        parts = {"first": a, "second": b, "relation": rng.choice(relations), "converse": converse}
        return Prompt(str(rng.choice(PAIR)).format(**parts), kinds, relation=scene.relation)
    if len(kinds) == 1:
        template = str(rng.choice(ONE, p=ONE_SHARES))
    else:
        template = str(rng.choice(SEVERAL))
        words["count"] = rng.choice(COUNTS[len(kinds)])
    return Prompt(
        template.format(**words),
        kinds,
        size=first.size if "{size}" in template else None,
        position=first.position if "{where}" in template else None,
    )


def prompts(count: int, seed: int, held_out: bool) -> list[Prompt]:
    """Captions of random scenes.

    Args:
        count: number of captions.
        seed: of the scenes and their wordings.
        held_out: of scenes with a combination that training never shows, and whose wording says it; else of scenes that
            training may show.
    """
    rng = np.random.default_rng([1, seed, held_out])
    found: list[Prompt] = []
    while len(found) < count:
        scene = draw_scene(rng, held_out)
        prompt = describe(scene, rng)
        if not held_out or _says_held_out(prompt, scene):
            found.append(prompt)
    return found


def _says_held_out(prompt: Prompt, scene: Scene) -> bool:
    return any(
        HELD_OUT_COLOURS[shape] == colour or HELD_OUT_POSITIONS[shape] == prompt.position
        for shape, colour in prompt.things
    )


def _where(position: str, rng: np.random.Generator) -> str:
    if position == "centre":
        return str(rng.choice(CENTRE))
    return str(rng.choice(CORNER if " " in position else EDGE)).format(position)
