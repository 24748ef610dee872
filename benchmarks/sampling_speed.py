"""Images per second and their quality: diffusers' pipelines, and ours of models trained for as long.

    python -m benchmarks.sampling_speed --dataset_name ylecun/mnist [--resolution 16] [--minutes 4] [--rounds 3]

Three models of the MNIST recipe, without classes, which diffusers' DDPMPipeline and DDIMPipeline don't take: epsilon,
which these sample, flow, and soflow, each trained for as many steps as take so many minutes at its own speed. Times for
few steps of the flow are searched (generate.py --search_timesteps). Samples are compared with the training split by
evaluate.py: Frechet distance in the features of a classifier, lower is better.

Then all samplers take turns, round by round: images per second, medians, and the ratio to DDIMPipeline's of the same
round. diffusers' pipelines run as its documents have them, in float32; ours in bfloat16 where the machine has it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline

from benchmarks.scripts import (
    NATIVE_DTYPE,
    add_arguments,
    evaluate,
    images_per_second,
    run,
    slug,
    train,
    trained,
    values,
)
from pipelines import make_scheduler
from snowmelt.loading import load_pipeline

BATCH = 64
SEARCHED = (4, 6, 8)


class Row(NamedTuple):
    """A way to sample.

    Attributes:
        model: the objective that it was trained with.
        scheduler: that is sampled with.
        steps: how many.
        stock: diffusers' own pipeline; None for ours.
        searched: whether the times are those that were searched.
        images: at a time.
    """

    model: str
    scheduler: str
    steps: int
    stock: type | None = None
    searched: bool = False
    images: int = BATCH

    @property
    def title(self) -> str:
        """As the table has it."""
        if self.stock:
            return f"diffusers' {self.stock.__name__}"
        return f"`{self.model}`, `{self.scheduler}`" + (", searched times" if self.searched else "")


ROWS = [
    Row("epsilon", "ddpm", 1000, DDPMPipeline, images=8),
    Row("epsilon", "ddim", 50, DDIMPipeline),
    Row("epsilon", "dpmsolver++", 20),
    Row("flow", "dpmsolver++", 20),
    *(Row("flow", "dpmsolver++", steps, searched=chosen) for steps in reversed(SEARCHED) for chosen in (False, True)),
    *(Row("soflow", "flow-map", steps) for steps in (4, 2, 1)),
]


def folder_of(row: Row, args: argparse.Namespace) -> Path:
    """Of its model, trained where it isn't yet."""
    options: dict[str, object] = {"objective": row.model, "no-class_conditional": True, "train_batch_size": BATCH}
    folder: Path = args.output_dir / (row.model + "-searched" * row.searched)
    if row.searched and not folder.exists():
        plain = folder_of(row._replace(searched=False), args)
        load_pipeline(str(plain)).save_pretrained(folder)
        once = {"num_images": 1, "output_dir": args.output_dir / "samples", "overwrite_output_dir": True}
        run("generate.py", model=folder, search_timesteps=list(SEARCHED), num_inference_steps=SEARCHED[0], **once)
    elif not row.searched and not trained(folder):
        rate = images_per_second(args.output_dir / "speed" / row.model, args, ddpm_num_inference_steps=2, **options)
        train(folder, args, round(rate * args.minutes * 60 / BATCH), **options)
    return folder


def distance(row: Row, args: argparse.Namespace) -> float:
    """Of the samples from the training split."""
    sampler = {"scheduler": row.scheduler, "num_inference_steps": row.steps}
    output = f"report-{slug(row.scheduler)}-{row.steps}"
    report = evaluate(folder_of(row, args), args, output, metrics="fd", torch_dtype=NATIVE_DTYPE, **sampler)
    return values(report["results"])["fd"]


def make(row: Row, args: argparse.Namespace) -> Callable[[], Any]:
    """Samples one batch."""
    pipeline = load_pipeline(str(folder_of(row, args)))
    if row.stock is DDIMPipeline:
        pipeline = DDIMPipeline(pipeline.unet, DDIMScheduler.from_config(pipeline.scheduler.config))
    elif row.stock is not None:
        pipeline = row.stock(pipeline.unet, pipeline.scheduler)
    else:
        pipeline.scheduler = make_scheduler(row.scheduler, pipeline.scheduler)
        pipeline.network.type(getattr(torch, NATIVE_DTYPE))
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(batch_size=row.images, num_inference_steps=row.steps, output_type="np")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/sampling_speed"))
    add_arguments(parser)
    args = parser.parse_args()

    distances = [distance(row, args) for row in ROWS]
    samplers = [make(row, args) for row in ROWS]
    rates: list[list[float]] = []
    for _ in range(args.rounds):
        rates.append([])
        for row, sampler in zip(ROWS, samplers, strict=True):
            start = time.perf_counter()
            sampler()
            rates[-1].append(row.images / (time.perf_counter() - start))
    base = next(i for i, row in enumerate(ROWS) if row.stock is DDIMPipeline)
    print(f"\n{args.minutes:g} minutes of training each; {args.num_images} samples; {args.rounds} rounds.\n")
    print("| sampled by | steps | distance | images per second | over DDIMPipeline's |")
    print("|---" * 5 + "|")
    for i, (row, fd) in enumerate(zip(ROWS, distances, strict=True)):
        ratios = [own[i] / own[base] for own in rates]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rate = statistics.median(own[i] for own in rates)
        print(f"| {row.title} | {row.steps} | {fd:.2f} | {rate:.3g} | {spread} |")


if __name__ == "__main__":
    main()
