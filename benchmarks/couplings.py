"""Couplings, reflow and contrastive flow matching at equal steps, each by few and by many Euler steps.

    python -m benchmarks.couplings --dataset_name ylecun/mnist [--steps 900] [--num_images 1000] [--variants flow ot]

Each variant trains the MNIST recipe by flow matching as far. `reflow` goes on from `flow` for as many steps again, on
pairs that it makes, and `twice as long` is what a flow gets of so many. Frechet distances in the features of a
classifier trained on the training split (lower is better), the fraction of samples that it recognises, and the seconds
that the training took, for `reflow` those of its second stage, pairs included. Results gather in --output_dir: a second
call goes on with the variants that aren't there yet.
"""

import argparse
import json
import time
from pathlib import Path

from benchmarks.scripts import add_arguments, evaluate, train, trained, values

EULER_STEPS = (2, 5, 10, 50)
VARIANTS: dict[str, dict[str, object]] = {
    "flow": {},
    "ot": {"coupling": "ot"},
    "nearest": {"coupling": "nearest"},
    "contrastive": {"contrastive_weight": 0.05},
    "self-conditioned": {"self_condition": True},
    "reflow": {},
    "twice as long": {},
}


def measure(name: str, args: argparse.Namespace) -> dict:
    """Train one variant and evaluate it; returns its report, with `seconds`."""
    folder = args.output_dir / name.replace(" ", "-")
    note = folder / "seconds.json"
    if not trained(folder):
        options = VARIANTS[name]
        if name == "reflow":
            measure("flow", args)
            options = {"reflow_from": args.output_dir / "flow", "reflow_pairs": args.reflow_pairs}
        began = time.monotonic()
        train(folder, args, args.steps * (2 if name == "twice as long" else 1), objective="flow", **options)
        note.write_text(json.dumps(time.monotonic() - began))
    report = evaluate(
        folder,
        args,
        metrics="fd,accuracy",
        num_inference_steps=EULER_STEPS[-1],
        sweep="num_inference_steps=" + ",".join(map(str, EULER_STEPS[:-1])),
    )
    return report | {"seconds": json.loads(note.read_text())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/couplings"))
    parser.add_argument("--reflow_pairs", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=900)
    add_arguments(parser)
    args = parser.parse_args()

    lines = []
    for name in args.variants:
        report = measure(name, args)
        runs = [*(values(point["results"]) for point in report["sweep"]), values(report["results"])]
        distances = " | ".join(f"{found['fd']:.3f}" for found in runs)
        lines.append(f"| {name} | {distances} | {runs[-1]['accuracy']:.1%} | {report['seconds']:.0f} |")
    print(f"\n{args.num_images} samples against the training split; {args.steps} steps of training each.\n")
    print("| variant | " + " | ".join(f"{steps} steps" for steps in EULER_STEPS) + " | recognised | seconds |")
    print("|---" * (len(EULER_STEPS) + 3) + "|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
