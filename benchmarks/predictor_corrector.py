"""Score-based SDEs at equal numbers of network evaluations: predictor, corrector, both, and the probability-flow ODE.

    python -m benchmarks.predictor_corrector --dataset_name ylecun/mnist [--steps 900] [--sdes ve vp] [--nfe 100 500]

Each SDE trains the MNIST recipe as far, and evaluate.py compares samples with real digits, as in systems.py: Frechet
distances in the features of a classifier trained on the training split (lower is better). The corrector is the Langevin
one at `--snr`, one step at each time; the ODE has no number of evaluations but tolerances, and says what they come to.
This is the comparison of Song et al. 2021, table 1. Results gather in --output_dir.
"""

import argparse
from pathlib import Path

from benchmarks.scripts import add_arguments, evaluate, train, trained, values

SDES = ("ve", "vp", "subvp")


def settings(nfe: int) -> dict[str, str]:
    """What is sampled with so many evaluations, as evaluate.py's --sweep has it."""
    return {
        "predictor": f"reverse_diffusion:0:{nfe}",
        "corrector": f"none:1:{nfe - 1}",  # and the evaluation that denoises
        "both": f"reverse_diffusion:1:{nfe // 2}",
    }


def measure(name: str, args: argparse.Namespace) -> dict:
    """Train one SDE and evaluate it; its report."""
    folder = args.output_dir / name
    if not trained(folder):
        train(folder, args, args.steps, objective=name)
    sweep = ",".join(value for nfe in args.nfe for value in settings(nfe).values())
    tolerances = ",".join(map(str, args.tolerances))
    return evaluate(
        folder,
        args,
        torch_dtype="float32",  # Fourier features of the noise level need it
        metrics="fd",
        snr=args.snr,
        predictor="ancestral",
        num_corrector_steps=0,
        num_inference_steps=args.nfe[0],
        sweep=[f"predictor={sweep}", f"tolerance={tolerances}"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdes", nargs="+", choices=SDES, default=list(SDES))
    parser.add_argument("--nfe", nargs="+", type=int, default=[100, 500])
    parser.add_argument("--tolerances", nargs="+", type=float, default=[1e-2, 1e-5])
    parser.add_argument("--snr", type=float, default=0.16)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/predictor_corrector"))
    parser.add_argument("--steps", type=int, default=900)
    add_arguments(parser)
    args = parser.parse_args()

    lines = []
    for name in args.sdes:
        report = measure(name, args)
        points = {point["value"]: point for point in report["sweep"]}
        for nfe in args.nfe:
            found = [values(points[value]["results"])["fd"] for value in settings(nfe).values()]
            lines.append(f"| {name} | {nfe} | " + " | ".join(f"{fd:.3f}" for fd in found) + " | |")
        for tolerance in args.tolerances:
            point = next(p for p in report["sweep"] if p["parameter"] == "tolerance" and float(p["value"]) == tolerance)
            lines.append(f"| {name} | {point['nfe']} | | | | {values(point['results'])['fd']:.3f} |")
    print(f"\n{args.num_images} samples; {args.steps} steps of training each.\n")
    print("| SDE | evaluations | predictor | corrector | both | ODE |")
    print("|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
