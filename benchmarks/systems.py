"""The published systems after equal training time, by equal numbers of network evaluations.

    python -m benchmarks.systems --dataset_name ylecun/mnist [--resolution 16] [--minutes 3] [--systems flow edm] \\
        [--seeds 0 1 2]

Each trains the MNIST recipe for as many steps as take so many minutes at its own speed, which is the best that a short
training beforehand reaches, so that other work on the machine doesn't count. Then evaluate.py compares samples with
real digits, by two samplers each: Frechet distance in the features of a classifier trained on the training split (lower
is better), that classifier's Inception score and how many samples it recognises as the label they were asked for; and
bits per dimension of held-out digits, by the variational bound or by the probability-flow ODE (likelihood).

With several seeds, which are those of the training, medians are printed, and the distances of all. Results gather in
--output_dir: a second call goes on with what isn't there yet.
"""

import argparse
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.scripts import (
    NATIVE_DTYPE,
    add_arguments,
    bits_per_dimension,
    evaluate,
    images_per_second,
    slug,
    train,
    trained,
    values,
)


@dataclass(frozen=True)
class System:
    """Options of its training, and of two ways to sample it.

    Attributes:
        train: of train_unconditional.py.
        sampler: of 50 evaluations, and another one: NAME:STEPS, or PREDICTOR:CORRECTOR_STEPS:STEPS of an SDE.
        likelihood: metric of held-out images, "bound" or "likelihood".
        evaluate: further options of evaluate.py.
    """

    train: dict[str, object]
    sampler: tuple[str, str]
    likelihood: str | None = "likelihood"
    evaluate: dict[str, object] = field(default_factory=dict)

    @property
    def is_sde(self) -> bool:
        """Whether predictors and correctors sample it."""
        return self.sampler[1].count(":") == 2


CHAIN, FLOW = ("ddim:50", "ddpm:100"), ("flow-euler:50", "dpmsolver++:20")


def sde(objective: str, other: str) -> System:
    """One whose network needs float32, first sampled by its predictor alone."""
    return System({"objective": objective}, ("ancestral:0:50", other), evaluate={"torch_dtype": "float32"})


SYSTEMS = {
    "DDPM, DDIM": System({"objective": "epsilon"}, CHAIN, "bound"),
    "Improved DDPM": System({"objective": "improved_ddpm"}, CHAIN, "bound"),
    "VE SDE": sde("ve", "reverse_diffusion:1:50"),
    "VP SDE": sde("vp", "euler_maruyama:0:100"),
    "sub-VP SDE": sde("subvp", "euler_maruyama:0:100"),
    "cosine betas": System({"objective": "epsilon_cosine"}, CHAIN, "bound"),
    "v-prediction": System({"objective": "v"}, CHAIN, "bound"),
    "EDM": System({"objective": "edm"}, ("edm-heun:25", "edm-dpmsolver++:20")),
    "mixture": System({"objective": "mixture"}, FLOW),
    "flow": System({"objective": "flow"}, FLOW),
    "flow, optimal transport": System({"objective": "flow", "coupling": "ot"}, FLOW),
    "flow, self-conditioning": System({"objective": "flow", "self_condition": True}, FLOW, None),
    "flow, DiT": System({"objective": "flow", "backbone": "dit"}, FLOW),
    "flow, SGD": System({"objective": "flow", "optimizer": "sgd", "learning_rate": 0.1}, FLOW),
    "flow, Muon": System({"objective": "flow", "optimizer": "muon"}, FLOW),
}


def steps_of(name: str, args: argparse.Namespace) -> int:
    """Steps of a system in the time that it is given."""
    batch = {"train_batch_size": args.train_batch_size, "ddpm_num_inference_steps": 2}
    rate = images_per_second(args.output_dir / "speed" / slug(name), args, **batch, **SYSTEMS[name].train)
    return round(rate * args.minutes * 60 / args.train_batch_size)


def measure(name: str, seed: int, steps: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one system and evaluate its samples; the report."""
    system, folder = SYSTEMS[name], args.output_dir / f"{slug(name)}-{seed}"
    if not trained(folder):
        batch = {"train_batch_size": args.train_batch_size, "ddpm_num_inference_steps": 25}
        train(folder, args, steps, seed=seed, **batch, **system.train)
    first, second = system.sampler
    if system.is_sde:
        predictor, corrections, count = first.split(":")
        own = {"predictor": predictor, "num_corrector_steps": corrections, "num_inference_steps": count}
        sweep = f"predictor={second}"
    else:
        scheduler, count = first.split(":")
        own, sweep = {"scheduler": scheduler, "num_inference_steps": count}, f"sampler={second}"
    return evaluate(
        folder,
        args,
        metrics=["fd", "is", "accuracy"],
        sweep=sweep,
        **({"torch_dtype": NATIVE_DTYPE} | own | system.evaluate),
    )


def bits(name: str, args: argparse.Namespace) -> str:
    """Bits per dimension, of the first seed."""
    metric = SYSTEMS[name].likelihood
    if metric is None:
        return ""
    folder = args.output_dir / f"{slug(name)}-{args.seeds[0]}"
    return f"{bits_per_dimension(folder, args, metric):.2f} ({metric})"


def row(name: str, steps: int, reports: list[dict[str, Any]], bits: str) -> str:
    """One of the table."""
    system, found = SYSTEMS[name], [values(report["results"]) for report in reports]
    others = [values(report["sweep"][0]["results"])["fd"] for report in reports]

    def median(metric: str) -> float:
        return statistics.median(values[metric] for values in found)

    distances = [f"{values['fd']:.2f}" for values in found]
    first = f"**{median('fd'):.2f}**" + (f" ({', '.join(distances)})" if len(found) > 1 else "")
    cells = [name, steps, f"{first} {system.sampler[0]}", f"{statistics.median(others):.2f} {system.sampler[1]}"]
    cells += [f"{median('is'):.2f}", f"{median('accuracy'):.1%}", bits]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--train_batch_size", type=int, default=64)
    parser.add_argument("--likelihood_images", type=int, default=20)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/systems"))
    add_arguments(parser)
    args = parser.parse_args()

    lengths = {name: steps_of(name, args) for name in args.systems}
    lines = []
    for name in args.systems:
        reports = [measure(name, seed, lengths[name], args) for seed in args.seeds]
        lines.append(row(name, lengths[name], reports, bits(name, args)))
    last = reports[0]
    real = [result["value"] for result in last["baseline"] if result["metric"] == "fd"]
    print(f"\n{args.num_images} samples against the training split; the classifier recognises", end=" ")
    print(f"{last['features']['accuracy']:.1%} of the test split.\n{args.num_images} training images are at a", end=" ")
    print(f"distance of {real[0]:.3f} from the others, and as many test images at {real[1]:.3f} from all.\n")
    print(f"Steps that take {args.minutes:g} minutes of training.\n")
    print("| system | steps | distance, sampler | another | Inception score | recognised | bits per dimension |")
    print("|---" * 7 + "|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
