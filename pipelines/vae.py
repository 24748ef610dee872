"""Stock autoencoders as what a latent diffusion model needs of them: latents of unit variance, and back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipelines.arguments import real_numbers

PIXELS_PER_PASS = 2**20  # 16 images of 256 x 256


def shift_and_scale(vae: Any) -> tuple[Tensor, Tensor]:
    """(shift, scale), float32 (1, c or 1, 1, 1): an autoencoder's z is (z - shift) * scale to the network.

    They are what diffusers reads in the autoencoder's configuration: `scaling_factor` with `shift_factor`, or with
    `latents_mean` and `latents_std` for each channel.

    Raises:
        TypeError: for what are no numbers there.
        ValueError: for numbers that aren't finite, or a scale of 0.
    """
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        mean, std = config.get("shift_factor") or 0.0, 1.0
    shift, std = (real_numbers("vae", v).reshape(1, -1, 1, 1) for v in (mean, std))
    scale = real_numbers("vae: scaling_factor", config.get("scaling_factor", 1.0)) / std
    if not scale.isfinite().all() or not scale.all():
        raise ValueError(f"vae: its latents are scaled by {scale.flatten().tolist()}, which can't be undone")
    return shift, scale


def vae_scale_factor(vae: Any) -> int:
    """Side of an image over that of its latents."""
    blocks = vae.config.get("block_out_channels") or vae.config["encoder_block_out_channels"]
    return 2 ** (len(blocks) - 1)


def encode_images(vae: Any, images: Tensor, device: torch.device) -> Tensor:
    """Latents (B, c, h, w), scaled to unit variance, float32 on the images' device: the mean, where encoding is random.

    Args:
        vae: a stock autoencoder.
        images: (B, C, H, W) in [-1, 1].
        device: of the autoencoder.

    Raises:
        ValueError: if latents overflow in float32 too.
    """

    def run(part: Tensor) -> Tensor:
        encoded = vae.encode(part, return_dict=False)[0]
        return encoded if isinstance(encoded, Tensor) else encoded.mode()

    shift, scale = (t.to(images.device) for t in shift_and_scale(vae))
    latents = _in_passes(vae, run, images, images.shape[2] * images.shape[3], device)
    return (latents.to(images.device) - shift) * scale


def decode_latents(vae: Any, latents: Tensor, device: torch.device) -> Tensor:
    """Images (B, C, H, W), float32 in about [-1, 1], on the autoencoder's device.

    Args:
        vae: a stock autoencoder.
        latents: scaled as `encode_images` returns them, (B, c, h, w).
        device: of the autoencoder.

    Raises:
        ValueError: if the images overflow in float32 too.
    """
    shift, scale = (t.to(latents.device) for t in shift_and_scale(vae))
    z = latents.float() / scale + shift
    pixels = z.shape[2] * z.shape[3] * vae_scale_factor(vae) ** 2
    return _in_passes(vae, lambda part: vae.decode(part, return_dict=False)[0], z, pixels, device)


def _in_passes(vae: Any, run: Callable[[Tensor], Tensor], values: Tensor, pixels: int, device: torch.device) -> Tensor:
    """What `run` makes of values (B, ...), float32, few enough of them at a time for the autoencoder's activations.

    It runs in its own precision, but in float32 where that overflows or is known to (`force_upcast`).

    Args:
        vae: the autoencoder.
        run: a pass of it.
        values: images or latents.
        pixels: of an image.
        device: of the autoencoder.

    Raises:
        ValueError: if the result overflows in float32 too.
    """
    own = vae.dtype
    parts = values.to(device).split(max(1, PIXELS_PER_PASS // pixels))
    upcast = own == torch.float16 and vae.config.get("force_upcast")
    try:
        for dtype in [torch.float32] if upcast else dict.fromkeys([own, torch.float32]):
            torch.nn.Module.to(vae, dtype)  # its own `to` would warn of modules to keep in float32: it has none
            made = torch.cat([run(part.to(dtype)).float() for part in parts])
            if made.isfinite().all():
                return made
    finally:
        torch.nn.Module.to(vae, own)
    raise ValueError(f"images: not finite when {type(vae).__name__} makes them or reads them; are they its own?")
