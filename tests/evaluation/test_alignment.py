"""Shares of prompts that are right, from images that are known to be so, or not."""

import numpy as np
import pytest

from snowmelt.data.scenes.drawing import draw
from snowmelt.data.scenes.wording import Prompt, prompts
from snowmelt.data.scenes.world import Scene, Thing
from snowmelt.evaluation.alignment import alignment, pipeline_draw, report, scene_alignment
from tests.pipelines.test_text2img import make

CENTRE = {"": 0.5, "left": 0.2, "right": 0.8, "top": 0.2, "bottom": 0.8}


def picture_of(prompt: Prompt, colour: str | None = None) -> np.ndarray:
    """A scene that is as the prompt says, but for the colour if one is given."""
    cells = [(0.2, 0.2), (0.8, 0.8), (0.8, 0.2)]
    if prompt.relation:
        dx, dy = {"left of": (-0.3, 0), "right of": (0.3, 0), "above": (0, -0.3), "below": (0, 0.3)}[prompt.relation]
        cells = [(0.5 + dx, 0.5 + dy), (0.5 - dx, 0.5 - dy)]
    if prompt.position:
        words = prompt.position.split()
        cells = [
            (
                next((CENTRE[w] for w in words if w in ("left", "right")), 0.5),
                next((CENTRE[w] for w in words if w in ("top", "bottom")), 0.5),
            )
        ]
    radius = 0.175 if prompt.size == "large" else 0.12
    things = [Thing(s, colour or c, radius, *cell) for (s, c), cell in zip(prompt.things, cells, strict=False)]
    return draw(Scene(tuple(things)), 32)


def test_all_right_or_all_wrong() -> None:
    claimed = prompts(60, 0, False)
    right = alignment(claimed, [picture_of(p) for p in claimed])
    assert right.prompts == 60
    assert set(right.attributes) == {"shape", "colour", "count", "size", "position", "relation", "all"}
    assert set(right.kinds) == {"one", "several", "pair"}
    assert set(right.attributes.values()) == set(right.kinds.values()) == {1.0}
    nothing = alignment(claimed, [np.zeros((32, 32, 3), np.uint8)] * 60)
    assert set(nothing.attributes.values()) == {0.0}


def test_shares_are_of_those_that_claim() -> None:
    claimed = [
        Prompt("", (("circle", "red"),), size="small"),
        Prompt("", (("circle", "red"),), position="left"),
        Prompt("", (("circle", "red"),) * 2),
        Prompt("", (("circle", "red"), ("square", "blue")), relation="above"),
    ]
    photos = [picture_of(p) for p in claimed]
    photos[0], photos[2] = picture_of(claimed[0], "blue"), photos[0]  # a wrong colour, and one thing for two
    result = alignment(claimed, photos)
    assert result.attributes == {
        "shape": 1.0,
        "colour": 0.75,
        "count": 0.75,
        "size": 1.0,
        "position": 1.0,
        "relation": 1.0,
        "all": 0.5,
    }
    assert result.kinds == {"one": 0.5, "several": 0.0, "pair": 1.0}


def test_seen_and_held_out_apart() -> None:
    """A painter who knows the seen prompts alone; each gets the numbers of its images, in batches."""
    known = {p.text: p for p in prompts(10, 3, False)}
    asked: list[range] = []

    def paint(texts: list[str], indices: range) -> np.ndarray:
        asked.append(indices)
        blank = np.zeros((32, 32, 3), np.uint8)
        return np.stack([picture_of(known[text]) if text in known else blank for text in texts])

    judged = scene_alignment(paint, count=10, seed=3, batch_size=4)
    assert asked == [range(4), range(4, 8), range(8, 10)] * 2
    assert judged["seen"].attributes["all"] == 1.0
    assert judged["held out"].attributes["all"] == 0.0
    table = report(judged).splitlines()
    assert table[0].startswith("| prompts | number | shape | colour |")
    assert table[2].startswith("| seen | 10 | 100.0% |")
    assert len({line.count("|") for line in table}) == 1


def test_a_pipeline_draws_by_number() -> None:
    paint = pipeline_draw(make(), seed=0, num_inference_steps=2)
    both = paint(["a cat", "a dog"], range(4, 6))
    assert both.shape == (2, 16, 16, 3)
    assert both.dtype == np.uint8
    assert np.abs(paint(["a dog"], range(5, 6))[0].astype(int) - both[1]).max() <= 1
    with pytest.raises(ValueError, match="prompt"):
        paint([], range(0))
