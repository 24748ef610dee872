"""Models of few steps beside a flow model of 50, after equal training time.

    python -m benchmarks.few_steps --dataset_name ylecun/mnist [--resolution 16] [--minutes 4] [--seeds 0 1 2] \\
        [--variants soflow ect] [--autoencoder DIR]

Each trains the MNIST recipe for as many steps as take so many minutes at its own speed, as in systems.py; those in two
stages divide the time, the first being a model of many steps. evaluate.py then compares samples with the training
split: Frechet distances in the features of a classifier (lower is better), by 1, 2 and 4 steps, and by 50 of the flow.
With several seeds medians are printed. With --autoencoder, models are of its latents. Results gather in --output_dir: a
second call goes on with what isn't there yet.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.scripts import NATIVE_DTYPE, add_arguments, evaluate, images_per_second, slug, train, trained, values

FEW = (1, 2, 4)


class Variant(NamedTuple):
    """How a model is trained.

    Attributes:
        objective: its objective.
        first: that of its first stage, whose weights it begins with; None to train from scratch.
        teacher: whether it learns the first stage's velocity.
    """

    objective: str
    first: str | None = None
    teacher: bool = False


VARIANTS = {
    "flow": Variant("flow"),
    "soflow": Variant("soflow"),
    "meanflow": Variant("meanflow"),
    "flow, then soflow": Variant("soflow", "flow"),
    "flow, then soflow of it": Variant("soflow", "flow", teacher=True),
    "edm, then ect": Variant("ect", "edm"),
}


def speed(objective: str, args: argparse.Namespace, **options: object) -> float:
    """Images per second of a short training, at its best."""
    place = [args.resolution, args.train_batch_size, *(["latents"] if args.autoencoder else [])]
    folder = args.output_dir / "speed" / "-".join(map(str, [objective, *options, *place]))
    return images_per_second(folder, args, objective=objective, **shared(args), **options)


def shared(args: argparse.Namespace) -> dict[str, object]:
    """Options of all trainings."""
    autoencoder = {"autoencoder": args.autoencoder} if args.autoencoder else {}
    return {"train_batch_size": args.train_batch_size, **autoencoder}


def steps_in(minutes: float, rate: float, args: argparse.Namespace) -> int:
    """Optimizer steps that take so long."""
    return round(rate * minutes * 60 / args.train_batch_size)


def measure(name: str, seed: int, args: argparse.Namespace) -> tuple[float, list[float]]:
    """Train one; the images per second of its last stage, and distances by `FEW` steps, or by 50 of the flow."""
    variant = VARIANTS[name]
    folder = args.output_dir / f"{slug(name)}-{seed}"
    minutes, options = args.minutes, {}
    if variant.first is not None:
        minutes /= 2
        first = args.output_dir / f"{variant.first}-half-{seed}"
        if not trained(first):
            rate = speed(variant.first, args)
            train(first, args, steps_in(minutes, rate, args), objective=variant.first, seed=seed, **shared(args))
        options["pretrained_model_name_or_path"] = first
        if variant.teacher:
            options["teacher"] = first
    rate = speed(variant.objective, args, **options)
    if not trained(folder):
        given = options | {"objective": variant.objective, "seed": seed} | shared(args)
        train(folder, args, steps_in(minutes, rate, args), **given)
    sampling: dict[str, Any] = {"num_inference_steps": 50}
    if variant.objective != "flow":
        sampling = {"num_inference_steps": FEW[0], "sweep": f"num_inference_steps={','.join(map(str, FEW[1:]))}"}
    report = evaluate(folder, args, metrics="fd", torch_dtype=NATIVE_DTYPE, **sampling)
    results = [report["results"], *(place["results"] for place in report["sweep"])]
    return rate, [values(found)["fd"] for found in results]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--autoencoder", help="folder or Hub name; train in its latent space")
    parser.add_argument("--train_batch_size", type=int, default=64)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/few_steps"))
    add_arguments(parser)
    args = parser.parse_args()

    names = dict.fromkeys(["flow", *args.variants])
    found = {name: [measure(name, seed, args) for seed in args.seeds] for name in names}
    base = statistics.median(distances[0] for _, distances in found["flow"])
    rate = statistics.median(rate for rate, _ in found["flow"])
    print(f"\n{args.minutes:g} minutes of training each; {args.num_images} samples. The flow takes 50 steps.\n")
    heads = [f"{n} step{'s' * (n > 1)}, over the flow's" for n in FEW]
    print(f"| model | {' | '.join(heads)} | time of a training step |")
    print("|---" * (len(FEW) + 2) + "|")
    print(f"| flow | {base:.2f}, 50 steps | | | 1 |")
    for name in args.variants:
        if name != "flow":
            medians = [statistics.median(column) for column in zip(*(d for _, d in found[name]), strict=True)]
            cells = [f"{distance:.2f}, {distance / base:.2f}" for distance in medians]
            cost = rate / statistics.median(own for own, _ in found[name])
            print(f"| {name} | " + " | ".join(cells) + f" | {cost:.2f} |")


if __name__ == "__main__":
    main()
