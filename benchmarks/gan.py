"""A flow model beside a GAN of as many parameters, trained for as long on the same images: quality, coverage, spread.

    python -m benchmarks.gan --dataset_name ylecun/mnist [--minutes 5 | --steps 900] [--seeds 0 1 2] [--num_images 1000]

For each seed train_unconditional.py trains a flow model by the recipe, and the GAN then trains for the seconds that its
metrics.jsonl adds up to, in the same precision, on the same batches. evaluate.py judges the one, its parts the other:
the same classifier, the same real images, labels in turn. Prints medians and ranges over the seeds. Results and grids
of samples gather in --output_dir: a second call with the same arguments goes on with what isn't there yet.

The GAN is conditional on classes, and made of what is known to train well:
- convolutions as in Miyato et al. 2018 (spectral normalization, appendix B.4), of such a width that generator and
  discriminator together have no more parameters than the flow model's network;
- the class embedded beside the generator's noise, and projected on in the discriminator (Miyato & Koyama 2018);
- the non-saturating loss (Goodfellow et al. 2014), Adam at 2e-4 with betas of 0.5 and 0.999 (Radford et al. 2016);
- spectral normalization of the discriminator, not the gradient penalty R1, whose second backward pass costs steps;
- the recipe's average of weights, for the generator, with batch statistics measured anew (Brock et al. 2019).
"""

import argparse
import bisect
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from tqdm import tqdm

from benchmarks.latent_against_pixels import BATCH, DEVICE, same_arguments, sample
from benchmarks.scripts import add_arguments, evaluate, gathered, train, trained, training_time, values
from pipelines import image_grid
from snowmelt.config import load_yaml
from snowmelt.data.held_out import load_splits
from snowmelt.data.loader import batches
from snowmelt.ema import make_emas
from snowmelt.environment import native_precision
from snowmelt.evaluation.generation import rounded
from snowmelt.evaluation.options import EvaluateConfig
from snowmelt.evaluation.study import GRID_IMAGES, Study
from snowmelt.evaluation.table import Images, compare
from snowmelt.loading import load_pipeline
from snowmelt.options import UnconditionalConfig
from snowmelt.spaces import PixelSpace

LATENT, EMBEDDING = 64, 16
"""Dimensions of the noise and of a class beside it; with 64 of both, the samples of a class were one on digits."""
STANDING = 100  # batches on which the average generator's statistics are measured
METRICS = ["fd", "prdc", "accuracy"]
COLUMNS = ("fd", "precision", "recall", "density", "coverage", "accuracy", "images/s", "steps", "seconds")


