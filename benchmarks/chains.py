"""DDPM and Improved DDPM at equal steps: the number of timesteps, the betas and the variance.

    python -m benchmarks.chains --dataset_name ylecun/mnist [--steps 900] [--chains "T 250" cosine] [--most_steps 1000]

Each trains the MNIST recipe as far. The linear betas of T timesteps are those of 1,000 times 1000 / T, so that all end
in the same noise. Printed are bits per dimension of held-out images by the variational bound; Frechet distances of
samples to the training split, in the features of a classifier trained on it, after 25, 50 and 100 ancestral steps and
after all T (but at most --most_steps), with the seconds that these take for 100 images; and the loss by quarter of the
noise levels, the last 100 steps' mean, from the least noise to the most.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.scripts import add_arguments, bits_per_dimension, evaluate, train, trained, values
from snowmelt.tracking import read_metrics

FEW = (25, 50, 100)
QUARTERS = ("loss_q1", "loss_q2", "loss_q3", "loss_q4")
LAST = 10  # lines of metrics.jsonl, of ten steps each


def linear(timesteps: int) -> dict[str, object]:
    """Options of a DDPM of so many timesteps."""
    factor = 1000 / timesteps
    betas = {"ddpm_beta_start": 1e-4 * factor, "ddpm_beta_end": 0.02 * factor}
    return {"objective": "epsilon", "ddpm_num_steps": timesteps, **betas}


CHAINS: dict[str, dict[str, object]] = {
    "T 250": linear(250),
    "T 1000": linear(1000),
    "T 4000": linear(4000),
    "cosine": {"objective": "epsilon_cosine"},
    "cosine, learned variance": {"objective": "improved_ddpm"},
    "cosine, learned variance, L_vlb": {
        "objective": "improved_ddpm",
        "loss_weight": "vlb",
        "timestep_sampling": "loss_second_moment",
    },
}


def measure(name: str, args: argparse.Namespace) -> tuple[dict[str, Any], float, list[float]]:
    """Train one chain; the report of its samples, its bits per dimension, and its losses by noise level."""
    folder, options = args.output_dir / name.replace(", ", "-").replace(" ", "-"), CHAINS[name]
    if not trained(folder):
        train(folder, args, args.steps, ddpm_num_inference_steps=25, **options)
    most = min(int(str(options.get("ddpm_num_steps", 1000))), args.most_steps)
    sweep = "sampler=" + ",".join(f"ddpm:{steps}" for steps in (*FEW, most))
    report = evaluate(folder, args, metrics="fd", scheduler="ddpm", num_inference_steps=FEW[0], sweep=sweep)
    lines = read_metrics(folder)[-LAST:]
    quarters = [[line[key] for line in lines if line[key] is not None] for key in QUARTERS]
    return report, bits_per_dimension(folder, args, "bound"), [sum(losses) / len(losses) for losses in quarters]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", nargs="+", choices=CHAINS, default=list(CHAINS))
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--most_steps", type=int, default=1000)
    parser.add_argument("--likelihood_images", type=int, default=20)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/chains"))
    add_arguments(parser)
    args = parser.parse_args()

    rows = []
    for name in args.chains:
        report, bits, losses = measure(name, args)
        distances = [f"{values(point['results'])['fd']:.2f}" for point in report["sweep"]]
        last = report["sweep"][-1]
        seconds = 100 * last["seconds"] / args.num_images
        cells = [name, f"{bits:.2f}", *distances[:-1], f"{distances[-1]} ({last['nfe']} steps, {seconds:.0f} s)"]
        rows.append("| " + " | ".join([*cells, ", ".join(f"{loss:.4f}" for loss in losses)]) + " |")
    print(f"\n{args.num_images} samples; {args.steps} steps of training each.\n")
    steps = " | ".join(f"{steps} steps" for steps in FEW)
    print(f"| chain | bits per dimension | {steps} | all steps, time for 100 images | loss by noise level |")
    print("|---" * (5 + len(FEW)) + "|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
