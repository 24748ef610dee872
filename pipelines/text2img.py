"""Images from texts, by a network in pixels or in the latent space of an autoencoder."""

import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from diffusers.image_processor import PipelineImageInput
from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from torch import Tensor

from pipelines.arguments import (
    MOST,
    boolean,
    check_attention_mask,
    check_generators,
    check_interval,
    check_parts,
    real,
    real_tensor,
    sequence,
    string,
    whole,
)
from pipelines.base import SamplingOutput
from pipelines.churn import check_churn
from pipelines.denoiser import Conditions, guided
from pipelines.editing_pipeline import EditingPipeline
from pipelines.flow_map import check_flow_map
from pipelines.samplers import make_sampler
from pipelines.text import check_text_encoder, converted, encode_tokens, max_tokens, text_channels, text_conditions
from pipelines.vae import shift_and_scale


class TextPipeline(EditingPipeline):
    """Generation from prompts, of images or, with an image to start from, of variations on it.

    Args:
        network: attends to the text encoder's embeddings; the component `COMPONENT`.
        scheduler: any stock scheduler of the family that the network was trained for; see `make_scheduler`.
        text_encoder: a `CLIPTextModel`, `T5EncoderModel` or the like; None if only embeddings are to be given.
        tokenizer: its tokenizer; captions are padded to its `model_max_length`.
        vae: a stock autoencoder, or None for a network of pixels.
        prediction_type: what the network predicts, where the scheduler can't say; see `UnconditionalPipeline`.
        flow_map: whether it learned to take few steps; see there.

    Raises:
        ValueError: for an unknown `prediction_type`, or parts that don't fit each other.
    """

    COMPONENT: ClassVar[str]
    ONE_EACH = "prompt"
    text_encoder: Any
    tokenizer: Any
    _optional_components = ["text_encoder", "tokenizer", "vae"]
    OUTPUT_TYPES = (*EditingPipeline.OUTPUT_TYPES, "latent")

    def __init__(
        self,
        network: Any,
        scheduler: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        vae: Any = None,
        prediction_type: str | None = None,
        flow_map: bool = False,
    ) -> None:
        super().__init__()
        check_parts(network, scheduler, self.COMPONENT)
        if vae is not None:
            shift_and_scale(vae)
        self._check_prediction_type(prediction_type)
        if text_encoder is not None and tokenizer is not None:
            check_text_encoder(network, text_encoder, tokenizer)
        parts = {self.COMPONENT: network, "scheduler": scheduler}
        self.register_modules(**parts, text_encoder=text_encoder, tokenizer=tokenizer, vae=vae)
        optional = {"prediction_type": prediction_type, "flow_map": check_flow_map(network, flow_map) or None}
        self.register_to_config(**{name: value for name, value in optional.items() if value is not None})

    @torch.no_grad()
    def encode_prompt(self, prompt: str | list[str], name: str = "prompt") -> tuple[Tensor, Tensor]:
        """Text embeddings (B, L, D) of prompts and their mask (B, L), 1 for a token and 0 for padding.

        Prompts that are too long are cut, with a warning that shows what was lost.

        Args:
            prompt: one, or a list.
            name: of the argument that they were given as.

        Raises:
            TypeError: if a prompt isn't a string.
            ValueError: if there is none, or no text encoder.
        """
        given = [prompt] if isinstance(prompt, str) else sequence(name, prompt, "texts")
        prompts = [string(name, text) for text in given]
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(f"{name}: this pipeline has no text encoder; give {name}_embeds")
        prompts, length = converted(prompts, self.tokenizer), max_tokens(self.text_encoder, self.tokenizer)
        for text, ids in zip(prompts, self.tokenizer(prompts, verbose=False)["input_ids"], strict=True):
            if len(ids) > length:
                lost = self.tokenizer.decode(ids[length - 1 :], skip_special_tokens=True)
                warnings.warn(f"prompt of {len(ids)} tokens cut to {length}: {text!r} loses {lost!r}", stacklevel=2)
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt", verbose=False
        ).to(self._execution_device)
        mask = tokens["attention_mask"]
        return encode_tokens(self.text_encoder, tokens["input_ids"], mask), mask

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[float] | None = None,
        guidance_scale: float = 1.25,
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
        image: PipelineImageInput | None = None,
        strength: float | None = None,
        callback_on_step_end: Callable[..., dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        return_trajectory: bool = False,
        mask_image: Any = None,
        noise_std: float | None = None,
        jump_length: int = 10,
        jump_n_sample: int = 1,
    ) -> SamplingOutput | tuple:
        """Generate images. Arguments that `StableDiffusionPipeline` has bear its names.

        Args:
            prompt: one, or a list; the images of one prompt follow each other.
            height: of the images in pixels; the trained size, or that of `image`, by default.
            width: of the images in pixels; the trained size, or that of `image`, by default.
            num_inference_steps: steps, of which some evaluate the network twice; None for `default_steps`.
            timesteps: a list of times to use instead, where the scheduler takes one.
            guidance_scale: 1 for none; else negative + scale * (conditional - negative) (Ho & Salimans 2022, eq. 6).
                The default suits models like that of the embedded scenes; pretrained ones usually want more.
            negative_prompt: what to be guided away from: one for all or one for each prompt; the empty one by default.
            num_images_per_prompt: N; B is the number of prompts times N.
            eta: noise of DDIM, from 0 (none) to 1 (as DDPM) (Song et al. 2021, eq. 16).
            s_churn: noise before the steps of Euler and Heun, all of them together (Karras et al. 2022, algorithm 2).
            s_tmin, s_tmax: the least and the largest sigma / alpha at which it is added.
            s_noise: its standard deviation over what would keep the noise level exact.
            generator: one, or B of them, which makes an image independent of its batch.
            latents: the initial noise, unit normal, (B, c, h, w) as the network's data.
            prompt_embeds: text embeddings (prompts, L, D) in place of `prompt`; see `encode_prompt`.
            negative_prompt_embeds: of the same shape, in place of `negative_prompt`.
            prompt_attention_mask: (prompts, L), 0 where `prompt_embeds` are padding; all 1 by default.
            negative_prompt_attention_mask: the same for `negative_prompt_embeds`.
            output_type: "pil", or "np" for an array (B, H, W, C) or "pt" for a tensor (B, C, H, W) in [0, 1], or
                "latent" for what the network made (B, c, h, w).
            return_dict: False for a tuple of the output's fields.
            guidance_rescale: from 0 to 1: how much of the way to take the standard deviation of the guided output back
                to that of the output without guidance (Lin et al. 2024, eqs. 15 and 16).
            guidance_interval: guide only where lo < sigma / alpha <= hi (Kynkäänniemi et al. 2024).
            image: one, or one per prompt, to start from: PIL, or arrays or tensors in [0, 1] laid out as the outputs.
            strength: the fraction of the steps that are left to `image`, from 0, which leaves it as it is, to 1, which
                forgets it (Meng et al. 2022). 0.8 by default, and 1 with a mask.
            callback_on_step_end: called as f(pipeline, step, timestep, tensors); "latents" in the dict it
                returns replace x_t.
            callback_on_step_end_tensor_inputs: which it sees, of "latents" (the default) and
                "pred_original_sample".
            return_trajectory: also return x_t and the predicted x0 of every evaluation, decoded as the images are.
            mask_image: what of `image` to make anew, as `UnconditionalPipeline` takes it: one, or one per prompt.
            noise_std: of the noise that `image` has, as there.
            jump_length, jump_n_sample: as there.

        Raises:
            TypeError: for an argument of another type.
            ValueError: for arguments that fit neither the model nor the scheduler, or each other.
        """
        scale = real("guidance_scale", guidance_scale)
        boolean("return_dict", return_dict)
        seen: list[Any] | None = [] if boolean("return_trajectory", return_trajectory) else None
        self._check_output_type(output_type, self.channels)
        embeds = prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask
        chain, scales = self._text_chain(
            prompt, negative_prompt, *embeds, num_images_per_prompt, None if scale == 1 else scale
        )
        batch_size = len(chain[-1]["encoder_hidden_states"])
        jumps, given = (jump_length, jump_n_sample), (height, width)
        start = self._start(image, mask_image, strength, noise_std, jumps, given, batch_size, num_images_per_prompt)
        size = self._size(height, width) if start is None else start.data.shape[2:]
        rescale = real("guidance_rescale", guidance_rescale, 0, 1)
        interval = check_interval("guidance_interval", guidance_interval)
        generator = check_generators(generator, batch_size)
        churn = check_churn(s_churn, s_tmin, s_tmax, s_noise)
        sampler = make_sampler(self.scheduler, real("eta", eta, 0, 1), generator, churn)
        predict = self._predictor(sampler)
        denoiser = guided(predict, chain, scales, interval, rescale)
        on_step = self._on_step(sampler, callback_on_step_end, callback_on_step_end_tensor_inputs, seen)
        sampler.set_timesteps(self._steps(num_inference_steps), timesteps, self._execution_device)
        noise = self._noise((batch_size, self.data_channels, *size), generator, latents)
        x0 = self._sample(lambda *_: denoiser, sampler, noise, start, on_step)
        return self._finish(x0, seen, output_type, return_dict, start.pasted if start else None)

    def _text_chain(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        prompt_embeds: Tensor | None,
        prompt_attention_mask: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        negative_prompt_attention_mask: Tensor | None,
        copies: int,
        scale: float | None,
    ) -> tuple[list[Conditions], list[float]]:
        """Conditions on the texts, after those that they are guided away from, and scales, as `guided` takes them."""
        prompts = self._embeddings("prompt", prompt, prompt_embeds, prompt_attention_mask)
        chain = [self._repeated(*prompts, copies)]
        if scale is None:
            return chain, []
        if negative_prompt is None and negative_prompt_embeds is None:
            negative_prompt = ""
        negative = self._embeddings(
            "negative_prompt", negative_prompt, negative_prompt_embeds, negative_prompt_attention_mask
        )
        return [self._repeated(*self._matching(*negative, prompts[0]), copies), *chain], [scale]

    def _embeddings(
        self, name: str, prompt: str | list[str] | None, embeds: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Text embeddings (prompts, L, D) and their mask (prompts, L), of whichever was given."""
        if (prompt is None) == (embeds is None):
            raise ValueError(f"{name}: give it or {name}_embeds, one of the two")
        if embeds is None:
            if mask is not None:
                raise ValueError(f"{name}_attention_mask: belongs to {name}_embeds, which weren't given")
            return self.encode_prompt(prompt, name)  # type: ignore[arg-type]
        real_tensor(f"{name}_embeds", embeds, "prompts, L, D")
        width = text_channels(self.network)
        if isinstance(width, int) and embeds.shape[2] != width:
            raise ValueError(f"{name}_embeds: has {embeds.shape[2]} channels, the network attends to {width}")
        return embeds, check_attention_mask(f"{name}_attention_mask", mask, embeds)

    @staticmethod
    def _matching(embeds: Tensor, mask: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Negative embeddings and their mask for prompts (P, L, D), from one for all or one for each."""
        if len(embeds) not in (1, len(prompts)):
            raise ValueError(
                f"negative_prompt: {len(embeds)} given for {len(prompts)} prompts; give one, or one per prompt"
            )
        if embeds.shape[1:] != prompts.shape[1:]:
            raise ValueError(
                f"negative_prompt_embeds: of shape {tuple(embeds.shape)}, but prompt_embeds are {tuple(prompts.shape)}"
            )
        return embeds.expand(len(prompts), -1, -1), mask.expand(len(prompts), -1)

    def _repeated(self, embeds: Tensor, mask: Tensor, copies: int) -> dict[str, Tensor]:
        """Keyword arguments of the network for so many images of each prompt."""
        whole("num_images_per_prompt", copies, 1, MOST)
        place = self._execution_device
        conditions = text_conditions(self.network, embeds.to(place, self.network.dtype), mask.to(place))
        return {name: value.repeat_interleave(copies, 0) for name, value in conditions.items()}


class TextToImagePipeline(StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin, TextPipeline):
    """With a `UNet2DConditionModel`.

    `load_lora_weights`, `load_textual_inversion` and their relatives are those of `StableDiffusionPipeline`.

    Args:
        unet: the network.

    The other arguments are those of `TextPipeline`.
    """

    COMPONENT = "unet"
    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        vae: Any = None,
        prediction_type: str | None = None,
        flow_map: bool = False,
    ) -> None:
        super().__init__(unet, scheduler, text_encoder, tokenizer, vae, prediction_type, flow_map)
