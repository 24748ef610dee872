"""A page that watches a training, of whose folder it reads what is there and changes nothing."""

import html
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio
import pandas
import PIL.Image

from snowmelt.app.page import launch_options
from snowmelt.errors import UserError, one_line, printable
from snowmelt.files import read_mapping
from snowmelt.tracking import METRICS_FILE, PARTS, read_metrics

GRIDS = 12
"""The newest sample grids, which are shown."""
POINTS = 400
"""Of a curve, at most."""
EVERY = 3.0
"""Seconds between two looks at the folder."""
GRID = re.compile(r"step-(\d+)\.png")


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        step: the last one that was logged.
        total: steps of the whole training; None where the folder doesn't say.
        loss: of the last log line.
        images_per_second: of the last log line.
        seconds_left: at that speed; None where the total isn't known.
    """

    step: int
    total: int | None
    loss: float
    images_per_second: float
    seconds_left: float | None

    def shown(self) -> str:
        """As HTML."""
        of = "" if self.total is None else f" of {self.total:,}"
        parts = [f"step {self.step:,}{of}", f"loss {self.loss:.4g}", f"{self.images_per_second:,.0f} images/s"]
        if self.total is None or self.seconds_left is None:
            return f"<p>{' · '.join(parts)}</p>"
        parts.append("done" if self.step >= self.total else f"{duration(self.seconds_left)} left")
        return f'<p><progress value="{self.step}" max="{self.total}"></progress> {" · ".join(parts)}</p>'


def read_progress(folder: Path, lines: list[dict[str, Any]]) -> Progress | None:
    """How far the training of a folder is; None before its first log line.

    Args:
        folder: the run's.
        lines: of its metrics, as `read_metrics` has them.
    """
    logged = [line for line in lines if {"loss", "images_per_second"} <= line.keys()]
    if not logged:
        return None
    last, total, left = logged[-1], None, None
    if (folder / "run.json").is_file():
        run = read_mapping(folder / "run.json", {"config": dict, "num_images": int, "images_per_step": int})
        config, per_step = run["config"], run["images_per_step"]
        total = config.get("max_train_steps")
        if total is None and config.get("num_epochs") is not None:
            total = math.ceil(config["num_epochs"] * run["num_images"] / per_step)
        if total is not None:
            left = max(0, total - last["step"]) * per_step / max(last["images_per_second"], 1e-9)
    return Progress(last["step"], total, last["loss"], last["images_per_second"], left)


def loss_curves(lines: list[dict[str, Any]]) -> pandas.DataFrame:
    """The loss, and its parts where a run has them, by step: columns step, log10 of the loss, and which it is.

    Args:
        lines: of a run's metrics.
    """
    names = {"loss": "all", **PARTS}
    found = [line for line in lines if "loss" in line]
    thinned = found[:: max(1, math.ceil(len(found) / POINTS))] + found[-1:]
    rows = [
        (line["step"], math.log10(line[name]), label)
        for line in thinned
        for name, label in names.items()
        if (line.get(name) or 0) > 0
    ]
    return pandas.DataFrame(rows, columns=["step", "log10 loss", "noise"]).drop_duplicates()


def grids(folder: Path) -> list[tuple[Path, str]]:
    """The newest sample grids of a run, the newest first, each with its step."""
    found = [(int(match[1]), path) for path in (folder / "samples").glob("*") if (match := GRID.fullmatch(path.name))]
    return [(path, f"step {step:,}") for step, path in sorted(found, reverse=True)[:GRIDS]]


def duration(seconds: float) -> str:
    """Seconds as hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def make_page(folder: Path) -> gradio.Blocks:
    """The page of a run's folder.

    Raises:
        UserError: if it is none.
    """
    if not (folder / METRICS_FILE).is_file() and not (folder / "config.yaml").is_file():
        raise UserError(f"--run {folder}: no folder of a training; give the --output_dir of one")
    title = printable(folder.resolve().name)

    def look(seen: list[str]) -> tuple[Any, ...]:
        try:
            lines = read_metrics(folder)
            progress = read_progress(folder, lines)
            latest = grids(folder)
            names = [path.name for path, _ in latest]
            # Copies, since gradio serves no files of a folder that isn't its own.
            images = gradio.skip() if names == seen else [(_opened(path), caption) for path, caption in latest]
        except (UserError, OSError) as error:  # half written, as it may be for a moment
            return f"<p>{html.escape(one_line(error))}</p>", gradio.skip(), gradio.skip(), seen
        if progress is None:
            return "<p>no log line yet</p>", gradio.skip(), images, names
        return progress.shown(), loss_curves(lines), images, names

    with gradio.Blocks(title=f"{title}, training", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gradio.Markdown(f"# {title}")
        status = gradio.HTML("<p>reading</p>", elem_classes="status")
        curves = gradio.LinePlot(
            x="step", y="log10 loss", color="noise", height=320, title="Loss, and by quarter of the noise level"
        )
        images = gradio.Gallery(label="Samples", show_label=False, columns=3, format="png", elem_classes="pixels")
        seen = gradio.State([])
        outputs = [status, curves, images, seen]
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(look, seen, outputs, **hidden)
        gradio.Timer(EVERY).tick(look, seen, outputs, **hidden)
    return page.queue(max_size=64)


def watch(folder: Path) -> None:
    """Serve the page of a run's folder until the process is interrupted.

    Raises:
        UserError: if it is no such folder.
    """
    make_page(folder).launch(**launch_options())


def _opened(path: Path) -> PIL.Image.Image:
    with PIL.Image.open(path) as image:
        image.load()
    return image
