"""Features of real images, computed once and kept beside the decoded images."""

import hashlib
import os
from functools import cached_property

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from snowmelt.evaluation.features import FeatureExtractor
from snowmelt.evaluation.metrics import FrechetDistance
from snowmelt.evaluation.real import RealImages


class Reference:
    """What samples are compared with.

    Args:
        features: (M, D) of the real images.
        title: which these are.
    """

    def __init__(self, features: Tensor, title: str) -> None:
        self.features = features
        self.title = title

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def frechet(self) -> FrechetDistance:
        """Distances to these images."""
        return FrechetDistance(self.features)


def features_of(images: RealImages, extractor: FeatureExtractor, batch_size: int) -> Tensor:
    """Features (N, D) of all images of a split, in its order, from the cache where they have been computed before."""
    key = hashlib.sha256(f"{images.fingerprint} {extractor.fingerprint}".encode()).hexdigest()[:32]
    path = images.cache.path.parent / f"features-{key}.safetensors"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            rows = np.array_split(np.arange(len(images)), max(1, len(images) // batch_size))
            parts = [extractor(images.batch(part)) for part in tqdm(rows, f"features of {images.split}", leave=False)]
            partial = path.with_suffix(".partial")
            save_file({"features": torch.cat(parts)}, partial)
            os.replace(partial, path)
    return load_file(path)["features"]
