"""The error that each sampler itself makes: on normally distributed pixels, from the best possible network.

    python -m benchmarks.sampler_error [--num_inference_steps 50]

Prints the relative error of the samples' standard deviation, for linear betas with epsilon, for flow and for EDM. It is
known to 0.6%: 16,384 pixels are drawn.
"""

import argparse

from pipelines import PixelDiffusionPipeline, image_generators, make_scheduler
from pipelines.schedulers import SAMPLERS
from snowmelt.objectives import RECIPES
from tests.pipelines.oracle import STD, Oracle

IMAGES, SIDE = 4, 64
TARGETS = {"discrete": ("epsilon", "epsilon"), "flow": ("flow", "flow_prediction"), "edm": ("edm", "edm")}
"""Family of samplers: objective, and what the optimal network predicts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    steps = parser.parse_args().num_inference_steps
    print(f"| sampler | family | error at {steps} steps |\n|---|---|---|")
    for family, samplers in SAMPLERS.items():
        objective, target = TARGETS[family]
        own = RECIPES[objective].scheduler()
        network = Oracle(family, target, sample_size=SIDE)
        for name in samplers:
            pipeline = PixelDiffusionPipeline(network, make_scheduler(name, own))
            pipeline.set_progress_bar_config(disable=True)
            shape = (IMAGES, 1, SIDE, SIDE)
            x0, _ = pipeline.denoise(
                network, shape, {}, num_inference_steps=steps, generator=image_generators(0, range(IMAGES))
            )
            print(f"| {name} | {family} | {x0.std().item() / STD - 1:+.1%} |")


if __name__ == "__main__":
    main()
