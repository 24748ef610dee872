"""Augmentation that doesn't leak into samples, as the network is conditioned on it (Karras et al. 2022, appendix F.2).

Eight parameters a move an image (their table 6); nine numbers made of them are conditions of the network, all 0 for an
image that is as it was, which is what is sampled. Networks of diffusers have no argument for such: they enter as planes
of input.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

AUGMENT_CHANNELS = 9
SCALE = 2**0.2
"""Standard deviation of the factors by which images are scaled and stretched, as a factor."""
SHIFT = 1 / 8
"""Standard deviation of translations, in widths and heights of the image."""


@dataclass(frozen=True)
class Augmentation:
    """Random flips, scales, rotations, stretches and translations.

    Args:
        p: probability of each but the horizontal flip, which half of the images get; 0 for none at all.
    """

    p: float

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augmented images, and the network's condition on what was done, as constant planes.

        Args:
            images: float32 (B, C, H, W).
            generator: of the parameters, on the images' device.

        Returns:
            Images (B, C, H, W), and planes (B, 9, H, W).
        """
        size = (len(images), AUGMENT_CHANNELS, *images.shape[2:])
        if not self.p:
            return images, images.new_zeros(size)
        a = draw(len(images), self.p, generator)
        return transform(images, a), conditions(a)[..., None, None].expand(size)


def draw(n: int, p: float, generator: torch.Generator) -> Tensor:
    """Parameters a of n images, float32 (n, 8); 0 for what an image is spared.

    Args:
        n: number of images.
        p: probability of each transformation but the horizontal flip.
        generator: of all that is random, on the device of the result.
    """
    device = generator.device
    uniform = torch.rand(n, 4, generator=generator, device=device)
    normal = torch.randn(n, 4, generator=generator, device=device)
    flips, angles = (uniform[:, :2] < 0.5).float(), math.pi * (2 * uniform[:, 2:] - 1)
    a = torch.cat([flips, normal[:, :1], angles, normal[:, 1:]], 1)
    # x-flip | y-flip | scaling | rotation | anisotropy, angle and factor | translation, x and y
    chosen = torch.rand(n, 5, generator=generator, device=device) < p
    kept = chosen.repeat_interleave(torch.tensor([1, 1, 1, 2, 2], device=device), 1, output_size=7)
    return torch.cat([a[:, :1], a[:, 1:] * kept], 1)


def conditions(a: Tensor) -> Tensor:
    """The network's condition on parameters (B, 8): (B, 9), without the jump that an angle makes."""
    flips, scale, rotation, angle, stretch, shifts = a.split([2, 1, 1, 1, 1, 2], 1)
    turned = torch.cat([rotation.cos() - 1, rotation.sin()], 1)
    stretched = torch.cat([stretch * angle.cos(), stretch * angle.sin()], 1)
    return torch.cat([flips, scale, turned, stretched, shifts], 1)


def transform(images: Tensor, a: Tensor) -> Tensor:
    """Images (B, C, H, W), moved as parameters (B, 8) say, interpolated by cubics and mirrored beyond their edges.

    Those whose parameters are 0 stay as they are, to the last bit.
    """
    height, width = images.shape[2:]
    rows, columns = ((2 * torch.arange(side, device=images.device) + 1) / side - 1 for side in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")  # in [-1, 1], of the pixels of the result
    flip_x, flip_y, scale, rotation, angle, stretch, shift_x, shift_y = a[..., None, None].unbind(1)
    # Where in the image they come from: what was done to it, undone from the last to the first.
    x, y = x - 2 * SHIFT * shift_x, y - 2 * SHIFT * shift_y
    x = x * (width / height)  # in halves of the height, as y is
    x, y = _rotate(x, y, -angle)
    x, y = _rotate(x * SCALE**-stretch, y * SCALE**stretch, angle)
    x, y = _rotate(x, y, -rotation)
    x, y = x * SCALE**-scale * (1 - 2 * flip_x), y * SCALE**-scale * (1 - 2 * flip_y)
    grid = torch.stack([x * (height / width), y], -1)
    moved = torch.nn.functional.grid_sample(
        images, grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return torch.where(a.any(1).view(-1, 1, 1, 1), moved, images)


def _rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y
