"""Numbers that compare two sets of images by their features.

Features are (N, D) on the CPU, float32 or float64; all sums are in float64. torchmetrics computes what it has; it is
given the features as they are, through the identity in place of its own network.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import poly_mmd

from snowmelt.errors import UserError

ROWS = 1024
"""Rows of a matrix of distances that are in memory at once."""


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, where that is known."""

    value: float
    error: float | None = None


class _Identity(nn.Module):
    """What torchmetrics takes for its network: it is given features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class FrechetDistance:
    """Frechet distances of many sets of features to one reference, whose statistics are computed once.

    |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al. 2017, eq. 6).
    """

    def __init__(self, reference: Tensor) -> None:
        _at_least(2, reference)
        self._metric = FrechetInceptionDistance(_Identity(reference.shape[1]), reset_real_features=False)
        self._metric.update(reference.double(), real=True)

    def __call__(self, samples: Tensor) -> float:
        _at_least(2, samples)
        self._metric.reset()
        self._metric.update(samples.double(), real=False)
        return self._metric.compute().item()

    def at_infinity(self, samples: Tensor, seed: int = 0, points: int = 15) -> Estimate:
        """The distance that infinitely many samples would have (Chong & Forsyth 2020, section 4).

        Its bias is proportional to 1/N, so a line through the distances of random subsets of N/10 to N samples, over
        1/N, meets 0 there. The error is that of the line's intercept; it leaves out the reference's own bias.
        """
        _at_least(20, samples)
        rng = np.random.default_rng(seed)
        counts = np.linspace(len(samples) // 10, len(samples), points).astype(int)
        distances = [self(samples[rng.permutation(len(samples))[:n]]) for n in counts]
        (_, intercept), covariance = np.polyfit(1 / counts, distances, 1, cov=True)
        return Estimate(float(intercept), float(covariance[1, 1] ** 0.5))


def bias_of_frechet(features: Tensor, samples: int, reference: int) -> float:
    """The Frechet distance that two finite sets of one distribution have, about, for normal isotropic features.

    To second order (tr C) (1 + (D + 1) / 4) (1/N + 1/M): the means differ by tr C (1/N + 1/M), and the covariances by
    as much for each pair of dimensions, of which the square root leaves a quarter.
    """
    dimensions = features.shape[1]
    return float(features.double().var(0).sum()) * (1 + (dimensions + 1) / 4) * (1 / samples + 1 / reference)


def kernel_distance(samples: Tensor, reference: Tensor, seed: int = 0) -> Estimate:
    """KID: the unbiased squared MMD of the kernel (x y / D + 1)^3 (Binkowski et al. 2018, section 4).

    It is the mean over ten or more disjoint random blocks of at most 1,000 images of each set. These are independent,
    so the standard error is that of their mean; blocks drawn anew each time, as is usual, would understate it.
    """
    _at_least(20, samples, reference)
    rng = np.random.default_rng(seed)
    count = min(len(samples), len(reference))
    size = min(1000, count // 10)
    ours, theirs = (x[rng.permutation(len(x))[:count]].double().split(size) for x in (samples, reference))
    blocks = torch.stack([poly_mmd(a, b) for a, b in zip(theirs, ours, strict=True) if len(a) == size])
    return Estimate(blocks.mean().item(), (blocks.std() / len(blocks) ** 0.5).item())


def inception_score(logits: Tensor, seed: int = 0) -> Estimate:
    """exp E KL(p(y|x) || p(y)) over ten parts (Salimans et al. 2016), its error that of the parts' mean.

    Args:
        logits: (N, K) of a classifier.
    """
    _at_least(20, logits)
    splits = 10
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features")
        torch.manual_seed(seed)  # it shuffles by torch's own generator
        metric = InceptionScore(_Identity(logits.shape[1]), splits=splits)
        metric.update(logits.double())
        mean, deviation = metric.compute()
    return Estimate(mean.item(), deviation.item() / splits**0.5)


def precision_recall(samples: Tensor, reference: Tensor, k: int = 3) -> tuple[float, float]:
    """Share of samples within the manifold of the reference, and the other way (Kynkaanniemi et al. 2019, eq. 1).

    The manifold is the union of the balls around a set's images that reach to their k-th nearest neighbours.
    """
    _at_least(k + 1, samples, reference)
    return _share_within(samples, reference, k), _share_within(reference, samples, k)


def density_coverage(samples: Tensor, reference: Tensor, k: int = 5) -> tuple[float, float]:
    """How many of the reference's balls a sample is in, over k, and the share of balls with a sample in them.

    (Naeem et al. 2020, eq. 3 and 4; both are 1 in expectation, the second nearly, when the distributions agree.)
    """
    _at_least(k + 1, samples, reference)
    radii = _radii(reference, k)
    inside = torch.zeros(len(samples), dtype=torch.long)
    covered = []
    for part, radius in zip(reference.split(ROWS), radii.split(ROWS), strict=True):
        hits = _distances(part, samples) < radius[:, None]  # (rows, N)
        inside += hits.sum(0)
        covered.append(hits.any(1))
    return inside.double().mean().item() / k, torch.cat(covered).double().mean().item()


def accuracy(logits: Tensor, labels: Tensor) -> Estimate:
    """Share of images that a classifier recognises as their label, with its binomial standard error.

    Args:
        logits: (N, K).
        labels: (N,) int64.
    """
    right = (logits.argmax(1) == labels).double().mean().item()
    return Estimate(right, (right * (1 - right) / len(labels)) ** 0.5)


def _share_within(points: Tensor, centres: Tensor, k: int) -> float:
    """Share of points that are in one of the balls around `centres`."""
    radii = _radii(centres, k)
    inside = [(_distances(part, centres) <= radii).any(1) for part in points.split(ROWS)]
    return torch.cat(inside).double().mean().item()


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest neighbour, itself not counted, (N,)."""
    return torch.cat([_distances(part, points).kthvalue(k + 1).values for part in points.split(ROWS)])


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean, (A, B), in float64: in float32 the fast way by inner products loses what is close."""
    return torch.cdist(a.double(), b.double(), compute_mode="use_mm_for_euclid_dist")


def _at_least(count: int, *sets: Tensor) -> None:
    """Raises: UserError: if a set has too few images."""
    least = min(map(len, sets))
    if least < count:
        raise UserError(f"--num_images: {least} images are too few for this metric, which needs {count}")
