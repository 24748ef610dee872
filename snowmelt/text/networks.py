"""The text encoder of a model that is trained from scratch, and what it makes up with the network."""

from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase

from pipelines.text import encode_tokens, text_conditions
from snowmelt.errors import UserError

HEAD_DIM = 64
EMBEDDING_STD = {"token_embedding": 1.0, "position_embedding": 0.3}


class TextConditionedNetwork(nn.Module):
    """A text encoder and the network that attends to its embeddings, trained together.

    Args:
        network: the network.
        text_encoder: of the captions' tokens.
    """

    def __init__(self, network: ModelMixin, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.network = network
        self.text_encoder = text_encoder

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The network's output, (B, C, H, W), as its class returns it.

        Args:
            sample: the network's input, (B, C, H, W).
            timestep: (B,).
            input_ids: tokens of the captions, int64 (B, L).
            attention_mask: 1, and 0 at padding, (B, L); None: padding is text like any other.
            return_dict: False for a tuple.
        """
        embeds = encode_tokens(self.text_encoder, input_ids, attention_mask)
        conditions = text_conditions(self.network, embeds, attention_mask)
        return self.network(sample, timestep=timestep, **conditions, return_dict=return_dict)


def make_text_encoder(tokenizer: PreTrainedTokenizerBase, *, hidden_size: int, layers: int, seed: int) -> CLIPTextModel:
    """A freshly initialized encoder for a tokenizer's tokens, as many as it pads captions to.

    Embeddings begin at the scale of the layers' outputs, not at CLIP's 0.02, so that words differ from the start.

    Args:
        tokenizer: whose `model_max_length` is set.
        hidden_size: width of its embeddings.
        layers: transformer blocks.
        seed: of the initial weights.

    Raises:
        UserError: if the width isn't a multiple of 64, that of an attention head.
    """
    if hidden_size % HEAD_DIM:
        raise UserError(f"--text_hidden_size {hidden_size}: must be a multiple of {HEAD_DIM}, that of a head")
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // HEAD_DIM,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=hidden_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config)
    for name, parameter in encoder.named_parameters():
        for part, std in EMBEDDING_STD.items():
            if part in name:
                nn.init.normal_(parameter, std=std)
    return encoder
