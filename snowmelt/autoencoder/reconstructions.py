"""How well an autoencoder gives images back: metrics, and reconstructions beside originals."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from pipelines import IMAGE_CHANNELS, image_grid
from snowmelt.evaluation.features import FeatureExtractor
from snowmelt.evaluation.metrics import FrechetDistance
from snowmelt.evaluation.real import RealImages

SSIM_SIDE = 11
"""The window of SSIM, and so the smallest side that it is defined for."""


@torch.no_grad()
def reconstruct(vae: Any, images: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1] by way of their latents, the posterior's mean where it is random; on the CPU."""
    encoded = vae.encode((2 * images - 1).to(vae.device), return_dict=False)[0]
    decoded = vae.decode(encoded if isinstance(encoded, Tensor) else encoded.mode()).sample
    return (decoded.float() / 2 + 0.5).clamp(0, 1).cpu()


def measure_reconstructions(
    vae: Any, images: RealImages, rows: np.ndarray, extractor: FeatureExtractor | None, batch_size: int
) -> dict[str, float]:
    """How close reconstructions are to their originals.

    Args:
        vae: the autoencoder.
        images: a split of images.
        rows: those of them that are reconstructed, (N,).
        extractor: of the features of rFD; None to leave it out.
        batch_size: images in a pass.

    Returns:
        `psnr`, in dB, and `ssim`, each the mean over the images, and `rfd`, their Frechet distance to the originals.
        `ssim` is left out for images smaller than its window of 11 pixels.
    """
    psnr: list[Tensor] = []
    ssim: list[Any] = []
    features: list[Tensor] = []
    for part in np.array_split(rows, -(-len(rows) // batch_size)):
        originals = images.batch(part)
        ours = reconstruct(vae, originals)
        psnr.append(peak_signal_noise_ratio(ours, originals, 1.0, reduction="none", dim=(1, 2, 3)))
        if min(originals.shape[2:]) >= SSIM_SIDE:
            ssim.append(structural_similarity_index_measure(ours, originals, reduction="none", data_range=1.0))
        if extractor is not None:
            features.append(torch.stack([extractor(originals), extractor(ours)]))
    values = {"psnr": torch.cat(psnr).mean().item()}
    if ssim:
        values["ssim"] = torch.cat(ssim).mean().item()
    if extractor is not None:
        real, made = torch.cat(features, 1)
        values["rfd"] = FrechetDistance(real)(made)
    return values


def reconstruction_grid(vae: Any, images: RealImages, count: int, path: Path | None) -> np.ndarray:
    """Reconstruct the first images of a split, and save them as one, each with its reconstruction to the right.

    Args:
        vae: the autoencoder.
        images: the split.
        count: images, as far as there are so many.
        path: of the image file; with neither 1, 3 nor 4 channels they are saved as `.npy` instead, float32 in [0, 1].
            None to save nothing.

    Returns:
        Originals and reconstructions in turn, uint8 (2 * count, H, W, C).
    """
    originals = images.batch(np.arange(min(count, len(images))))
    pairs = torch.stack([originals, reconstruct(vae, originals)], 1).flatten(0, 1)  # (2 * count, C, H, W)
    array = pairs.permute(0, 2, 3, 1).numpy()
    pixels: np.ndarray = (array * 255).round().astype(np.uint8)
    if path is None:
        return pixels
    if array.shape[-1] in IMAGE_CHANNELS:
        image_grid(pixels, 2 * max(1, round((len(pixels) / 4) ** 0.5))).save(path)
    else:
        np.save(path.with_suffix(".npy"), array)
    return pixels
