"""EQ-VAE: transformations in closed form, and the loss of transformed batches."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from snowmelt.autoencoder.discriminator import PatchDiscriminator
from snowmelt.autoencoder.equivariance import IDENTITY, Transformation, draw_transformation, enlarged
from snowmelt.autoencoder.losses import AutoencoderLoss, AutoencoderModule
from tests.autoencoder.conftest import make_kl, make_vq
from tests.autoencoder.test_losses import BATCH, discriminator, images, losses, make, perceptual  # noqa: F401

SEEDS = (3, 5, 6)


@pytest.mark.parametrize("side", [2, 3, 7])
def test_a_plane_stays_a_plane(side):
    """Its values at the centres of the places: those of a smaller grid over the same square."""
    wide = torch.arange(8.0).expand(2, 1, 8, 8) + 10 * torch.arange(8.0)[:, None]
    centres = (torch.arange(side) + 0.5) * 8 / side - 0.5
    small = (centres + 10 * centres[:, None]).expand(2, 1, side, side)
    for turns in range(4):
        expected = torch.from_numpy(np.rot90(small.numpy(), turns, (2, 3)).copy())
        assert_close(Transformation(side, 8, turns)(wide), expected)


def test_identity():
    x = torch.randn(1, 2, 3, 3)
    assert IDENTITY(x) is x
    assert enlarged(x, 3) is x
    assert enlarged(x, 5).shape == (1, 2, 5, 5)


def test_draws():
    """All sizes from a quarter on and all turns but none, equally often; half of the batches as they are."""
    drawn = Counter(draw_transformation(9, 0.5, seed) for seed in range(8000))
    assert drawn.pop(IDENTITY) == pytest.approx(4000, abs=150)
    assert set(drawn) == {Transformation(side, 9, turns) for side in range(3, 9) for turns in (1, 2, 3)}
    assert max(drawn.values()) < 1.5 * min(drawn.values())
    assert {draw_transformation(9, 0.0, seed) for seed in range(50)} == {IDENTITY}
    assert IDENTITY not in {draw_transformation(9, 1.0, seed) for seed in range(50)}
    assert {draw_transformation(2, 1.0, seed)[:2] for seed in range(20)} == {(1, 2)}


class Pointwise(nn.Module):
    """Latents are twice the images; what is decoded is too bright by 0.1. Minus a pattern, and plus it again."""

    def __init__(self, pattern):
        super().__init__()
        self.config = SimpleNamespace(latent_channels=1, get={"block_out_channels": (8,)}.get)  # a factor of 1
        self.pattern = pattern

    def encode(self, x):
        return SimpleNamespace(latents=2 * x - self.pattern)

    def decode(self, z):
        pattern = self.pattern[:, :, : z.shape[2], : z.shape[3]]
        return SimpleNamespace(sample=(z + pattern) / 2 + 0.1, commit_loss=torch.zeros(()))


@pytest.mark.parametrize("seed", SEEDS)
def test_only_what_is_equivariant_costs_nothing(seed, config, images):  # noqa: F811
    found = {}
    for name, pattern in {"flat": torch.ones(1, 1, 8, 8), "ramp": torch.arange(8.0).expand(1, 1, 8, 8)}.items():
        for probability in (0.0, 1.0):
            options = config(regularization="vq", equivariance_prob=probability)
            criterion = AutoencoderLoss(AutoencoderModule(Pointwise(pattern), "vq", None), options, None)
            found[name, probability] = losses(criterion, images, seed=seed).loss
    for way in (("flat", 0.0), ("flat", 1.0), ("ramp", 0.0)):
        assert_close(found[way], torch.full((BATCH,), 0.1))
    assert (found["ramp", 1.0] > 0.5).all()


def transformed(image_or_latents, seed):
    """By functions of torch alone."""
    tau = draw_transformation(4, 1.0, seed)
    size = (image_or_latents.shape[-1] * tau.side // 4,) * 2
    return torch.rot90(F.interpolate(image_or_latents, size, mode="bilinear"), tau.turns, (2, 3))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_term_is_of_the_transformed_pair(seed, config, images):  # noqa: F811
    """But the KL divergence, which is that of the posterior, by the pixels of the whole image."""
    judge = discriminator()
    options = {"perceptual_weight": 0.7, "kl_weight": 3.0, "disc_start": 0, "equivariance_prob": 1.0}
    criterion = make(config, make_kl(), judge, **options)
    found = losses(criterion, images, seed=seed)

    vae = criterion.module.vae
    posterior = vae.encode(images).latent_dist
    noise = torch.randn(BATCH, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    made = vae.decode(transformed(posterior.mean + posterior.std * noise, seed)).sample
    real = transformed(images, seed)
    assert made.shape == real.shape < images.shape
    likelihood = (made - real).abs().mean((1, 2, 3)) + 0.7 * perceptual(made, real)
    logits = [judge(F.interpolate(x, (6, 6), mode="bilinear") if x.shape[-1] < 6 else x) for x in (real, made)]
    hinge = F.relu(1 - logits[0]).mean((1, 2, 3)) / 2 + F.relu(1 + logits[1]).mean((1, 2, 3)) / 2
    generator = -logits[1].mean((1, 2, 3))
    expected = likelihood + 3 * posterior.kl() / 64 + found.values["disc_weight"] * generator + hinge
    assert_close(found.loss, expected, rtol=1e-4, atol=1e-6)
    assert_close(found.values["discriminator"], hinge.detach(), rtol=1e-4, atol=1e-6)


def test_codes_are_of_the_transformed_latents(config, images):  # noqa: F811
    vae = make_vq()
    found = losses(make(config, vae, equivariance_prob=1.0), images)
    decoded = vae.decode(transformed(vae.encode(images).latents, 3))
    expected = (decoded.sample - transformed(images, 3)).abs().mean((1, 2, 3)) + decoded.commit_loss
    assert_close(found.loss, expected)
    found.loss.mean().backward()
    assert vae.encoder.conv_in.weight.grad.abs().sum() > 0


def test_batches_as_they_are_cost_the_same(config, images):  # noqa: F811
    """To the last bit: the draw takes no other random number."""
    vae = make_kl()
    kept = [seed for seed in range(20) if draw_transformation(4, 0.5, seed) == IDENTITY]
    assert 4 < len(kept) < 16
    for seed in range(20):
        half, never = (losses(make(config, vae, **o), images, seed=seed).loss for o in ({"equivariance_prob": 0.5}, {}))
        assert torch.equal(half, never) == (seed in kept)


def test_what_is_transformed_is_said(config):
    line = make(config, make_kl(), equivariance_prob=0.25).describe(100)
    assert line.endswith("; 25% of batches with transformed latents and images (EQ-VAE)")


def test_small_images_for_the_discriminator():
    """As many pixels as its layers need, and no fewer; larger ones are judged as they are."""
    torch.manual_seed(0)
    net = PatchDiscriminator(1, width=4, layers=3)
    small, large = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 24, 24)
    assert net(small).shape == (2, 1, 1, 1)
    assert torch.equal(net(small), net.stack(F.interpolate(small, (24, 24), mode="bilinear")))
    assert torch.equal(net(large), net.stack(large))
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        net.stack(torch.randn(2, 1, 23, 23))
