"""How well images show what their prompts say, for prompts of scenes, where it can be read off."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import image_generators
from pipelines.text2img import TextPipeline
from snowmelt.data.scenes.checker import ATTRIBUTES, judge, read_scene
from snowmelt.data.scenes.wording import Prompt, prompts

ALIGNMENT_FILE = "alignment.md"
"""What is said of a model's alignment, in its folder."""

Draw = Callable[[list[str], range], np.ndarray]
"""Prompts, and the numbers of their images, to uint8 arrays (N, H, H, 3)."""


@dataclass(frozen=True)
class Alignment:
    """Fractions of prompts whose attributes are right.

    Attributes:
        prompts: how many there were.
        attributes: for each attribute the fraction of the prompts that claim it; "all": of those right in all they say.
        kinds: the fraction right in all they say, of prompts for one thing, for several alike and for a pair.
    """

    prompts: int
    attributes: dict[str, float]
    kinds: dict[str, float]


def scene_alignment(draw: Draw, *, count: int, seed: int = 0, batch_size: int = 64) -> dict[str, Alignment]:
    """Have prompts drawn, `count` of combinations that training shows and `count` held-out ones, and judge them.

    Args:
        draw: the model.
        count: prompts of either sort.
        seed: of the prompts.
        batch_size: prompts drawn together.

    Returns:
        By "seen" and "held out".
    """
    judged = {}
    for name, held_out in (("seen", False), ("held out", True)):
        claimed = prompts(count, seed, held_out)
        images = (p for part in _parts(count, batch_size) for p in draw([claimed[i].text for i in part], part))
        judged[name] = alignment(claimed, images)
    return judged


def alignment(claimed: list[Prompt], images: Iterable[np.ndarray]) -> Alignment:
    """Judge an image, uint8 (H, H, 3), for each prompt."""
    verdicts = [judge(prompt, read_scene(image)) for prompt, image in zip(claimed, images, strict=True)]
    whole = [all(verdict.values()) for verdict in verdicts]
    attributes = {a: [v[a] for v in verdicts if a in v] for a in ATTRIBUTES} | {"all": whole}
    kinds: dict[str, list[bool]] = {}
    for prompt, right in zip(claimed, whole, strict=True):
        kind = "pair" if prompt.relation else "one" if len(prompt.things) == 1 else "several"
        kinds.setdefault(kind, []).append(right)
    fractions = [{k: float(np.mean(v)) for k, v in sorted(d.items()) if v} for d in (attributes, kinds)]
    return Alignment(len(claimed), *fractions)


def pipeline_draw(pipeline: TextPipeline, seed: int, **arguments: Any) -> Draw:
    """What a pipeline draws, image i depending on (seed, i) alone; further arguments are the pipeline's."""

    def draw(texts: list[str], indices: range) -> np.ndarray:
        generators = image_generators(seed, indices)
        output = pipeline(texts, generator=generators, output_type="np", return_dict=False, **arguments)
        return (output[0] * 255).round().astype(np.uint8)

    return draw


def report(judged: dict[str, Alignment]) -> str:
    """The fractions as a table in markdown."""
    columns = [*ATTRIBUTES, "all", "one", "several", "pair"]
    lines = [["prompts", "number", *columns]]
    for name, result in judged.items():
        fractions = result.attributes | result.kinds
        lines.append([name, str(result.prompts), *(f"{fractions[c]:.1%}" if c in fractions else "" for c in columns)])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_alignment(path: Path, text: str, weights: str) -> None:
    """Write `ALIGNMENT_FILE`, which says of which weights it is.

    Args:
        path: of the file.
        text: what is said of them, in markdown; see `report`.
        weights: SHA-256 in hexadecimal digits, as `weights_digest` gives it.
    """
    path.write_text(f"<!-- weights {weights} -->\n{text}", encoding="utf-8")


def read_alignment(text: str) -> tuple[str | None, str]:
    """The digest of the weights that were judged, None where it isn't said, and what is said of them."""
    found = re.match(r"<!-- weights ([0-9a-f]{64}) -->\n", text)
    return (found[1], text[found.end() :]) if found else (None, text)


def _parts(count: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))
