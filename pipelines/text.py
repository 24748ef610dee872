"""Text encoders: from tokens to what a network is conditioned on."""

from typing import Any

from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor
from torch.nn.functional import layer_norm

from pipelines.arguments import real


def max_tokens(text_encoder: Any, tokenizer: Any) -> int:
    """Tokens that a prompt is cut or padded to, its marks included.

    Raises:
        TypeError: if the tokenizer says no number.
        ValueError: if it says one below 1.
    """
    said = real("tokenizer: model_max_length", tokenizer.model_max_length, 1)
    return int(min(said, getattr(text_encoder.config, "max_position_embeddings", 512)))


def text_channels(network: Any) -> int:
    """Channels of the text embeddings that a network takes, which may project them for its attention first."""
    config = network.config
    projected = config.get("caption_channels") or config.get("encoder_hid_dim")
    channels: int = projected or config["cross_attention_dim"]
    return channels


def check_text_encoder(network: Any, text_encoder: Any, tokenizer: Any) -> None:
    """Refuse parts whose sizes show that they don't belong together.

    Args:
        network: attends to text embeddings of `text_channels`.
        text_encoder: makes embeddings of `hidden_size` channels.
        tokenizer: has at most the encoder's `vocab_size` tokens.

    Raises:
        TypeError: as `max_tokens`.
        ValueError: for such parts, or as `max_tokens`.
    """
    max_tokens(text_encoder, tokenizer)
    known, width = text_encoder.config.vocab_size, text_encoder.config.hidden_size
    if len(tokenizer) > known:
        raise ValueError(f"tokenizer: has {len(tokenizer)} tokens, and the text encoder knows {known}: not its own")
    expected = text_channels(network)
    if width != expected:
        raise ValueError(f"text_encoder: its embeddings have {width} channels, the network attends to {expected}")


def converted(prompt: Any, tokenizer: Any) -> Any:
    """A prompt, or a list of them, in which a word of several tokens, by `load_textual_inversion`, is all of these."""
    added = tokenizer.added_tokens_encoder
    if not any(f"{token}_1" in added for token in added):
        return prompt
    return TextualInversionLoaderMixin().maybe_convert_prompt(prompt, tokenizer)


def encode_tokens(text_encoder: Any, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Text embeddings (B, L, D), the encoder's first output.

    Args:
        text_encoder: of transformers.
        input_ids: tokens, int64 (B, L).
        attention_mask: 1, and 0 at padding, (B, L): the encoder doesn't attend to padding, whose embeddings are set to
            0. None: padding is text like any other, as it is to Stable Diffusion.
    """
    embeds = text_encoder(input_ids, attention_mask=attention_mask)[0]
    return embeds if attention_mask is None else embeds * attention_mask[..., None].to(embeds.dtype)


def text_conditions(network: Any, embeds: Tensor, attention_mask: Tensor | None) -> dict[str, Tensor]:
    """Keyword arguments of the network for text embeddings.

    A transformer attends to no padding: its output doesn't depend on the length that prompts are padded to. Nor does
    that of a UNet with a projection for class labels, which is given the mean of the embeddings there, (B, D),
    normalized over its channels. Other UNets, which are Stable Diffusion and the models of Snowmelt before 0.2, were
    trained to attend to padding too.

    Args:
        network: the network.
        embeds: text embeddings, (B, L, D).
        attention_mask: 1, and 0 at padding, (B, L); None to attend to all.
    """
    by_projection = network.config.get("class_embed_type") == "projection"
    if attention_mask is None or not by_projection and "caption_channels" not in network.config:
        return {"encoder_hidden_states": embeds}
    conditions = {"encoder_hidden_states": embeds, "encoder_attention_mask": attention_mask}
    if not by_projection:
        return conditions
    kept = attention_mask[..., None].to(embeds.dtype)
    # The mean of many tokens is small beside a single one, and beside the time embedding that it is added to.
    pooled = layer_norm((embeds * kept).sum(1) / kept.sum(1), embeds.shape[2:])
    return conditions | {"class_labels": pooled}
