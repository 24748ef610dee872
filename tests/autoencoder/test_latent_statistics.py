"""Statistics of latents, against all latents at once; and what they warn of."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pipelines.vae import shift_and_scale
from snowmelt.autoencoder import latent_statistics
from snowmelt.autoencoder.latent_statistics import LatentStatistics, measure_latents, scaled, some_rows
from snowmelt.spaces import PixelSpace
from tests.autoencoder.conftest import make_kl, make_vq
from tests.autoencoders import tiny_vae


def encoded(vae, data, rows=None):
    rows = np.arange(len(data)) if rows is None else rows
    with torch.no_grad():
        images = PixelSpace(data.value_range).from_cache(torch.from_numpy(data.gather(rows, None)))
        return vae.encode(images, return_dict=False)[0]


def channels(x):
    return x.double().transpose(0, 1).flatten(1)  # (c, N)


def test_of_a_posterior(data):
    vae = make_kl()
    with torch.no_grad():
        vae.quant_conv.bias.copy_(torch.tensor([0.5, -3.0, 1.0, -1.0]))  # means, then log variances
    found = measure_latents(vae, data, seed=0, batch_size=500)
    posterior = encoded(vae, data)
    mean, var = channels(posterior.mean), channels(posterior.var)
    assert_close(found.mean, mean.mean(1))
    assert_close(found.std, (mean.var(1, correction=0) + var.mean(1)).sqrt())
    assert_close(found.kl, ((mean**2 + var - 1 - var.log()) / 2).mean(1), rtol=1e-5, atol=1e-7)
    assert found.usage is None
    samples = torch.stack([posterior.sample() for _ in range(20)])
    z = (samples - found.shift) * found.scale
    assert z.std().item() == pytest.approx(1, abs=5e-3)
    assert z.mean().item() == pytest.approx(0, abs=5e-3)


def test_of_a_codebook(data):
    vae = make_vq()
    found = measure_latents(vae, data, seed=0, batch_size=500)
    z = encoded(vae, data)
    assert_close(found.mean, channels(z).mean(1))
    assert_close(found.std, channels(z).std(1, correction=0))
    assert found.kl is None
    distances = torch.cdist(channels(z).T, vae.quantize.embedding.weight.double())
    assert torch.equal(found.usage, distances.argmin(1).bincount(minlength=16))
    share = (found.usage / found.usage.sum()).numpy()
    assert found.perplexity == pytest.approx(np.exp(-sum(p * np.log(p) for p in share if p)))
    assert ((z - found.shift) * found.scale).std(correction=0).item() == pytest.approx(1, rel=1e-5)


def test_of_many_images_the_seed_chooses_some(data, monkeypatch):
    monkeypatch.setattr(latent_statistics, "IMAGES", 50)
    rows = some_rows(len(data), 3)
    assert len(set(rows)) == 50
    assert rows.max() > 1000  # not the first ones
    assert (rows == some_rows(len(data), 3)).all()
    assert (rows != some_rows(len(data), 4)).any()
    vae = make_kl()
    assert_close(
        measure_latents(vae, data, seed=3, batch_size=20).mean, channels(encoded(vae, data, rows).mean).mean(1)
    )


@pytest.mark.parametrize("make", [make_kl, make_vq])
def test_scaling_is_saved_and_no_more(make, data, tmp_path):
    """The live configuration stays as it was: else checkpoints would depend on what was saved before them."""
    vae = make()
    found = measure_latents(vae, data, seed=0, batch_size=500)
    before = {k: v for k, v in vae.config.items() if not k.startswith("_")}
    with scaled(vae, found):
        vae.save_pretrained(tmp_path)
    assert before.items() <= dict(vae.config).items()
    config = type(vae).from_pretrained(tmp_path).config
    assert config.scaling_factor == found.scale
    if make is make_kl:
        assert config.shift_factor == found.shift
    else:
        assert "shift_factor" not in config


def test_scaling_wins_over_that_of_each_channel(tmp_path):
    """Which a pretrained autoencoder brings, and which is no longer its own after more training."""
    vae = tiny_vae("sdxl-like")
    with scaled(vae, LatentStatistics(mean=torch.full((4,), 0.5), std=torch.full((4,), 2.0))):
        vae.save_pretrained(tmp_path)
    shift, scale = shift_and_scale(type(vae).from_pretrained(tmp_path))
    assert (shift.flatten().tolist(), scale.item()) == ([0.5], 0.5)
    assert vae.config.latents_std == (8.4, 5.9, 4.5, 5.3)


def test_scale_of_unlike_channels():
    """That of all values together: between their standard deviations when the means agree, smaller when they don't."""
    together = LatentStatistics(mean=torch.zeros(2), std=torch.tensor([1.0, 3.0]))
    assert 1 / together.scale == pytest.approx(5**0.5)
    apart = LatentStatistics(mean=torch.tensor([-2.0, 2.0]), std=torch.tensor([1.0, 3.0]))
    assert (1 / apart.scale, apart.shift) == (pytest.approx(3.0), 0)


def test_collapsed_posterior(data):
    vae = make_kl()
    assert not measure_latents(vae, data, seed=0, batch_size=500).warnings()
    with torch.no_grad():
        for part in (vae.quant_conv.weight, vae.quant_conv.bias):
            part[0] = part[2] = 0  # the first channel's mean and log variance
    (warning,) = measure_latents(vae, data, seed=0, batch_size=500).warnings()
    assert "collapsed: 1 of 2 latent channels say nothing" in warning


def test_dead_codebook(data):
    vae = make_vq(codes=64)
    z = channels(encoded(vae, data)).T.float()
    with torch.no_grad():
        vae.quantize.embedding.weight.copy_(z[torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[:64]])
    assert not measure_latents(vae, data, seed=0, batch_size=500).warnings()
    with torch.no_grad():
        vae.quantize.embedding.weight[3:] = 1e4
    found = measure_latents(vae, data, seed=0, batch_size=500)
    (warning,) = found.warnings()
    assert f"dead in part: 3 of 64 codes are used (perplexity {found.perplexity:.1f})" in warning
    assert 1 < found.perplexity <= 3


def test_all_is_logged_by_name(data):
    kl = measure_latents(make_kl(), data, seed=0, batch_size=500)
    assert set(kl.values()) == {
        *(f"latent_{what}_{c}" for what in ("mean", "std", "kl") for c in (0, 1)),
        *("latent_shift", "latent_scale"),
    }
    vq = measure_latents(make_vq(), data, seed=0, batch_size=500).values()
    assert {"codes_used", "perplexity"} < set(vq)
    for statistics in (kl,):
        line = statistics.describe()
        assert f"{statistics.scale:.5g}" in line
        assert "\n" not in line
