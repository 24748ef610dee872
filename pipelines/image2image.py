"""Images from images, by a network that was trained to make the one from the other."""

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.image_processor import PipelineImageInput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pipelines.arguments import MOST, boolean, check_generators, real, whole
from pipelines.backbones import size_multiple
from pipelines.base import SamplingOutput
from pipelines.churn import check_churn
from pipelines.denoiser import CONCATENATED
from pipelines.editing import image_shape, read_mask
from pipelines.image_conditions import Column, LowResolution, Masked, make_condition, network_condition
from pipelines.labels import ClassLabels
from pipelines.samplers import make_sampler
from pipelines.unet import UNetPipeline


class ImageToImagePipeline(UNetPipeline):
    """Generation of images that belong to given ones: colours for gray ones, what is missing, a picture for a map.

    What the network is given joins x_t in its input (Saharia et al. 2022, Palette).

    Args:
        unet: the network.
        scheduler: as `UNetPipeline` takes it.
        condition: "gray", "mask", "noise:STD", "edges", "lowres:SCALE" or "column:NAME": what images are made of.
        condition_channels: of the network's input, the last ones, in which it is given.
        vae: a stock autoencoder, or None for a network of pixels.
        max_noise_level: the largest `noise_level` that the network was trained with, if it was.
        image_guidance: whether it was trained with dropped images, for `image_guidance_scale`.

    The other arguments are those of `UNetPipeline`.
    """

    _optional_components = ["vae"]
    model_cpu_offload_seq = "unet->vae"
    OUTPUT_TYPES = (*UNetPipeline.OUTPUT_TYPES, "latent")

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: Any,
        condition: str = "",
        condition_channels: int = 1,
        prediction_type: str | None = None,
        id2label: dict | None = None,
        value_range: tuple[float, float] | None = None,
        vae: Any = None,
        max_noise_level: float | None = None,
        image_guidance: bool = False,
    ) -> None:
        super().__init__(unet, scheduler, prediction_type, id2label, value_range)
        make_condition(condition)
        whole("condition_channels", condition_channels, 1, unet.config.in_channels - 1)
        if vae is not None and not isinstance(vae, torch.nn.Module):
            raise TypeError(f"vae: must be an autoencoder of diffusers, got {type(vae).__name__}")
        self.register_modules(vae=vae)
        self.register_to_config(condition=condition, condition_channels=condition_channels)
        if max_noise_level is not None:
            self.register_to_config(max_noise_level=real("max_noise_level", max_noise_level, 0, 1))
        if boolean("image_guidance", image_guidance):
            self.register_to_config(image_guidance=True)

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

    @torch.no_grad()
    def __call__(  # type: ignore[override]  # the image is what is asked for, and nothing to start from
        self,
        image: PipelineImageInput,
        mask_image: Any = None,
        batch_size: int | None = None,
        class_labels: ClassLabels | None = None,
        guidance_scale: float = 1.0,
        image_guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_model: Any = None,
        noise_level: float = 0.0,
        num_inference_steps: int = 50,
        timesteps: list[float] | None = None,
        eta: float = 0.0,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        return_trajectory: bool = False,
    ) -> SamplingOutput | tuple:
        """Generate images of the given ones.

        Args:
            image: one, or B: PIL, or arrays or tensors in [0, 1] laid out as the outputs, of `input_channels` channels,
                with sides that are multiples of `input_multiple`. PIL images are converted.
            mask_image: what of `image` is missing, white or 1, for a model conditioned on "mask", and for no other; the
                rest stays as it is. One for all or B of them, of the size of `image`.
            batch_size: B; the number of images by default. Several of one image differ by their noise.
            class_labels: as `UnconditionalPipeline` takes them.
            guidance_scale: of labels, or of a `guidance_model`, as there.
            image_guidance_scale: 1 for none; else without the image + scale * (with it - without it) (Brooks et al.
                2023, InstructPix2Pix, eq. 3).
            guidance_interval: guide only where lo < sigma / alpha <= hi (Kynkäänniemi et al. 2024).
            guidance_model: as there; it is given the same image.
            noise_level: of noise that is added to the image, in [0, `max_noise_level`], for a model that was trained
                so: more of it hides faults of the image, as of one that another model made (Ho et al. 2022).
            num_inference_steps: as there, as all that follow.
            timesteps: a list of times to use instead, where the scheduler takes one.
            eta: noise of DDIM, from 0 (none) to 1 (as DDPM).
            s_churn: noise before the steps of Euler and Heun, all of them together.
            s_tmin, s_tmax: the least and the largest sigma / alpha at which it is added.
            s_noise: its standard deviation over what would keep the noise level exact.
            generator: one, or B of them, which makes an image independent of its batch.
            latents: the initial noise, unit normal, (B, c, h, w) as the network's data.
            output_type: "pil", or "np" for an array (B, H, W, C) or "pt" for a tensor (B, C, H, W) in [0, 1]; with an
                autoencoder also "latent" for what the network made (B, c, h, w).
            return_dict: False for a tuple of the output's fields.
            callback_on_step_end: called as f(pipeline, step, timestep, tensors); "latents" in the dict it
                returns replace x_t.
            callback_on_step_end_tensor_inputs: which it sees, of "latents" (the default) and
                "pred_original_sample".
            return_trajectory: also return x_t and the predicted x0 of every evaluation, decoded as the images are.

        Raises:
            TypeError: for an argument of another type.
            ValueError: for arguments that fit neither the model nor the scheduler.
        """
        boolean("return_dict", return_dict)
        seen: list[Any] | None = [] if boolean("return_trajectory", return_trajectory) else None
        self._check_output_type(output_type, self.channels)
        inputs, mask = self._inputs(image, mask_image)
        batch = whole("batch_size", len(inputs) if batch_size is None else batch_size, 1, MOST)
        inputs = self._one_each(inputs, batch)
        generator = check_generators(generator, batch)
        given = {CONCATENATED: self._network_condition(inputs, mask, noise_level, generator)}
        labels, scales = self._label_chain(batch, class_labels, guidance_scale, guidance_model)
        chain = [conditions | given for conditions in labels]
        if real("image_guidance_scale", image_guidance_scale) != 1:
            if not self.config.get("image_guidance") or guidance_model is not None:
                why = "not with a guidance_model" if guidance_model is not None else "it learned with every image"
                raise ValueError(f"image_guidance_scale: must be 1 for this model: {why}")
            chain.insert(0, chain[0] | {CONCATENATED: torch.zeros_like(given[CONCATENATED])})
            scales.insert(0, image_guidance_scale)
        churn = check_churn(s_churn, s_tmin, s_tmax, s_noise)
        sampler = make_sampler(self.scheduler, real("eta", eta, 0, 1), generator, churn)
        denoiser_of = self._guided(self._predictor(sampler), chain, scales, guidance_interval, guidance_model)
        on_step = self._on_step(sampler, callback_on_step_end, callback_on_step_end_tensor_inputs, seen)
        sampler.set_timesteps(num_inference_steps, timesteps, self._execution_device)
        shape = (batch, self.data_channels, *given[CONCATENATED].shape[2:])
        x0 = self._sample(denoiser_of, sampler, self._noise(shape, generator, latents), None, on_step)

        def pasted(images: Tensor) -> Tensor:
            return images if mask is None else torch.where(mask, images, inputs)

        return self._finish(x0, seen, output_type, return_dict, pasted)

    def invert(self, *args: Any, **kwargs: Any) -> Tensor:
        """Refused: the noise that makes an image depends on what it is made of."""
        raise ValueError("invert: not for a model of given images; it is for `UnconditionalPipeline`'s others")

    def _inputs(self, image: PipelineImageInput, mask_image: Any) -> tuple[Tensor, Tensor | None]:
        """The given images, (B, k, h, w) in [-1, 1], and the mask that belongs to them, bool (1 or B, 1, h, w)."""
        condition, multiple = self.condition, self.input_multiple
        inputs = self._pixels(image, self.input_channels, 1)
        height, width = inputs.shape[2:]
        if height % multiple or width % multiple:
            raise ValueError(f"image: of {width} x {height} pixels; its sides must be multiples of {multiple}")
        self._size(height * condition.scale, width * condition.scale)
        if not isinstance(condition, Masked):
            if mask_image is not None:
                raise ValueError(f"mask_image: this model is conditioned on {condition.spec}; leave it out")
            return inputs, None
        if mask_image is None:
            raise ValueError("mask_image: needed by this model, white where the image is missing")
        return inputs, read_mask(mask_image, image_shape(image), len(inputs)).to(inputs.device)

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


class SuperResolutionPipeline(ImageToImagePipeline):
    """Images of `scale` times the height and the width (Saharia et al. 2022, SR3): `condition` is "lowres:SCALE".

    The arguments are those of `ImageToImagePipeline`.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: Any,
        condition: str = "",
        condition_channels: int = 1,
        prediction_type: str | None = None,
        id2label: dict | None = None,
        value_range: tuple[float, float] | None = None,
        vae: Any = None,
        max_noise_level: float | None = None,
        image_guidance: bool = False,
    ) -> None:
        super().__init__(
            unet,
            scheduler,
            condition,
            condition_channels,
            prediction_type,
            id2label,
            value_range,
            vae,
            max_noise_level,
            image_guidance,
        )
        if not isinstance(self.condition, LowResolution):
            raise ValueError(f"condition: {condition!r} isn't of low resolution, as 'lowres:4' is")

    @property
    def scale(self) -> int:
        """Side of the images that are made over that of those given."""
        return int(self.condition.scale)
