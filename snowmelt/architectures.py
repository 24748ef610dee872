"""The registry of networks that can be trained: for each class its named sizes, and what it takes as conditions.

What pipelines must know of the same classes is in pipelines/backbones.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel, UNet2DConditionModel, UNet2DModel

from pipelines.backbones import BACKBONES, Backbone
from snowmelt.errors import UserError, one_line
from snowmelt.files import shown
from snowmelt.transformers import (
    dit_conditions,
    initialize_dit,
    pixart_conditions,
    transformer_config,
)
from snowmelt.values import multiples_near, to_resolution

ATTENTION_HEAD_DIM = 64
"""diffusers' default of 8 makes attention the bottleneck; see benchmarks/train_throughput.py."""

CHANNELS_PER_GROUP = 4  # of group norms, at full resolution

SIZES: dict[str, tuple[int, int]] = {
    # name: (channels at full resolution, residual blocks per level)
    "tiny": (32, 1),
    "small": (64, 2),
    "base": (128, 2),
    "large": (192, 3),
}

MULTIPLIERS: dict[int, tuple[int, ...]] = {
    # largest side: multiples of the channels at each level, the side halving from one to the next
    16: (1, 2),
    32: (1, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
}

ATTENTION_BELOW = 16
"""Attention sits at levels whose side is at most this, where its quadratic cost is small, but not at the first."""

CONDITIONAL_SIZES: dict[str, tuple[int, tuple[int, ...], int, int]] = {
    # name: (channels at full resolution, their multiples at each level, residual blocks per level, attention from
    # this side on; the lowest level always attends)
    "tiny": (32, (1, 1, 2, 4), 1, 4),
    "small": (64, (1, 2, 4, 4), 1, 8),
    "base": (128, (1, 2, 4, 4), 2, 8),
    "large": (192, (1, 2, 4, 5), 2, 8),
}

MOST_LEVELS, MOST_LAYERS = 16, 100
"""Of a configuration that anybody may have written: far more than networks have, far fewer than memory holds."""


def unet_config(size: str, resolution: int) -> dict[str, Any]:
    """`UNet2DModel` arguments of a named size for images of a given side.

    Raises:
        UserError: if the side can't be halved as often as the network does.
    """
    width, layers = SIZES[size]
    fitting = [side for side in MULTIPLIERS if resolution <= side]
    multipliers = MULTIPLIERS[fitting[0] if fitting else max(MULTIPLIERS)]
    attends = [level > 0 and resolution >> level <= ATTENTION_BELOW for level in range(len(multipliers))]
    return {
        "block_out_channels": tuple(width * m for m in multipliers),
        "layers_per_block": layers,
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        "attention_head_dim": ATTENTION_HEAD_DIM,
        # Added to a channel, as by default, the noise level is subtracted again by a norm of that channel alone.
        "norm_num_groups": width // CHANNELS_PER_GROUP,
        "resnet_time_scale_shift": "scale_shift",
    }


def conditional_unet_config(size: str, resolution: int) -> dict[str, Any]:
    """`UNet2DConditionModel` arguments of a named size for data of a given side.

    The text is attended to at the lower levels and, pooled, joins the time embedding, so that it reaches every block.
    """
    width, multipliers, layers, below = CONDITIONAL_SIZES[size]
    channels = tuple(width * m for m in multipliers)
    last = len(channels) - 1
    attends = [level == last or (level > 0 and resolution >> level <= below) for level in range(len(channels))]
    return {
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        # The number of heads, whatever diffusers calls it.
        "attention_head_dim": tuple(max(1, c // ATTENTION_HEAD_DIM) for c in channels),
        "norm_num_groups": width // CHANNELS_PER_GROUP,
        "resnet_time_scale_shift": "scale_shift",
    }


@dataclass(frozen=True)
class Architecture:
    """A class of networks.

    Attributes:
        network: the class.
        named_config: a named size and the side of the data -> its arguments, but for what follows from data.
        conditions: its other arguments, and what the network is conditioned on -> arguments for that.
        initialize: changes its initial weights, where those of diffusers' class aren't good ones.
        essential: an argument that every configuration of the class has.
        square: whether its `sample_size` is one number.
    """

    network: Any
    named_config: Callable[[str, int], dict[str, Any]]
    conditions: Callable[..., dict[str, Any]]
    initialize: Callable[[Any], None]
    essential: str
    square: bool = False

    @property
    def backbone(self) -> Backbone:
        """Its class's name in pipelines, and what the sides of its data must be multiples of."""
        return BACKBONES[self.network.__name__]


def _label_conditions(config: dict[str, Any], num_class_embeds: int | None) -> dict[str, Any]:
    """Of a table of so many labels, the null label included, or none."""
    return {"num_class_embeds": num_class_embeds}


def _text_conditions(config: dict[str, Any], text_channels: int) -> dict[str, Any]:
    """Of text embeddings with so many channels, and of their mean; see pipelines/text.py."""
    return {
        "cross_attention_dim": text_channels,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": text_channels,
    }


def _as_it_is(network: Any) -> None:
    """The weights that diffusers' class begins with."""


def _initialize_projection(network: Any) -> None:
    """Weights of variance 1 / fan-in, three times torch's, so that text changes the time embedding from the start."""
    for layer in (network.class_embedding.linear_1, network.class_embedding.linear_2):
        torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)


ARCHITECTURES = {
    architecture.network.__name__: architecture
    for architecture in (
        Architecture(UNet2DModel, unet_config, _label_conditions, _as_it_is, "block_out_channels"),
        Architecture(
            UNet2DConditionModel,
            conditional_unet_config,
            _text_conditions,
            _initialize_projection,
            "block_out_channels",
        ),
        Architecture(DiTTransformer2DModel, transformer_config, dit_conditions, initialize_dit, "num_layers", True),
        Architecture(PixArtTransformer2DModel, transformer_config, pixart_conditions, _as_it_is, "num_layers", True),
    )
}


def make_network(
    name: str,
    size: str,
    config_name_or_path: str | None,
    *,
    resolution: int | tuple[int, int],
    channels: int,
    seed: int,
    condition_channels: int = 0,
    out_channels: int | None = None,
    vae_scale_factor: int = 1,
    fourier: bool = False,
    dropout: float | None = None,
    **conditions: Any,
) -> Any:
    """A freshly initialized network for data (channels, height, width), which is images or their latents.

    Args:
        name: a key of `ARCHITECTURES`.
        size: a named size.
        config_name_or_path: a folder, JSON file or Hub name of a configuration of the class, taken instead of `size`.
        resolution: side, or height and width, of the data. Named sizes are as deep as for a square of the longer side.
        channels: of the data.
        seed: of the initial weights.
        condition_channels: of conditions that are concatenated to the data in the network's input.
        out_channels: of the output; those of the data by default.
        vae_scale_factor: side of an image over that of the data.
        fourier: see the noise level by random Fourier features of its logarithm.
        dropout: its probability; None for that of the configuration.
        conditions: what else the network is conditioned on, as its `Architecture` takes it.

    Raises:
        UserError: if the configuration can't be read, a side isn't a multiple of what the network needs, or the class
            is for squares and the sides differ.
    """
    architecture = ARCHITECTURES[name]
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    config = _stored_config(architecture, config_name_or_path) or architecture.named_config(size, max(height, width))
    _check_size(architecture, config, height, width, vae_scale_factor)
    config |= {"sample_size": height if height == width else (height, width)}
    config |= {"in_channels": channels + condition_channels}
    config |= {"out_channels": channels if out_channels is None else out_channels}
    if fourier:
        config |= {"time_embedding_type": "fourier"}
    if dropout is not None:
        config |= {"dropout": dropout}
    try:
        config |= architecture.conditions(config, **conditions)
        if config_name_or_path:
            _check_memory(architecture.network, config)
        torch.manual_seed(seed)
        network = architecture.network.from_config(config)
        architecture.initialize(network)
    except Exception as error:  # whatever diffusers raises at a configuration that anybody may have written
        raise UserError(
            f"--model_config_name_or_path {config_name_or_path}: no such network can be built "
            f"({type(error).__name__}: {one_line(error)}); correct it, or take --model_size"
        ) from error
    return network


def _check_size(
    architecture: Architecture, config: dict[str, Any], height: int, width: int, vae_scale_factor: int
) -> None:
    flag = f"--resolution {to_resolution(height * vae_scale_factor, width * vae_scale_factor)}"
    if height != width and architecture.square:
        raise UserError(
            f"{flag}: a {architecture.network.__name__} is made for squares; take one number, or --backbone unet"
        )
    multiple = architecture.backbone.size_multiple(config)
    for side in (height, width):
        if side % multiple:
            given = side * vae_scale_factor
            what = f"the latents' side, {side}," if vae_scale_factor > 1 else "it" if height == width else str(side)
            near = multiples_near(given, multiple * vae_scale_factor) + ("" if height == width else f" for {given}")
            raise UserError(f"{flag}: this network divides {what} by {multiple}; take {near}")


def _stored_config(architecture: Architecture, name_or_path: str | None) -> dict[str, Any] | None:
    if not name_or_path:
        return None
    name, essential = architecture.network.__name__, architecture.essential
    flag = f"--model_config_name_or_path {name_or_path}"
    try:
        config = dict(architecture.network.load_config(name_or_path))
    except (OSError, ValueError) as error:
        raise UserError(f"{flag}: {one_line(error)}") from error
    if config.get("_class_name", name) != name or essential not in config:
        raise UserError(f"{flag}: describes no {name}: its _class_name is another, or it has no {essential}")
    _check_counts(config, flag)
    return config


def _check_counts(config: dict[str, Any], flag: str) -> None:
    """Refuse numbers of levels and layers that couldn't even be counted without taking all memory.

    Raises:
        UserError: naming the number.
    """
    levels, patch = config.get("block_out_channels", [0]), config.get("patch_size", 1)
    if not isinstance(levels, list | tuple) or not 0 < len(levels) <= MOST_LEVELS:
        raise UserError(f"{flag}: block_out_channels must be a list of 1 to {MOST_LEVELS} numbers")
    if not isinstance(patch, int) or patch < 1:
        raise UserError(f"{flag}: patch_size must be a whole number of at least 1, is {shown(patch)}")
    for key, value in config.items():
        if "layers" in key and max(_numbers(value), default=0) > MOST_LAYERS:
            raise UserError(f"{flag}: {key} must be at most {MOST_LAYERS}, is {shown(value)}")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int | float):
        yield value


def _check_memory(network: Any, config: dict[str, Any]) -> None:
    """Count the weights on a device that holds none.

    Raises:
        ValueError: if this machine can't hold them.
    """
    with torch.device("meta"):
        needed = sum(4 * parameter.numel() for parameter in network.from_config(config).parameters())
    total = psutil.virtual_memory().total
    if needed > total:
        raise ValueError(f"its weights take {needed / 1e9:.3g} GB, and this machine has {total / 1e9:.3g} GB")
