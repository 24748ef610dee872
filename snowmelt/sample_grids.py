"""Images of a run's progress."""

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import CMStochasticIterativeScheduler, DDPMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from pipelines import (
    IMAGE_CHANNELS,
    ScoreSdePipeline,
    image_generators,
    image_grid,
    make_scheduler,
)
from pipelines.base import ImagePipeline
from pipelines.given_image import GivenImagePipeline
from pipelines.schedulers import FEW_STEPS
from pipelines.unconditional import UnconditionalPipeline
from snowmelt.errors import UserError
from snowmelt.image_conditions import drawn_inputs
from snowmelt.options import DiffusionConfig

P = TypeVar("P", bound=ImagePipeline)


def sample_grid(pipeline: UnconditionalPipeline, path: Path | None, config: DiffusionConfig) -> np.ndarray:
    """Sample the first images of the seed, classes in turn, and save them as one.

    Args:
        pipeline: the pipeline; of discrete time, it samples by DDIM from then on.
        path: of the image file; with neither 1, 3 nor 4 channels they are saved as `.npy` instead, float32 in [0, 1].
            None to save nothing.
        config: number of images `eval_batch_size`, number of steps and seed.

    Returns:
        The images, uint8 (N, H, W, C).
    """
    pipeline = few_steps(pipeline)
    classes, num_images = pipeline.num_classes, config.eval_batch_size
    output = pipeline(
        batch_size=num_images,
        class_labels=[i % classes for i in range(num_images)] if classes else None,
        num_inference_steps=config.ddpm_num_inference_steps or pipeline.default_steps,
        generator=image_generators(config.seed, range(num_images)),
        output_type="np",
        return_dict=False,
    )
    pixels: np.ndarray = (output[0] * 255).round().astype(np.uint8)
    if path is None:
        return pixels
    if pixels.shape[-1] in IMAGE_CHANNELS:
        image_grid(pixels, classes if classes and num_images % classes == 0 else None).save(path)
    else:
        np.save(path.with_suffix(".npy"), output[0])
    return pixels


def paired_grid(
    pipeline: GivenImagePipeline,
    path: Path | None,
    config: DiffusionConfig,
    given: dict[str, Any],
    originals: Tensor,
) -> np.ndarray:
    """Sample images of given ones, and save them as one: what was given, the sample, and the original.

    Args:
        pipeline: the pipeline; of discrete time, it samples by DDIM from then on.
        path: as `sample_grid` takes it.
        config: number of steps and seed.
        given: arguments of the pipeline's call, with labels or prompts where it takes these.
        originals: (N, C, H, W) in [0, 1].

    Returns:
        The samples, uint8 (N, H, W, C).
    """
    pipeline = few_steps(pipeline)
    samples = pipeline(
        **given,
        num_inference_steps=config.ddpm_num_inference_steps or pipeline.default_steps,
        generator=image_generators(config.seed, range(len(originals))),
        output_type="pt",
        return_dict=False,
    )[0].cpu()
    inputs = drawn_inputs(given, tuple(originals.shape[1:]))
    shown_images = torch.stack([inputs, samples, originals], 1).flatten(0, 1).movedim(1, -1).numpy()
    pixels: np.ndarray = (shown_images * 255).round().astype(np.uint8)
    if path is not None and pixels.shape[-1] in IMAGE_CHANNELS:
        image_grid(pixels, 3 * max(1, round((len(samples) / 3) ** 0.5))).save(path)
    elif path is not None:
        np.save(path.with_suffix(".npy"), shown_images)
    return pixels[1::3]


def check_steps(scheduler: SchedulerMixin, config: DiffusionConfig) -> None:
    """Refuse, before training, sample grids of more steps than the scheduler takes.

    Args:
        scheduler: that is saved with the model.
        config: `ddpm_num_inference_steps`.

    Raises:
        UserError: saying how many it takes.
    """
    steps = config.ddpm_num_inference_steps or FEW_STEPS.get(type(scheduler).__name__, 50)
    known, counted = scheduler.config.get("num_train_timesteps"), hasattr(scheduler, "alphas_cumprod")
    if (counted or isinstance(scheduler, CMStochasticIterativeScheduler)) and steps > known:
        raise UserError(
            f"--ddpm_num_inference_steps {steps}: the model's scheduler has {known} timesteps; take {known} or fewer"
        )


def few_steps(pipeline: P) -> P:
    """The pipeline made to sample without a word, and by DDIM, which needs few steps, where it is of discrete time."""
    pipeline.set_progress_bar_config(disable=True)
    if isinstance(pipeline.scheduler, DDPMScheduler) and not isinstance(pipeline, ScoreSdePipeline):
        pipeline.scheduler = make_scheduler("ddim", pipeline.scheduler)
    return pipeline
