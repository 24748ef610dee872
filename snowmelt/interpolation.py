"""Noise on the way from one image to another, of numbers or of files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines import ScoreSdePipeline, image_generators, slerp
from pipelines.schedulers import INVERTIBLE, SAMPLERS, family
from snowmelt.errors import UserError
from snowmelt.input_images import image_size, read_image
from snowmelt.loading import SamplerOptions, labels_of


class Interpolation:
    """Noise of the frames between two images.

    Args:
        pipeline: with a deterministic sampler of first order.
        ends: two images: numbers, as generate.py counts them, or files.
        options: of the sampler; files are encoded as they say.
        class_label: of all frames, for a model of classes.
        guidance_model: as the pipeline takes it.

    Raises:
        UserError: if the images can't be had, or the model and its sampler can't go from one to the other.
    """

    def __init__(
        self,
        pipeline: Any,
        ends: Sequence[str],
        options: SamplerOptions,
        class_label: str | None,
        guidance_model: Any = None,
    ) -> None:
        if isinstance(pipeline, ScoreSdePipeline):
            raise UserError("--interpolate: needs a deterministic sampler of a scheduler, and this model is of an SDE")
        name = INVERTIBLE[family(pipeline.scheduler)]
        fits = isinstance(pipeline.scheduler, SAMPLERS[family(pipeline.scheduler)][name].scheduler)
        if options.eta or options.s_churn or not fits:
            raise UserError(
                f"--interpolate: needs a deterministic sampler; add --scheduler {name}, without --eta and --s_churn"
            )
        if getattr(pipeline, "num_classes", 0) and class_label is None:
            raise UserError("--interpolate: stays in one class; add --class_label")
        self.pipeline = pipeline
        self.options = options
        self.class_label = class_label
        self.guidance_model = guidance_model
        self.first, self.second = (self._noise(end) for end in ends)

    def frames(self, indices: Sequence[int], count: int) -> Tensor:
        """Noise (B, c, h, w) of frames, from 0 for the first image to `count` - 1 for the second."""
        return torch.stack([slerp(self.first, self.second, index / (count - 1)) for index in indices])

    def _noise(self, end: str) -> Tensor:
        pipeline = self.pipeline
        if end.isdecimal():
            (generator,) = image_generators(self.options.seed, [int(end)])
            height, width = (side // pipeline.vae_scale_factor for side in image_size(pipeline))
            return torch.randn((pipeline.data_channels, height, width), generator=generator)
        if not hasattr(pipeline, "invert"):
            raise UserError(f"--interpolate {end}: {type(pipeline).__name__} encodes no images; give two numbers")
        guidance = {} if self.options.guidance_scale is None else {"guidance_scale": self.options.guidance_scale}
        try:
            return pipeline.invert(
                read_image(pipeline, Path(end), "--interpolate"),
                class_labels=labels_of(pipeline, [0], self.class_label),
                num_inference_steps=self.options.num_inference_steps or pipeline.default_steps,
                guidance_model=self.guidance_model,
                **guidance,
            )[0].cpu()
        except ValueError as error:
            raise UserError(str(error)) from error
