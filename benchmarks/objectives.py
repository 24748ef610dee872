"""Objectives at equal time: each trains the MNIST recipe as long, and its samples are compared with the test split.

    python benchmarks/objectives.py --dataset_name ylecun/mnist [--minutes 5] [--num_images 1000] [--objectives flow v]

Frechet distances in the features of a LeNet trained on the training split (lower is better), with what real digits
get; and how many samples that LeNet recognises as the label they were asked for. Results gather in --output_dir: a
second call goes on with the objectives that aren't there yet.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from features import classifier, frechet, images_of

from pipelines import PixelDiffusionPipeline, image_generators, make_scheduler
from snowmelt.data.cache import ImageCache
from snowmelt.data.sources import load_images
from snowmelt.environment import native_precision
from snowmelt.objectives import RECIPES
from snowmelt.options import DataOptions

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the time is that of a CPU
ROOT = Path(__file__).resolve().parent.parent
# Objective to its first-order deterministic sampler and its multistep one; DDIM is the first for all others.
SAMPLERS = {
    "flow": ("flow-euler", "dpmsolver++"),
    "mixture": ("flow-euler", "dpmsolver++"),
    "edm": ("edm-euler", "edm-dpmsolver++"),
}


def train(name: str, args: argparse.Namespace) -> dict:
    """Train one objective with the script, and return the last line of its log."""
    out = args.output_dir / name
    command = [sys.executable, ROOT / "train_unconditional.py", "--config", "mnist", "--objective", name]
    command += ["--dataset_name", args.dataset_name, "--max_train_minutes", args.minutes, "--output_dir", out]
    command += ["--overwrite_output_dir", "--checkpointing_steps", 100000]
    subprocess.run([str(c) for c in command], check=True)
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])


def sample(folder: Path, sampler: str, steps: int, count: int) -> torch.Tensor:
    """Images 0 to count - 1 of seed 0, classes in turn, (N, 1, 28, 28) in [0, 1]."""
    pipeline = PixelDiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = make_scheduler(sampler, pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    parts = []
    with torch.autocast("cpu", torch.bfloat16, enabled=native_precision() == "bf16"):
        for first in range(0, count, 250):
            indices = range(first, min(first + 250, count))
            parts.append(
                pipeline(
                    batch_size=len(indices),
                    class_labels=[i % 10 for i in indices],
                    num_inference_steps=steps,
                    generator=image_generators(0, indices),
                    output_type="pt",
                ).images
            )
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", default="ylecun/mnist")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--objectives", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/objectives"))
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)

    train_set, test_set = (split(args.dataset_name, name) for name in ("train", "test"))
    net = classifier(train_set, args.output_dir / "lenet.safetensors")
    reference, recognised = net.features(images_of(test_set, np.arange(len(test_set))))
    accuracy = (recognised == test_set.labels).mean()
    rows = np.random.default_rng(0).permutation(len(train_set))[: args.num_images]
    floor = frechet(net.features(images_of(train_set, rows))[0], reference)

    for name in args.objectives:
        path = args.output_dir / f"{name}.json"
        if path.exists():
            continue
        log = train(name, args)
        result = {"steps": log["step"], "images_per_second": log["images_per_second"]}
        first, multistep = SAMPLERS.get(name, ("ddim", "dpmsolver++"))
        for sampler, steps in ((first, 50), (first, 20), (multistep, 20)):
            images = sample(args.output_dir / name, sampler, steps, args.num_images)
            features, labels = net.features(images)
            right = (labels == np.arange(args.num_images) % 10).mean()
            result[f"{sampler}-{steps}"] = {"fd": frechet(features, reference), "recognised": right}
        path.write_text(json.dumps(result, indent=1))
    report(args, accuracy, floor)


def split(dataset_name: str, name: str) -> ImageCache:
    """A split of the data set, 28 x 28 and gray."""
    return load_images(DataOptions(dataset_name=dataset_name, split=name, resolution=28, center_crop=True))


def report(args: argparse.Namespace, accuracy: float, floor: float) -> None:
    """Print the table of all objectives that have a result."""
    print(f"\n{args.num_images} samples against the test split; the LeNet recognises {accuracy:.1%} of that split, and")
    print(f"{args.num_images} training images are at a distance of {floor:.2f} from it.\n")
    print("| objective | steps in the time | first order, 50 steps | first order, 20 | multistep, 20 | recognised |")
    print("|---|---|---|---|---|---|")
    for name in RECIPES:
        path = args.output_dir / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        runs = [v for v in result.values() if isinstance(v, dict)]
        distances = " | ".join(f"{run['fd']:.1f}" for run in runs)
        print(f"| {name} | {result['steps']} | {distances} | {runs[0]['recognised']:.1%} |")


if __name__ == "__main__":
    main()
