"""What the network learns to make, between the cache of decoded images and the loss."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PixelCodec:
    """Pixels: cached values, of whatever type, on a straight line to [-1, 1].

    Args:
        value_range: the raw values that become -1 and 1.
    """

    value_range: tuple[float, float] = (0, 255)

    def from_cache(self, raw: Tensor) -> Tensor:
        """Cached images (B, C, H, W) to x0, float32 of the same shape."""
        low, high = self.value_range
        return raw.to(torch.float32, copy=True).sub_(low).mul_(2 / (high - low)).sub_(1)
