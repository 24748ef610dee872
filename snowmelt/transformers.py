"""Transformers as networks that denoise: their named sizes, and how they are initialized."""

from typing import Any

from diffusers.models.embeddings import TimestepEmbedding
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

EMBEDDING_STD = 0.02


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
    """adaLN-Zero: each block begins as the identity and the output as 0 (Peebles & Xie 2023, section 3.2).

    Other layers and embeddings are initialized as in the authors' code; diffusers' class leaves all of it to torch.
    Labels are dropped by `snowmelt.conditioning`, for all networks alike, and not by the network itself.
    """
    _initialize_layers(network)
    for block in network.transformer_blocks:
        embedder = block.norm1.emb
        embedder.class_embedder.dropout_prob = 0.0
        nn.init.normal_(embedder.class_embedder.embedding_table.weight, std=EMBEDDING_STD)
        _initialize_embedder(embedder.timestep_embedder)
        nn.init.zeros_(block.norm1.linear.weight)
    for layer in (network.proj_out_1, network.proj_out_2):
        nn.init.zeros_(layer.weight)


def initialize_pixart(network: Any) -> None:
    """As its authors do: the output begins as 0, and each block without the text (Chen et al. 2024, section 2.3)."""
    _initialize_layers(network)
    _initialize_embedder(network.adaln_single.emb.timestep_embedder)
    _initialize_embedder(network.caption_projection)
    nn.init.normal_(network.adaln_single.linear.weight, std=EMBEDDING_STD)
    for block in network.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(network.proj_out.weight)


def _initialize_layers(network: nn.Module) -> None:
    """Uniform weights of the variance that Glorot & Bengio (2010, eq. 16) give layers, biases 0; patches likewise."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight.flatten(1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _initialize_embedder(embedder: TimestepEmbedding) -> None:
    for layer in (embedder.linear_1, embedder.linear_2):
        nn.init.normal_(layer.weight, std=EMBEDDING_STD)
