"""Inpainting of held-out images without training: four masks, by replacement alone and by RePaint's jumps.

    python -m benchmarks.inpainting --model runs/mnist --dataset_name ylecun/mnist [--num_images 200] [--jumps 1 10]

For each mask and each `jump_n_sample`, over the pixels that are made: the mean squared error of values in [0, 1]; over
whole images: the mean squared distance in the features of a classifier trained on the training split, and the fraction
whose class it still finds. Beside these stand the mask filled with the training images' mean, and the images as they
were. A model that was trained without labels too is given none. In --output_dir it leaves a picture per mask: images,
what is known of them, and a row per `jump_n_sample`.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.real_images import DEVICE, classifier_features, first, load_splits, picture
from pipelines import image_generators
from pipelines.backbones import num_class_embeds
from snowmelt.input_images import image_size
from snowmelt.loading import load_pipeline

BATCH = 100
SHOWN = 12


def masks(side: int) -> dict[str, Tensor]:
    """Name: (side, side), True where pixels are made."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    quarter = side // 4
    return {
        "right half": column >= side // 2,
        "centre": (row - side // 2).abs().lt(quarter) & (column - side // 2).abs().lt(quarter),
        "every second line": row % 2 == 1,
        "three of four pixels": (row % 2 == 1) | (column % 2 == 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/mnist")
    parser.add_argument("--dataset_name", default="ylecun/mnist")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num_images", type=int, default=200)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--jump_length", type=int, default=5)
    parser.add_argument("--jumps", type=int, nargs="+", default=[1, 10], help="jump_n_sample")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/inpainting"))
    args = parser.parse_args()
    pipeline = load_pipeline(args.model).to(DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    side = image_size(pipeline)[0]
    train, held_out = load_splits(args.dataset_name, side, args.split)
    extractor = classifier_features(train, held_out)
    images = first(held_out, args.num_images)
    assert held_out.labels is not None
    labels = held_out.labels[: args.num_images]
    mean = first(train, 1000).mean(0)
    has_null = (num_class_embeds(pipeline.network) or 0) > pipeline.num_classes
    given = labels.tolist() if pipeline.num_classes and not has_null else None

    def inpainted(mask: Tensor, jump_n_sample: int) -> Tensor:
        parts = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            made = pipeline(
                len(batch),
                class_labels=None if given is None else given[start : start + BATCH],
                image=batch,
                mask_image=mask.float(),
                num_inference_steps=args.num_inference_steps,
                jump_length=args.jump_length,
                jump_n_sample=jump_n_sample,
                generator=image_generators(0, range(start, start + len(batch))),
                output_type="pt",
            ).images
            parts.append(made.cpu())
        return torch.cat(parts)

    real = extractor(images)

    def row(name: str, what: str, made: Tensor, mask: Tensor) -> str:
        error = (made - images).square()[..., mask].mean()
        features = extractor(made)
        distance = (features - real).square().mean()
        kept = (extractor.head(features).argmax(1) == labels).double().mean()
        return f"| {name} | {what} | {error:.4f} | {distance:.3f} | {kept:.1%} |"

    lines = [row("none", "as they were", images, torch.ones(side, side, dtype=torch.bool))]
    for name, mask in masks(side).items():
        made = {f"jump_n_sample {n}": inpainted(mask, n) for n in args.jumps}
        filled = torch.where(mask, mean, images)
        lines += [row(name, what, result, mask) for what, result in ({"the mean": filled} | made).items()]
        shown = torch.cat([x[:SHOWN] for x in (images, torch.where(mask, 0.5, images), *made.values())])
        picture(shown, SHOWN).save(args.output_dir / f"{name}.png")
    print(
        f"\n{args.num_images} images of {args.split}, {args.num_inference_steps} steps, jumps of {args.jump_length}.\n"
    )
    print("| made | by | squared error there | squared distance in features | class found |\n|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
