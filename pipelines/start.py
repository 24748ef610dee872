"""What a call starts from instead of noise alone: images, of which parts may be kept."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.prediction import NoiseLevel


@dataclass(frozen=True)
class Start:
    """What a call starts from, and what of it is kept.

    Attributes:
        images: float32 (B, C, H, W) in [-1, 1].
        data: what the network makes of them, float32 (B, c, h, w).
        mask: True where pixels are made anew, (B, 1, H, W); None: nothing is kept as it is.
        data_mask: the same for the data, (B, 1, h, w).
        strength: the fraction of the steps that are left to them.
        noise_std: of the noise that they have already, in the data's units; 0: they are clean.
        jump_length: steps that are undone together (Lugmayr et al. 2022, RePaint).
        jump_n_sample: how often steps are made; 1 for once.
    """

    images: Tensor
    data: Tensor
    mask: Tensor | None
    data_mask: Tensor | None
    strength: float
    noise_std: float
    jump_length: int
    jump_n_sample: int

    @property
    def is_unchanged(self) -> bool:
        """Whether no step is left."""
        return self.strength == 0 and not self.noise_std

    @property
    def is_forgotten(self) -> bool:
        """Whether all steps are left, which begin with noise alone."""
        return self.strength == 1 and not self.noise_std

    def pasted(self, images: Tensor) -> Tensor:
        """Generated images (B, C, H, W) in [-1, 1] with the pixels that are kept."""
        return images if self.mask is None else torch.where(self.mask, images, self.images)


def noised(data: Tensor, level: NoiseLevel, noise: Tensor, noise_std: float = 0.0) -> Tensor:
    """x_t = alpha x0 + sigma eps, (B, C, H, W), of data that may have noise of its own already.

    Args:
        data: (B, C, H, W).
        level: with sigma / alpha of at least `noise_std`.
        noise: unit normal, (B, C, H, W).
        noise_std: of the data.
    """
    missing = (level.sigma**2 - (level.alpha * noise_std) ** 2).clamp(min=0).sqrt()
    return level.alpha * data + missing * noise
