"""EMAs of the weights: their two forms, and that they are what is saved."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import nn

from snowmelt.ema import Ema, gamma_of_sigma_rel, make_emas, power_decay, warmup_decay
from snowmelt.errors import UserError
from snowmelt.options import EmaOptions

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.GroupNorm(1, 2))


def wander(net: nn.Module) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("options", [{}, {"ema_inv_gamma": 3.0, "ema_power": 0.9, "ema_max_decay": 0.7}])
def test_warmup_form_is_that_of_diffusers(net, options):
    ours = make_emas({"net": net}, EmaOptions(**options))["ema"]["net"]
    o = EmaOptions(**options)
    theirs = EMAModel(
        net.parameters(), decay=o.ema_max_decay, use_ema_warmup=True, inv_gamma=o.ema_inv_gamma, power=o.ema_power
    )
    for step in range(1, 101):
        wander(net)
        ours.update(step)
        theirs.step(net.parameters())
        for a, b in zip(ours.network.parameters(), theirs.shadow_params, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 6.94, 16.97])
def test_power_form_weighs_step_t_by_its_power(gamma):
    """sum t^gamma w_t / sum t^gamma, nearly: the recursion integrates the power over each step."""
    steps = 200
    decays = np.array([power_decay(t, gamma) for t in range(1, steps + 1)])
    weights = (1 - decays) * np.append(np.cumprod(decays[:0:-1])[::-1], 1)  # of each step, after the last
    t = np.arange(1, steps + 1)
    exact = (t / steps) ** (gamma + 1) - ((t - 1) / steps) ** (gamma + 1)  # the integral of (gamma + 1) s^gamma ds
    np.testing.assert_allclose(weights, exact, atol=1e-12)

    net = nn.Linear(1, 1, bias=False)
    ema = Ema(net, lambda step: power_decay(step, gamma))
    for step in t:
        nn.init.constant_(net.weight, float(step))
        ema.update(int(step))
    assert ema.network.weight.item() == pytest.approx((exact * t).sum(), rel=1e-5)
    assert ema.network.weight.item() == pytest.approx((t ** (gamma + 1)).sum() / (t**gamma).sum(), rel=0.01)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25, 12**-0.5])
def test_width_is_the_profile_s_relative_standard_deviation(width):
    gamma = gamma_of_sigma_rel(width)
    s = (np.arange(1_000_000) + 0.5) / 1_000_000
    profile = s**gamma / (s**gamma).sum()
    mean = (profile * s).sum()
    assert np.sqrt((profile * (s - mean) ** 2).sum()) == pytest.approx(width, rel=1e-4)
    assert gamma >= -1e-9


@pytest.mark.parametrize("width", [0.0, -0.1, 0.3])
def test_impossible_width(width):
    with pytest.raises(UserError, match=f"--ema_widths {width}: must be more than 0 and at most 0.289"):
        gamma_of_sigma_rel(width)


def test_widths_that_would_share_a_folder(net):
    with pytest.raises(UserError, match="must differ in their first three decimals"):
        make_emas({"net": net}, EmaOptions(ema_widths=[0.1, 0.1001]))


def test_what_is_frozen_is_shared(net):
    """An average of LoRA matrices doesn't copy the network beside them."""
    first, *others = net.parameters()
    first.requires_grad_(False)
    ema = Ema(net, lambda step: 0.5)
    before = [p.clone() for p in others]
    wander(net)
    ema.update(1)
    shared, *averages = ema.network.parameters()
    assert shared is first
    for average, p, old in zip(averages, others, before, strict=True):
        torch.testing.assert_close(average, (p + old) / 2)
        assert not average.requires_grad


def test_published_weights_are_the_first_average(train, tmp_path):
    options = {"max_train_steps": 6, "learning_rate": 1e-2, "lr_scheduler": "constant"}
    run = train(tmp_path / "run", **options, checkpointing_steps=1)
    raw = [load_file(run / f"checkpoint-{k}" / "unet" / WEIGHTS) for k in range(1, 7)]
    published = load_file(run / "unet" / WEIGHTS)
    for name, value in published.items():
        average = raw[0][name]  # the first decay is 0
        for step, weights in enumerate(raw[1:], start=2):
            average = torch.lerp(weights[name], average, warmup_decay(step, 1.0, 0.75, 0.9999))
        torch.testing.assert_close(value, average, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(value, raw[-1][name]) for name, value in published.items())


def test_averages_of_several_networks(net):
    """A dict per width, the first being that which is published."""
    emas = make_emas({"a": net, "b": nn.Linear(1, 1)}, EmaOptions(ema_widths=[0.1, 0.25]))
    assert {suffix: list(averages) for suffix, averages in emas.items()} == {
        "ema_0.100": ["a", "b"],
        "ema_0.250": ["a", "b"],
    }
    assert make_emas({"a": net}, EmaOptions(use_ema=False)) == {}


def test_several_widths_are_kept(train, tmp_path):
    run = train(tmp_path / "run", max_train_steps=3, learning_rate=1e-2, lr_warmup_steps=0, ema_widths=[0.1, 0.25])
    first, second = (load_file(run / f"unet_ema_{w}" / WEIGHTS) for w in ("0.100", "0.250"))
    published = load_file(run / "unet" / WEIGHTS)
    assert all(torch.equal(published[name], first[name]) for name in published)
    assert any(not torch.equal(published[name], second[name]) for name in published)
    assert UNet2DModel.from_pretrained(run / "unet_ema_0.250")


def test_without_an_average(train, tmp_path):
    run = train(tmp_path / "run", max_train_steps=3, use_ema=False)
    published, raw = load_file(run / "unet" / WEIGHTS), load_file(run / "checkpoint-3" / "unet" / WEIGHTS)
    assert all(torch.equal(published[name], raw[name]) for name in raw)
    assert not list(run.rglob("*ema*"))
