"""Deterministic against random steps (Song et al. 2021, DDIM, table 1), and what makes the difference.

    python -m benchmarks.ddim_against_ddpm --model runs/mnist-ddim --dataset_name ylecun/mnist [--num_images 1000]

Frechet distances to the training split, in the features of a classifier trained on it, of as many samples of each: for
eta from 0 to 1 and the larger variance ("sigma hat" there) by number of steps; and, at 50 steps, with the predicted x0
clipped and the noise computed anew from it, clipped while the noise stays as predicted, which is what diffusers'
`DDIMScheduler` does unless asked, and not clipped; and with its three spacings of timesteps.
Each row of samples starts from the same noise.
"""

import argparse
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from benchmarks.real_images import DEVICE, classifier_features, first, load_splits
from pipelines import image_generators
from pipelines.unconditional import UnconditionalPipeline
from snowmelt.evaluation.metrics import FrechetDistance
from snowmelt.evaluation.reference import features_of
from snowmelt.input_images import image_size
from snowmelt.loading import load_pipeline

BATCH = 250
ETAS = (0.0, 0.2, 0.5, 1.0)


@torch.no_grad()
def sample(pipeline: UnconditionalPipeline, scheduler: Any, steps: int, count: int, **arguments: Any) -> Tensor:
    """Images (count, C, H, W) in [0, 1], by the scheduler itself."""
    parts, shape = [], (pipeline.data_channels, *image_size(pipeline))
    scheduler.set_timesteps(steps)
    for start in range(0, count, BATCH):
        generators = image_generators(0, range(start, min(count, start + BATCH)))
        x = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(DEVICE)
        labels = None
        if pipeline.num_classes:
            labels = torch.arange(start, start + len(x), device=DEVICE) % pipeline.num_classes
        for t in scheduler.timesteps:
            output = pipeline.network(x, timestep=t, class_labels=labels, return_dict=False)[0]
            x = scheduler.step(output, t, x, generator=generators, **arguments, return_dict=False)[0]
        parts.append((x / 2 + 0.5).clamp(0, 1).cpu())
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/mnist-ddim")
    parser.add_argument("--dataset_name", default="ylecun/mnist")
    parser.add_argument("--held_out_split", default="test")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50, 100])
    parser.add_argument("--most_steps", type=int, default=1000, help="of DDPM with both variances")
    args = parser.parse_args()
    pipeline = load_pipeline(args.model).to(DEVICE)
    train, held_out = load_splits(args.dataset_name, image_size(pipeline)[0], args.held_out_split)
    extractor = classifier_features(train, held_out)
    distance = FrechetDistance(features_of(train, extractor, BATCH))
    config = {k: v for k, v in pipeline.scheduler.config.items() if k != "variance_type"}

    def measure(steps: int, kind: Any = DDIMScheduler, changed: dict[str, Any] | None = None, **step: Any) -> str:
        images = sample(pipeline, kind.from_config(config | (changed or {})), steps, args.num_images, **step)
        return f"{distance(torch.cat([extractor(part) for part in images.split(BATCH)])):.2f}"

    def line(name: str, *values: str) -> None:
        print(f"| {name} | {' | '.join(values)} |", flush=True)

    real = distance(extractor(first(held_out, args.num_images)))
    print(f"\n{args.num_images} samples; as many held-out images are at {real:.2f}. By the number of steps:\n")
    line("eta", *map(str, args.steps))
    print("|---" * (1 + len(args.steps)) + "|")
    for eta in ETAS:
        line(f"{eta:g}", *(measure(steps, eta=eta, use_clipped_model_output=True) for steps in args.steps))
    print("\n| at 50 steps, eta 0 | |\n|---|---|")
    line("x0 clipped, noise of the clipped x0 (as here)", measure(50, use_clipped_model_output=True))
    line("x0 clipped, noise as predicted", measure(50))
    line("x0 not clipped", measure(50, changed={"clip_sample": False}))
    for spacing in ("linspace", "leading"):
        name = f"timesteps `{spacing}` in place of `trailing`"
        line(name, measure(50, changed={"timestep_spacing": spacing}, use_clipped_model_output=True))
    print(f"\n| DDPM, {args.most_steps} steps | |\n|---|---|")
    for variance in ("fixed_small", "fixed_large"):
        line(f"`{variance}`", measure(args.most_steps, DDPMScheduler, {"variance_type": variance}))


if __name__ == "__main__":
    main()
