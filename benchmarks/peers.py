"""Recipes of other projects and ours on the same images and cores: how far samples are after so many minutes.

    pip install --no-deps denoising-diffusion-pytorch ema-pytorch einops
    OMP_NUM_THREADS=1 python -m benchmarks.peers [--dataset_name ylecun/mnist] [--resolution 16] [--minutes 30] \\
        [--ours 3] [--seeds 0 1 2] [--contenders diffusers denoising-diffusion-pytorch]

- diffusers: what its train_unconditional.py does at its defaults, written out: epsilon, linear betas, AdamW at 1e-4,
  batches of 16, float32, no average of weights; UNet2DModel with heads of 8 channels and all else at its default, of
  the widths, blocks and groups of our network (32 groups of 32 channels would take the noise level away again). Sampled
  by its own DDPMPipeline and DDIMPipeline.
- denoising-diffusion-pytorch: its Unet, of the width at which it is nearest to our network's size, its
  GaussianDiffusion and its EMA, trained as its Trainer does at its defaults, but without mirrored images. Sampled by
  itself.
- ours: train_unconditional.py by the recipe, in --ours minutes, with --options.

All without classes, on the same training split, for minutes of training steps alone. Samples are compared with that
split: Frechet distance in the features of a classifier of it, lower is better. Results and grids of samples gather in
--output_dir: a second call goes on with what isn't there yet. Ours is trained first, so that two calls after that can
train a peer on a core each at the same time.
"""

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.scripts import add_arguments, evaluate, gathered, train, trained, training_time, values
from pipelines import image_grid
from snowmelt.data.sources import load_images
from snowmelt.evaluation.generation import rounded
from snowmelt.evaluation.options import EvaluateConfig
from snowmelt.evaluation.study import GRID_IMAGES, Study
from snowmelt.evaluation.table import Images, compare
from snowmelt.loading import load_pipeline
from snowmelt.options import UnconditionalConfig
from snowmelt.spaces import PixelSpace

BATCH, WARMUP, EPOCHS = 16, 500, 100  # of both peers, and of diffusers' script
SAMPLERS = {"DDIM": 50, "ancestral": 250}
"""Of both peers, and the steps of each."""
SAMPLED = 250
"""At a time."""

Draw = Callable[[int], Tensor]
"""So many samples (N, C, R, R) in [0, 1]."""


def fit(step: Callable[[Tensor], None], images: Tensor, minutes: float) -> tuple[int, float]:
    """Take steps on batches of images (N, C, R, R) in [-1, 1], in a new order each epoch; how many, in what seconds."""
    start = time.monotonic()
    progress = tqdm(mininterval=5)
    while True:
        for rows in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            step(images[rows])
            progress.update()
            if time.monotonic() - start >= 60 * minutes:
                return progress.n, time.monotonic() - start


