"""Objectives at equal steps: each trains the MNIST recipe as far, and evaluate.py compares samples with real digits.

    python benchmarks/objectives.py --dataset_name ylecun/mnist [--steps 900] [--num_images 1000] [--objectives flow v]

Frechet distances in the features of a classifier trained on the training split (lower is better), with what real
digits get; and how many samples that classifier recognises as the label they were asked for. Results gather in
--output_dir: a second call goes on with the objectives that aren't there yet.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from snowmelt.environment import native_precision
from snowmelt.objectives import RECIPES
from snowmelt.objectives.paths import SdePath

ROOT = Path(__file__).resolve().parent.parent
# Objective to its first-order deterministic sampler and its multistep one; DDIM is the first for all others.
SAMPLERS = {
    "flow": ("flow-euler", "dpmsolver++"),
    "mixture": ("flow-euler", "dpmsolver++"),
    "edm": ("edm-euler", "edm-dpmsolver++"),
}
# The others are in predictor_corrector.py.
OBJECTIVES = [name for name, objective in RECIPES.items() if not isinstance(objective.path, SdePath)]


def run(script: str, *flags: str, **options: object) -> None:
    """Run one of the project's scripts to its end, with flags as they are typed and by name."""
    words = [*flags]
    for name, value in options.items():
        words += [f"--{name}", *([] if value is True else map(str, value if isinstance(value, list) else [value]))]
    subprocess.run([sys.executable, ROOT / script, *words], check=True)


def train(name: str, folder: Path, args: argparse.Namespace) -> None:
    """Train one objective as far as `args` says."""
    length = {"max_train_steps": args.steps, "max_train_minutes": 10000, "overwrite_output_dir": True}
    data = {"config": args.config, "dataset_name": args.dataset_name}
    run("train_unconditional.py", objective=name, output_dir=folder, **data, **length)


def evaluate(folder: Path, args: argparse.Namespace, **options: object) -> None:
    """Compare a model's samples with the images that it was trained on, and held-out ones."""
    data = {"dataset_name": args.dataset_name, "held_out_split": args.held_out_split}
    run("evaluate.py", model=folder, **data, num_images=args.num_images, batch_size=250, **options)


def measure(name: str, args: argparse.Namespace) -> Path:
    """Train one objective and evaluate it; returns its report."""
    folder = args.output_dir / name
    report = folder / "report" / "report.json"
    if report.exists():
        return report
    train(name, folder, args)
    first, multistep = SAMPLERS.get(name, ("ddim", "dpmsolver++"))
    evaluate(
        folder,
        args,
        torch_dtype="bfloat16" if native_precision() == "bf16" else "float32",
        metrics="fd,accuracy",
        scheduler=first,
        num_inference_steps=50,
        sweep=f"sampler={first}:20,{multistep}:20",
    )
    return report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `train` and `evaluate` take of the command line."""
    parser.add_argument("--dataset_name", default="ylecun/mnist")
    parser.add_argument("--held_out_split", default="test")
    parser.add_argument("--config", default="mnist", help="recipe of the training")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--num_images", type=int, default=1000)


def values(results: list[dict]) -> dict[str, float]:
    return {result["metric"]: result["value"] for result in results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/objectives"))
    add_arguments(parser)
    args = parser.parse_args()

    lines = []
    for name in args.objectives:
        report = json.loads(measure(name, args).read_text())
        runs = [values(report["results"]), *(values(point["results"]) for point in report["sweep"])]
        distances = " | ".join(f"{found['fd']:.3f}" for found in runs)
        lines.append(f"| {name} | {distances} | {runs[0]['accuracy']:.1%} |")
    real, accuracy = [r["value"] for r in report["baseline"] if r["metric"] == "fd"], report["features"]["accuracy"]
    print(
        f"\n{args.num_images} samples against the training split; the classifier recognises {accuracy:.1%} of the test"
    )
    print(
        f"split. {args.num_images} training images are at a distance of {real[0]:.3f} from the others, and as many test"
    )
    print(f"images at {real[1]:.3f} from all.\n")
    print(f"{args.steps} steps of training each.\n")
    print("| objective | first order, 50 steps | first order, 20 | multistep, 20 | recognised |")
    print("|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
