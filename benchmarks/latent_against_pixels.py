"""A latent model beside a pixel model of the same network width, trained for the same time on the same images.

    python benchmarks/latent_against_pixels.py --autoencoder runs/autoencoder --dataset_name uoft-cs/cifar10 \\
        --resolution 32 [--minutes 10 | --max_train_steps 1000] [--curve 3] [--num_images 2000]
        [flags of train_unconditional.py]

Prints one table: speed and memory of training, speed of sampling, and Frechet distance of samples to the training
images, by evaluate.py, beside that of as many held-out images and that of as many reconstructions of training images,
which a latent model can hardly beat; PSNR and SSIM on held-out images, and the statistics of the latents. The time in
which the images are encoded doesn't count as training; it is listed apart. With --curve N, training is in N parts of
equal time, and the distance is that after each of them.
Runs gather in --output_dir: a second call with the same arguments goes on with what isn't there yet.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines import image_generators
from snowmelt.autoencoder.reconstructions import measure_reconstructions, reconstruct
from snowmelt.data.sources import load_images
from snowmelt.environment import native_precision
from snowmelt.evaluation.features import make_features
from snowmelt.evaluation.metrics import FrechetDistance
from snowmelt.evaluation.options import checkpoints
from snowmelt.evaluation.real import RealImages
from snowmelt.evaluation.reference import features_of
from snowmelt.loading import load_pipeline
from snowmelt.options import DataOptions
from snowmelt.spaces import LatentSpace, PixelSpace, load_autoencoder

ROOT = Path(__file__).resolve().parent.parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH = 64
WARMUP = 2
"""Log lines at the start that don't count: kernels are chosen and memory is allocated there."""


def run(script: str, *words: Any) -> None:
    subprocess.run([sys.executable, ROOT / script, *map(str, words)], check=True, cwd=ROOT)