def halvings(side: int) -> int:
    """How often images of this side are halved: down to 4 pixels, or to an odd number."""
    return 1 + halvings(side // 2) if side % 2 == 0 and side >= 8 else 0


class Generator(nn.Module):
    """Noise (B, LATENT) and labels (B,) to images (B, C, R, R) in [-1, 1]."""

    def __init__(self, width: int, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.classes = nn.Embedding(classes, EMBEDDING)
        times = halvings(side)
        wide, base = width << times, side >> times
        layers: list[nn.Module] = [nn.Linear(LATENT + EMBEDDING, wide * base**2), nn.Unflatten(1, (wide, base, base))]
        for _ in range(times):
            layers += [nn.BatchNorm2d(wide), nn.ReLU(), nn.ConvTranspose2d(wide, wide // 2, 4, stride=2, padding=1)]
            wide //= 2
        layers += [nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, channels, 3, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        return self.layers(torch.cat([noise, self.classes(labels)], 1))


class Discriminator(nn.Module):
    """Images (B, C, R, R) in [-1, 1] and labels (B,) to logits (B,), positive for real ones."""

    def __init__(self, width: int, channels: int, side: int, classes: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(channels, width, 3, padding=1)]
        for _ in range(halvings(side)):
            layers += [nn.Conv2d(width, width, 4, stride=2, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)]
            width *= 2
        self.layers = nn.ModuleList(map(spectral_norm, layers))
        self.logit, self.classes = spectral_norm(nn.Linear(width, 1)), spectral_norm(nn.Embedding(classes, width))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)
        features = x.sum((2, 3))
        return self.logit(features)[:, 0] + (self.classes(labels) * features).sum(1)


def parameters(*networks: nn.Module) -> int:
    return sum(p.numel() for network in networks for p in network.parameters())


def make_gan(size: int, *shape: int) -> tuple[Generator, Discriminator]:
    """Both networks for a `shape` of channels, side and classes, as wide as `size` parameters together allow."""
    fitting = bisect.bisect(
        range(4, 257, 4), size, key=lambda width: parameters(Generator(width, *shape), Discriminator(width, *shape))
    )
    generator, discriminator = Generator(4 * fitting, *shape), Discriminator(4 * fitting, *shape)
    print(f"generator {parameters(generator):,} parameters, discriminator {parameters(discriminator):,}, flow {size:,}")
    return generator.to(DEVICE), discriminator.to(DEVICE)


def train_gan(config: UnconditionalConfig, size: int, seconds: float) -> tuple[Generator, dict[str, float]]:
    """Train for so long as a flow model of that configuration and size; the average generator, and how long."""
    images, _ = load_splits(config, labels=True)
    space, classes = PixelSpace(images.value_range), len(images.class_names or [])
    torch.manual_seed(config.seed)
    generator, discriminator = make_gan(size, images.channels, images.size[0], classes)
    ema = make_emas({"generator": generator}, config)["ema"]["generator"]
    adam_g, adam_d = (torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (generator, discriminator))
    precision = torch.autocast(DEVICE.type, torch.bfloat16, enabled=config.mixed_precision == "bf16")
    order = {"batch_size": config.train_batch_size * config.gradient_accumulation_steps, "seed": config.seed}
    order |= {"random_flip": config.random_flip, "num_workers": config.dataloader_num_workers}
    alone = {"start_step": 0, "rank": 0, "world_size": 1, "accumulation": 1, "device": DEVICE, "labels": True}
    start = time.monotonic()
    for step, batch in enumerate(tqdm(batches({"image": images}, **order, **alone), "GAN", mininterval=1), 1):
        real, labels = space.from_cache(batch["image"]), batch["label"]
        with precision:
            fake = generator(torch.randn(len(real), LATENT, device=DEVICE), labels)
            of_real, of_fake = discriminator(torch.cat([real, fake.detach()]), labels.repeat(2)).float().chunk(2)
        loss_d = (F.softplus(-of_real) + F.softplus(of_fake)).mean()
        adam_d.zero_grad()
        loss_d.backward()
        adam_d.step()
        discriminator.requires_grad_(False)  # saves the gradients of its weights
        with precision:
            loss_g = F.softplus(-discriminator(fake, labels).float()).mean()
        adam_g.zero_grad()
        loss_g.backward()
        adam_g.step()
        discriminator.requires_grad_(True)
        ema.update(step)
        elapsed = time.monotonic() - start
        if elapsed >= seconds:
            break
    print(f"{step} steps; loss of the discriminator {loss_d.item():.3f}, of the generator {loss_g.item():.3f}")
    for norm in (module for module in ema.network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # all batches weigh the same
    ema.network.train()
    for _ in range(STANDING):
        draw(ema.network, torch.randint(classes, (BATCH,)))
    return ema.network.eval(), {"steps": step, "seconds": elapsed}


@torch.no_grad()
def draw(generator: nn.Module, labels: Tensor) -> Tensor:
    """Images (B, C, R, R) in [0, 1] on the CPU."""
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=native_precision() == "bf16"):
        images = generator(torch.randn(len(labels), LATENT, device=DEVICE), labels.to(DEVICE))
    return rounded((images.float().cpu() + 1) / 2)


def run_config(folder: Path) -> UnconditionalConfig:
    return UnconditionalConfig(**load_yaml(UnconditionalConfig, folder / "config.yaml"))


def measure_flow(folder: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train a flow model, unless that is done, and evaluate it."""
    if not trained(folder):
        steps, length = (10**6, {"max_train_minutes": args.minutes}) if args.minutes else (args.steps, {})
        train(folder, args, steps, objective="flow", seed=seed, **length)
    report = evaluate(folder, args, metrics=METRICS, num_inference_steps=args.num_inference_steps)
    shutil.copy(folder / "report/samples.png", f"{folder}.png")
    time_taken = training_time(folder)
    return values(report["results"]) | {
        "real": values(report["baseline"]),  # the second of its two sets
        "images/s": sample(folder.name, args)[f"sampling, images/s ({args.num_inference_steps} steps)"],
        "steps": time_taken["steps"],
        "seconds": 60 * time_taken["minutes"],
    }


def measure_gan(folder: Path, flow: Path, seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    """Train a GAN as the flow model in that folder was trained, and evaluate it as that was."""
    generator, length = train_gan(run_config(flow), parameters(load_pipeline(str(flow)).network), seconds)
    data = {"dataset_name": args.dataset_name, "held_out_split": args.held_out_split, "num_images": args.num_images}
    study = Study(EvaluateConfig(model=str(flow), metrics=METRICS, **data), PartialState(cpu=DEVICE.type == "cpu"))
    labels = torch.arange(args.num_images) % len(study.real.cache.class_names)
    images = torch.cat([draw(generator, part) for part in labels.split(250)])
    pixels = (images[:GRID_IMAGES] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    image_grid(pixels).save(f"{folder}.png")
    features = Images(torch.cat([study.extractor(part) for part in images.split(250)]), labels)
    results = compare(METRICS, features, study.reference, study.extractor, study.config.seed)
    times = []
    for _ in range(args.batches + 2):
        times.append(time.perf_counter())
        draw(generator, labels[:1].expand(BATCH))
    return length | {r.metric: r.value for r in results} | {"images/s": BATCH / np.median(np.diff(times)[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=900, help="of the flow model")
    parser.add_argument("--minutes", type=float, help="of its training, instead of --steps")
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--batches", type=int, default=3, help=f"timed batches of {BATCH} samples")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/gan"))
    add_arguments(parser)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    same_arguments(args.output_dir, {name: value for name, value in vars(args).items() if name != "seeds"})

    flows, gans = [], []
    for seed in args.seeds:
        flow = args.output_dir / f"flow-{seed}"
        flows.append(gathered(flow, measure_flow, seed, args))
        gans.append(gathered(args.output_dir / f"gan-{seed}", measure_gan, flow, flows[-1]["seconds"], args))
    real = ", ".join(f"{name} {value:.4g}" for name, value in flows[0]["real"].items())
    print(f"\n{args.num_images} samples; medians over {len(args.seeds)} seeds, and ranges. Held-out images: {real}.\n")
    print("| | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for title, records in (("flow", flows), ("GAN", gans)):
        columns = [[record[name] for record in records] for name in COLUMNS]
        cells = [f"{np.median(column):.4g} ({min(column):.4g} to {max(column):.4g})" for column in columns]
        print(f"| {title} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
