"""Each metric against a reference of its own, written out in float64, or a closed form."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from snowmelt.errors import UserError
from snowmelt.evaluation import metrics
from snowmelt.evaluation.metrics import FrechetDistance


def normal(count: int, dimensions: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Correlated normal features whose variances are unequal."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, dimensions, generator=generator) @ mixing + shift


def scipy_frechet(a: Tensor, b: Tensor) -> float:
    x, y = a.double().numpy(), b.double().numpy()
    covariances = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(covariances[0] @ covariances[1]).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root))


def test_frechet_agrees_with_scipy() -> None:
    reference = normal(300, 16)
    distance = FrechetDistance(reference)
    for samples in (normal(200, 16, 1), normal(500, 16, 2, shift=0.5), 3 * normal(100, 16, 3) + 100):
        assert distance(samples) == pytest.approx(scipy_frechet(samples, reference), rel=1e-9)


def test_frechet_of_known_normals() -> None:
    """Diagonal covariances: sum (m - n)^2 + (s - t)^2, in whatever precision the features come."""
    x = normal(100, 4).double()
    x = torch.linalg.solve(torch.linalg.cholesky((x - x.mean(0)).T.cov()), (x - x.mean(0)).T).T  # exactly N(0, 1)
    scales = torch.tensor([1.0, 2.0, 3.0, 0.5]).double()
    expected = 4 * 0.25 + (scales - 1).square().sum().item()
    assert FrechetDistance(x)(x * scales + 0.5) == pytest.approx(expected, rel=1e-9)
    assert FrechetDistance(x.float())((x * scales + 0.5).float()) == pytest.approx(expected, rel=1e-5)


def test_frechet_bias_is_what_finite_sets_have() -> None:
    everything = normal(100_000, 8)
    found = [FrechetDistance(normal(1000, 8, 2 * i + 1))(normal(400, 8, 2 * i + 2)) for i in range(30)]
    assert np.mean(found) == pytest.approx(metrics.frechet_bias(everything, 400, 1000), rel=0.1)


def test_frechet_at_infinity() -> None:
    """A shift by 1 in each of 8 dimensions, seen through few samples."""
    distance = FrechetDistance(normal(200_000, 8))
    samples = normal(300, 8, seed=5, shift=1.0)
    estimate = distance.at_infinity(samples)
    assert abs(estimate.value - distance(samples)) > 0.5 * metrics.frechet_bias(samples, 300, 200_000)
    assert abs(estimate.value - scipy_frechet(samples, samples) - 8) < 2.5  # the means alone scatter by 2
    repeated = np.mean([distance.at_infinity(normal(300, 8, seed=i)).value for i in range(10, 30)])
    biased = np.mean([distance(normal(300, 8, seed=i)) for i in range(10, 30)])
    assert abs(repeated) < biased / 3
    with pytest.raises(UserError, match="which needs 40"):
        distance.at_infinity(samples[:39])


def kernel(x: np.ndarray, y: np.ndarray) -> float:
    return (float(x @ y) / len(x) + 1) ** 3


def test_kernel_distance_is_the_unbiased_one() -> None:
    a, b = normal(30, 5).double().numpy(), normal(30, 5, 1, shift=0.3).double().numpy()
    n = len(a)
    within = sum(kernel(s[i], s[j]) for s in (a, b) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    across = sum(kernel(x, y) for x in a for y in b) / n**2
    estimate = metrics.kernel_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert estimate.value == pytest.approx(within - 2 * across, rel=1e-9)


def test_kernel_distance_takes_as_many_of_both() -> None:
    few, many = normal(40, 5), normal(5000, 5, 1)
    assert metrics.kernel_distance(few, many, seed=3) == metrics.kernel_distance(few, many, seed=3)
    assert metrics.kernel_distance(few, many, seed=3) != metrics.kernel_distance(few, many, seed=4)


@pytest.mark.parametrize(("shift", "too_large"), [(1.0, 1.0), (0.0, 2**0.5)])
def test_error_of_kernel_distance(shift: float, too_large: float) -> None:
    """It is the scatter of the estimates over draws; a jackknife's exceeds it where the distributions agree."""
    found = [metrics.kernel_distance(normal(200, 4, 2 * i, shift), normal(200, 4, 2 * i + 1)) for i in range(80)]
    scatter = np.std([estimate.value for estimate in found])
    assert np.mean([estimate.error for estimate in found]) == pytest.approx(too_large * scatter, rel=0.25)


def test_inception_score() -> None:
    """K for certain and even answers, 1 for the same answer always, exp of the mutual information between."""
    certain = 100 * torch.eye(4).repeat(500, 1)
    assert metrics.inception_score(certain).value == pytest.approx(4, rel=0.02)  # parts are not quite even
    assert metrics.inception_score(certain[::4]) == metrics.Estimate(1, 0)
    logits = normal(2000, 3)
    p = logits.double().softmax(1)
    expected = (p * (p.log() - p.mean(0).log())).sum(1).mean().exp().item()
    estimate = metrics.inception_score(logits)
    assert estimate.value == pytest.approx(expected, rel=0.02)
    assert 0 < estimate.error < 0.1
    state = torch.get_rng_state()
    assert metrics.inception_score(logits) == estimate
    assert torch.equal(torch.get_rng_state(), state)


def brute(a: np.ndarray, b: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances (A, B), and each of b's to its k-th nearest neighbour, by loops."""
    distances = np.array([[np.sqrt(((x - y) ** 2).sum()) for y in b] for x in a])
    radii = np.array([sorted(np.sqrt(((x - y) ** 2).sum()) for y in b)[k] for x in b])
    return distances, radii


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_precision_and_the_rest_against_loops(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ROWS", 7)
    # Far from the origin inner products in float32 would leave nothing of the distances.
    a, b = normal(40, 3) / 30 + offset, normal(50, 3, 1) / 20 + offset
    x, y = a.double().numpy(), b.double().numpy()
    distances, radii = brute(x, y, 3)
    other, other_radii = brute(y, x, 3)
    expected = (distances <= radii).any(1).mean(), (other <= other_radii).any(1).mean()
    assert metrics.precision_recall(a, b) == pytest.approx(expected)
    distances, radii = brute(x, y, 5)
    inside = distances < radii
    assert metrics.density_coverage(a, b) == pytest.approx((inside.sum() / 5 / 40, inside.any(0).mean()))
    assert 0 < expected[0] < 1
    assert 0 < expected[1] < 1


def test_precision_of_extremes() -> None:
    x = normal(60, 4)
    assert metrics.precision_recall(x, x) == (1, 1)
    assert metrics.precision_recall(x, x + 1000) == (0, 0)
    assert metrics.density_coverage(x, x + 1000) == (0, 0)
    part = x[:30]  # all samples are real, of half of the kinds
    precision, recall = metrics.precision_recall(part, torch.cat([part, part + 1000]))
    assert (precision, recall) == (1, 0.5)


def test_accuracy() -> None:
    logits = torch.eye(4).repeat(5, 1)
    labels = torch.arange(20) % 4
    labels[:5] = (labels[:5] + 1) % 4
    estimate = metrics.accuracy(logits, labels)
    assert estimate.value == 0.75
    assert estimate.error == pytest.approx((0.75 * 0.25 / 20) ** 0.5)


def test_too_few() -> None:
    x = normal(5, 3)
    for compute in (metrics.kernel_distance, metrics.density_coverage, lambda a, b: FrechetDistance(a[:1])):
        with pytest.raises(UserError, match="images are too few for this metric, which needs"):
            compute(x, x)
