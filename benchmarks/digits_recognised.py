"""How many digits that the default model makes are recognised as the label they were asked for.

    python benchmarks/digits_recognised.py [--model runs/digits] [--num_images 1000] [--num_inference_steps 50]

The judge is scikit-learn's SVC(gamma=0.001, C=10), trained on the first half of the 8x8 originals. Beside the samples
stand the real digits of the second half, as they are and after the same resizing (to 16x16 and back).
"""

import argparse
from typing import Any

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


class Judge:
    """The classifier, and how many it recognises."""

    def __init__(self) -> None:
        digits = load_digits()
        half = len(digits.data) // 2
        self.classifier = SVC(gamma=0.001, C=10).fit(digits.data[:half], digits.target[:half])
        self.real = self.classifier.score(digits.data[half:], digits.target[half:])
        cache = load_images(
            DataOptions(dataset_name="digits", resolution=16, interpolation="bicubic", center_crop=True)
        )
        resized = cache.gather(np.arange(half, len(cache)), None)[:, 0] / 255
        self.resized = self.classifier.score(shrink(resized), cache.labels[half:])

    def __call__(self, pipeline: Any, count: int, seed: int, **options: Any) -> float:
        """The fraction of so many samples that is recognised, classes in turn."""
        right = 0
        for rows in torch.arange(count).split(250):
            labels = [i % 10 for i in rows.tolist()]
            generator = image_generators(seed, rows.tolist())
            output = pipeline(len(rows), class_labels=labels, generator=generator, output_type="np", **options)
            right += int((self.classifier.predict(shrink(output.images[..., 0])) == np.array(labels)).sum())
        return right / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/digits")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--scheduler", help="the model's own by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    judge = Judge()
    print(f"real digits, held out          {judge.real:.1%}")
    print(f"the same, resized              {judge.resized:.1%}")

    pipeline = load_pipeline(args.model)
    pipeline.set_progress_bar_config(disable=True)
    if args.scheduler:
        pipeline.scheduler = make_scheduler(args.scheduler, pipeline.scheduler)
    sampling = {"num_inference_steps": args.num_inference_steps, "guidance_scale": args.guidance_scale}
    right = judge(pipeline, args.num_images, args.seed, **sampling)
    error = (right * (1 - right) / args.num_images) ** 0.5
    print(f"samples, {args.num_inference_steps} steps, guidance {args.guidance_scale:g}  {right:.1%} ± {error:.1%}")


if __name__ == "__main__":
    main()
