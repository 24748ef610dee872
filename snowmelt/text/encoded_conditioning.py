"""Captions that encode.py has encoded, as conditions of a network."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.text import max_tokens, text_conditions
from snowmelt.data.captions import Captions
from snowmelt.data.encoded_captions import AnyCaptions, EncodedCaptions
from snowmelt.errors import UserError
from snowmelt.text.caption_conditioning import CaptionConditioning, draw_captions, on_device
from snowmelt.text.pretrained_encoder import fingerprint_of


class EncodedCaptionConditioning:
    """A caption of each image, drawn as by `CaptionConditioning`; its embeddings come with the batch.

    Args:
        captions: of all images.
        dropout: the fraction of captions replaced by the empty one, in [0, 1).
    """

    num_class_embeds = None

    def __init__(self, captions: EncodedCaptions, dropout: float) -> None:
        self.captions = captions
        self.dropout = dropout
        self._network: Any = None

    def fit(self, tokenizer: Any, text_encoder: Any) -> None:
        """Make a tokenizer pad to the length that the captions were padded to."""
        tokenizer.model_max_length = self.captions.rows.length

    def tabulate(
        self, tokenizer: Any, network: Any, text_encoder: Any, root: Path, *, masked: bool = True
    ) -> "EncodedCaptionConditioning":
        """Condition a network on the embeddings, if they are what its text encoder says.

        Args:
            tokenizer: of the text encoder.
            network: that is conditioned.
            text_encoder: that stays as it is.
            root: unused; nothing has to be kept.
            masked: whether the encoder masks padding.

        Raises:
            UserError: if the embeddings are of another encoder, or padding is treated otherwise.
        """
        rows, name, length = self.captions.rows, self.captions.name, max_tokens(text_encoder, tokenizer)
        anew = "and another --output_dir"
        same = fingerprint_of(text_encoder, tokenizer) == self.captions.encoder
        if not same or rows.width != text_encoder.config.hidden_size:
            raise UserError(
                f"{name}: another text encoder than this one encoded its captions; name that one, or run encode.py "
                f"with this one {anew}"
            )
        if masked and not rows.masked:
            raise UserError(
                f"{name}: its captions were encoded for fine-tuning a model that sees padding, and this one doesn't; "
                f"run encode.py with --text_encoder {anew}"
            )
        if masked != rows.masked or length != rows.length:
            raise UserError(
                f"{name}: its captions weren't encoded for fine-tuning this model, which pads them to {length} tokens; "
                f"run encode.py with --pretrained_model_name_or_path {anew}"
            )
        self._network = network
        return self

    def embed(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Embeddings (B, L, D) of a drawn caption each, as the network's arguments.

        Args:
            batch: whose `captions` are the embeddings (tokens, D) of all captions of each image.
            generator: of the pass.
        """
        given, empty = batch["captions"], self.captions.empty
        counts = np.array([len(states) for states in given])
        chosen, dropped = draw_captions(counts, self.dropout, generator.initial_seed())
        drawn = zip(given, chosen.tolist(), dropped.tolist(), strict=True)
        states, mask = self.captions.padded([empty if drop else own[which] for own, which, drop in drawn])
        tables = {"encoder_hidden_states": states} | ({} if mask is None else {"attention_mask": mask})
        conditions = on_device(tables, generator.device)
        return text_conditions(self._network, conditions["encoder_hidden_states"], conditions.get("attention_mask"))


TextConditioning = CaptionConditioning | EncodedCaptionConditioning


def conditioning_of(captions: AnyCaptions, dropout: float) -> TextConditioning:
    """What conditions a network on captions.

    Args:
        captions: of all images.
        dropout: the fraction of captions replaced by the empty one, in [0, 1).
    """
    if isinstance(captions, Captions):
        return CaptionConditioning(captions, dropout)
    return EncodedCaptionConditioning(captions, dropout)
