"""Copies are found, fresh images are not; nearest images agree with a search by brute force."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from snowmelt.data.sources import load_images
from snowmelt.errors import UserError
from snowmelt.evaluation import memorization as module
from snowmelt.evaluation.memorization import NEIGHBOURS, draw_closest, memorization
from snowmelt.evaluation.real import RealImages
from snowmelt.options import DataOptions

DIGITS = (load_digits().images * 255 / 16).round().astype(np.uint8)
TRAIN, HELD_OUT, FRESH = DIGITS[:900], DIGITS[900:1300], DIGITS[1300:1500]


class Projection:
    """Features that see through a change of brightness."""

    name, fingerprint, accuracy, head = "projection (random)", "projection", None, None
    matrix = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))

    def __call__(self, images):
        centred = images.flatten(1) - images.flatten(1).mean(1, keepdim=True)
        return centred / centred.norm(dim=1, keepdim=True) @ self.matrix


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """`real(pixels, name)`: those images as a data set."""

    def real(pixels: np.ndarray, name: str) -> RealImages:
        folder = tmp_path_factory.mktemp(name)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(folder / f"{i:05d}.png")
        cache = load_images(DataOptions(train_data_dir=str(folder), resolution=8, cache_dir=str(folder / ".cache")))
        return RealImages(cache, name, cache.value_range)

    return real


@pytest.fixture(scope="module")
def train(real):
    return real(TRAIN, "train")


@pytest.fixture(scope="module")
def held_out(real):
    return real(HELD_OUT, "test")


def as_samples(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).float()[:, None] / 255


def test_fresh_images_are_as_usual(train, held_out):
    found = memorization(as_samples(FRESH), train, held_out, Projection())
    assert [space.space for space in found.spaces] == ["pixels", "projection (random)"]
    assert found.duplicates == 0
    assert "400" in found.compared
    for space in found.spaces:
        assert space.fraction < 0.06
        assert 0.35 < space.closer < 0.65


def test_copies_are_found(train, held_out):
    """Ten among fresh ones: five a little noisy, five mirrored."""
    noise = 0.02 * torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    copies = torch.cat([as_samples(TRAIN[:5]) + noise, as_samples(TRAIN[5:10]).flip(-1)]).clamp(0, 1)
    found = memorization(torch.cat([as_samples(FRESH[:90]), copies]), train, held_out, Projection())
    assert set(found.order[:10].tolist()) == set(range(90, 100))
    for space in found.spaces:
        assert space.indices[90:].tolist() == list(range(10))
        assert 0.10 <= space.fraction < 0.16
        assert (space.ratios[90:] < space.threshold).all()


def test_all_copies(train, held_out):
    (pixels,) = memorization(as_samples(TRAIN[100:200]), train, held_out, None).spaces
    assert pixels.indices.tolist() == list(range(100, 200))
    assert pixels.distances.max() < 1e-6
    assert pixels.fraction == 1
    assert pixels.closer == 1


def test_dull_images_are_no_copies(train, held_out):
    """The mean of each class is nearer to a training image than most held-out ones are, but not to one alone."""
    dull = torch.stack([as_samples(TRAIN[load_digits().target[:900] == digit]).mean(0) for digit in range(10)])
    (pixels,) = memorization(dull, train, held_out, None).spaces
    (others,) = memorization(as_samples(HELD_OUT), train, held_out, None).spaces
    assert pixels.distances.mean() < others.distances.mean()
    assert pixels.fraction == 0
    assert pixels.closer < 0.25


def test_features_see_what_pixels_do_not(train, held_out):
    darker = as_samples(TRAIN[:20]) * 0.5
    pixels, features = memorization(darker, train, held_out, Projection()).spaces
    assert features.fraction == 1
    assert features.indices.tolist() == list(range(20))
    assert pixels.fraction < 1


def test_nearest_by_brute_force(train, held_out, monkeypatch):
    """In blocks that don't divide the sets."""
    monkeypatch.setattr(module, "ROWS", 70)
    monkeypatch.setattr(module, "NUMBERS", 64 * 130)
    samples = as_samples(FRESH)
    (found,) = memorization(samples, train, held_out, None).spaces
    images = as_samples(TRAIN).double()
    every = [(s.double() - images).square().mean((1, 2, 3)).sqrt() for x in (samples, samples.flip(-1)) for s in x]
    every = torch.stack(every).view(2, len(samples), -1).amin(0)
    least = every.topk(NEIGHBOURS, largest=False).values
    torch.testing.assert_close(found.distances, least[:, 0])
    torch.testing.assert_close(found.indices, every.argmin(1))
    torch.testing.assert_close(found.ratios, least[:, 0] / least.mean(1))


def test_without_held_out_images(train):
    """Training images are compared with the others of their own, never with themselves."""
    found = memorization(torch.cat([as_samples(FRESH[:90]), as_samples(TRAIN[:10])]), train, None, Projection())
    assert "train, each against the others" in found.compared
    for space in found.spaces:
        assert (space.usual > 0).all()
        assert 0.10 <= space.fraction < 0.16


def test_held_out_images_that_are_not(train, real):
    """Duplicates across the splits would put the threshold at nothing."""
    mixed = real(np.concatenate([HELD_OUT[:100], TRAIN[:30]]), "mixed")
    found = memorization(as_samples(TRAIN[200:220]), train, mixed, None)
    assert found.duplicates == 30
    assert "100 images of mixed" in found.compared
    assert found.spaces[0].fraction == 1
    with pytest.raises(UserError, match="all images of train are training images"):
        memorization(as_samples(FRESH), train, train, None)


def test_few_training_images(real, held_out):
    few = real(TRAIN[:4], "few")
    (pixels,) = memorization(as_samples(TRAIN[:2]), few, None, None).spaces
    assert len(pixels.usual) == 4
    assert pixels.fraction == 1


def test_bad_input(train, real):
    with pytest.raises(UserError, match="training images of"):
        memorization(torch.zeros(2, 3, 8, 8), train, None, None)
    with pytest.raises(UserError, match="has 1 and 2"):
        memorization(as_samples(FRESH[:1]), real(TRAIN[:2], "two"), None, None)


def test_image(train, held_out, tmp_path):
    samples = torch.cat([as_samples(FRESH[:5]), as_samples(TRAIN[:2])])
    found = memorization(samples, train, held_out, Projection())
    draw_closest(samples, train, found, tmp_path / "closest.png", count=3)
    with Image.open(tmp_path / "closest.png") as photo:
        assert photo.width > 300
        assert photo.height > 300
    with pytest.raises(UserError, match="PIL has no image of 2 channels"):
        draw_closest(torch.zeros(1, 2, 8, 8), train, found, tmp_path / "no.png")
