"""What the network learns to make, between the cache of decoded images and the loss."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Codec(Protocol):
    """Turns what the cache holds into what the network learns to make."""

    def from_cache(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """Cached values (B, ...) to x0, float32 (B, c, h, w), drawing from the generator where that is random."""


@dataclass(frozen=True)
class PixelCodec:
    """Pixels: cached values, of whatever type, on a straight line to [-1, 1].

    Args:
        value_range: the raw values that become -1 and 1.
    """

    value_range: tuple[float, float] = (0, 255)

    def from_cache(self, raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Cached images (B, C, H, W) to x0, float32 of the same shape."""
        low, high = self.value_range
        return raw.to(torch.float32, copy=True).sub_(low).mul_(2 / (high - low)).sub_(1)
