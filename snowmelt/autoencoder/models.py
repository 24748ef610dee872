"""Autoencoders by name: sizes of `AutoencoderKL` and `VQModel` for factors 2 to 16."""

from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel

from pipelines.vae import vae_scale_factor
from snowmelt.autoencoder.options import AutoencoderConfig, AutoencoderOptions
from snowmelt.data.cache import ImageCache
from snowmelt.errors import UserError
from snowmelt.spaces import load_autoencoder
from snowmelt.values import multiples_near, to_resolution

SIZES: dict[str, tuple[int, int]] = {
    # name: (channels at full resolution, residual blocks per level)
    "tiny": (16, 1),
    "small": (32, 1),
    "base": (64, 2),
    "large": (128, 2),  # that of the paper
}

FACTORS: dict[int, tuple[tuple[int, ...], int]] = {
    # side of the image over that of its latents: (multiples of the channels at each level, channels of the latents)
    2: ((1, 2), 2),
    4: ((1, 2, 4), 3),
    8: ((1, 2, 4, 4), 4),
    16: ((1, 1, 2, 2, 4), 16),
}
"""As in Rombach et al. 2022, table 8."""

CLASSES: dict[str, Any] = {"kl": AutoencoderKL, "vq": VQModel}


def make_autoencoder(config: AutoencoderConfig, data: ImageCache) -> Any:
    """A freshly initialized autoencoder for these images, or a pretrained one.

    Raises:
        UserError: for a factor that a side of the images isn't a multiple of, latents of a single place, or of another
            shape than a square, that are to be turned and made smaller, channels that a pretrained one doesn't have, or
            a pretrained one that can't be read.
    """
    vae = _pretrained(config, data) if config.pretrained_model_name_or_path else _fresh(config, data)
    factor = vae_scale_factor(vae)
    height, width = data.size
    resolution = to_resolution(height, width)
    for given in (height, width):
        if given % factor:
            instead = multiples_near(given, factor) + ("" if height == width else f" for {given}")
            raise UserError(f"--resolution {resolution}: not a multiple of the factor {factor}; take {instead}")
    if config.equivariance_prob and height != width:
        raise UserError(f"--equivariance_prob: turns images, so they must be square; --resolution is {resolution}")
    if config.equivariance_prob and height == factor:
        raise UserError(
            f"--equivariance_prob: latents of 1 x 1 can't be made smaller; take --resolution {2 * factor} or more"
        )
    return vae


def named_config(options: AutoencoderOptions, channels: int, side: int) -> dict[str, Any]:
    """Keyword arguments of the autoencoder's class.

    Args:
        options: `regularization`, `model_size`, `downsample_factor` and the sizes of the latents.
        channels: of the images.
        side: of the images in pixels, the longer one; diffusers' tiles are of that side.

    Raises:
        UserError: for an unknown factor.
    """
    factor = options.downsample_factor or 4
    if factor not in FACTORS:
        raise UserError(f"--downsample_factor {factor}: must be one of {', '.join(map(str, FACTORS))}")
    width, layers = SIZES[options.model_size or "small"]
    multipliers, latent_channels = FACTORS[factor]
    config = {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(multipliers),
        "up_block_types": ("UpDecoderBlock2D",) * len(multipliers),
        "block_out_channels": tuple(width * m for m in multipliers),
        "layers_per_block": layers,
        "norm_num_groups": min(32, width // 2),
        "latent_channels": options.latent_channels or latent_channels,
        "sample_size": side,
    }
    return config | ({"num_vq_embeddings": options.num_vq_embeddings} if options.regularization == "vq" else {})


def _fresh(config: AutoencoderConfig, data: ImageCache) -> Any:
    arguments = named_config(config, data.channels, max(data.size))
    torch.manual_seed(config.seed)
    return CLASSES[config.regularization](**arguments)


def _pretrained(options: AutoencoderOptions, data: ImageCache) -> Any:
    name = str(options.pretrained_model_name_or_path)
    for option in ("model_size", "downsample_factor", "latent_channels"):
        if getattr(options, option) is not None:
            raise UserError(f"--{option}: that of --pretrained_model_name_or_path {name} is taken; leave it out")
    kind = CLASSES[options.regularization].__name__
    vae = load_autoencoder(name, (kind,), "--pretrained_model_name_or_path").train().requires_grad_(True)
    if vae.config.in_channels != data.channels:
        raise UserError(
            f"--pretrained_model_name_or_path {name}: takes {vae.config.in_channels} channels, the images have "
            f"{data.channels}; convert images with --channels {vae.config.in_channels}"
        )
    return vae
