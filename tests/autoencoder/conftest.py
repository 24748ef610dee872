"""The digits, and options for tiny networks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from snowmelt.autoencoder.options import AutoencoderConfig
from snowmelt.data.cache import ImageCache
from snowmelt.data.sources import load_images

LEVELS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "sample_size": 8,
}


@pytest.fixture(scope="session")
def config(cache_dir: Path) -> Callable[..., AutoencoderConfig]:
    """Options of a run on the digits; some may be replaced."""
    usual = {"dataset_name": "digits", "resolution": 8, "center_crop": True, "cache_dir": cache_dir, "disc_width": 4}
    return lambda **options: AutoencoderConfig(**usual | options)


@pytest.fixture(scope="session")
def data(config: Callable[..., AutoencoderConfig]) -> ImageCache:
    return load_images(config())


def make_kl(channels: int = 1, latent_channels: int = 2, seed: int = 0) -> AutoencoderKL:
    """Images of 8 pixels to latents of 4."""
    torch.manual_seed(seed)
    return AutoencoderKL(in_channels=channels, out_channels=channels, latent_channels=latent_channels, **LEVELS)


def make_vq(channels: int = 1, codes: int = 16, seed: int = 0) -> VQModel:
    torch.manual_seed(seed)
    return VQModel(
        in_channels=channels,
        out_channels=channels,
        latent_channels=2,
        num_vq_embeddings=codes,
        vq_embed_dim=2,
        **LEVELS,
    )
