"""Features of the lower levels kept from one step to the next (DeepCache, Ma et al. 2024), beside fewer steps.

    python -m benchmarks.feature_reuse --model runs/mnist --dataset_name ylecun/mnist [--num_images 1000]
        [--steps 20 12 8] [--intervals 1 2 3]

Every `interval`-th evaluation of the network is whole. The others compute its highest level alone, and take what comes
up to it from below as it was. For each number of steps and interval: the operations of an image, the time of an image,
the ways taking turns over five rounds (medians), and the Frechet distance of samples to the training split in the
features of a classifier trained on it (lower is better). For UNets of pixels, by DPM-Solver++.
"""

import argparse
import itertools
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.real_images import DEVICE, classifier_features, load_splits
from benchmarks.scripts import NATIVE_DTYPE
from pipelines import image_generators, make_scheduler
from snowmelt.evaluation.metrics import FrechetDistance
from snowmelt.evaluation.reference import features_of
from snowmelt.input_images import image_size
from snowmelt.loading import load_pipeline

BATCH, ROUNDS = 100, 5


class Kept(nn.Module):
    """In place of the upper half's blocks but the last: what they gave when they were last computed."""

    def __init__(self) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([nn.Identity()])  # as many as it takes residuals: the one of the way down
        self.features: Tensor | None = None

    def forward(self, sample: Tensor, residuals: tuple[Tensor, ...], emb: Tensor) -> Tensor:
        assert self.features is not None
        return self.features


class Reusing:
    """Has a `UNet2DModel` compute its lower levels at every so many evaluations only.

    Args:
        unet: the network, whose blocks it exchanges.
        interval: 1 for always.
    """

    def __init__(self, unet: Any, interval: int) -> None:
        self.unet, self.interval, self.count = unet, interval, 0
        self.whole = (unet.down_blocks, unet.mid_block, unet.up_blocks)
        self.kept = Kept()
        self.shallow = (unet.down_blocks[:1], None, nn.ModuleList([self.kept, unet.up_blocks[-1]]))
        last = unet.up_blocks[-1]
        self.hooks = [unet.register_forward_pre_hook(self._before), last.register_forward_pre_hook(self._keep)]

    def _before(self, unet: Any, arguments: tuple[Any, ...]) -> None:
        blocks = self.shallow if self.count % self.interval else self.whole
        unet.down_blocks, unet.mid_block, unet.up_blocks = blocks
        self.count += 1

    def _keep(self, block: Any, arguments: tuple[Any, ...]) -> None:
        self.kept.features = arguments[0]

    def end(self) -> None:
        """Leave the network as it was."""
        self.unet.down_blocks, self.unet.mid_block, self.unet.up_blocks = self.whole
        for hook in self.hooks:
            hook.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/mnist")
    parser.add_argument("--dataset_name", default="ylecun/mnist")
    parser.add_argument("--held_out_split", default="test")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 12, 8])
    parser.add_argument("--intervals", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    pipeline: Any = load_pipeline(args.model).to(DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler("dpmsolver++", pipeline.scheduler)
    pipeline.network.type(getattr(torch, NATIVE_DTYPE))
    train, held_out = load_splits(args.dataset_name, image_size(pipeline)[0], args.held_out_split)
    extractor = classifier_features(train, held_out)
    reference = FrechetDistance(features_of(train, extractor, 250))

    def sample(steps: int, interval: int, numbers: range) -> Tensor:
        reusing = Reusing(pipeline.unet, interval)
        given: dict[str, Any] = {}
        if pipeline.num_classes:
            given["class_labels"] = [i % pipeline.num_classes for i in numbers]
        generators = image_generators(0, numbers)
        made = pipeline(len(numbers), num_inference_steps=steps, generator=generators, output_type="pt", **given).images
        reusing.end()
        return made.float().cpu()

    ways = list(itertools.product(args.steps, args.intervals))
    operations, distances, seconds = {}, {}, {way: [] for way in ways}
    for way in ways:
        with FlopCounterMode(display=False) as counter:
            sample(*way, range(BATCH))
        operations[way] = counter.get_total_flops() / BATCH
        parts = [range(n, min(n + BATCH, args.num_images)) for n in range(0, args.num_images, BATCH)]
        distances[way] = reference(extractor(torch.cat([sample(*way, part) for part in parts])))
    for _ in range(ROUNDS):
        for way in ways:
            start = time.perf_counter()
            sample(*way, range(BATCH))
            seconds[way].append((time.perf_counter() - start) / BATCH)
    print("| steps | interval | GFLOP an image | ms an image | Frechet distance |\n|---|---|---|---|---|")
    for way in ways:
        cells = [
            f"{operations[way] / 1e9:.2f}",
            f"{1e3 * statistics.median(seconds[way]):.2f}",
            f"{distances[way]:.2f}",
        ]
        print(f"| {way[0]} | {way[1]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
