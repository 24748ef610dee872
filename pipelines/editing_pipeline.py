"""Pipelines that start from images too, and may keep parts of them."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from pipelines.arguments import check_image, real
from pipelines.backbones import size_multiple
from pipelines.base import ImagePipeline
from pipelines.denoiser import Conditions, Denoiser, self_conditioned
from pipelines.editing import (
    check_jumps,
    check_noise_std,
    image_shape,
    masked,
    read_mask,
    repaint,
    repaint_evaluations,
)
from pipelines.sampler import Sampler
from pipelines.sampling import OnStep, sample
from pipelines.start import Start

REPEATING = "DDPM, DDIM, EulerDiscrete, EulerAncestralDiscrete, FlowMatchEulerDiscrete and EDMEuler"


class EditingPipeline(ImagePipeline):
    """Base of pipelines that make images of noise, or of images."""

    ONE_EACH = "image"
    """Of what a call makes, with an image given for each."""

    def _start(
        self,
        image: PipelineImageInput | None,
        mask_image: Any,
        strength: float | None,
        noise_std: float | None,
        jumps: tuple[Any, Any],
        size: tuple[int | None, int | None],
        batch_size: int,
        copies: int = 1,
    ) -> Start | None:
        """What a call with these arguments starts from; None: from noise alone.

        Args:
            image: as a call takes it.
            mask_image: as a call takes it.
            strength: as a call takes it.
            noise_std: as a call takes it.
            jumps: `jump_length` and `jump_n_sample`.
            size: height and width of the images, where they were given.
            batch_size: B.
            copies: images of each that is given, which follow each other.
        """
        by_default = 0.8 if mask_image is None else 1.0
        part = by_default if strength is None else real("strength", strength, 0, 1)
        length, samples = check_jumps(*jumps)
        std = check_noise_std(noise_std, self.vae is not None)
        if image is None:
            given = {"mask_image": mask_image is not None, "strength": strength is not None, "noise_std": std > 0}
            for name in (name for name, is_given in given.items() if is_given):
                raise ValueError(f"{name}: is of an image; give that too")
        if std and (strength is not None or mask_image is not None):
            other = "mask_image" if strength is None else "strength"
            raise ValueError(f"noise_std: says where to begin, for the whole image; not with {other}")
        if mask_image is None and samples > 1:
            raise ValueError("jump_n_sample: is of inpainting; give mask_image too, or 1")
        if image is None:
            return None
        images = self._images(image, *size, batch_size, copies)
        data = self.encode(images)
        mask, data_mask = None, None
        if mask_image is not None:
            mask = read_mask(mask_image, image_shape(image), batch_size // copies).to(images.device)
            mask = mask.repeat_interleave(batch_size // len(mask), 0)
            # What any unknown pixel is part of is unknown.
            mask, data_mask = (adaptive_max_pool2d(mask.float(), x.shape[2:]) > 0 for x in (images, data))
        return Start(images, data, mask, data_mask, part, std, length, samples)

    def _images(
        self, image: PipelineImageInput, height: int | None, width: int | None, batch: int, copies: int
    ) -> Tensor:
        """Images that were given, float32 (batch, C, H, W) in [-1, 1]."""
        if height is not None or width is not None:
            self._size(height, width)
        multiple = self.vae_scale_factor * size_multiple(self.network)
        pixels = self._pixels(image, self.channels, multiple, height, width)
        self._size(*pixels.shape[2:])
        return self._one_each(pixels, batch, copies)

    def _pixels(
        self,
        image: PipelineImageInput,
        channels: int,
        multiple: int,
        height: int | None = None,
        width: int | None = None,
    ) -> Tensor:
        """Images that were given, float32 (B, channels, H, W) in [-1, 1], resized to multiples, or as is asked for."""
        check_image(image, multiple)
        processor = VaeImageProcessor(
            vae_scale_factor=multiple,
            vae_latent_channels=0,  # else it takes images of as many channels for latents, and leaves them as they are
            do_convert_rgb=channels == 3,
            do_convert_grayscale=channels == 1,
        )
        pixels = processor.preprocess(image, height, width).to(self._execution_device, torch.float32)
        if pixels.shape[1] != channels:
            raise ValueError(f"image: has {pixels.shape[1]} channels, and the model takes {channels}")
        return pixels

    def _one_each(self, pixels: Tensor, batch: int, copies: int = 1) -> Tensor:
        """Images (1 or B / copies, C, H, W) as (B, C, H, W)."""
        one, each = self.ONE_EACH, batch // copies
        if len(pixels) not in (1, each):
            raise ValueError(f"image: {len(pixels)} given for {each} {one}s; give one, or one per {one}")
        return pixels.repeat_interleave(batch // len(pixels), 0)

    def _sample(
        self,
        denoiser_of: Callable[..., Denoiser],
        sampler: Sampler,
        noise: Tensor,
        start: Start | None,
        on_step: OnStep,
    ) -> Tensor:
        """Data (B, c, h, w), from noise and what the call starts from."""
        if start is not None and start.is_unchanged:
            return start.data
        x = (
            sampler.start(noise)
            if start is None or start.is_forgotten
            else sampler.start_from(start.data, noise, start.strength, start.noise_std)
        )
        denoiser = self._denoiser(denoiser_of, start)
        shown: dict[str, Any] = {"on_step": on_step, "progress": self.progress_bar}
        if start is None or start.jump_n_sample == 1:
            return sample(denoiser, sampler, x, **shown)
        if not sampler.repeats:
            raise ValueError(f"jump_n_sample: {type(sampler.scheduler).__name__} repeats no steps; {REPEATING} do")
        order = repaint_evaluations(sampler.evaluations(), start.jump_length, start.jump_n_sample)
        return repaint(denoiser, sampler, x, order, generator=sampler.generator, **shown)

    def _denoiser(self, denoiser_of: Callable[..., Denoiser], start: Start | None) -> Denoiser:
        """The denoiser, which knows what is kept, and is given its own estimates where the network takes them."""
        if self.config.get("self_condition"):
            return self_conditioned(lambda more: self._known(denoiser_of, start, more))
        return self._known(denoiser_of, start, {})

    @staticmethod
    def _known(
        denoiser_of: Callable[..., Denoiser], start: Start | None, more: Conditions, rows: Any = slice(None)
    ) -> Denoiser:
        """The denoiser of these rows of the batch, which knows what is kept of them."""
        denoiser = denoiser_of(more, rows)
        if start is None or start.data_mask is None:
            return denoiser
        return masked(denoiser, start.data[rows], start.data_mask[rows])
