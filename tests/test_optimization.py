"""Groups of parameters whose settings differ."""

from pathlib import Path

import pytest
import torch
from torch import nn

from snowmelt.errors import UserError
from snowmelt.gradient_clipping import GradientClipper
from snowmelt.optimization import make_optimizer, set_learning_rate
from snowmelt.optimization_options import OptimizationOptions
from snowmelt.stateful import OptimizerState


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
    assert GradientClipper(optimizer, 1.0, None, torch.device("cpu")).clip(0).item() == pytest.approx(5)
    assert parameters[0].grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-5)
    assert parameters[1].grad.tolist() == pytest.approx([0.3, 0.4], rel=1e-5)


def test_spikes_are_clipped_to_what_is_usual(parameters):
    """Of each group; the first steps, and steps that aren't spikes, are left as they are."""
    optimizer, _ = make_optimizer([{"params": [p]} for p in parameters], OptimizationOptions(), 1)
    clipper = GradientClipper(optimizer, 100.0, 2.0, torch.device("cpu"))
    found = []
    for step, scale in enumerate((1, 3, 2, torch.nan, 50, 2)):  # the median is then 1, 1, 2, 2, 2
        parameters[0].grad, parameters[1].grad = scale * torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
        assert clipper.clip(step).item() == pytest.approx(5 * scale, nan_ok=True)
        assert parameters[1].grad.tolist() == pytest.approx([0.3, 0.4])
        found.append(parameters[0].grad.norm().item())
    assert found == pytest.approx([5, 10, 10, torch.nan, 20, 10], nan_ok=True)
    resumed = GradientClipper(optimizer, 100.0, 2.0, torch.device("cpu"))
    resumed.load_state_dict(clipper.state_dict())
    parameters[0].grad = torch.tensor([30.0, 40.0])
    resumed.clip(6)
    assert parameters[0].grad.norm().item() == pytest.approx(20)


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


class Net(nn.Module):
    """A parameter of each kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.kernel, self.matrix = nn.Embedding(5, 8), nn.Conv2d(3, 16, 3), nn.Linear(8, 4)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[torch.Tensor]:
    """Steps of gradients that follow from the step; the parameters after them."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


COMMON = {"learning_rate": 0.01, "adam_weight_decay": 0.1, "lr_scheduler": "constant"}


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({}, lambda p: torch.optim.AdamW(p, 0.01, (0.95, 0.999), weight_decay=0.1)),
        ({"optimizer": "adam"}, lambda p: torch.optim.Adam(p, 0.01, (0.95, 0.999), weight_decay=0.1)),
        ({"optimizer": "sgd"}, lambda p: torch.optim.SGD(p, 0.01, 0.9, weight_decay=0.1)),
        ({"optimizer": "sgd", "sgd_momentum": 0.0}, lambda p: torch.optim.SGD(p, 0.01, weight_decay=0.1)),
    ],
)
def test_optimizers_are_those_of_torch(options, theirs):
    ours, other = Net(), Net()
    optimizer, _ = make_optimizer(ours.parameters(), OptimizationOptions(**COMMON | options), 4)
    expected = train(other, theirs(other.parameters()), range(3))
    for a, b in zip(train(ours, optimizer, range(3)), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_muon_takes_matrices_and_kernels_and_adamw_the_rest():
    """Each as torch's own does by itself, a kernel as a matrix."""
    net, other = Net(), Net()
    optimizer, _ = make_optimizer(net.parameters(), OptimizationOptions(**COMMON, optimizer="muon"), 4, module=net)
    kernel, matrix = nn.Parameter(other.kernel.weight.detach().flatten(1).clone()), other.matrix.weight
    muon = torch.optim.Muon([kernel, matrix], 0.01, 0.1, adjust_lr_fn="match_rms_adamw")
    rest = [other.table.weight, other.kernel.bias, other.matrix.bias]
    adamw = torch.optim.AdamW(rest, 0.01, (0.95, 0.999), weight_decay=0.1)
    for step in range(3):
        train(net, optimizer, range(step, step + 1))
        for theirs, ours in zip([kernel, matrix, *rest], _order(net), strict=True):
            theirs.grad = ours.grad.view(theirs.shape)
        muon.step()
        adamw.step()
    for theirs, ours in zip([kernel, matrix, *rest], _order(net), strict=True):
        torch.testing.assert_close(ours.view(theirs.shape), theirs)


def _order(net: Net) -> list[nn.Parameter]:
    return [net.kernel.weight, net.matrix.weight, net.table.weight, net.kernel.bias, net.matrix.bias]


def test_muon_heeds_learning_rates_of_groups():
    net = Net()
    groups = [{"params": net.kernel.parameters()}, {"params": net.matrix.parameters(), "lr": 0.0}]
    optimizer, factor = make_optimizer(groups, OptimizationOptions(**COMMON, optimizer="muon"), 4, module=net)
    set_learning_rate(optimizer, factor(0))
    before = [p.detach().clone() for p in _order(net)]
    train(net, optimizer, range(1))
    moved = [not torch.equal(p, q) for p, q in zip(before, _order(net), strict=True)]
    assert moved == [True, False, False, True, False]


@pytest.mark.parametrize(
    "options",
    [{"optimizer": name} for name in ("adamw", "adam", "sgd", "muon")] + [{"optimizer": "sgd", "sgd_momentum": 0.0}],
)
def test_every_optimizer_resumes_exactly(options, tmp_path: Path):
    def start() -> tuple[Net, torch.optim.Optimizer]:
        net = Net()
        return net, make_optimizer(net.parameters(), OptimizationOptions(**COMMON | options), 9, module=net)[0]

    net, optimizer = start()
    train(net, optimizer, range(3))
    OptimizerState(optimizer).collect()(tmp_path / "optimizer")
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    whole = train(net, optimizer, range(3, 6))
    resumed, optimizer = start()
    resumed.load_state_dict(weights)
    OptimizerState(optimizer).load(tmp_path / "optimizer")
    assert all(map(torch.equal, train(resumed, optimizer, range(3, 6)), whole))


def test_8bit_adam_is_adamw():
    with pytest.raises(UserError, match="^--use_8bit_adam: is AdamW; drop it, or --optimizer sgd$"):
        OptimizationOptions(use_8bit_adam=True, optimizer="sgd")
