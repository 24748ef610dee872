"""What pipelines share whose network was trained to make images of given ones."""

import math
from collections.abc import Callable
from typing import Any

import PIL.Image
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pipelines.arguments import boolean, check_value_range, real, whole
from pipelines.backbones import size_multiple
from pipelines.denoiser import CONCATENATED, Conditions
from pipelines.editing import image_shape, read_mask
from pipelines.editing_pipeline import EditingPipeline
from pipelines.image_conditions import Column, Masked, make_condition, network_condition


class GivenImagePipeline(EditingPipeline):
    """Base of pipelines of such models: what joins x_t in the networks' input (Saharia et al. 2022, Palette)."""

    def _register_condition(
        self,
        condition: str,
        condition_channels: int,
        max_noise_level: float | None,
        image_guidance: bool,
        condition_range: tuple[float, float] | None,
    ) -> None:
        """Keep these settings, which `ImageToImagePipeline` explains."""
        make_condition(condition)
        whole("condition_channels", condition_channels, 1, self.network.config.in_channels - 1)
        self.register_to_config(condition=condition, condition_channels=condition_channels)
        if max_noise_level is not None:
            self.register_to_config(max_noise_level=real("max_noise_level", max_noise_level, 0, 1))
        if boolean("image_guidance", image_guidance):
            self.register_to_config(image_guidance=True)
        if condition_range is not None:
            self.register_to_config(condition_range=check_value_range(condition_range))

    @property
    def condition(self) -> Any:
        """What images are made of, an `ImageCondition`."""
        return make_condition(self.config["condition"])

    @property
    def input_channels(self) -> int:
        """Channels of the images that are given."""
        condition = self.condition
        if isinstance(condition, Column) and self.vae is None:
            return int(self.config["condition_channels"]) - (self.config.get("max_noise_level") is not None)
        return int(condition.input_channels(self.channels)) - condition.mask_channels

    @property
    def input_multiple(self) -> int:
        """What the sides of the images that are given must be multiples of."""
        multiple = self.vae_scale_factor * size_multiple(self.network)
        return multiple // math.gcd(multiple, self.condition.scale)

    def _inputs(self, image: Any, mask_image: Any, batch: int | None, copies: int = 1) -> tuple[Tensor, Tensor | None]:
        """The given images, (B, k, h, w) in [-1, 1], and the mask that belongs to them, bool (1 or B, 1, h, w).

        Args:
            image: as a call takes it.
            mask_image: as a call takes it.
            batch: B; None for as many as there are images.
            copies: images of each that is given, which follow each other.
        """
        condition, multiple = self.condition, self.input_multiple
        sizes = {one.size for one in image if isinstance(one, PIL.Image.Image)} if isinstance(image, list) else set()
        if len(sizes) > 1:
            shown = " and ".join(f"{width} x {height}" for width, height in sorted(sizes))
            raise ValueError(f"image: of different sizes, {shown}; make them one")
        inputs = self._pixels(image, self.input_channels, 1)
        height, width = inputs.shape[2:]
        if height % multiple or width % multiple:
            raise ValueError(f"image: of {width} x {height} pixels; its sides must be multiples of {multiple}")
        self._size(height * condition.scale, width * condition.scale)
        batch = len(inputs) if batch is None else batch
        if not isinstance(condition, Masked):
            if mask_image is not None:
                raise ValueError(f"mask_image: this model is conditioned on {condition.spec}; leave it out")
            return self._one_each(inputs, batch, copies), None
        if mask_image is None:
            raise ValueError("mask_image: needed by this model, white where the image is missing")
        mask = read_mask(mask_image, image_shape(image), batch // copies).to(inputs.device)
        mask = mask if len(mask) == 1 else mask.repeat_interleave(copies, 0)
        return self._one_each(inputs, batch, copies), mask

    def _network_condition(self, inputs: Tensor, mask: Tensor | None, noise_level: float, generator: Any) -> Tensor:
        """What joins x_t in the network's input (B, K, h, w)."""
        most = self.config.get("max_noise_level")
        level = real("noise_level", noise_level, 0, most or 0.0)
        if mask is not None:
            inputs = Masked.join(inputs, mask.expand(len(inputs), -1, -1, -1))

        def encode(images: Tensor) -> Tensor:
            return images if self.vae is None else self.encode(images.expand(-1, self.channels, -1, -1))

        def noise(shape: tuple[int, ...]) -> Tensor:
            return randn_tensor(shape, generator=generator, device=self._execution_device)

        levels = None if most is None else torch.full((len(inputs),), level)
        given = network_condition(self.condition, inputs, encode, levels, noise if level else None)
        if given.shape[1] != self.config["condition_channels"]:
            raise ValueError(
                f"condition_channels: the network takes {self.config['condition_channels']} of an image, and "
                f"{self.config['condition']} makes {given.shape[1]}"
            )
        return given.to(self._execution_device)

    def _with_image(
        self, chain: list[Conditions], scales: list[float], given: Tensor, image_guidance_scale: float
    ) -> tuple[list[Conditions], list[float]]:
        """Conditions and scales, as `guided` takes them, with the image, and without it where that guides."""
        with_image = [conditions | {CONCATENATED: given} for conditions in chain]
        if real("image_guidance_scale", image_guidance_scale) == 1:
            return with_image, scales
        if not self.config.get("image_guidance"):
            raise ValueError("image_guidance_scale: must be 1 for this model, which learned with every image")
        without = chain[0] | {CONCATENATED: torch.zeros_like(given)}
        return [without, *with_image], [image_guidance_scale, *scales]

    @staticmethod
    def _pasted(inputs: Tensor, mask: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Puts the pixels that a mask doesn't have into images (B, C, H, W) in [-1, 1]."""
        return lambda images: images if mask is None else torch.where(mask, images, inputs)
