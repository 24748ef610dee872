"""The error that each sampler itself makes: on normally distributed pixels, from the best possible network.

    python -m benchmarks.sampler_error [--num_inference_steps 50]

Prints the relative error of the samples' standard deviation, for linear betas with epsilon, for flow and for EDM. It is
known to 0.6%: 16,384 pixels are drawn.
"""

import argparse

import torch
from diffusers.utils.torch_utils import randn_tensor

from pipelines import (
    Predictor,
    conditioned,
    fitting_schedulers,
    image_generators,
    make_sampler,
    make_scheduler,
    sample,
)
from snowmelt.objectives import RECIPES
from tests.pipelines.oracle import STD, Oracle

IMAGES, SIDE = 4, 64
OBJECTIVES = {"discrete": ("epsilon", "epsilon"), "flow": ("flow", "flow_prediction"), "edm": ("edm", "edm")}
"""Kind of samplers: objective, and what the optimal network predicts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    steps = parser.parse_args().num_inference_steps
    print(f"| sampler | family | error at {steps} steps |\n|---|---|---|")
    for family, (objective, target) in OBJECTIVES.items():
        own = RECIPES[objective].scheduler()
        network = Oracle(family, target, sample_size=SIDE)
        for name in fitting_schedulers(own):
            generators = image_generators(0, range(IMAGES))
            sampler = make_sampler(make_scheduler(name, own), generator=generators)
            sampler.set_timesteps(steps, None, torch.device("cpu"))
            denoiser = conditioned(Predictor(network, sampler.prediction_type), {})
            x0 = sample(denoiser, sampler, sampler.start(randn_tensor((IMAGES, 1, SIDE, SIDE), generator=generators)))
            print(f"| {name} | {family} | {x0.std().item() / STD - 1:+.1%} |")


if __name__ == "__main__":
    main()
