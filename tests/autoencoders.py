"""Small real autoencoders, untrained: one of each stock class, and of each way to scale."""

from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


def _blocks(levels: int) -> dict[str, Any]:
    return {"down_block_types": (DOWN,) * levels, "up_block_types": (UP,) * levels, "norm_num_groups": 4}


def tiny_vae(kind: str = "sd", channels: int = 3) -> Any:
    """An autoencoder of a kind, its side of a latent being 4 pixels, or 2 of "sd3" and "vq"."""
    torch.manual_seed(0)
    both = {"in_channels": channels, "out_channels": channels}
    stages = ((), (), ())
    vae = {
        "sd": lambda: AutoencoderKL(**both, **_blocks(3), block_out_channels=(8, 8, 16), sample_size=16),
        "sd3": lambda: AutoencoderKL(
            **both,
            **_blocks(2),
            block_out_channels=(8, 16),
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        "sdxl-like": lambda: AutoencoderKL(
            **both,
            **_blocks(3),
            block_out_channels=(8, 8, 16),
            scaling_factor=0.5,
            latents_mean=(-1.6, 2.4, 1.7, 0.1),
            latents_std=(8.4, 5.9, 4.5, 5.3),
        ),
        "vq": lambda: VQModel(
            **both, **_blocks(2), block_out_channels=(8, 8), latent_channels=6, vq_embed_dim=3, num_vq_embeddings=32
        ),
        "tiny": lambda: AutoencoderTiny(
            **both,
            encoder_block_out_channels=(8,) * 3,
            decoder_block_out_channels=(8,) * 3,
            num_encoder_blocks=(1,) * 3,
            num_decoder_blocks=(1,) * 3,
        ),
        "dc": lambda: AutoencoderDC(
            in_channels=channels,
            latent_channels=8,
            attention_head_dim=4,
            encoder_block_out_channels=(8, 8, 16),
            decoder_block_out_channels=(8, 8, 16),
            encoder_layers_per_block=(1,) * 3,
            decoder_layers_per_block=(1,) * 3,
            encoder_qkv_multiscales=stages,
            decoder_qkv_multiscales=stages,
            decoder_norm_types=("batch_norm", "rms_norm", "rms_norm"),  # as most of those that are published
            scaling_factor=0.4,
        ),
    }[kind]()
    return vae.eval().requires_grad_(False)


KINDS = ("sd", "sd3", "sdxl-like", "vq", "tiny", "dc")
STOCHASTIC = ("sd", "sd3", "sdxl-like")
