"""Whether a model repeats its training images: each sample's nearest ones, by pixels and by features.

A small distance alone proves nothing: dull images are near to everything. So a sample's distance to its nearest
training image is divided by the mean of those to its 50 nearest (Carlini et al. 2023, section 5.1), and what is
usual is known from images that were not trained on, measured in the same way (Meehan et al. 2020). Mirror images count
as copies.
"""

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from pipelines import IMAGE_CHANNELS
from snowmelt.errors import UserError
from snowmelt.evaluation.features import FeatureExtractor
from snowmelt.evaluation.real import RealImages
from snowmelt.evaluation.reference import features_of

NEIGHBOURS = 50
QUANTILE = 0.01
HELD_OUT = 5000
"""At most so many held-out images, evenly spread over their split, say what is usual."""
SAME = 0.5 / 255
"""Held-out images this near to a training image, as a root mean square, are that image: nothing is held out of them."""
ROWS = 1024
NUMBERS = 2**24
"""Rows of a matrix of distances, and numbers of training images, that are in memory at once."""


@dataclass(frozen=True)
class Nearest:
    """What is nearest to each of N samples, in one space.

    Attributes:
        space: "pixels", or the extractor's name.
        indices: (N,) int64, of the nearest training images.
        distances: (N,) to them, Euclidean; of pixels the root mean square difference, values being in [0, 1].
        ratios: (N,) distance over the mean of those to the 50 nearest: 0 for a copy, 1 for what is near to none.
        usual: (M,) the same ratios of images that were not trained on.
    """

    space: str
    indices: Tensor
    distances: Tensor
    ratios: Tensor
    usual: Tensor

    @cached_property
    def threshold(self) -> float:
        """The ratio that one in a hundred held-out images is below."""
        return self.usual.quantile(QUANTILE).item()

    @property
    def fraction(self) -> float:
        """Fraction of samples with a ratio below the threshold: about 0.01 if it copies no more than chance does."""
        return (self.ratios < self.threshold).double().mean().item()

    @property
    def closer(self) -> float:
        """Probability that a sample's ratio is below a held-out image's: 0.5 when all is well, 1 for copies.

        It is the statistic of Mann and Whitney, with which Meehan et al. 2020 test for copying.
        """
        pairs = len(self.usual) * len(self.ratios)
        return float(mannwhitneyu(self.usual, self.ratios).statistic / pairs)


@dataclass(frozen=True)
class Memorization:
    """What `memorization` found.

    Attributes:
        spaces: pixels, and features where there is an extractor.
        compared: what gives the usual distance, and how many images of it.
        duplicates: how many more of it were left out, being training images themselves.
    """

    spaces: tuple[Nearest, ...]
    compared: str
    duplicates: int

    @property
    def order(self) -> Tensor:
        """(N,) numbers of the samples, the most suspect in any space first."""
        relative = torch.stack([space.ratios / max(space.threshold, 1e-9) for space in self.spaces])
        return relative.amin(0).argsort(stable=True)


def memorization(
    samples: Tensor, train: RealImages, held_out: RealImages | None, extractor: FeatureExtractor | None
) -> Memorization:
    """Look for copies of training images among samples.

    Samples and held-out images are in memory twice; of the training images there are a few at a time.

    Args:
        samples: (N, C, R, R), float32 in [0, 1].
        train: what the model was trained on.
        held_out: others of the kind; without them training images are compared with the rest of their own.
        extractor: of features; None to compare pixels alone.

    Raises:
        UserError: if samples and images are of different shapes, or there are too few of them.
    """
    shape = (train.cache.channels, *train.cache.size)
    if tuple(samples.shape[1:]) != shape:
        raise UserError(f"memorization: samples of shape {tuple(samples.shape[1:])}, training images of {shape}")
    if len(train) < 3 or not len(samples):
        raise UserError(f"memorization: needs a sample and 3 training images, has {len(samples)} and {len(train)}")
    source = train if held_out is None else held_out
    rows = np.linspace(0, len(source) - 1, min(len(source), HELD_OUT)).astype(int)
    images = torch.cat([samples, source.batch(rows)])
    pixels = _nearest(images.flatten(1), images.flip(-1).flatten(1), _pixels(train))
    found = [("pixels", pixels[0] / images[0].numel() ** 0.5, pixels[1])]
    if extractor is not None:
        plain, mirrored = (torch.cat([extractor(part) for part in x.split(ROWS)]) for x in (images, images.flip(-1)))
        features = features_of(train, extractor, ROWS)
        found.append((extractor.name, *_nearest(plain, mirrored, iter(features.split(ROWS)))))
    n, own = len(samples), int(held_out is None)  # a training image's nearest is itself
    fresh = found[0][1][n:, own] >= SAME
    if not fresh.any():
        raise UserError(f"memorization: all images of {source.split} are training images; give a split of others")
    spaces = [
        Nearest(
            space=name,
            indices=indices[:n],
            distances=distances[:n, 0],
            ratios=_ratio(distances[:n, :NEIGHBOURS]),
            usual=_ratio(distances[n:, own : NEIGHBOURS + own])[fresh],
        )
        for name, distances, indices in found
    ]
    kind = f"images of {source.split}" + (", each against the others" if own else "")
    return Memorization(tuple(spaces), f"{int(fresh.sum())} {kind}", int((~fresh).sum()))


