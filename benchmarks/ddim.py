"""What DDIM's determinism gives, on a trained model (Song et al. 2021, DDIM, sections 5.2 to 5.4).

    python -m benchmarks.ddim --model runs/mnist-epsilon --dataset_name ylecun/mnist [--reference 1000]

Prints two tables: how far the images of a noise are, after few steps, from those after all, for DDIM and for DDPM,
which starts from the same noise; and how far images are from themselves after they were encoded and decoded, for DDIM
with and without fixed-point iterations, and with and without clipping the predicted x0. The figures are root mean
squared differences of values in [-1, 1], over all pixels. In --output_dir it leaves interpolation.png, from one test
image to another, one row per pair; and translation.png for a model of classes: test images, themselves encoded and
decoded, and what their noise is in the next class.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines import image_generators, image_grid, make_scheduler, slerp
from pipelines.unconditional import UnconditionalPipeline
from snowmelt.data.sources import load_images
from snowmelt.loading import load_pipeline
from snowmelt.options import DataOptions

STEPS = (10, 20, 50, 100)
ITERATIONS = 5
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sample(
    pipeline: UnconditionalPipeline, scheduler: str, steps: int, noise: Tensor, labels: list[int] | None
) -> Tensor:
    """Images (B, C, H, W) in [-1, 1]."""
    own = pipeline.scheduler
    pipeline.scheduler = make_scheduler(scheduler, own)
    images = pipeline(
        len(noise),
        class_labels=labels,
        num_inference_steps=steps,
        latents=noise,
        generator=image_generators(1, range(len(noise))),
        output_type="pt",
    ).images
    pipeline.scheduler = own
    return images * 2 - 1


def difference(first: Tensor, second: Tensor) -> float:
    return (first - second).square().mean().sqrt().item()


def similarity(pipeline: UnconditionalPipeline, args: argparse.Namespace, labels: list[int] | None) -> None:
    shape = (
        args.num_images,
        pipeline.data_channels,
        pipeline.network.config.sample_size,
        pipeline.network.config.sample_size,
    )
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    print(f"\nRMS difference from the images of the same noise after {args.reference} steps of the same sampler:\n")
    print("| steps | " + " | ".join(map(str, STEPS)) + " | of other noise |\n|" + "---|" * (len(STEPS) + 2))
    for scheduler in ("ddim", "ddpm"):
        whole = sample(pipeline, scheduler, args.reference, noise, labels)
        few = [difference(sample(pipeline, scheduler, steps, noise, labels), whole) for steps in STEPS]
        other = difference(whole, whole.roll(pipeline.num_classes or 1, 0))  # of the same class
        print(f"| {scheduler} | " + " | ".join(f"{value:.3f}" for value in (*few, other)) + " |")


def round_trips(pipeline: UnconditionalPipeline, images: Tensor, labels: list[int] | None) -> None:
    print("\nRMS difference of images that were encoded and decoded:\n")
    print("| steps | " + " | ".join(map(str, STEPS)) + " |\n|" + "---|" * (len(STEPS) + 1))
    own = pipeline.scheduler
    for iterations, clip in ((0, True), (ITERATIONS, True), (0, False), (ITERATIONS, False)):
        pipeline.scheduler = type(own).from_config(own.config, clip_sample=clip)
        errors = []
        for steps in STEPS:
            noise = pipeline.invert(
                images, class_labels=labels, num_inference_steps=steps, num_fixed_point_iterations=iterations
            )
            errors.append(difference(sample(pipeline, "ddim", steps, noise, labels), images))
        name = f"{iterations} fixed-point iterations" if iterations else "DDIM inversion"
        name += "" if clip else ", x0 not clipped"
        print(f"| {name} | " + " | ".join(f"{error:.4f}" for error in errors) + " |")
    pipeline.scheduler = own


def draw(rows: list[Tensor], path: Path) -> None:
    """A grid whose rows are images (B, C, H, W) in [-1, 1]."""
    pixels = torch.cat(rows).clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    image_grid(np.ascontiguousarray(pixels), len(rows[0])).convert("RGB").save(path)


def interpolations(pipeline: UnconditionalPipeline, images: Tensor, labels: list[int] | None, path: Path) -> None:
    """Between pairs of images of one class, ten frames each."""
    noise = pipeline.invert(images, class_labels=labels, num_inference_steps=100, num_fixed_point_iterations=ITERATIONS)
    classes = pipeline.num_classes or 1
    rows = []
    for first in range(min(classes, 5)):
        way = torch.stack([slerp(noise[first], noise[first + classes], i / 9) for i in range(10)])
        rows.append(sample(pipeline, "ddim", 100, way, labels and [labels[first]] * 10))
    draw(rows, path)


def translations(pipeline: UnconditionalPipeline, images: Tensor, labels: list[int], path: Path) -> None:
    """The first ten images, and what their noise is in the next class."""
    few, own = images[:10], labels[:10]
    noise = pipeline.invert(few, class_labels=own, num_inference_steps=100, num_fixed_point_iterations=ITERATIONS)
    following = [(label + 1) % pipeline.num_classes for label in own]
    draw([few, sample(pipeline, "ddim", 100, noise, own), sample(pipeline, "ddim", 100, noise, following)], path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/mnist-epsilon")
    parser.add_argument("--dataset_name", default="ylecun/mnist")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num_images", type=int, default=64)
    parser.add_argument("--reference", type=int, default=1000)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ddim"))
    args = parser.parse_args()
    pipeline = load_pipeline(args.model).to(DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)

    side = pipeline.network.config.sample_size
    data = load_images(DataOptions(dataset_name=args.dataset_name, split=args.split, resolution=side, center_crop=True))
    classes = pipeline.num_classes
    if classes:  # the classes in turn, as images are numbered everywhere
        assert data.labels is not None
        of_class = [np.flatnonzero(data.labels == label) for label in range(classes)]
        rows = np.array([of_class[i % classes][i // classes] for i in range(args.num_images)])
    else:
        rows = np.arange(args.num_images)
    labels = [int(i % classes) for i in range(args.num_images)] if classes else None
    images = torch.from_numpy(data.gather(rows, None)).float() / 127.5 - 1

    similarity(pipeline, args, labels)
    round_trips(pipeline, images, labels)
    interpolations(pipeline, images, labels, args.output_dir / "interpolation.png")
    if labels:
        translations(pipeline, images, labels, args.output_dir / "translation.png")


if __name__ == "__main__":
    main()
