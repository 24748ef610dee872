"""What pays at small size: one option at a time against the recipe, after equal training time.

    python -m benchmarks.what_pays --dataset_name ylecun/mnist [--resolution 16] [--minutes 4] [--seeds 0 1 2] \\
        [--factors Muon "cosine decay"]

Each trains the MNIST recipe with its options changed, for as many steps as take so many minutes at its own speed, as in
systems.py. evaluate.py then compares samples with the training split: Frechet distance in the features of a classifier
(lower is better) and how many samples that recognises as the label they were asked for. Beside the distance stands its
ratio to that of the recipe by itself, seed by seed: the median, the least and the largest. Results gather in
--output_dir: a second call goes on with what isn't there yet.
"""

import argparse
import statistics
from pathlib import Path

from benchmarks.scripts import NATIVE_DTYPE, add_arguments, evaluate, images_per_second, slug, train, trained, values

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
    """Train with one change, and evaluate; steps, distance and fraction of recognised samples."""
    options = {"train_batch_size": BATCH} | FACTORS[name]
    rate = images_per_second(args.output_dir / "speed" / slug(name), args, ddpm_num_inference_steps=2, **options)
    steps = round(rate * args.minutes * 60 / int(str(options["train_batch_size"])))
    folder = args.output_dir / f"{slug(name)}-{seed}"
    if not trained(folder):
        train(folder, args, steps, seed=seed, ddpm_num_inference_steps=25, **options)
    sampler = SAMPLERS.get(str(options.get("objective")))
    sampling = {"scheduler": sampler or "dpmsolver++", "num_inference_steps": 50 if sampler else 20}
    report = evaluate(folder, args, metrics=["fd", "accuracy"], torch_dtype=NATIVE_DTYPE, **sampling)
    return {"steps": steps} | values(report["results"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factors", nargs="+", choices=FACTORS, default=list(FACTORS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/what_pays"))
    add_arguments(parser)
    args = parser.parse_args()

    found = {name: [measure(name, s, args) for s in args.seeds] for name in dict.fromkeys([RECIPE, *args.factors])}
    print(f"\n{args.num_images} samples; as many steps of training as take {args.minutes:g} minutes.\n")
    print("| changed | steps | distance | over the recipe's | recognised |")
    print("|---" * 5 + "|")
    for name, results in found.items():
        ratios = [own["fd"] / base["fd"] for own, base in zip(results, found[RECIPE], strict=True)]
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
        medians = {metric: statistics.median(result[metric] for result in results) for metric in results[0]}
        print(
            f"| {name} | {medians['steps']:.0f} | {medians['fd']:.2f} | {statistics.median(ratios):.2f}{spread} | "
            f"{medians['accuracy']:.1%} |"
        )


if __name__ == "__main__":
    main()
