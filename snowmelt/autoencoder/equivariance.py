"""EQ-VAE: latents that are turned and made smaller must decode to images that are (Kouzelis et al. 2025).

With some probability, a batch's latents z are transformed before they are decoded, and every loss of the reconstruction
is taken against the transformed images:

L(tau(x), D(tau(z))) in place of L(x, D(z))

tau is that of the authors' code (zelaki/eqvae): a scale of at least 1/4 and less than 1, then 1 to 3 quarter turns, one
for a whole batch, by bilinear interpolation of latents and images alike. What differs:
- Their scale is a multiple of 1/32; here it is what gives the latents a whole number of places. For latents of 32 x 32
  that is the same.
- In a quarter of the batches that aren't transformed, they encode smaller images; that is left out.
- Images smaller than the discriminator or LPIPS can take are enlarged for these two.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

EQUIVARIANCE = 0xE0  # the purpose of the random numbers here, so that they are no others'


class Transformation(NamedTuple):
    """tau: a change of the side by the factor `side` / `of`, then quarter turns."""

    side: int
    of: int
    turns: int

    def __call__(self, x: Tensor) -> Tensor:
        """Square latents or images (B, C, S, S), with S a multiple of `of`, to (B, C, S side / of, S side / of)."""
        if self.side != self.of:
            size = x.shape[-1] * self.side // self.of
            x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        return torch.rot90(x, self.turns, (2, 3)) if self.turns else x


IDENTITY = Transformation(1, 1, 0)


def draw_transformation(side: int, probability: float, seed: int) -> Transformation:
    """With this probability a transformation of latents, all sizes and turns being equally likely; else the identity.

    Drawn on the CPU, since the shapes of a step depend on it and no step may wait for the device.

    Args:
        side: of the latents, at least 2.
        probability: from 0 to 1.
        seed: of the draw.
    """
    rng = np.random.default_rng([EQUIVARIANCE, seed])
    if rng.random() >= probability:
        return IDENTITY
    return Transformation(int(rng.integers(-(-side // 4), side)), side, int(rng.integers(1, 4)))


def enlarged(images: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) as they are, or enlarged until the shorter side is what a network needs at least."""
    height, width = images.shape[2:]
    shorter = min(height, width)
    if shorter >= side:
        return images
    size = (height * side // shorter, width * side // shorter)
    return F.interpolate(images, size, mode="bilinear", align_corners=False)
