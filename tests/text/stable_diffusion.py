"""Tiny Stable Diffusion pipelines: stock classes, random weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from tests.text.models import tiny_encoder, tiny_tokenizer

SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def tiny_unet(channels: int, width: int = 32) -> UNet2DConditionModel:
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=32,
    )


def tiny_sd(folder: Path, scheduler: Any = None, **parts: Any) -> Path:
    """A folder as `--pretrained_model_name_or_path` takes it."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(2)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=3.5,
    )
    vae.quant_conv.bias.data[4:] = -20  # else the posterior hides the images in noise
    pipeline = StableDiffusionPipeline(
        **{
            "vae": vae,
            "text_encoder": tiny_encoder("clip", len(tokenizer)),
            "tokenizer": tokenizer,
            "unet": tiny_unet(4),
            "scheduler": scheduler or DDIMScheduler(**SCHEDULER),
            "safety_checker": None,
            "feature_extractor": None,
        }
        | parts,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder
