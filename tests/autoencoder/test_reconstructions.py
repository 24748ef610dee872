"""Numbers and images of reconstructions."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from snowmelt.autoencoder.reconstructions import measure_reconstructions, reconstruct, reconstruction_grid
from snowmelt.data.sources import load_images
from snowmelt.evaluation.real import RealImages
from snowmelt.tasks.autoencoder import _make_extractor
from tests.autoencoder.conftest import make_kl, make_vq


class Off:
    """An autoencoder of no use, whose images are off by a constant, where they are not white or black already."""

    device = torch.device("cpu")

    def __init__(self, by: float) -> None:
        self.by = by

    def encode(self, images, return_dict):
        return (images,)

    def decode(self, latents):
        return SimpleNamespace(sample=latents + 2 * self.by)


class Mean:
    """Features of images: their mean and variance."""

    fingerprint = "mean"
    name = "mean and variance"

    def __call__(self, images):
        flat = images.flatten(1)
        return torch.stack([flat.mean(1), flat.var(1)], 1)


@pytest.fixture(scope="module")
def images(config):
    return RealImages(load_images(config(resolution=16)), "train", (0, 255))


@pytest.fixture(scope="module")
def faint(config, tmp_path_factory):
    """Float images between 0.25 and 0.75 of their range, so that nothing is clipped."""
    folder = tmp_path_factory.mktemp("faint")
    for row, image in enumerate(np.random.default_rng(0).random((40, 12, 12, 2), np.float32) / 2 + 0.25):
        np.save(folder / f"{row:02d}.npy", image)
    cache = load_images(config(dataset_name=None, train_data_dir=str(folder), resolution=12))
    return RealImages(cache, "train", (0.0, 1.0))


@pytest.mark.parametrize("by", [0.1, -0.01])
def test_psnr_of_a_constant_error(by, faint):
    values = measure_reconstructions(Off(by), faint, np.arange(40), None, batch_size=7)
    assert values["psnr"] == pytest.approx(-20 * np.log10(abs(by)), rel=1e-4)
    assert 0 < values["ssim"] < 1


def test_nothing_lost(images):
    values = measure_reconstructions(Off(0.0), images, np.arange(50), Mean(), batch_size=20)
    assert values["psnr"] > 100
    assert values["ssim"] == pytest.approx(1)
    assert values["rfd"] == pytest.approx(0, abs=1e-6)


def test_distance_of_features(faint):
    """Off by a constant, all means move and no variance does."""
    values = measure_reconstructions(Off(0.1), faint, np.arange(40), Mean(), batch_size=40)
    assert values["rfd"] == pytest.approx(0.01, rel=1e-3)


def test_rows_are_those_asked_for(images):
    class Worse(Off):
        def decode(self, latents):
            return SimpleNamespace(sample=latents + 0.2 * self.count(latents))

        def count(self, latents):
            return torch.where(latents.flatten(1).sum(1) > threshold, 1.0, 0.0).view(-1, 1, 1, 1)

    sums = (2 * images.batch(np.arange(100)) - 1).flatten(1).sum(1)
    threshold = sums.median()
    good, bad = (np.flatnonzero(chosen) for chosen in (sums <= threshold, sums > threshold))
    assert measure_reconstructions(Worse(0), images, good, None, 16)["psnr"] > 100
    assert measure_reconstructions(Worse(0), images, bad, None, 16)["psnr"] < 40


def test_small_images_have_no_ssim(config, data):
    values = measure_reconstructions(make_kl(), RealImages(data, "train", (0, 255)), np.arange(20), None, 20)
    assert set(values) == {"psnr"}


@pytest.mark.parametrize("make", [make_kl, make_vq])
def test_reconstructions_are_those_of_the_class(make, images):
    """Its own forward pass, at the posterior's mean."""
    vae, originals = make(), images.batch(np.arange(3))
    with torch.no_grad():
        expected = (vae(2 * originals - 1).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(reconstruct(vae, originals), expected, atol=1e-6)


def test_originals_stand_beside_reconstructions(images, tmp_path):
    pixels = reconstruction_grid(Off(0.2), images, 6, tmp_path / "grid.png")
    originals = (images.batch(np.arange(6)) * 255).round()
    assert (pixels[::2, ..., 0] == originals[:, 0].numpy()).all()
    assert (pixels[1::2].astype(int) - pixels[::2])[pixels[::2] == 0].min() == 51
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (70, 52)  # two pairs in a row, 2 pixels between images
        assert (np.array(grid)[:16, 18:34] == pixels[1, ..., 0]).all()


def test_channels_that_no_image_has(faint, tmp_path):
    reconstruction_grid(Off(0.1), faint, 3, tmp_path / "grid.png")
    array = np.load(tmp_path / "grid.npy")
    assert array.shape == (6, 12, 12, 2)
    assert np.allclose(array[1::2] - array[::2], 0.1, atol=1e-6)


def test_features_that_are_asked_for(config, data):
    unlabelled = RealImages(replace(data, labels=None, class_names=None), "train", (0, 255))
    device = torch.device("cpu")
    assert _make_extractor(config(), unlabelled, device) is None
    assert _make_extractor(config(eval_features="none"), RealImages(data, "train", (0, 255)), device) is None