def diffusers_recipe(like: UNet2DModel, images: Tensor) -> tuple[Callable[[Tensor], None], dict[str, Draw]]:
    """A training step, and how to sample what it has trained."""
    shape = ("sample_size", "in_channels", "out_channels", "layers_per_block", "block_out_channels")
    shape += ("down_block_types", "up_block_types", "norm_num_groups")
    net = UNet2DModel(**{name: like.config[name] for name in shape})
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    adam = torch.optim.AdamW(net.parameters(), 1e-4, (0.95, 0.999), weight_decay=1e-6)
    rate = get_cosine_schedule_with_warmup(adam, WARMUP, EPOCHS * len(images) // BATCH)

    def step(clean: Tensor) -> None:
        noise, times = torch.randn_like(clean), torch.randint(1000, (len(clean),))
        F.mse_loss(net(scheduler.add_noise(clean, noise, times), times).sample, noise).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        rate.step()
        adam.zero_grad()

    def sampler(pipeline: Any, steps: int) -> Draw:
        pipeline.set_progress_bar_config(disable=True)
        made = lambda n: pipeline(batch_size=n, num_inference_steps=steps, output_type="np").images  # noqa: E731
        return lambda n: torch.from_numpy(made(n)).permute(0, 3, 1, 2)

    pipelines = (DDIMPipeline(net, DDIMScheduler.from_config(scheduler.config)), DDPMPipeline(net, scheduler))
    return step, {name: sampler(made, steps) for (name, steps), made in zip(SAMPLERS.items(), pipelines, strict=True)}


def lucidrains_recipe(like: UNet2DModel, images: Tensor) -> tuple[Callable[[Tensor], None], dict[str, Draw]]:
    """The same, of denoising-diffusion-pytorch."""
    sys.modules.setdefault("torchvision", MagicMock())  # whose transforms of files nothing here needs
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    channels, side = images.shape[1:3]
    size = like.num_parameters()
    nets = [Unet(dim, dim_mults=(1, 2, 4), channels=channels) for dim in range(8, 65, 8)]
    net = min(nets, key=lambda made: abs(sum(p.numel() for p in made.parameters()) - size))
    print(f"Unet of {sum(p.numel() for p in net.parameters()):,} parameters; ours {size:,}")
    diffusion = GaussianDiffusion(net, image_size=side)
    adam = torch.optim.Adam(diffusion.parameters(), 1e-4, (0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10)

    def step(clean: Tensor) -> None:
        diffusion((clean + 1) / 2).backward()
        nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        ema.update()

    def sampler(steps: int, eta: float) -> Draw:
        def draw(n: int) -> Tensor:
            made = ema.ema_model
            made.is_ddim_sampling, made.sampling_timesteps, made.ddim_sampling_eta = True, steps, eta
            return made.sample(batch_size=n)

        return draw

    return step, {name: sampler(steps, float(name != "DDIM")) for name, steps in SAMPLERS.items()}


PEERS = {"diffusers": diffusers_recipe, "denoising-diffusion-pytorch": lucidrains_recipe}


def measure_peer(path: Path, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train a peer, and compare what each of its samplers makes with the training split."""
    torch.manual_seed(args.seeds[0])
    ours = str(path.parent / f"ours-{args.seeds[0]}")
    data = UnconditionalConfig(dataset_name=args.dataset_name, resolution=args.resolution, center_crop=True)
    cache = load_images(data)
    images = PixelSpace(cache.value_range).from_cache(torch.from_numpy(cache.gather(np.arange(len(cache)), None)))
    step, samplers = PEERS[name](load_pipeline(ours).network, images)
    steps, seconds = fit(step, images, args.minutes)
    data_options = {"dataset_name": args.dataset_name, "num_images": args.num_images, "metrics": ["fd"]}
    study = Study(EvaluateConfig(model=ours, **data_options), PartialState(cpu=True))
    found: dict[str, Any] = {"minutes": seconds / 60, "steps": steps, "images": steps * BATCH, "distances": {}}
    for sampler, draw in samplers.items():
        sizes = [min(SAMPLED, args.num_images - start) for start in range(0, args.num_images, SAMPLED)]
        with torch.no_grad():
            samples = torch.cat([rounded(draw(size).clamp(0, 1)) for size in sizes])
        grid = (samples[:GRID_IMAGES] * 255).round().byte().permute(0, 2, 3, 1).numpy()
        image_grid(grid).save(f"{path}-{sampler}.png")
        features = Images(torch.cat([study.extractor(part) for part in samples.split(SAMPLED)]))
        (result,) = compare(["fd"], features, study.reference, study.extractor, study.config.seed)
        found["distances"][f"{sampler}, {SAMPLERS[sampler]} steps"] = result.value
    return found


def measure_ours(folder: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train ours, and compare."""
    if not trained(folder):
        given = {"max_train_minutes": args.ours, "no-class_conditional": True, "seed": seed}
        train(folder, args, 10**6, *shlex.split(args.options), **given)
    report = evaluate(folder, args, metrics="fd", scheduler="dpmsolver++", num_inference_steps=20)
    return training_time(folder) | {"distances": {"DPM-Solver++, 20 steps": values(report["results"])["fd"]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="*", choices=PEERS, default=list(PEERS), help="besides ours")
    parser.add_argument("--minutes", type=float, default=30, help="of each peer")
    parser.add_argument("--ours", type=float, default=3, help="minutes of ours")
    parser.add_argument("--options", default="--optimizer muon", help="further options of ours, as they are typed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of ours; a peer takes the first")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/peers"))
    add_arguments(parser)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)

    ours = [gathered(args.output_dir / f"ours-{seed}", measure_ours, seed, args) for seed in args.seeds]
    found = {
        name: gathered(args.output_dir / name, measure_peer, name, args) for name in PEERS if name in args.contenders
    }
    print(f"\n{args.num_images} samples; ours: medians and all of {len(ours)} seeds.\n")
    print("| | minutes | steps | images seen | distance |")
    print("|---" * 5 + "|")
    for name, peer in found.items():
        distances = "; ".join(f"{fd:.3f} {sampler}" for sampler, fd in peer["distances"].items())
        print(f"| {name} | {peer['minutes']:.1f} | {peer['steps']} | {peer['images']:,} | {distances} |")
    middle = {name: statistics.median(one[name] for one in ours) for name in ("minutes", "steps", "images")}
    (sampler,) = ours[0]["distances"]
    each = [one["distances"][sampler] for one in ours]
    distances = f"{statistics.median(each):.3f} ({', '.join(f'{fd:.3f}' for fd in each)}) {sampler}"
    print(f"| ours | {middle['minutes']:.1f} | {middle['steps']:.0f} | {middle['images']:,.0f} | {distances} |")


if __name__ == "__main__":
    main()
