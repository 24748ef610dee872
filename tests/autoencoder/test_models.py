"""Autoencoders and discriminators by name."""

import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from snowmelt.autoencoder.discriminator import PatchDiscriminator, make_discriminator
from snowmelt.autoencoder.models import SIZES, make_autoencoder, named_config
from snowmelt.data.sources import load_images
from snowmelt.errors import UserError
from tests.autoencoder.conftest import make_kl, make_vq


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
@pytest.mark.parametrize(("regularization", "channels"), [("kl", 3), ("vq", 5)])
def test_factors(factor, regularization, channels, config):
    given = config(model_size="tiny", downsample_factor=factor, regularization=regularization)
    vae = {"kl": AutoencoderKL, "vq": VQModel}[regularization](**named_config(given, channels, 32))
    encoded = vae.encode(torch.zeros(1, channels, 32, 32), return_dict=False)[0]
    latents = encoded.mean if regularization == "kl" else encoded
    assert latents.shape == (1, {2: 2, 4: 3, 8: 4, 16: 16}[factor], 32 // factor, 32 // factor)
    assert vae.decode(latents).sample.shape == (1, channels, 32, 32)


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size, config):
    arguments = named_config(config(model_size=size, latent_channels=7), 4, 64)
    with torch.device("meta"):
        vae = AutoencoderKL(**arguments)
    assert (vae.config.latent_channels, vae.config.in_channels, vae.config.out_channels) == (7, 4, 4)


def test_the_paper_s_size(config):
    """SD's autoencoder is the KL one of Rombach et al. for factor 8: 83.65 million parameters."""
    with torch.device("meta"):
        vae = AutoencoderKL(**named_config(config(model_size="large", downsample_factor=8), 3, 256))
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863


def test_the_seed_decides_the_weights(config, data):
    first, again, other = (make_autoencoder(config(model_size="tiny", seed=s), data).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("make", [make_kl, make_vq])
@pytest.mark.parametrize("subfolder", ["", "vae"])
def test_pretrained(make, subfolder, config, data, tmp_path):
    saved = make()
    saved.save_pretrained(tmp_path / subfolder)
    kind = "kl" if make is make_kl else "vq"
    vae = make_autoencoder(config(pretrained_model_name_or_path=str(tmp_path), regularization=kind), data)
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), vae.parameters(), strict=True))
    assert vae.training
    assert all(p.requires_grad for p in vae.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"downsample_factor": 3}, "--downsample_factor 3: must be one of 2, 4, 8, 16"),
        ({"downsample_factor": 16}, "--resolution 8: not a multiple of the factor 16; take 16"),
        (
            {"downsample_factor": 8, "equivariance_prob": 0.5},
            "--equivariance_prob: latents of 1 x 1 can't be made smaller; take --resolution 16 or more",
        ),
        ({"pretrained_model_name_or_path": "kl3"}, "kl3: takes 3 channels, the images have 1; .* --channels 3"),
        ({"pretrained_model_name_or_path": "kl3", "latent_channels": 4}, "--latent_channels: that of .* leave it out"),
        ({"pretrained_model_name_or_path": "vq"}, "vq: no AutoencoderKL there, .*: a VQModel"),
        ({"pretrained_model_name_or_path": "nothing"}, "--pretrained_model_name_or_path nothing: no AutoencoderKL"),
    ],
)
def test_refusals(options, message, config, data, tmp_path, monkeypatch):
    make_kl(channels=3).save_pretrained(tmp_path / "kl3")
    make_vq().save_pretrained(tmp_path / "vq")
    (tmp_path / "nothing").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        make_autoencoder(config(**options), data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("side", "places"), [(8, 3), (16, 3), (32, 3), (64, 7), (256, 31)])
def test_discriminator_fits(side, places, config, data):
    """As many halvings as the side allows, at most three; each place of the largest sees 70 x 70 pixels."""
    from dataclasses import replace

    net = make_discriminator(config(disc_weight=0.5), replace(data, size=(side, side), channels=2))
    assert net(torch.randn(2, 2, side, side)).shape[1:] == (1, places - 1, places - 1)


def test_patches_of_seventy_pixels():
    """Isola et al. 2017, appendix 6.1.2: layers of stride 2, 2, 2, 1, 1, each of 4 x 4."""
    net = PatchDiscriminator(3)
    strides = [layer.stride[0] for layer in net.stack if isinstance(layer, torch.nn.Conv2d)]
    sees = 1
    for stride in reversed(strides):
        sees = (sees - 1) * stride + 4
    assert (strides, sees) == ([2, 2, 2, 1, 1], 70)
    assert [layer.out_channels for layer in net.stack if isinstance(layer, torch.nn.Conv2d)] == [64, 128, 256, 512, 1]


def test_discriminator_keeps_no_statistics(tmp_path):
    """Else a resumed run, or one of several processes, would differ by them."""
    net = PatchDiscriminator(1, 4, 1)
    assert not list(net.buffers())
    images = torch.randn(3, 1, 8, 8)
    net.save_pretrained(tmp_path)
    assert torch.equal(PatchDiscriminator.from_pretrained(tmp_path).eval()(images), net.train()(images))


def test_no_discriminator(config, data):
    assert make_discriminator(config(disc_weight=0.0, compile=True), data) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 4}, "--resolution 4: too small for the discriminator"),
        ({"mixed_precision": "fp16"}, "--mixed_precision fp16: the discriminator needs bf16 or no"),
        ({"compile": True}, "--compile: can't be had with the discriminator"),
    ],
)
def test_discriminator_refusals(options, message, config):
    given = config(**options)
    with pytest.raises(UserError, match=f"{message}; change that, or pass --disc_weight 0"):
        make_discriminator(given, load_images(given))
