"""What a run says of itself: metrics.jsonl, the loss plot, and the trackers that Accelerate knows."""

import json
import re
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import (
    is_comet_ml_available,
    is_tensorboard_available,
    is_trackio_available,
    is_wandb_available,
)

from pipelines import image_grid
from snowmelt.errors import UserError
from snowmelt.files import checked, parse_json, read_text

METRICS_FILE = "metrics.jsonl"
PARTS = {
    "loss_q1": "least noise",
    "loss_q2": "second quarter",
    "loss_q3": "third quarter",
    "loss_q4": "most noise",
    "reconstruction": "pixels",
    "perceptual": "perceptual",
    "discriminator": "discriminator",
}
"""Parts of the loss that are drawn where a run has them."""

_AVAILABLE = {
    "tensorboard": is_tensorboard_available,
    "wandb": is_wandb_available,
    "comet_ml": is_comet_ml_available,
    "trackio": is_trackio_available,
}


def check_logger(name: str | None) -> None:
    """Raise a `UserError` that names the extra if the tracker isn't installed; for "all", if none is."""
    if name == "all":
        if not any(available() for available in _AVAILABLE.values()):
            raise UserError(f"--logger all: none of {', '.join(_AVAILABLE)} is installed; pip install tensorboard, say")
    elif name and not _AVAILABLE[name]():
        raise UserError(f"--logger {name} isn't installed; pip install -e '.[{name}]'")


class Metrics:
    """A line of JSON per log step, mirrored to the tracker. Only the main process writes.

    Args:
        folder: the run's folder.
        accelerator: holds the trackers.
        step: the step that the run starts from; lines beyond it, left by a run that was killed, are dropped.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, step: int) -> None:
        self.path = folder / METRICS_FILE
        self.accelerator = accelerator
        if accelerator.is_main_process:
            kept = [line for line in read_metrics(folder) if line["step"] <= step]
            partial = folder / f".partial-{METRICS_FILE}"  # a kill or a full disk must not lose the lines
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
            partial.replace(self.path)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Add the line of a step, and give the values to the tracker."""
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log(values, step=step)

    def log_once(self, step: int, values: dict[str, Any]) -> None:
        """Log, unless a line of that step has such values."""
        lines = read_metrics(self.path.parent) if self.accelerator.is_main_process else []
        if not any(line["step"] == step and values.keys() <= line.keys() for line in lines):
            self.log(step, values)


def log_samples(accelerator: Accelerator, images: np.ndarray, step: int) -> None:
    """Show samples in the trackers; each kind takes gray and RGB images, not all take others.

    Args:
        accelerator: holds the trackers.
        images: uint8 (N, H, W, C); of RGBA the alpha channel is left out, and C of 2 or more than 4 isn't shown.
        step: optimizer step that they are of.
    """
    images = images[..., :3] if images.shape[-1] == 4 else images
    if images.shape[-1] not in (1, 3):
        return
    for tracker in accelerator.trackers:
        if tracker.name == "trackio":  # which has images of its own, and no log_images
            from trackio import Image

            tracker.log({"samples": Image(image_grid(images))}, step=step)
        elif hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": images}, step=step, **layout)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line that a kill cut short is left out."""
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    text = read_text(path)
    lines = text[: text.rfind("\n") + 1].splitlines()
    sources = (f"{path}, line {number}" for number in range(1, len(lines) + 1))
    return [checked(where, parse_json(line, where), {"step": int}) for line, where in zip(lines, sources, strict=True)]


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of the device, or of the process on a CPU, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss begins with that of the process that started this one
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        assert found is not None  # Linux has said so since 2.6
        return int(found[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def plot_loss(folder: Path) -> Path:
    """Draw loss.png from metrics.jsonl, on a log scale: the loss, and its parts.

    Those are by quartile of the noise level, or what an autoencoder's is made of.
    """
    from matplotlib.figure import Figure

    lines = [line for line in read_metrics(folder) if "loss" in line]
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in PARTS.items():
        if name in lines[0]:
            axes.plot(steps, [line[name] for line in lines], linewidth=0.8, alpha=0.7, label=label)
    axes.plot(steps, [line["loss"] for line in lines], color="black", linewidth=1.2, label="all")
    axes.set(xlabel="optimizer step", ylabel="loss", yscale="log")
    axes.legend(ncols=2, fontsize="small")
    axes.grid(alpha=0.3)
    path = folder / "loss.png"
    figure.savefig(path, dpi=110)
    return path


def plot_evaluations(folder: Path, best: dict[str, Any]) -> None:
    """Draw evaluation.png from metrics.jsonl: loss of training and validation, and each metric of samples, by step.

    Args:
        folder: the run's.
        best: `Validation.best`, which is marked.
    """
    from matplotlib.figure import Figure

    lines = read_metrics(folder)
    evaluated = [line for line in lines if any(name.startswith("eval_") for name in line)]
    names = [name for name in evaluated[-1] if name.startswith("eval_")] if evaluated else []
    curves = {name: [name] for name in names if not name.startswith("eval_loss")}
    losses = [name for name in names if name.startswith("eval_loss")]
    curves |= {"loss": losses} if losses else {}
    figure = Figure(figsize=(7, 2.8 * len(curves)), layout="constrained")
    for title, axes in zip(curves, figure.subplots(max(len(curves), 1), squeeze=False)[:, 0], strict=False):
        for name in curves[title]:
            values = [(line["step"], line[name]) for line in evaluated if name in line]
            axes.plot(*zip(*values, strict=True), marker=".", label=name)
        if title == "loss":
            axes.plot([x["step"] for x in lines], [x["loss"] for x in lines], "k", lw=0.6, alpha=0.5, label="training")
            axes.set_yscale("log")
            axes.legend(fontsize="small", ncols=2)
        if best:
            axes.axvline(best["step"], color="k", linestyle=":", linewidth=0.8)
        axes.set(xlabel="optimizer step", ylabel=title.removeprefix("eval_"))
        axes.grid(alpha=0.3)
    figure.savefig(folder / "evaluation.png", dpi=110)
