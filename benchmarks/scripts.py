"""The project's scripts, as benchmarks run them: each in a process of its own, with the same data and recipe."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snowmelt.environment import native_precision
from snowmelt.tracking import read_metrics

ROOT = Path(__file__).resolve().parent.parent
SPEED_STEPS = 60
NATIVE_DTYPE = "bfloat16" if native_precision() == "bf16" else "float32"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `train` and `evaluate` take of the command line."""
    parser.add_argument("--dataset_name", default="ylecun/mnist")
    parser.add_argument("--held_out_split", default="test")
    parser.add_argument("--config", default="mnist", help="recipe of the training")
    parser.add_argument("--resolution", type=int, help="that of the recipe by default")
    parser.add_argument("--num_images", type=int, default=1000)


def run(script: str, *flags: str, **options: object) -> None:
    """Run one of the project's scripts to its end, with flags as they are typed and by name."""
    words = [*flags]
    for name, value in options.items():
        words += [f"--{name}", *([] if value is True else map(str, value if isinstance(value, list) else [value]))]
    subprocess.run([sys.executable, ROOT / script, *words], check=True)


def train(folder: Path, args: argparse.Namespace, steps: int, *flags: str, **options: object) -> None:
    """Train by the recipe for so many steps, with flags as they are typed and options by name."""
    length = {"max_train_steps": steps, "max_train_minutes": 10000, "overwrite_output_dir": True}
    data = {"config": args.config, "dataset_name": args.dataset_name}
    data |= {"resolution": args.resolution} if args.resolution else {}
    run("train_unconditional.py", *flags, output_dir=folder, **(data | length | options))


def evaluate(folder: Path, args: argparse.Namespace, output: str = "report", **options: object) -> dict[str, Any]:
    """Compare a model's samples with the images that it was trained on, and held-out ones; the report.

    One that is there already, in the folder `output` of the model's, is read.
    """
    report = folder / output / "report.json"
    if not report.exists():
        data = {"dataset_name": args.dataset_name, "held_out_split": args.held_out_split, "output": report.parent}
        usual = {"num_images": args.num_images, "batch_size": 250, "torch_dtype": NATIVE_DTYPE}
        run("evaluate.py", model=folder, **(data | usual | options))
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def bits_per_dimension(folder: Path, args: argparse.Namespace, metric: str) -> float:
    """Of held-out images, in float32; the metric is "bound" or "likelihood"."""
    few = {"metrics": metric, "likelihood_images": args.likelihood_images, "num_images": 2, "torch_dtype": "float32"}
    return values(evaluate(folder, args, "likelihood", **few)["results"])[metric]


def images_per_second(folder: Path, args: argparse.Namespace, **options: object) -> float:
    """Speed of a short training in that folder, at its best, so that other work on the machine doesn't count."""
    if not trained(folder):
        train(folder, args, SPEED_STEPS, **options)
    return max(float(line["images_per_second"]) for line in read_metrics(folder))


def training_time(folder: Path) -> dict[str, float]:
    """Minutes of a run's training steps alone, as metrics.jsonl has their speed; the steps, and the images seen."""
    lines = [line for line in read_metrics(folder) if "images_per_second" in line]
    batch, steps = json.loads((folder / "run.json").read_text())["images_per_step"], lines[-1]["step"]
    before = [0, *(line["step"] for line in lines)]
    seconds = sum(
        (line["step"] - b) * batch / line["images_per_second"] for b, line in zip(before, lines, strict=False)
    )
    return {"minutes": seconds / 60, "steps": steps, "images": steps * batch}


def gathered(folder: Path, measure: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """What was measured before and stands beside the folder, or is now."""
    path = Path(f"{folder}.json")
    if not path.exists():
        path.write_text(json.dumps(measure(folder, *arguments), indent=1))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def slug(name: str) -> str:
    """The name as one of a folder."""
    return name.replace(", ", "-").replace(" ", "-")


def trained(folder: Path) -> bool:
    """Whether a training has been to its end."""
    return (folder / "loss.png").exists()


def values(results: list[dict]) -> dict[str, float]:
    """Metric: value."""
    return {result["metric"]: result["value"] for result in results}
