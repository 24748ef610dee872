"""Cascades: a model that makes small images, and one that enlarges them (Ho et al. 2022)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipelines import SuperResolutionPipeline, image_generators
from snowmelt.errors import UserError
from snowmelt.input_images import image_size
from snowmelt.loading import SamplerOptions, labels_of
from snowmelt.model_source import find_source

SEED = 2**32
"""Added to the seed, so that the noise is other than that of the images."""


class Upsampler:
    """The second model of a cascade.

    Args:
        options: number of steps and seed.
        name: a folder or a repository of the Hub.
        noise_level: of noise that is added to the images; None for none.
        base: the pipeline whose images are enlarged, on its device.

    Raises:
        UserError: if it isn't of super-resolution, or of other images.
    """

    def __init__(self, options: SamplerOptions, name: str, noise_level: float | None, base: Any) -> None:
        try:
            pipeline: Any = find_source(name).load()
        except UserError as error:
            raise UserError(str(error).replace("--model", "--upsampler")) from error
        if not isinstance(pipeline, SuperResolutionPipeline):
            raise UserError(f"--upsampler {name}: is a {type(pipeline).__name__}; take a model of --condition lowres:N")
        if pipeline.channels != base.channels:
            raise UserError(
                f"--upsampler {name}: its images have {pipeline.channels} channels, those of --model {base.channels}"
            )
        known = getattr(base, "num_classes", 0), getattr(base, "id2label", None)
        if pipeline.num_classes and (pipeline.num_classes, pipeline.id2label) != known:
            raise UserError(f"--upsampler {name}: knows other classes than --model; take one of the same, or of none")
        most = pipeline.config.get("max_noise_level") or 0.0
        if noise_level is not None and noise_level > most:
            raise UserError(f"--upsampler_noise_level {noise_level:g}: the upsampler was trained with at most {most:g}")
        height, width = image_size(base)
        if height % pipeline.input_multiple or width % pipeline.input_multiple:
            multiple = pipeline.input_multiple
            raise UserError(
                f"--upsampler {name}: takes images with sides that are multiples of {multiple}; those of --model are "
                f"{width} x {height}"
            )
        pipeline.network.type(base.network.dtype)
        self.pipeline = pipeline.to(base.device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.options = options
        self.given = {} if noise_level is None else {"noise_level": noise_level}

    def __call__(self, images: np.ndarray, indices: Sequence[int], class_label: str | None = None) -> np.ndarray:
        """Images (B, H, W, C) in [0, 1], enlarged; each depends on its index and the seed alone.

        Args:
            images: of the base.
            indices: their numbers.
            class_label: as generate.py takes it.

        Raises:
            UserError: for what the pipeline refuses.
        """
        labels = labels_of(self.pipeline, indices, class_label) if self.pipeline.num_classes else None
        try:
            larger: np.ndarray = self.pipeline(
                torch.from_numpy(np.clip(images, 0, 1)).movedim(-1, 1),
                class_labels=labels,
                num_inference_steps=self.options.num_inference_steps or self.pipeline.default_steps,
                generator=image_generators(self.options.seed + SEED, indices),
                output_type="np",
                **self.given,
            ).images
        except ValueError as error:
            raise UserError(f"--upsampler: {error}") from error
        return larger
