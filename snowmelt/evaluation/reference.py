"""Features of real images, computed once and kept beside the decoded images."""

import hashlib
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from snowmelt.data.locks import locked
from snowmelt.evaluation.features import FeatureExtractor, NoFeatures
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
        """Frechet distances to these images."""
        return FrechetDistance(self.features)


def features_of(images: RealImages, extractor: FeatureExtractor, batch_size: int) -> Tensor:
    """Features (N, D) of all images of a split, in its order, from the cache where they have been computed before.

    Args:
        images: the split.
        extractor: of the features.
        batch_size: images in a pass, at most.
    """
    if isinstance(extractor, NoFeatures):
        return torch.empty(len(images), 0)
    key = hashlib.sha256(f"{images.fingerprint} {extractor.fingerprint}".encode()).hexdigest()[:32]
    path = images.cache.path.parent / f"features-{key}.safetensors"
    with locked(path, f"computing the features of split {images.split}"):
        features = _cached(path, len(images))
        if features is None:
            rows = np.array_split(np.arange(len(images)), -(-len(images) // batch_size))
            parts = [extractor(images.batch(part)) for part in tqdm(rows, f"features of {images.split}", leave=False)]
            features = torch.cat(parts)
            partial = path.with_suffix(".partial")
            save_file({"features": features}, partial)
            os.replace(partial, path)
    return features


def _cached(path: Path, count: int) -> Tensor | None:
    """Features of so many images that were computed before; None where there are none, or the file is damaged."""
    if not path.exists():
        return None
    try:
        features = load_file(path)["features"]
    except (SafetensorError, KeyError):
        features = torch.empty(0)
    if len(features) == count:
        return features
    print(f"{path} is damaged: its features are computed anew", flush=True)
    return None
