"""What a page says of its model: its card, images of that, and the guidance that was measured best."""

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
from huggingface_hub import snapshot_download

from snowmelt.errors import printable
from snowmelt.files import read_mapping, read_text

IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]*)\)")
"""Of markdown: its name, and where it is."""
OWN_IMAGE = re.compile(r"[\w.-]+\.png", re.ASCII)
"""Beside the card."""
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


@dataclass(frozen=True)
class Card:
    """What is known of a model.

    Attributes:
        title: its name.
        summary: a line on it.
        text: its card, in markdown without images.
        images: those of the card, with their names.
        guidance: the scale with the best result of the first metric, where several were measured; else None.
    """

    title: str
    summary: str = ""
    text: str = "There is no model card."
    images: list[tuple[PIL.Image.Image, str]] = field(default_factory=list)
    guidance: float | None = None


def read_card(model: str, revision: str | None = None) -> Card:
    """The card of a model; of a run that isn't published, the one that would be.

    Args:
        model: folder or Hub repository.
        revision: of the repository.
    """
    title = printable(Path(model).resolve().name if Path(model).is_dir() else model)
    try:
        if not Path(model).is_dir():
            patterns = ["README.md", "metrics.json", "*.png"]
            return _card(Path(snapshot_download(model, revision=revision, allow_patterns=patterns)), title)
        if (Path(model) / "README.md").is_file():
            return _card(Path(model), title)
        from snowmelt.publishing.export import describe

        with tempfile.TemporaryDirectory() as folder:
            describe(Path(model), Path(folder), title)
            return _card(Path(folder), title)
    except (ValueError, OSError) as error:  # a page is of use without it
        return Card(title, text=f"There is no model card: {printable(str(error))}")


def _card(folder: Path, title: str) -> Card:
    text = FRONT_MATTER.sub("", read_text(folder / "README.md"), count=1)
    images: list[tuple[PIL.Image.Image, str]] = []
    for name, place in IMAGE.findall(text):
        path = folder / place
        if OWN_IMAGE.fullmatch(place) and path.is_file():
            with PIL.Image.open(path) as image:
                image.load()
                images.append((image, name))
    text = IMAGE.sub("", text)
    metrics = folder / "metrics.json"
    report = (read_mapping(metrics).get("evaluation") or {}) if metrics.is_file() else {}
    body = re.sub(r"\A\s*# [^\n]*\n", "", text)
    summary = body.strip().partition("\n\n")[0]
    return Card(title, summary, body, images, best_guidance(report))


def best_guidance(report: dict[str, Any]) -> float | None:
    """The guidance scale with the best result of the first metric, of a report of evaluate.py that measured several."""
    points = [point for point in report.get("sweep", []) if point["parameter"] == "guidance_scale" and point["results"]]
    if not points:
        return None
    sign = 1 if points[0]["results"][0]["lower_is_better"] else -1
    return float(min(points, key=lambda point: sign * point["results"][0]["value"])["value"])
