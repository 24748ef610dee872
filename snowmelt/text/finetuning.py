"""Fine-tuning a pretrained pipeline: what of it is trained, and what is saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from pipelines import TextToImagePipeline
from pipelines.controlnet import CONTROLNET
from pipelines.text import check_text_encoder
from snowmelt.config import on_hub
from snowmelt.data.encoded_captions import AnyCaptions
from snowmelt.errors import UserError, one_line
from snowmelt.objectives import Objective
from snowmelt.pretrained_objective import pretrained_objective, pretrained_scheduler
from snowmelt.text.controlnet import make_controlnet
from snowmelt.text.embeddings import cache_root
from snowmelt.text.encoded_conditioning import TextConditioning, conditioning_of
from snowmelt.text.lora import add_lora
from snowmelt.text.options import PipelineOptions, TextToImageConfig

PIPELINES = {cls.__name__: cls for cls in (StableDiffusionPipeline, TextToImagePipeline)}
NEEDED = ("unet", "scheduler", "text_encoder", "tokenizer")


def load_source(config: TextToImageConfig) -> Any:
    """The pretrained pipeline, float32.

    Raises:
        UserError: if there is none, it is of a kind that can't be trained here, or parts of it are missing.
    """
    pipeline, name = open_pipeline(config), str(config.pretrained_model_name_or_path)
    flag = f"--pretrained_model_name_or_path {name}"
    if config.non_ema_revision:
        with _readable(f"--non_ema_revision {config.non_ema_revision} of {flag}"):
            unet = type(pipeline.unet).from_pretrained(
                name, subfolder="unet", revision=config.non_ema_revision, variant=config.variant, use_safetensors=True
            )
        pipeline.register_modules(unet=unet.float())
    _check(pipeline, config, flag)
    return pipeline


def open_pipeline(config: PipelineOptions) -> Any:
    """A pretrained pipeline, float32, as it is.

    Raises:
        UserError: as `load_source`, but for parts that don't belong together.
    """
    name = str(config.pretrained_model_name_or_path)
    flag = f"--pretrained_model_name_or_path {name}"
    if not Path(name).is_dir() and not on_hub(name):
        raise UserError(f"{flag}: no such folder; give one, or a name of the Hub")
    with _readable(flag):
        index = DiffusionPipeline.load_config(name, revision=config.revision)
    kind = index["_class_name"]
    kind = kind[-1] if isinstance(kind, list) else kind  # a published one names its module too
    if kind not in PIPELINES:
        raise UserError(f"{flag}: a {kind}; known are {', '.join(PIPELINES)}")
    missing = [part for part in NEEDED if not (index.get(part) or [None])[0]]
    if missing:
        raise UserError(f"{flag}: has no {', '.join(missing)}, which training needs")
    with _readable(flag):
        return PIPELINES[kind].from_pretrained(
            name, revision=config.revision, variant=config.variant, torch_dtype=torch.float32, use_safetensors=True
        )


@contextmanager
def _readable(flag: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever libraries raise at files that anybody may have written
        raise UserError(f"{flag}: can't be loaded ({type(error).__name__}: {one_line(error)})") from error


def channels(pipeline: Any) -> int:
    """Number of channels of a pipeline's images."""
    return pipeline.channels if isinstance(pipeline, TextToImagePipeline) else pipeline.vae.config.in_channels


def make_trainable(
    config: TextToImageConfig,
    pipeline: Any,
    captions: AnyCaptions,
    device: torch.device,
    control_channels: int = 0,
) -> tuple[Objective, TextConditioning, dict[str, Any]]:
    """A pretrained pipeline made ready to be trained on these captions.

    Args:
        config: what is trained of it: the network, or LoRA matrices or a ControlNet beside it; the text encoder too,
            or not.
        pipeline: of `load_source`; its scheduler becomes the one that fits what is trained.
        captions: of the images.
        device: where the networks compute.
        control_channels: of what a ControlNet is shown.

    Returns:
        What the network learns, what it is conditioned on, and the networks that are trained, by name.

    Raises:
        UserError: for an objective that doesn't fit the model, LoRA without peft, or as `make_controlnet`.
    """
    objective = pretrained_objective(
        pipeline.scheduler, pipeline.config.get("prediction_type"), config, latent=pipeline.vae is not None
    )
    pipeline.register_modules(scheduler=pretrained_scheduler(pipeline.scheduler, objective))
    pipeline.to(device)
    unet, text_encoder = pipeline.unet, pipeline.text_encoder.eval()
    trained = {"unet": unet} | ({"text_encoder": text_encoder} if config.train_text_encoder else {})
    text_encoder.requires_grad_(config.train_text_encoder)
    if config.controlnet:
        trained = {CONTROLNET: make_controlnet(config, pipeline, control_channels)}
    if config.placeholder_token is not None:
        unet.requires_grad_(False)
        text_encoder.get_input_embeddings().learned.requires_grad_()
        trained = {"text_encoder": text_encoder}
    if config.gradient_checkpointing and not config.controlnet:
        for net in {"unet": unet, **trained}.values():
            (net.enable_gradient_checkpointing if net is unet else net.gradient_checkpointing_enable)()

    conditioning = make_conditioning(config, pipeline, captions, config.caption_dropout)
    if config.rank:
        add_lora(trained, config.rank, config.seed, config.mixed_precision)
    return objective, conditioning, trained


def make_conditioning(
    config: TextToImageConfig, pipeline: Any, captions: AnyCaptions, dropout: float
) -> TextConditioning:
    """Captions as conditions of a pretrained pipeline's network.

    Args:
        config: whether its text encoder is trained.
        pipeline: of `load_source`, on the device.
        captions: of the images.
        dropout: the fraction of captions dropped.

    Raises:
        UserError: as `caption_embeddings`.
    """
    in_training = config.train_text_encoder or config.placeholder_token is not None
    frozen = None if in_training else pipeline.text_encoder
    # Stable Diffusion's encoder sees padding as text, ours masks it.
    masked = isinstance(pipeline, TextToImagePipeline)
    return conditioning_of(captions, dropout).tabulate(
        pipeline.tokenizer, pipeline.unet, frozen, cache_root(config), masked=masked
    )


def _check(pipeline: Any, config: TextToImageConfig, flag: str) -> None:
    """Whether the parts belong together, as far as their sizes tell.

    Raises:
        UserError: if they don't.
    """
    try:
        check_text_encoder(pipeline.unet, pipeline.text_encoder, pipeline.tokenizer)
    except (TypeError, ValueError) as error:
        raise UserError(f"{flag}: {error}") from error
    if pipeline.vae is not None and pipeline.unet.config.in_channels != pipeline.vae.config.latent_channels:
        raise UserError(
            f"{flag}: its unet takes {pipeline.unet.config.in_channels} channels and its vae makes "
            f"{pipeline.vae.config.latent_channels}; models with conditions besides a text can't be trained"
        )
    expected = channels(pipeline)
    if config.channels not in (None, expected):
        raise UserError(f"--channels {config.channels}: {flag} makes images of {expected}; leave it out")
