"""Randomness that belongs to an image, not to its batch, process or device."""

from collections.abc import Iterable

import numpy as np
import torch

from pipelines.arguments import brief, whole


def image_generators(seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """A CPU generator for each image of a run, by its index, so that results depend on (seed, index) alone.

    torch's CPU generator keeps only 32 bits of its seed, so independent hashes would collide (with even odds
    among 77,000 images). Counting up from a hash of the run's seed gives 2^32 images without a collision.

    Raises:
        TypeError: for what are no whole numbers.
        ValueError: for a seed below 0, or indices that aren't below 2^32.
    """
    seed = whole("seed", seed, 0)
    if isinstance(indices, str) or not isinstance(indices, Iterable):
        raise TypeError(f"indices: must be whole numbers, got {brief(indices)}")
    start = int(np.random.SeedSequence(seed).generate_state(1)[0])
    checked = (whole("indices", index, 0, 2**32 - 1) for index in indices)
    return [torch.Generator().manual_seed((start + index) % 2**32) for index in checked]
