"""Real images beside what a model makes, and the features in which both are compared."""

import numpy as np
import PIL.Image
import torch

from pipelines import image_grid
from snowmelt.data.sources import load_images
from snowmelt.evaluation.features import FeatureExtractor, make_features
from snowmelt.evaluation.real import RealImages
from snowmelt.options import DataOptions

SHOWN_SIDE = 64
"""Side in pixels to which images are enlarged, as far as a whole factor gets."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_splits(dataset_name: str, side: int, held_out_split: str) -> tuple[RealImages, RealImages]:
    """The training split and one held out, square images of that side."""
    options = {"dataset_name": dataset_name, "resolution": side, "center_crop": True}
    caches = {split: load_images(DataOptions(**options, split=split)) for split in ("train", held_out_split)}
    train, held_out = (RealImages(cache, split, cache.value_range) for split, cache in caches.items())
    return train, held_out


def classifier_features(train: RealImages, held_out: RealImages) -> FeatureExtractor:
    """Those of a classifier trained on the one split and judged on the other."""
    return make_features("classifier", train, held_out, DEVICE)


def picture(images: torch.Tensor, columns: int) -> PIL.Image.Image:
    """Images (N, C, H, W) in [0, 1] in rows of so many, in colour, small ones enlarged."""
    pixels = (images * 255).round().byte().movedim(1, -1).numpy()
    grid = image_grid(np.ascontiguousarray(pixels), columns).convert("RGB")
    scale = max(1, SHOWN_SIDE // images.shape[2])
    return grid.resize((scale * grid.width, scale * grid.height), PIL.Image.Resampling.NEAREST)


def first(images: RealImages, count: int) -> torch.Tensor:
    """The first images of a split, (B, C, H, W) in [0, 1]."""
    return images.batch(np.arange(min(count, len(images))))
