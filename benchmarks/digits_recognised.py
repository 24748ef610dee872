"""How many digits that the default model makes are recognised as the label they were asked for.

    python benchmarks/digits_recognised.py [--model runs/digits] [--num_images 1000] [--num_inference_steps 50]

The judge is scikit-learn's SVC(gamma=0.001, C=10), trained on the first half of the 8x8 originals. Beside the samples
stand the real digits of the second half, as they are and after the same resizing (to 16x16 and back).
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from pipelines import image_generators, make_scheduler
from snowmelt.data.sources import load_images
from snowmelt.loading import load_pipeline
from snowmelt.options import DataOptions


def shrink(images: np.ndarray) -> np.ndarray:
    """Images (N, 16, 16) in [0, 1] as the 64 features, 0 to 16, that scikit-learn's digits have."""
    return 16 * images.reshape(-1, 8, 2, 8, 2).mean((2, 4)).reshape(-1, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/digits")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--scheduler", help="the model's own by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    digits = load_digits()
    half = len(digits.data) // 2
    judge = SVC(gamma=0.001, C=10).fit(digits.data[:half], digits.target[:half])
    real = judge.score(digits.data[half:], digits.target[half:])
    cache = load_images(DataOptions(dataset_name="digits", resolution=16, interpolation="bicubic", center_crop=True))
    resized = cache.gather(np.arange(half, len(cache)), None)[:, 0] / 255
    print(f"real digits, held out          {real:.1%}")
    print(f"the same, resized              {judge.score(shrink(resized), cache.labels[half:]):.1%}")

    pipeline = load_pipeline(args.model)
    pipeline.set_progress_bar_config(disable=True)
    if args.scheduler:
        pipeline.scheduler = make_scheduler(args.scheduler, pipeline.scheduler)
    images = []
    for rows in torch.arange(args.num_images).split(250):
        output = pipeline(
            batch_size=len(rows),
            class_labels=[i % 10 for i in rows.tolist()],
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            generator=image_generators(args.seed, rows.tolist()),
            output_type="np",
        )
        images.append(output.images[..., 0])
    right = judge.predict(shrink(np.concatenate(images))) == np.arange(args.num_images) % 10
    error = np.sqrt(right.mean() * (1 - right.mean()) / len(right))
    print(
        f"samples, {args.num_inference_steps} steps, guidance {args.guidance_scale:g}  {right.mean():.1%} ± {error:.1%}"
    )


if __name__ == "__main__":
    main()
