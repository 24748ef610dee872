"""Groups of parameters whose settings differ."""

import pytest
import torch
from torch import nn

from snowmelt.optimization import clip_gradients, make_optimizer, set_learning_rate
from snowmelt.options import OptimizationOptions


@pytest.fixture
def parameters():
    return [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]


def test_settings_of_a_group_win(parameters):
    a, b = parameters
    groups = [{"params": [a]}, {"params": [b], "lr": 0.5, "betas": (0.5, 0.9)}]
    options = OptimizationOptions(learning_rate=0.1, lr_scheduler="linear", lr_warmup_steps=4, adam_beta1=0.8)
    optimizer, factor = make_optimizer(groups, options, total_steps=8)
    assert [factor(step) for step in (0, 2, 4, 6, 8)] == [0, 0.5, 1, 0.5, 0]
    for step, rates in ((2, [0.05, 0.25]), (4, [0.1, 0.5]), (6, [0.05, 0.25])):
        set_learning_rate(optimizer, factor(step))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(rates)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.999), (0.5, 0.9)]


def test_gradients_are_clipped_by_group(parameters):
    """A discriminator's gradient, however large, doesn't shrink the other's."""
    optimizer, _ = make_optimizer([{"params": [p]} for p in parameters], OptimizationOptions(), 1)
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    assert clip_gradients(optimizer, max_norm=1.0).item() == pytest.approx(5)
    assert parameters[0].grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-5)
    assert parameters[1].grad.tolist() == pytest.approx([0.3, 0.4], rel=1e-5)


def test_scaled_learning_rate(parameters):
    options = OptimizationOptions(learning_rate=1e-3, scale_lr=True)
    optimizer, _ = make_optimizer(parameters, options, total_steps=1, images_per_step=24)
    assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(24e-3)
    optimizer, _ = make_optimizer(parameters, OptimizationOptions(learning_rate=1e-3), 1, images_per_step=24)
    assert optimizer.param_groups[0]["initial_lr"] == 1e-3


def test_piecewise_constant(parameters):
    """diffusers' schedule, whose rules are an option here."""
    options = OptimizationOptions(lr_scheduler="piecewise_constant", lr_step_rules="1:3,0.1:5,0.01")
    _, factor = make_optimizer(parameters, options, total_steps=8)
    assert [factor(step) for step in range(7)] == [1, 1, 1, 0.1, 0.1, 0.01, 0.01]