def draw_closest(samples: Tensor, train: RealImages, found: Memorization, path: Path, count: int = 8) -> None:
    """Draw the most suspect samples, each beside its nearest training image in every space.

    Args:
        samples: (N, C, R, R), float32 in [0, 1].
        train: the training images that they were compared with.
        found: the result of the comparison.
        path: of the image file.
        count: samples that are shown.

    Raises:
        UserError: for images that have neither 1, 3 nor 4 channels.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if samples.shape[1] not in IMAGE_CHANNELS:
        raise UserError(f"memorization: PIL has no image of {samples.shape[1]} channels")
    rows = found.order[:count]
    columns = 1 + len(found.spaces)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06)  # inches
    figure = Figure(figsize=(1.9 * columns, 2.0 * len(rows)), layout=layout)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, row in zip(grid, rows.tolist(), strict=True):
        _show(axes[0], samples[row], f"sample {row}")
        for place, space in zip(axes[1:], found.spaces, strict=True):
            index = int(space.indices[row])
            where = textwrap.fill(f"nearest in {space.space.split(' (')[0]}", 30)
            title = f"{where}\nimage {index}, ratio {space.ratios[row]:.2f}"
            _show(place, train.batch(np.array([index]))[0], title)
    figure.savefig(path, dpi=110)


def _show(axes, image: Tensor, title: str) -> None:  # type: ignore[no-untyped-def]
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=6)
    axes.set_axis_off()


def _pixels(images: RealImages) -> Iterator[Tensor]:
    size = max(1, min(ROWS, NUMBERS // (images.cache.channels * math.prod(images.cache.size))))
    for start in range(0, len(images), size):
        yield images.batch(np.arange(start, min(start + size, len(images)))).flatten(1)


def _nearest(plain: Tensor, mirrored: Tensor, train: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Distances (Q, 51) to the nearest training images, ascending, and the number (Q,) of the nearest.

    Args:
        plain: (Q, D), what is looked for.
        mirrored: (Q, D), the same of the mirror images.
        train: blocks (B, D) of the training images; of fewer than 51, all are returned.
    """
    distances = torch.empty(len(plain), 0, dtype=torch.float64)
    indices = torch.empty(len(plain), 0, dtype=torch.long)
    position = 0
    for block in train:
        parts = []
        for queries in zip(plain.split(ROWS), mirrored.split(ROWS), strict=True):
            # In float64: in float32 the inner products leave nothing of a small distance.
            both = [torch.cdist(q.double(), block.double(), compute_mode="use_mm_for_euclid_dist") for q in queries]
            parts.append(torch.minimum(*both))
        numbers = torch.arange(position, position + len(block)).expand(len(plain), -1)
        position += len(block)
        distances = torch.cat([distances, torch.cat(parts)], 1)
        indices = torch.cat([indices, numbers], 1)
        kept = distances.topk(min(NEIGHBOURS + 1, position), largest=False)
        distances, indices = kept.values, indices.gather(1, kept.indices)
    return distances, indices[:, 0]


def _ratio(distances: Tensor) -> Tensor:
    """The nearest distance over the mean of all (Q, K); 0 where all are 0."""
    return (distances[:, 0] / distances.mean(1)).nan_to_num(0.0)
