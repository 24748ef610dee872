"""Images from a text and an image."""

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.image_processor import PipelineImageInput
from torch import Tensor

from pipelines.arguments import boolean, check_generators, check_interval, real
from pipelines.base import SamplingOutput
from pipelines.churn import check_churn
from pipelines.denoiser import guided
from pipelines.given_image import GivenImagePipeline
from pipelines.samplers import make_sampler
from pipelines.text2img import TextToImagePipeline


class TextImageToImagePipeline(GivenImagePipeline, TextToImagePipeline):
    """Generation from a prompt and an image that belongs to it, by a network that was trained for both.

    Args:
        unet: as `TextToImagePipeline` takes it.
        scheduler: as there, as `text_encoder`, `tokenizer`, `vae` and `prediction_type`.
        condition: what images are made of, as `ImageToImagePipeline` takes it, and all that follows.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        vae: Any = None,
        prediction_type: str | None = None,
        condition: str = "",
        condition_channels: int = 1,
        max_noise_level: float | None = None,
        image_guidance: bool = False,
        condition_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(unet, scheduler, text_encoder, tokenizer, vae, prediction_type)
        self._register_condition(condition, condition_channels, max_noise_level, image_guidance, condition_range)

    @torch.no_grad()
    def __call__(  # type: ignore[override]  # the image is what is asked for, and nothing to start from
        self,
        prompt: str | list[str] | None = None,
        image: PipelineImageInput | None = None,
        mask_image: Any = None,
        num_inference_steps: int | None = None,
        timesteps: list[float] | None = None,
        guidance_scale: float = 1.25,
        image_guidance_scale: float = 1.0,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        noise_level: float = 0.0,
        eta: float = 0.0,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        callback_on_step_end: Callable[..., dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        return_trajectory: bool = False,
    ) -> SamplingOutput | tuple:
        """Generate images of prompts and given images.

        Args:
            prompt: one, or a list; the images of one prompt follow each other.
            image: one, or one per prompt, as `ImageToImagePipeline` takes it.
            mask_image: as there: one, or one per prompt.
            num_inference_steps: as `TextToImagePipeline` takes it, as all that isn't explained here.
            timesteps: as there.
            guidance_scale: of the prompt: 1 for none.
            image_guidance_scale: of the image: 1 for none. Both together are without either + image_guidance_scale *
                (the image's difference) + guidance_scale * (the prompt's) (Brooks et al. 2023, InstructPix2Pix, eq. 3).
            negative_prompt: as there.
            num_images_per_prompt: as there.
            noise_level: of noise that is added to the image, as `ImageToImagePipeline` takes it.
            eta: as there.
            s_churn: as there.
            s_tmin, s_tmax: as there.
            s_noise: as there.
            generator: as there.
            latents: as there.
            prompt_embeds, negative_prompt_embeds: as there.
            prompt_attention_mask, negative_prompt_attention_mask: as there.
            output_type: as there.
            return_dict: as there.
            guidance_rescale: as there.
            guidance_interval: as there.
            callback_on_step_end, callback_on_step_end_tensor_inputs: as there.
            return_trajectory: as there.

        Raises:
            TypeError: for an argument of another type.
            ValueError: for arguments that fit neither the model nor the scheduler, or each other.
        """
        boolean("return_dict", return_dict)
        seen: list[Any] | None = [] if boolean("return_trajectory", return_trajectory) else None
        self._check_output_type(output_type, self.channels)
        embeds = prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask
        scale = real("guidance_scale", guidance_scale)
        null = scale != 1 or image_guidance_scale != 1
        chain, scales = self._text_chain(
            prompt, negative_prompt, *embeds, num_images_per_prompt, scale if null else None
        )
        batch = len(chain[-1]["encoder_hidden_states"])
        inputs, mask = self._inputs(image, mask_image, batch, num_images_per_prompt)
        generator = check_generators(generator, batch)
        given = self._network_condition(inputs, mask, noise_level, generator)
        chain, scales = self._with_image(chain, scales, given, image_guidance_scale)
        rescale = real("guidance_rescale", guidance_rescale, 0, 1)
        interval = check_interval("guidance_interval", guidance_interval)
        churn = check_churn(s_churn, s_tmin, s_tmax, s_noise)
        sampler = make_sampler(self.scheduler, real("eta", eta, 0, 1), generator, churn)
        denoiser = guided(self._predictor(sampler), chain, scales, interval, rescale)
        on_step = self._on_step(sampler, callback_on_step_end, callback_on_step_end_tensor_inputs, seen)
        sampler.set_timesteps(self._steps(num_inference_steps), timesteps, self._execution_device)
        noise = self._noise((batch, self.data_channels, *given.shape[2:]), generator, latents)
        x0 = self._sample(lambda *_: denoiser, sampler, noise, None, on_step)
        return self._finish(x0, seen, output_type, return_dict, self._pasted(inputs, mask))
