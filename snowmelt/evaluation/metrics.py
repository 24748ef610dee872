"""Numbers that compare two sets of images by their features.

Features are (N, D) on the CPU, float32 or float64; all sums are in float64. torchmetrics computes what it has; it is
given the features as they are, through the identity in place of its own network.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import poly_kernel

from snowmelt.errors import UserError

KERNEL_IMAGES = 10_000
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
        # Every process that computes has all features: to add up those of the others would count them twice.
        self._metric = FrechetInceptionDistance(
            _Identity(reference.shape[1]), reset_real_features=False, sync_on_compute=False
        )
        self._metric.update(reference.double(), real=True)

    def __call__(self, samples: Tensor) -> float:
        _at_least(2, samples)
        self._metric.reset()
        self._metric.update(samples.double(), real=False)
        return self._metric.compute().item()

    def at_infinity(self, samples: Tensor, seed: int = 0, points: int = 15) -> Estimate:
        """The distance that infinitely many samples would have (Chong & Forsyth 2020, section 4).

        The bias is proportional to 1/N where N is well above the number of features D. So there a line through the
        distances of random subsets, of N/10 or 2 D to N samples, over 1/N, shows what is left at 0. The error is that
        of the line's intercept; it leaves out the reference's own bias.

        Args:
            samples: features, (N, D).
            seed: of the subsets.
            points: number of subsets.

        Raises:
            UserError: for fewer than 5 D samples.
        """
        dimensions = samples.shape[1]
        _at_least(5 * dimensions, samples)
        rng = np.random.default_rng(seed)
        counts = np.linspace(max(len(samples) // 10, 2 * dimensions), len(samples), points).astype(int)
        distances = [self(samples[rng.permutation(len(samples))[:n]]) for n in counts]
        (_, intercept), covariance = np.polyfit(1 / counts, distances, 1, cov=True)
        return Estimate(float(intercept), float(covariance[1, 1] ** 0.5))


def frechet_bias(features: Tensor, samples: int, reference: int) -> float:
    """The Frechet distance that two finite sets of one normal distribution have, about.

    Means differ by tr C (1/N + 1/M). Covariances that differ by a small D are (1/2) sum D_ij^2 / (l_i + l_j) apart in
    the eigenbasis of C, and the variance of D_ij is l_i l_j (1 + [i = j]) (1/N + 1/M).

    Args:
        features: (K, D) of the distribution; K may be larger than N and M.
        samples: N.
        reference: M.
    """
    values = torch.linalg.eigvalsh(features.double().T.cov()).clamp(min=1e-12)
    pairs = values[:, None] * values / (values[:, None] + values)  # (D, D)
    return (values.sum() + (pairs.sum() + pairs.trace()) / 2).item() * (1 / samples + 1 / reference)


def kernel_distance(samples: Tensor, reference: Tensor, seed: int = 0) -> Estimate:
    """KID: the unbiased squared MMD of the kernel (x y / D + 1)^3 (Binkowski et al. 2018, section 4).

    It is that of all images, as many of both sets, at random and at most 10,000; its standard error is a jackknife's
    over ten parts, which is 1.4 times too large where the distributions agree. The usual mean over random subsets
    knows less, and their standard deviation is no error of it.

    Args:
        samples: features, (N, D).
        reference: features, (M, D).
        seed: of the choice of images and of their parts.

    Raises:
        UserError: for fewer than 20 images in a set.
    """
    parts = 10
    size = min(len(samples), len(reference), KERNEL_IMAGES) // parts
    _at_least(2 * parts, samples, reference)
    rng = np.random.default_rng(seed)
    a, b = (x[rng.permutation(len(x))[: parts * size]].double().split(size) for x in (samples, reference))
    # Sums of the kernel over pairs of parts, (10, 10); an image's pair with itself isn't counted.
    own = torch.stack([poly_kernel(x, x).trace() + poly_kernel(y, y).trace() for x, y in zip(a, b, strict=True)])
    within, across = _kernel_sums(a, a) + _kernel_sums(b, b) - torch.diag(own), _kernel_sums(a, b)

    def of(kept: list[int]) -> float:
        n = len(kept) * size
        return (within[kept][:, kept].sum() / (n * (n - 1)) - 2 * across[kept][:, kept].sum() / n**2).item()

    without = np.array([of([i for i in range(parts) if i != left]) for left in range(parts)])
    return Estimate(of(list(range(parts))), float(np.sqrt((parts - 1) * without.var())))


def _kernel_sums(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Sums of KID's kernel over all pairs of two parts, (parts of a, parts of b)."""
    return torch.stack([torch.stack([poly_kernel(x, y).sum() for y in b]) for x in a])


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
        metric = InceptionScore(_Identity(logits.shape[1]), splits=splits, sync_on_compute=False)
        metric.update(logits.double())
        mean, std = metric.compute()
    return Estimate(mean.item(), std.item() / splits**0.5)


def precision_recall(samples: Tensor, reference: Tensor, k: int = 3) -> tuple[float, float]:
    """Fraction of samples within the reference's manifold, and the other way (Kynkaanniemi et al. 2019, eq. 1).

    The manifold is the union of the balls around a set's images that reach to their k-th nearest neighbours.

    Args:
        samples: features, (N, D).
        reference: features, (M, D).
        k: which neighbour, an image itself not counted.

    Returns:
        Precision and recall, each in [0, 1].

    Raises:
        UserError: for fewer than k + 1 images in a set.
    """
    _at_least(k + 1, samples, reference)
    return _share_within(samples, reference, k), _share_within(reference, samples, k)


def density_coverage(samples: Tensor, reference: Tensor, k: int = 5) -> tuple[float, float]:
    """How many of the reference's balls a sample is in, over k, and the fraction of balls with a sample in them.

    (Naeem et al. 2020, eq. 3 and 4; both are 1 in expectation, the second nearly, when the distributions agree.)

    Args:
        samples: features, (N, D).
        reference: features, (M, D).
        k: a ball reaches to its image's k-th nearest neighbour in the reference.

    Returns:
        Density, at least 0, and coverage, in [0, 1].

    Raises:
        UserError: for fewer than k + 1 images in a set.
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
    """Fraction of images that a classifier recognises as their label, with its binomial standard error.

    Args:
        logits: (N, K).
        labels: (N,) int64.
    """
    right = (logits.argmax(1) == labels).double().mean().item()
    return Estimate(right, (right * (1 - right) / len(labels)) ** 0.5)


def _share_within(points: Tensor, centres: Tensor, k: int) -> float:
    """Fraction of points that are in one of the balls around `centres`."""
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
