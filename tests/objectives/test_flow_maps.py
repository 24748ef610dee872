"""Objectives of two times, against a distribution whose flow map is known exactly."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from pipelines.flow_map import TARGET_CHANNELS
from snowmelt.errors import UserError
from snowmelt.objectives import RECIPES, StepContext, make_objective
from snowmelt.objectives.flow_maps import DERIVATIVES, FlowMapObjective
from snowmelt.options import UnconditionalConfig

MAPS = ["soflow", "meanflow"]
MEAN, STD = 0.3, 0.5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def objective(name: str, **changes: Any) -> FlowMapObjective:
    return replace(RECIPES[name], **changes)


def context(net: Any, step: int = 0, total: int = 1000) -> StepContext:
    return StepContext(net, generator(), step, step / total)


def exact(x_t: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """u of N(`MEAN`, `STD`^2): the ODE keeps the distance from the mean in standard deviations."""
    t, r = (time.view(-1, 1, 1, 1) for time in (t, r))

    def std(time: Tensor) -> Tensor:
        return ((1 - time) ** 2 * STD**2 + time**2).sqrt()

    x_r = (1 - r) * MEAN + std(r) / std(t) * (x_t - (1 - t) * MEAN)
    slope = ((t - (1 - t) * STD**2) / std(t)) / std(t)  # of v, the limit of r = t
    velocity = -MEAN + slope * (x_t - (1 - t) * MEAN)
    same = t - r < 1e-3
    return torch.where(same, velocity, (x_t - x_r) / torch.where(same, 1.0, t - r))


class ExactNetwork(nn.Module):
    """The exact map, with what it is shown of the two times read back, plus a bias that can be wrong."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        x_t, planes = sample[:, :-TARGET_CHANNELS], sample[:, -TARGET_CHANNELS:, 0, 0]
        t = timestep / 1000
        distance = torch.atan2(planes[:, 0], 1 - planes[:, TARGET_CHANNELS // 2]) / (math.pi / 2)
        return (exact(x_t, t, t - distance) + self.bias,)


def velocity(x_t: Tensor, t: Tensor, conditions: dict[str, Any]) -> Tensor:
    return exact(x_t, t, t)


def normal(n: int = 64, seed: int = 1) -> Tensor:
    return MEAN + STD * torch.randn(n, 1, 4, 4, generator=generator(seed))


@pytest.mark.parametrize("name", MAPS)
def test_the_exact_map_of_a_velocity_has_no_loss(name: str) -> None:
    """MeanFlow's to rounding, SoFlow's the less the nearer the time between is, and the less in squares."""
    follows = objective(name, velocity=velocity, adaptive_power=0.0)
    losses = [follows.loss(normal(), {}, context(ExactNetwork(), step)).loss.max().item() for step in (0, 500, 1000)]
    if name == "meanflow":
        assert max(losses) < 1e-6
    else:
        assert losses[0] < 0.2
        assert losses[1] < losses[0] / 5
        assert losses[2] < losses[1] / 5
    wrong = follows.loss(normal(), {}, context(ExactNetwork(0.5), 1000)).loss
    torch.testing.assert_close(wrong, torch.full_like(wrong, 0.25), rtol=0.05, atol=0.01)


@pytest.mark.parametrize("name", MAPS)
def test_the_exact_map_is_where_the_gradient_vanishes(name: str) -> None:
    """Of single images' velocities the loss isn't 0, but its mean gradient is."""
    net = ExactNetwork()
    plain = objective(name, adaptive_power=0.0)
    losses = plain.loss(normal(20_000), {}, context(net, 1000)).loss
    (gradient,) = torch.autograd.grad(losses.mean(), net.bias)
    # 2 (u - target), whose standard deviation is about 3, at 320,000 values.
    assert abs(gradient.item()) < 0.02


@pytest.mark.parametrize("name", MAPS)
def test_the_target_has_no_gradient(name: str) -> None:
    """A bias is in u alone: du/dt doesn't have it, and the gradient is that of (u - target)^2 with the target fixed."""
    net, plain = ExactNetwork(0.3), objective(name, velocity=velocity, adaptive_power=0.0)
    loss = plain.loss(normal(256), {}, context(net, 1000)).loss.mean()
    (gradient,) = torch.autograd.grad(loss, net.bias)
    assert gradient.item() == pytest.approx(0.6, rel=0.02)


def test_derivatives_agree() -> None:
    x_t, v = torch.randn(8, 1, 4, 4, generator=generator()), torch.randn(8, 1, 4, 4, generator=generator(1))
    t, r = torch.linspace(0.3, 0.9, 8), torch.linspace(0.0, 0.5, 8)
    near, exactly = (derivative(exact, x_t, v, t, r, exact(x_t, t, r), 0.005) for derivative in DERIVATIVES.values())
    torch.testing.assert_close(near, exactly, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("name", MAPS)
def test_large_errors_weigh_less(name: str) -> None:
    """1 / (error + 0.01)^p on each, without a gradient through it."""
    x0, net = normal(), ExactNetwork(0.5)
    plain = objective(name, adaptive_power=0.0).loss(x0, {}, context(net)).loss
    weighted = objective(name, adaptive_power=1.0).loss(x0, {}, context(net)).loss
    torch.testing.assert_close(weighted, plain / (plain + 0.01))
    gradients = [torch.autograd.grad(loss[3], net.bias)[0] for loss in (plain, weighted)]
    torch.testing.assert_close(gradients[1], gradients[0] / (plain[3] + 0.01))


@pytest.mark.parametrize("name", MAPS)
def test_a_part_of_the_batch_is_flow_matching(name: str) -> None:
    seen = []

    class Spy(ExactNetwork):
        def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
            seen.append(sample[:, 1:].abs().amax((1, 2, 3)) > 0)
            return super().forward(sample, timestep)

    objective(name, flow_fraction=0.75).loss(normal(8), {}, context(Spy()))
    assert seen[0].tolist() == [False] * 6 + [True] * 2
    assert all(len(other) == 2 for other in seen[1:])
    seen.clear()
    maps = []
    for seed in range(40):  # batches of one
        objective(name, flow_fraction=0.75).loss(normal(1), {}, StepContext(Spy(), generator(seed), 0, 0))
        maps.append(bool(seen[0]))
        seen.clear()
    assert 3 <= sum(maps) <= 20
    flow = objective(name, flow_fraction=1.0, adaptive_power=0.0).loss(normal(8), {}, context(Spy()))
    assert len(seen) == 1
    net = lambda x, timestep, return_dict: ExactNetwork()(torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 8)), timestep)  # noqa: E731
    assert torch.equal(flow.loss, RECIPES["flow"].loss(normal(8), {}, context(net)).loss)


@pytest.mark.parametrize("attention", [False, True])
def test_forward_mode_through_a_stock_unet(attention: bool) -> None:
    """Attention and group norms included: as the difference between two near times says."""
    torch.manual_seed(0)
    kinds = ("AttnDownBlock2D", "AttnUpBlock2D") if attention else ("DownBlock2D", "UpBlock2D")
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1 + TARGET_CHANNELS,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", kinds[0]),
        up_block_types=(kinds[1], "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
    ).double()

    def slow(sample: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
        return unet(sample.double(), timestep.double() / 100, return_dict=False)  # of timesteps it sees sines

    mean_velocity = objective("meanflow")._mean_velocity(slow, {})
    x_t, v = torch.randn(4, 1, 8, 8, generator=generator()), torch.randn(4, 1, 8, 8, generator=generator(1))
    t, r = torch.tensor([0.5, 0.6, 0.7, 0.8]), torch.tensor([0.0, 0.2, 0.4, 0.6])
    with torch.no_grad():
        u = mean_velocity(x_t, t, r)
        near, exactly = (derivative(mean_velocity, x_t, v, t, r, u, 0.0) for derivative in DERIVATIVES.values())
    assert exactly.std() > 0.05
    torch.testing.assert_close(near, exactly, rtol=0.02, atol=0.02 * float(exactly.std()))


@pytest.mark.parametrize(
    "given",
    [
        {"loss_weight": "snr"},
        {"noise_offset": 0.1},
        {"input_perturbation": 0.1},
        {"dream_training": True},
        {"contrastive_weight": 0.05, "class_conditional": True},
    ],
)
def test_options_of_one_time_are_refused(given: dict[str, Any]) -> None:
    config = UnconditionalConfig(dataset_name="digits", output_dir="x", objective="soflow", **given)
    with pytest.raises(UserError, match=rf"^--{next(iter(given))}.*: .*leave it out"):
        make_objective(config)
