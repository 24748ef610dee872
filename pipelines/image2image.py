"""Images from images, by a network that was trained to make the one from the other."""

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.image_processor import PipelineImageInput
from torch import Tensor

from pipelines.arguments import MOST, boolean, check_generators, real, whole
from pipelines.base import SamplingOutput
from pipelines.churn import check_churn
from pipelines.given_image import GivenImagePipeline
from pipelines.image_conditions import LowResolution, make_condition
from pipelines.labels import ClassLabels
from pipelines.samplers import make_sampler
from pipelines.unet import UNetPipeline


class ImageToImagePipeline(GivenImagePipeline, UNetPipeline):
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
        condition_range: the values of a float column that 0 and 1 of given images stand for.

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
        condition_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(unet, scheduler, prediction_type, id2label, value_range)
        if vae is not None and not isinstance(vae, torch.nn.Module):
            raise TypeError(f"vae: must be an autoencoder of diffusers, got {type(vae).__name__}")
        self.register_modules(vae=vae)
        self._register_condition(condition, condition_channels, max_noise_level, image_guidance, condition_range)

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
        num_inference_steps: int | None = None,
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
        given_size = None if batch_size is None else whole("batch_size", batch_size, 1, MOST)
        inputs, mask = self._inputs(image, mask_image, given_size)
        batch = len(inputs)
        generator = check_generators(generator, batch)
        given = self._network_condition(inputs, mask, noise_level, generator)
        labels, scales = self._label_chain(batch, class_labels, guidance_scale, guidance_model)
        if image_guidance_scale != 1 and guidance_model is not None:
            raise ValueError("image_guidance_scale: must be 1 with a guidance_model")
        chain, scales = self._with_image(labels, scales, given, image_guidance_scale)
        churn = check_churn(s_churn, s_tmin, s_tmax, s_noise)
        sampler = make_sampler(self.scheduler, real("eta", eta, 0, 1), generator, churn)
        denoiser_of = self._guided(self._predictor(sampler), chain, scales, guidance_interval, guidance_model)
        on_step = self._on_step(sampler, callback_on_step_end, callback_on_step_end_tensor_inputs, seen)
        sampler.set_timesteps(self._steps(num_inference_steps), timesteps, self._execution_device)
        shape = (batch, self.data_channels, *given.shape[2:])
        x0 = self._sample(denoiser_of, sampler, self._noise(shape, generator, latents), None, on_step)

        return self._finish(x0, seen, output_type, return_dict, self._pasted(inputs, mask))

    def invert(self, *args: Any, **kwargs: Any) -> Tensor:
        """Refused: the noise that makes an image depends on what it is made of."""
        raise ValueError("invert: not for a model of given images; it is for `UnconditionalPipeline`'s others")


class SuperResolutionPipeline(ImageToImagePipeline):
    """Images of `scale` times the height and the width (Saharia et al. 2022, SR3): `condition` is "lowres:SCALE".

    The arguments are those of `ImageToImagePipeline`.
    """

    @property
    def scale(self) -> int:
        """Side of the images that are made over that of those given."""
        return int(self.condition.scale)

    def _register_condition(self, condition: str, *settings: Any) -> None:
        if not isinstance(make_condition(condition), LowResolution):
            raise ValueError(f"condition: {condition!r} isn't of low resolution, as 'lowres:4' is")
        super()._register_condition(condition, *settings)
