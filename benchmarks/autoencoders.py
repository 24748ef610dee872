"""Autoencoders for latent diffusion at equal steps: KL and VQ, each with and without EQ-VAE's regularization.

    python -m benchmarks.autoencoders --dataset_name uoft-cs/cifar10 [--autoencoder_steps 3000] [--steps 3000]
        [--resolution 32] [--variants kl vq] [flags of train_unconditional.py]

Each variant trains an autoencoder by the recipe --config, then a flow model of its latents by --latent_config. The
table has PSNR, SSIM and Frechet distance of reconstructions as train_autoencoder.py measures them, on the images that
its recipe holds out; and the Frechet distance of the flow model's samples to the training split after a third, two
thirds and all of its training, by few Euler steps. Distances are in the features of a classifier trained on the
training split (lower is better). Results gather in --output_dir: a second call goes on with what isn't there yet.
"""

import argparse
from pathlib import Path

from benchmarks.scripts import add_arguments, evaluate, run, trained, values
from snowmelt.tracking import read_metrics

VARIANTS: dict[str, dict[str, object]] = {
    "kl": {"regularization": "kl"},
    "kl, EQ": {"regularization": "kl", "equivariance_prob": 0.5},
    "vq": {"regularization": "vq"},
    "vq, EQ": {"regularization": "vq", "equivariance_prob": 0.5},
}


def reconstructions(folder: Path, step: int) -> dict[str, float] | None:
    """What train_autoencoder.py measured after so many steps, if it got there."""
    return next((line for line in read_metrics(folder) if line["step"] == step and "eval_psnr" in line), None)


def measure(name: str, args: argparse.Namespace, rest: list[str]) -> list[float]:
    """Train an autoencoder and a flow model of its latents; returns a row of the table."""
    folder = args.output_dir / name.replace(", ", "-")
    autoencoder, model = folder / "autoencoder", folder / "model"
    length = {"max_train_minutes": 10000, "overwrite_output_dir": True}
    data = {"dataset_name": args.dataset_name, "resolution": args.resolution}
    if reconstructions(autoencoder, args.autoencoder_steps) is None:
        steps = {"config": args.config, "max_train_steps": args.autoencoder_steps}
        run("train_autoencoder.py", output_dir=autoencoder, **data, **length, **steps, **VARIANTS[name])
    third = args.steps // 3
    if not trained(model):
        steps = {"config": args.latent_config, "max_train_steps": args.steps, "checkpointing_steps": third}
        given = {"objective": "flow", "autoencoder": autoencoder}
        run("train_unconditional.py", *rest, output_dir=model, **data, **length, **steps, **given)
    found = evaluate(
        model,
        args,
        metrics="fd",
        num_inference_steps=args.num_inference_steps,
        sweep=f"checkpoint={third},{2 * third}",
    )
    curve = [values(results)["fd"] for results in (*(p["results"] for p in found["sweep"]), found["results"])]
    measured = reconstructions(autoencoder, args.autoencoder_steps)
    assert measured is not None
    return [*(measured[f"eval_{metric}"] for metric in ("psnr", "ssim", "rfd")), *curve]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/autoencoders"))
    parser.add_argument("--autoencoder_steps", type=int, default=3000)
    parser.add_argument("--latent_config", default="mnist", help="recipe of the flow model")
    parser.add_argument("--num_inference_steps", type=int, default=20, help="Euler steps of a sample")
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=3000)
    parser.set_defaults(dataset_name="uoft-cs/cifar10", config="cifar10-autoencoder", resolution=32)
    args, rest = parser.parse_known_args()

    rows = {name: measure(name, args, rest) for name in args.variants}
    third = args.steps // 3
    print(f"\n{args.autoencoder_steps} steps of each autoencoder; {args.num_images} samples of each flow model, by")
    print(f"{args.num_inference_steps} Euler steps, against the training split.\n")
    print(f"| autoencoder | PSNR | SSIM | rFD | FD, {third} steps | {2 * third} steps | {args.steps} steps |")
    print("|---" * 7 + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |")


if __name__ == "__main__":
    main()
