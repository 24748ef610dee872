"""Real images as feature extractors take them."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snowmelt.data.cache import ImageCache
from snowmelt.data.captions import Captions


@dataclass(frozen=True)
class RealImages:
    """A split of real images, in the size and the units that the model makes.

    Args:
        cache: the decoded images.
        split: their name.
        value_range: the values that are shown as 0 and 1.
        captions: of the images, for a model of texts.
    """

    cache: ImageCache
    split: str
    value_range: tuple[float, float]
    captions: Captions | None = None

    def __len__(self) -> int:
        return len(self.cache)

    @property
    def labels(self) -> Tensor | None:
        """Classes, (N,) int64, where there are any."""
        return None if self.cache.labels is None else torch.from_numpy(self.cache.labels)

    @property
    def fingerprint(self) -> str:
        """Differs wherever pixels, their units or labels do."""
        labels = b"" if self.cache.labels is None else self.cache.labels.tobytes()
        return hashlib.sha256(f"{self.cache.fingerprint}{self.value_range}".encode() + labels).hexdigest()

    def batch(self, rows: np.ndarray) -> Tensor:
        """Images (B, C, H, W), float32 in [0, 1]; of larger ones, the centre."""
        low, high = self.value_range
        return torch.from_numpy(self.cache.gather(rows, None)).float().sub_(low).div_(high - low).clamp_(0, 1)
