"""A text-to-image model from scratch: a network, and text by an encoder trained with it or a pretrained one."""

from collections.abc import Mapping
from typing import Any

import torch

from pipelines import TextToImagePipeline
from snowmelt.architectures import make_network
from snowmelt.data.cache import ImageCache
from snowmelt.data.captions import Captions
from snowmelt.objectives import make_objective
from snowmelt.spaces import LatentSpace, PixelSpace
from snowmelt.text.caption_conditioning import CaptionConditioning, token_tables
from snowmelt.text.embeddings import cache_root, caption_embeddings
from snowmelt.text.model import TextToImageModel
from snowmelt.text.networks import make_text_encoder
from snowmelt.text.options import TextToImageConfig
from snowmelt.text.pretrained_encoder import load_text_encoder
from snowmelt.text.tokens import fit_length, train_tokenizer


def from_scratch(
    config: TextToImageConfig,
    images: ImageCache,
    captions: Captions,
    space: PixelSpace | LatentSpace,
    device: torch.device,
) -> TextToImageModel:
    """A new model for these images and captions.

    Args:
        config: the options: objective, sizes, and a pretrained text encoder or what a new one is like.
        images: the decoded images.
        captions: of all images.
        space: pixels, or the latents of an autoencoder.
        device: where a pretrained text encoder embeds the captions.

    Raises:
        UserError: if the encoder or the network that was asked for can't be had or used.
    """
    vae = space.vae if isinstance(space, LatentSpace) else None
    objective = make_objective(config, latent=vae is not None)
    conditioning = CaptionConditioning(captions, config.caption_dropout)
    tokenizer, encoder = _tokenizer_and_encoder(config, captions, conditioning.texts)
    tokens = token_tables(tokenizer, conditioning.texts)
    unet = make_network(
        "UNet2DConditionModel",
        config.model_size,
        config.model_config_name_or_path,
        resolution=config.resolution // space.vae_scale_factor,
        vae_scale_factor=space.vae_scale_factor,
        channels=space.channels(images),
        cross_attention_dim=encoder.config.hidden_size,
        seed=config.seed,
    )
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    networks = {"unet": unet}
    if config.text_encoder is None:
        networks["text_encoder"] = encoder
        conditioning.use_tables(**tokens)
    else:
        conditioning.embed_with(unet, tokens, caption_embeddings(tokens, encoder.to(device), cache_root(config)))

    def pipeline(networks: Mapping[str, Any]) -> TextToImagePipeline:
        return TextToImagePipeline(
            networks["unet"],
            objective.scheduler(),
            networks.get("text_encoder", encoder),
            tokenizer,
            vae,
            objective.pipeline_prediction_type,
        )

    return TextToImageModel(
        networks, objective, conditioning, pipeline, lambda made, folder: made.save_pretrained(folder)
    )


def _tokenizer_and_encoder(config: TextToImageConfig, captions: Captions, texts: list[str]) -> tuple[Any, Any]:
    """Made for the captions, or pretrained; the tokenizer pads to the longest of `texts`."""
    if config.text_encoder is not None:
        encoder, tokenizer = load_text_encoder(config.text_encoder)
        fit_length(tokenizer, texts, getattr(encoder.config, "max_position_embeddings", None))
        return tokenizer, encoder
    tokenizer = train_tokenizer(captions.texts, config.vocab_size)
    fit_length(tokenizer, texts)
    encoder = make_text_encoder(
        tokenizer, hidden_size=config.text_hidden_size, layers=config.text_layers, seed=config.seed
    )
    return tokenizer, encoder
