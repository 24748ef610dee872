"""How close images are to the ones that they should be."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

SSIM_SIDE = 11
"""The window of SSIM, and so the smallest side that it is defined for."""


def closeness(samples: Tensor, originals: Tensor) -> Tensor:
    """PSNR in dB and SSIM of samples (B, C, H, W) in [0, 1], (B, 2); SSIM is NaN below 11 pixels.

    The squared error counts at least as that of rounding to 16 bits, so that exact images have a PSNR of 107 dB.
    """
    error = (samples - originals).square().mean((1, 2, 3)).clamp(min=1 / 12 / 65535**2)
    psnr = -10 * error.log10()
    ssim: Any = torch.full_like(psnr, torch.nan)
    if min(originals.shape[2:]) >= SSIM_SIDE:
        ssim = structural_similarity_index_measure(samples, originals, reduction="none", data_range=1.0)
    return torch.stack([psnr, ssim], 1)
