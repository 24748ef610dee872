"""Perceptual distances."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from snowmelt.autoencoder.perceptual import FeatureDistance, make_perceptual
from snowmelt.errors import UserError
from snowmelt.evaluation.classifier import ConvNet
from snowmelt.evaluation.real import RealImages

CPU = torch.device("cpu")


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = ConvNet(channels=2, size=(16, 16), classes=3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
    return net


@pytest.fixture
def pair():
    return torch.rand(2, 5, 2, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_formula(net, pair):
    """Zhang et al. 2018, eq. 1, on what the network's own layers give."""
    seen = []
    for module in net.hidden:
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _, __, output: seen.append(output) if output.dim() == 4 else None)
    net.eval()
    for images in pair:
        net.features(images / 2 + 0.5)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert [x.shape[-1] for x in first] == [16, 8]
    expected = sum(
        (a / (a.norm(dim=1, keepdim=True) + 1e-20) - b / (b.norm(dim=1, keepdim=True) + 1e-20))
        .square()
        .sum(1)
        .mean((1, 2))
        for a, b in zip(first, second, strict=True)
    )
    assert_close(FeatureDistance(net)(*pair), expected / 2)


def test_of_the_same(net, pair):
    assert_close(FeatureDistance(net)(pair[0], pair[0]), torch.zeros(5))


def test_gradient_reaches_the_images_alone(net, pair):
    distance = FeatureDistance(net)
    images = pair[0].clone().requires_grad_()
    distance(images, pair[1]).sum().backward()
    assert (images.grad.abs().flatten(1).sum(1) > 0).all()
    assert all(p.grad is None for p in net.parameters())
    assert not net.training


def test_larger_images_are_reduced(net, pair):
    large = [nn.functional.interpolate(x, (24, 24)) for x in pair]
    small = [nn.functional.interpolate(x, (16, 16), mode="bilinear", antialias=True) for x in large]
    assert_close(FeatureDistance(net)(*large), FeatureDistance(net)(*small))


def test_smaller_images_are_compared_as_they_are(net, pair):
    """By the layers that have no size of their own."""
    small = [x[..., :5, :5] for x in pair]
    seen = []
    for module in net.hidden:
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, output: seen.append(output.shape[-1]))
    distances = FeatureDistance(net)(*small)
    assert seen == [5, 3] * 2
    assert (distances > 0).all()


def test_none(data):
    assert make_perceptual("none", RealImages(data, "train", (0, 255)), CPU) is None


def test_classifier_needs_labels(data):
    with pytest.raises(UserError, match="--perceptual classifier: needs classes"):
        make_perceptual("classifier", RealImages(replace(data, labels=None), "train", (0, 255)), CPU)


def test_lpips_that_cannot_be_had(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    images = RealImages(data, "train", (0, 255))
    with pytest.raises(UserError, match=r"--perceptual lpips: .*snowmelt\[lpips\].*torchvision.* or none") as caught:
        make_perceptual("lpips", images, CPU)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="--perceptual lpips: takes gray, RGB and RGBA; these images have 2 channels"):
        make_perceptual("lpips", replace(images, cache=replace(data, channels=2)), CPU)


def test_lpips(data, monkeypatch):
    """Of images in [-1, 1], three channels, transparent ones on white: as its package takes them."""
    seen = []

    class Lpips(nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            seen.append(net)

        def forward(self, a, b):
            seen.extend([a, b])
            return self.weight * (a - b).square().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", type(sys)("lpips"))
    sys.modules["lpips"].LPIPS = Lpips
    distance = make_perceptual("lpips", RealImages(replace(data, channels=4), "train", (0, 255)), CPU)
    images = torch.tensor([[0.5, -0.5, 0.0, 1.0], [0.5, -0.5, 0.0, -1.0]])[..., None, None].expand(-1, -1, 4, 4)
    found = distance(images, torch.zeros_like(images))
    assert seen[0] == "vgg"
    assert_close(seen[1][:, :, 0, 0], torch.tensor([[0.5, -0.5, 0.0], [1.0, 1.0, 1.0]]))
    assert_close(seen[2][:, :, 0, 0], torch.full((2, 3), 0.5))
    assert seen[1].shape == (2, 3, 16, 16)  # the least that VGG takes
    assert found.shape == (2,)
