"""Transformers as networks that denoise: their named sizes, and how they are initialized."""

from typing import Any

from torch import nn

HEAD_DIM = 64

SIZES: dict[str, tuple[int, int]] = {
    # name: (blocks, channels); DiT's own are S and B (Peebles & Xie 2023, table 1), whose cost is that of the UNets
    # called base and large, and smaller ones
    "tiny": (4, 128),
    "small": (8, 256),
    "base": (12, 384),
    "large": (12, 768),
}

PATCH_SIZES: dict[int, int] = {
    # largest side: patch size; up to 16 x 16 tokens, whose number attention costs the square of
    8: 1,
    32: 2,
    64: 4,
    128: 8,
    256: 16,
}


def transformer_config(size: str, resolution: int) -> dict[str, Any]:
    """Arguments of `DiTTransformer2DModel` or `PixArtTransformer2DModel` for data of a given side."""
    layers, channels = SIZES[size]
    fitting = [side for side in PATCH_SIZES if resolution <= side]
    return {
        "num_layers": layers,
        "num_attention_heads": channels // HEAD_DIM,
        "attention_head_dim": HEAD_DIM,
        "patch_size": PATCH_SIZES[fitting[0] if fitting else max(PATCH_SIZES)],
    }


def dit_conditions(config: dict[str, Any], num_class_embeds: int | None) -> dict[str, Any]:
    """Of a table of so many labels, the null label included, or none: the class has one row more than it is asked for.

    An unconditional network is one of no classes but the null label, 0.
    """
    return {"num_embeds_ada_norm": (num_class_embeds or 1) - 1}


def pixart_conditions(config: dict[str, Any], text_channels: int) -> dict[str, Any]:
    """Of text embeddings with so many channels. There is no place for their mean, and sizes aren't conditions."""
    width = config.get("num_attention_heads", 16) * config.get("attention_head_dim", 72)
    return {"caption_channels": text_channels, "cross_attention_dim": width, "use_additional_conditions": False}


def initialize_dit(network: Any) -> None:
    """adaLN-Zero: each block begins as the identity, and the output as 0 (Peebles & Xie 2023, section 3.2).

    diffusers' class begins with torch's own weights everywhere.

    Labels are dropped by `snowmelt.conditioning`, for all networks alike, and not by the network itself.
    """
    for block in network.transformer_blocks:
        block.norm1.emb.class_embedder.dropout_prob = 0.0
        _set_to_zero(block.norm1.linear)
    _set_to_zero(network.proj_out_1)
    _set_to_zero(network.proj_out_2)


def _set_to_zero(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
