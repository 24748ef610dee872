"""Images from a text and an image, by a pretrained network and a ControlNet beside it (Zhang et al. 2023)."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.image_processor import PipelineImageInput
from torch import Tensor

from pipelines.arguments import boolean, check_generators, check_interval, check_value_range, real
from pipelines.base import SamplingOutput
from pipelines.churn import check_churn
from pipelines.denoiser import guided
from pipelines.given_image import GivenImagePipeline
from pipelines.image_conditions import Column, ImageCondition, Masked, make_condition
from pipelines.samplers import make_sampler
from pipelines.text2img import TextToImagePipeline

CONTROLNET = "controlnet"
"""The name of a ControlNet in pipelines, and so in model folders and checkpoints."""
CONTROL = "controlnet_cond"
"""The condition that the ControlNet sees, by the name of its argument."""
SAME = ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim", "class_embed_type")
"""Settings that a ControlNet shares with its UNet."""


class ControlledUNet(torch.nn.Module):
    """A UNet, to whose features those of a ControlNet are added: called as the UNet is, and given an image too.

    The UNet is never in training mode: it stays as it is.

    Args:
        unet: a `UNet2DConditionModel`.
        controlnet: made for it.
        scale: of what the ControlNet adds; 0: nothing.
    """

    def __init__(self, unet: Any, controlnet: Any, scale: float = 1.0) -> None:
        super().__init__()
        self.unet = unet
        self.controlnet = controlnet
        self.scale = scale

    def train(self, mode: bool = True) -> "ControlledUNet":
        """Put the ControlNet into training mode, or out of it."""
        super().train(mode)
        self.unet.eval()
        return self

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        class_labels: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The UNet's output, as its class returns it.

        Args:
            sample: the UNet's input, (B, C, h, w).
            timestep: (B,).
            encoder_hidden_states: text embeddings, (B, L, D).
            controlnet_cond: of `control_image`, (B, K, H, W) of the images' size.
            class_labels: as the UNet takes it, and the ControlNet.
            encoder_attention_mask: as the UNet takes it; a `ControlNetModel` attends to padding too.
            return_dict: False for a tuple.
        """
        of_both = {"encoder_hidden_states": encoder_hidden_states, "class_labels": class_labels}
        down, mid = self.controlnet(
            sample,
            timestep,
            controlnet_cond=controlnet_cond,
            conditioning_scale=self.scale,
            return_dict=False,
            **of_both,
        )
        return self.unet(
            sample,
            timestep,
            **of_both,
            encoder_attention_mask=encoder_attention_mask,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            return_dict=return_dict,
        )


def control_image(condition: ImageCondition, inputs: Tensor, channels: int) -> Tensor:
    """What a ControlNet is shown: images in [0, 1] of the size of those that are made, (B, channels, H, W).

    Args:
        condition: what images are made of.
        inputs: (B, k, h, w) in [-1, 1], as its `degrade` makes them; the mask of inpainting is the last channel.
        channels: of the ControlNet's condition; what has one is repeated.
    """
    shown = condition.resized(inputs) / 2 + 0.5
    return shown.expand(-1, channels, -1, -1) if shown.shape[1] == 1 else shown


def check_controlnet(controlnet: Any, unet: Any, vae_scale_factor: int, channels: int | None = None) -> None:
    """Refuse a ControlNet that was made for another UNet, or other conditions.

    Args:
        controlnet: the ControlNet.
        unet: the network whose features it adds to.
        vae_scale_factor: side of an image over that of the UNet's data.
        channels: of the condition; None for as many as it says.

    Raises:
        TypeError: for what is no `ControlNetModel`.
        ValueError: saying what of it is another's.
    """
    if not isinstance(controlnet, ControlNetModel):
        raise TypeError(f"controlnet: must be a ControlNetModel, got {type(controlnet).__name__}")
    if unet.config.get("encoder_hid_dim"):
        raise ValueError("controlnet: none knows what to do with a unet that projects text embeddings")
    for name in SAME:
        own, expected = _plain(controlnet.config[name]), _plain(unet.config[name])
        if own != expected:
            raise ValueError(f"controlnet: its {name} is {own}, and the unet's {expected}; it is another's")
    factor = 2 ** (len(controlnet.config["conditioning_embedding_out_channels"]) - 1)
    if factor != vae_scale_factor:
        raise ValueError(
            f"controlnet: divides the sides of its image by {factor}, and the network's data have 1 / "
            f"{vae_scale_factor} of them"
        )
    known = controlnet.config["conditioning_channels"]
    if channels not in (None, known):
        raise ValueError(f"controlnet: takes images of {known} channels, and the condition has {channels}")


