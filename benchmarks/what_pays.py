"""What pays at small size: one option at a time against the recipe, after as many images of training.

    python -m benchmarks.what_pays --dataset_name ylecun/mnist [--resolution 16] [--steps 600] [--seeds 0 1 2] \\
        [--factors Muon "cosine decay"]

Each trains the MNIST recipe with its options changed, for so many steps of 64 images, or as many images in other
batches. evaluate.py then compares samples with the training split: Frechet distance in the features of a classifier
(lower is better) and how many samples that recognises as the label they were asked for. Beside the distance stands its
ratio to that of the recipe by itself, seed by seed: the median, the least and the largest; and the time that an image
takes in training over the recipe's, each at its best of the whole run, so that other work on the machine counts little.
Results gather in --output_dir: a second call goes on with what isn't there yet.
"""

import argparse
import statistics
from pathlib import Path

from benchmarks.scripts import NATIVE_DTYPE, add_arguments, evaluate, slug, train, trained, values
from snowmelt.tracking import read_metrics

RECIPE = "the recipe"
BATCH = 64
FACTORS: dict[str, dict[str, object]] = {
    RECIPE: {},
    "Muon": {"optimizer": "muon"},
    "cosine decay": {"lr_scheduler": "cosine"},
    "linear decay": {"lr_scheduler": "linear"},
    "contrastive 0.05": {"contrastive_weight": 0.05},
    "nearest noise": {"coupling": "nearest"},
    "uniform times": {"timestep_sampling": "uniform"},
    "beta times": {"timestep_sampling": "beta"},
    "stratified times": {"low_discrepancy": True},
    "x0 prediction": {"objective": "mixture"},
    "v prediction": {"objective": "v"},
    "self-conditioning": {"self_condition": True},
    "augmentation": {"augment_p": 0.12},
    "dropout 0.1": {"dropout": 0.1},
    "half the batch": {"train_batch_size": BATCH // 2},
    "twice the batch": {"train_batch_size": 2 * BATCH},
    "half the rate": {"learning_rate": 5e-4},
    "twice the rate": {"learning_rate": 2e-3},
    "Muon, cosine decay": {"optimizer": "muon", "lr_scheduler": "cosine"},
    "Muon, twice the rate, cosine decay": {"optimizer": "muon", "lr_scheduler": "cosine", "learning_rate": 2e-3},
    "Muon, cosine decay, contrastive 0.05": {
        "optimizer": "muon",
        "lr_scheduler": "cosine",
        "contrastive_weight": 0.05,
    },
}
SAMPLERS = {"v": "ddim"}
"""Of objectives whose samples aren't a flow's; 50 steps of these."""


def measure(name: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train with one change, and evaluate; distance, fraction of recognised samples, and images per second."""
    options = {"train_batch_size": BATCH} | FACTORS[name]
    steps = args.steps * BATCH // int(str(options["train_batch_size"]))
    folder = args.output_dir / f"{slug(name)}-{seed}"
    if not trained(folder):
        train(folder, args, steps, seed=seed, ddpm_num_inference_steps=25, **options)
    sampler = SAMPLERS.get(str(options.get("objective")))
    sampling = {"scheduler": sampler or "dpmsolver++", "num_inference_steps": 50 if sampler else 20}
    report = evaluate(folder, args, metrics=["fd", "accuracy"], torch_dtype=NATIVE_DTYPE, **sampling)
    rate = max(line["images_per_second"] for line in read_metrics(folder) if "images_per_second" in line)
    return {"rate": rate} | values(report["results"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factors", nargs="+", choices=FACTORS, default=list(FACTORS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/what_pays"))
    add_arguments(parser)
    args = parser.parse_args()

    found = {name: [measure(name, s, args) for s in args.seeds] for name in dict.fromkeys([RECIPE, *args.factors])}
    print(f"\n{args.num_images} samples after {args.steps} steps of {BATCH} images.\n")
    print("| changed | distance | over the recipe's | recognised | time of an image |")
    print("|---" * 5 + "|")
    for name, results in found.items():
        ratios = [own["fd"] / base["fd"] for own, base in zip(results, found[RECIPE], strict=True)]
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
        medians = {metric: statistics.median(result[metric] for result in results) for metric in results[0]}
        time = statistics.median(base["rate"] / own["rate"] for own, base in zip(results, found[RECIPE], strict=True))
        ratio = f"{statistics.median(ratios):.2f}{spread}"
        print(f"| {name} | {medians['fd']:.2f} | {ratio} | {medians['accuracy']:.1%} | {time:.2f} |")


if __name__ == "__main__":
    main()
