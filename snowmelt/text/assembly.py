"""The text side of a model: an encoder that is trained with the network, or a pretrained one as it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from huggingface_hub.constants import HF_HOME
from torch import nn

from snowmelt.data.captions import Captions
from snowmelt.text.conditioning import CaptionConditioning, token_tables
from snowmelt.text.networks import TextConditionedUNet, make_text_encoder
from snowmelt.text.options import TextToImageConfig
from snowmelt.text.pretrained import load_text_encoder
from snowmelt.text.states import caption_states
from snowmelt.text.tokens import fit_length, train_tokenizer


@dataclass(frozen=True)
class Text:
    """What a run has of text.

    Args:
        tokenizer: captions to tokens.
        encoder: tokens to states.
        conditioning: batches to what the network is told: tokens, or the states of an encoder that isn't trained.
        trained: whether the encoder is trained.
    """

    tokenizer: Any
    encoder: Any
    conditioning: CaptionConditioning
    trained: bool

    def joined(self, unet: UNet2DConditionModel) -> tuple[nn.Module, dict[str, Any]]:
        """What is trained, and its parts by name."""
        if not self.trained:
            return unet, {"unet": unet}
        return TextConditionedUNet(unet, self.encoder), {"unet": unet, "text_encoder": self.encoder}


def make_text(config: TextToImageConfig, captions: Captions, device: torch.device) -> Text:
    """The text side of a run, on these captions.

    Raises:
        UserError: if the encoder that was asked for can't be had or used.
    """
    conditioning = CaptionConditioning(captions, config.caption_dropout)
    texts = conditioning.texts
    if config.text_encoder is None:
        tokenizer = train_tokenizer(captions.texts, config.vocab_size)
        fit_length(tokenizer, texts)
        encoder = make_text_encoder(
            tokenizer, hidden_size=config.text_hidden_size, layers=config.text_layers, seed=config.seed
        )
        return Text(tokenizer, encoder, conditioning.tell(**token_tables(tokenizer, texts)), trained=True)
    encoder, tokenizer = load_text_encoder(config.text_encoder)
    fit_length(tokenizer, texts, getattr(encoder.config, "max_position_embeddings", None))
    root = Path(config.cache_dir or HF_HOME) / "snowmelt"
    states = caption_states(texts, encoder.to(device), tokenizer, root)
    return Text(tokenizer, encoder, conditioning.tell(encoder_hidden_states=states), trained=False)