def train(name: str, args: argparse.Namespace, data: list[Any], rest: list[str]) -> dict[str, Any]:
    """Train one of the two with the script, and say how it went."""
    out = args.output_dir / name
    while (part := len(checkpoints(out)) + 1) <= args.curve:
        words = ["--output_dir", out, "--model_size", args.model_size, *data]
        words += ["--overwrite_output_dir"] if part == 1 else ["--resume_from_checkpoint", "latest"]
        words += ["--center_crop", "--train_batch_size", BATCH, "--lr_scheduler", "constant_with_warmup"]
        words += ["--lr_warmup_steps", 50, "--learning_rate", 1e-3, "--adam_beta1", 0.9]
        words += ["--save_images_epochs", 0, "--save_model_epochs", 0, "--checkpointing_steps", 10**6]
        words += ["--max_train_steps", args.max_train_steps * part // args.curve if args.max_train_steps else 10**6]
        words += [] if args.max_train_steps else ["--max_train_minutes", args.minutes * part / args.curve]
        words += ["--autoencoder", args.autoencoder] if name == "latents" else []
        run("train_unconditional.py", *words, *rest)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    measured = lines[WARMUP:] or lines
    return {
        "optimizer steps": lines[-1]["step"],
        "training, images/s": statistics.median(line["images_per_second"] for line in measured),
        "training, peak memory, MB": lines[-1]["peak_memory_mb"],
    }


def sample(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """What is sampled, and how fast."""
    pipeline = load_pipeline(str(args.output_dir / name)).to(DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    network = pipeline.network

    def batch(first: int) -> float:
        start = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=native_precision() == "bf16"):
            pipeline(
                BATCH,
                class_labels=[i % pipeline.num_classes for i in range(BATCH)] if pipeline.num_classes else None,
                num_inference_steps=args.num_inference_steps,
                generator=image_generators(0, range(first, first + BATCH)),
                output_type="pt",
            ).images.cpu()
        return BATCH / (time.perf_counter() - start)

    return {
        "the network's data": " x ".join(map(str, (network.config.in_channels, *[network.config.sample_size] * 2))),
        "parameters, M": sum(p.numel() for p in network.parameters()) / 1e6,
        f"sampling, images/s ({args.num_inference_steps} steps)": statistics.median(
            [batch(BATCH * i) for i in range(args.batches + 1)][1:]
        ),
    }


def evaluate(name: str, args: argparse.Namespace, data: list[Any]) -> dict[str, Any]:
    """Frechet distance of samples after each part of training, and that of as many held-out images, by evaluate.py."""
    out = args.output_dir / name
    *earlier, _ = checkpoints(out)
    if not (out / "report/report.json").exists():
        words = ["--model", out, "--metrics", "fd", "--num_images", args.num_images, "--features", args.features, *data]
        words += ["--held_out_split", args.held_out_split, "--num_inference_steps", args.num_inference_steps]
        words += ["--torch_dtype", "bfloat16"] if native_precision() == "bf16" else []
        words += ["--sweep", "checkpoint=" + ",".join(map(str, earlier))] if earlier else []
        run("evaluate.py", *words)
    report = json.loads((out / "report/report.json").read_text())
    values = {f"{r['name']}, {args.num_images} samples": r["value"] for r in report["results"]}
    for part, point in enumerate(report["sweep"], 1):
        values |= {f"{r['name']}, after {part} of {args.curve} parts": r["value"] for r in point["results"]}
    return values | {f"{r['name']}, real images": r["value"] for r in report["baseline"]}


class Autoencoder:
    """What it loses, and what its latents look like to the network: measured before anything is trained.

    Raises:
        UserError: if there is no such data, or no features of it.
    """

    def __init__(self, args: argparse.Namespace, options: dict[str, Any], random_flip: bool) -> None:
        train, held_out = (
            load_images(DataOptions(**options, split=split, center_crop=True))
            for split in ("train", args.held_out_split)
        )
        self.vae = load_autoencoder(str(args.autoencoder)).to(DEVICE)
        self.space = LatentSpace(self.vae, PixelSpace(train.value_range))
        self.space.channels(train)
        self.count = min(args.num_images, len(train))
        real = RealImages(train, "train", train.value_range)
        others = RealImages(held_out, args.held_out_split, train.value_range)
        extractor = make_features(args.features, real, others, DEVICE)
        self.quality = measure_reconstructions(self.vae, others, np.arange(len(others))[: self.count], None, BATCH)
        rows = np.random.default_rng(0).permutation(len(train))[: self.count]
        parts = [
            extractor(reconstruct(self.vae, real.batch(part))) for part in np.array_split(rows, -(-len(rows) // BATCH))
        ]
        self.distance = FrechetDistance(features_of(real, extractor, BATCH))(torch.cat(parts))
        start = time.perf_counter()
        # As the training script does, which finds the latents then.
        self.latents = self.space.encode(train, random_flip=random_flip, mixed_precision=native_precision())
        self.seconds = time.perf_counter() - start

    def describe(self) -> None:
        raw = self.latents.as_tensor()[:1000].flatten(0, -4).to(DEVICE)
        x0 = self.space.from_cache(raw, torch.Generator(DEVICE).manual_seed(0))
        mean, std = (", ".join(f"{v:.2f}" for v in f((0, 2, 3)).tolist()) for f in (x0.mean, x0.std))
        shape = " x ".join(map(str, x0.shape[1:]))
        print(f"\n{type(self.vae).__name__}, factor {self.space.vae_scale_factor}, latents of {shape}:")
        print(", ".join(f"{name.upper()} {value:.4g}" for name, value in self.quality.items()) + " on held-out images;")
        print(f"Frechet distance of {self.count} reconstructed training images {self.distance:.4g};")
        print(f"as the network sees its latents, means of the channels {mean}; standard deviations {std};")
        print(f"encoding took {self.seconds:.0f} s (next to none where the latents were there already)")


def same_arguments(folder: Path, arguments: dict[str, Any]) -> None:
    """Write them down, or stop if the folder holds results of others."""
    path, text = folder / "arguments.json", json.dumps(arguments, indent=1, default=str)
    if path.exists() and path.read_text() != text:
        raise SystemExit(f"{folder} holds results of other arguments ({path}); give another --output_dir, or delete it")
    path.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--autoencoder", required=True, help="folder or Hub name")
    parser.add_argument("--dataset_name", default="uoft-cs/cifar10")
    parser.add_argument("--held_out_split", default="test")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--channels", type=int)
    parser.add_argument("--cache_dir")
    parser.add_argument("--model_size", default="tiny")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--max_train_steps", type=int, help="instead of a time")
    parser.add_argument("--curve", type=int, default=1, help="parts of the training after which models are compared")
    parser.add_argument("--features", default="classifier")
    parser.add_argument("--num_images", type=int, default=2000)
    parser.add_argument("--num_inference_steps", type=int, default=20)
    parser.add_argument("--batches", type=int, default=3, help=f"timed batches of {BATCH} samples")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/latent_against_pixels"))
    args, rest = parser.parse_known_args()
    args.output_dir = args.output_dir.resolve()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    same_arguments(args.output_dir, {**vars(args), "rest": rest})
    options = {"dataset_name": args.dataset_name, "channels": args.channels, "cache_dir": args.cache_dir}
    autoencoder = Autoencoder(args, options | {"resolution": args.resolution}, "--random_flip" in rest)
    data = [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]

    columns = {}
    for name in ("pixels", "latents"):
        trained = train(name, args, [*data, "--resolution", args.resolution], rest)
        columns[name] = {**sample(name, args), **trained, **evaluate(name, args, data)}
    side = args.resolution
    print(f"\n{args.dataset_name}, {side} x {side}, UNet2DModel '{args.model_size}', batch {BATCH}\n")
    print("| | pixels | latents | latents / pixels |\n|---|---|---|---|")
    for row, value in columns["pixels"].items():
        other = columns["latents"][row]
        cells = [v if isinstance(v, str) else f"{v:.4g}" for v in (value, other)]
        ratio = "" if isinstance(value, str) else f"{other / value:.2f}"
        print(f"| {row} | {' | '.join(cells)} | {ratio} |")
    autoencoder.describe()


if __name__ == "__main__":
    main()
