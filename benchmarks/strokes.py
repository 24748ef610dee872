"""Pictures made of strokes without training (Meng et al. 2022, SDEdit): what each strength keeps and what it mends.

    python -m benchmarks.strokes --model runs/mnist --dataset_name ylecun/mnist [--num_images 500]
        [--strengths 0.4 0.6 0.8]

The strokes are held-out images in blocks of `--block` pixels, each of two values. For each strength: the root mean
squared difference from the strokes, of values in [0, 1]; the Frechet distance to the training split in the features of
a classifier trained on it (lower is better); and the fraction whose class it still finds. A model of classes is given
that of the image, or with --unlabelled none. In --output_dir it leaves strokes.png: strokes, a row per strength, and
the images that the strokes were made of.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.real_images import DEVICE, classifier_features, first, load_splits, picture
from pipelines import image_generators
from snowmelt.evaluation.metrics import FrechetDistance
from snowmelt.evaluation.reference import features_of
from snowmelt.input_images import image_size
from snowmelt.loading import load_pipeline

BATCH, SHOWN = 100, 12


def strokes(images: Tensor, block: int) -> Tensor:
    """Images (B, C, H, W) in [0, 1] of blocks, each black or white in each channel."""
    coarse = torch.nn.functional.avg_pool2d(images, block) > 0.4
    return coarse.float().repeat_interleave(block, 2).repeat_interleave(block, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/mnist")
    parser.add_argument("--dataset_name", default="ylecun/mnist")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num_images", type=int, default=500)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.4, 0.6, 0.8])
    parser.add_argument("--block", type=int, default=2)
    parser.add_argument("--unlabelled", action="store_true")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/strokes"))
    args = parser.parse_args()
    pipeline = load_pipeline(args.model).to(DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    train, held_out = load_splits(args.dataset_name, image_size(pipeline)[0], args.split)
    extractor = classifier_features(train, held_out)
    reference = FrechetDistance(features_of(train, extractor, 250))
    images = first(held_out, args.num_images)
    drawn = strokes(images, args.block)
    assert held_out.labels is not None
    labels = held_out.labels[: len(images)]

    def made(strength: float) -> Tensor:
        parts = []
        for start in range(0, len(images), BATCH):
            batch = drawn[start : start + BATCH]
            given = labels[start : start + BATCH].tolist() if pipeline.num_classes and not args.unlabelled else None
            samples = pipeline(
                len(batch),
                class_labels=given,
                image=batch,
                strength=strength,
                num_inference_steps=args.num_inference_steps,
                generator=image_generators(0, range(start, start + len(batch))),
                output_type="pt",
            ).images
            parts.append(samples.cpu())
        return torch.cat(parts)

    results = {"strokes": drawn} | {f"strength {s:g}": made(s) for s in args.strengths} | {"images": images}
    print("| image | difference from the strokes | Frechet distance | class found |\n|---|---|---|---|")
    for name, found in results.items():
        features = extractor(found)
        kept = (extractor.head(features).argmax(1) == labels).double().mean()
        difference = (found - drawn).square().mean().sqrt()
        print(f"| {name} | {difference:.3f} | {reference(features):.2f} | {kept:.1%} |")
    shown = torch.cat([x[:SHOWN] for x in results.values()])
    picture(shown, SHOWN).save(args.output_dir / "strokes.png")


if __name__ == "__main__":
    main()