def _plain(value: Any) -> Any:
    """What is a tuple in memory is a list from a file."""
    return tuple(value) if isinstance(value, list) else value


class TextToImageControlNetPipeline(GivenImagePipeline, TextToImagePipeline):
    """Generation from a prompt and an image, by a network of prompts alone and a ControlNet that was trained for it.

    Args:
        unet: as `TextToImagePipeline` takes it.
        controlnet: a `ControlNetModel` for it.
        scheduler: as there, as `text_encoder`, `tokenizer`, `vae` and `prediction_type`.
        condition: what images are made of, as `ImageToImagePipeline` takes it.
        condition_range: as there.

    Raises:
        ValueError: for parts that don't fit each other.
    """

    controlnet: Any

    def __init__(
        self,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel,
        scheduler: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        vae: Any = None,
        prediction_type: str | None = None,
        condition: str = "",
        condition_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(unet, scheduler, text_encoder, tokenizer, vae, prediction_type)
        make_condition(condition)
        check_controlnet(controlnet, unet, self.vae_scale_factor)
        self.register_modules(controlnet=controlnet)
        self.register_to_config(condition=condition)
        if condition_range is not None:
            self.register_to_config(condition_range=check_value_range(condition_range))

    @property
    def input_channels(self) -> int:
        """Channels of the images that are given."""
        condition = self.condition
        if isinstance(condition, Column):
            return int(self.controlnet.config.conditioning_channels)
        return int(condition.input_channels(self.channels)) - condition.mask_channels

    @torch.no_grad()
    def __call__(  # type: ignore[override]  # the image is what is asked for, and nothing to start from
        self,
        prompt: str | list[str] | None = None,
        image: PipelineImageInput | None = None,
        mask_image: Any = None,
        num_inference_steps: int | None = None,
        timesteps: list[float] | None = None,
        guidance_scale: float = 1.25,
        controlnet_conditioning_scale: float = 1.0,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
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
            guidance_scale: of the prompt: 1 for none. The image is given with and without it.
            controlnet_conditioning_scale: of what the ControlNet adds to the network's features: 0 for none of it.
            negative_prompt: as there.
            num_images_per_prompt: as there.
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
        control_scale = real("controlnet_conditioning_scale", controlnet_conditioning_scale)
        chain, scales = self._text_chain(
            prompt, negative_prompt, *embeds, num_images_per_prompt, None if scale == 1 else scale
        )
        batch = len(chain[-1]["encoder_hidden_states"])
        inputs, mask = self._inputs(image, mask_image, batch, num_images_per_prompt)
        given = inputs if mask is None else Masked.join(inputs, mask.expand(batch, -1, -1, -1))
        shown = control_image(self.condition, given, self.controlnet.config.conditioning_channels)
        chain = [conditions | {CONTROL: shown.to(self.controlnet.dtype)} for conditions in chain]
        generator = check_generators(generator, batch)
        rescale = real("guidance_rescale", guidance_rescale, 0, 1)
        interval = check_interval("guidance_interval", guidance_interval)
        churn = check_churn(s_churn, s_tmin, s_tmax, s_noise)
        sampler = make_sampler(self.scheduler, real("eta", eta, 0, 1), generator, churn)
        controlled = ControlledUNet(self.unet, self.controlnet, control_scale)
        denoiser = guided(replace(self._predictor(sampler), network=controlled), chain, scales, interval, rescale)
        on_step = self._on_step(sampler, callback_on_step_end, callback_on_step_end_tensor_inputs, seen)
        sampler.set_timesteps(self._steps(num_inference_steps), timesteps, self._execution_device)
        size = self._size(*shown.shape[2:])
        noise = self._noise((batch, self.data_channels, *size), generator, latents)
        x0 = self._sample(lambda *_: denoiser, sampler, noise, None, on_step)
        return self._finish(x0, seen, output_type, return_dict, self._pasted(inputs, mask))
