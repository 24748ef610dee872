"""Improved DDPM: the terms of the bound against torch's own distributions, the hybrid loss, importance sampling."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from pipelines.prediction import Prediction, PredictionType
from snowmelt.objectives import RECIPES, Objective, StepContext
from snowmelt.objectives.importance import LENGTH, UNIFORM, LossHistory
from snowmelt.objectives.paths import DiscretePath
from snowmelt.objectives.reverse_steps import ReverseSteps
from snowmelt.stateful import TensorState

T = 8
PATH = DiscretePath("squaredcos_cap_v2", T, variance_type="learned_range")
BIN = 2 / 255


def data(*shape: int, seed: int = 0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 3).clamp(-1, 1)


def predicted(x0: torch.Tensor, t: torch.Tensor, variance: torch.Tensor | None) -> Prediction:
    """Of a network that is somewhat wrong."""
    level = PATH.level(t)
    noise = data(*x0.shape, seed=1) * 3
    x_t = level.alpha.view(-1, 1, 1, 1) * x0 + level.sigma.view(-1, 1, 1, 1) * noise
    return Prediction(noise + data(*x0.shape, seed=2), PredictionType("epsilon"), x_t, level, variance)


def steps(prediction: Prediction, x0: torch.Tensor, t: int, fraction: torch.Tensor) -> tuple[Normal, Normal]:
    """The posterior and the network's step as diffusers' scheduler lays them out, from beta_t and alphas_cumprod."""
    scheduler = DDPMScheduler(num_train_timesteps=T, beta_schedule="squaredcos_cap_v2")
    beta, alpha2 = scheduler.betas.double(), scheduler.alphas_cumprod.double()
    posterior = lambda s: beta[s] * (1 - alpha2[s - 1]) / (1 - alpha2[s])  # noqa: E731
    before = alpha2[t - 1] if t else torch.tensor(1.0)
    mean = lambda x: (  # noqa: E731
        before.sqrt() * beta[t] / (1 - alpha2[t]) * x
        + (1 - beta[t]).sqrt() * (1 - before) / (1 - alpha2[t]) * prediction.x_t.double()
    )
    small = posterior(max(t, 1))
    std = (fraction * beta[t].log() + (1 - fraction) * small.log()).exp().sqrt()
    return Normal(mean(x0), small.sqrt()), Normal(mean(prediction.x0.double()), std)


def mass(low: torch.Tensor, high: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    """Of a unit normal between the two, on whichever side of 0 it is small; beyond the edges of the data, all of it."""
    low, high = torch.where(x0 == -1, -math.inf, low), torch.where(x0 == 1, math.inf, high)
    left, right = norm.cdf(high) - norm.cdf(low), norm.sf(low) - norm.sf(high)
    return torch.from_numpy(np.where(low + high < 0, left, right))


@pytest.mark.parametrize("t", range(T))
def test_terms(t: int) -> None:
    """Divergences of normal distributions, and the probability of the bins that values lie in."""
    x0 = (data(3, 2, 4, 4).double() * 127.5 + 127.5).round() / 127.5 - 1
    x0[0, 0, 0] = torch.tensor([-1.0, 1.0, -1.0, 1.0]).double()
    v, times = data(3, 2, 4, 4, seed=4).double(), torch.full((3,), t)
    prediction = predicted(x0, times, v)
    chain = ReverseSteps(PATH.scheduler("epsilon").alphas_cumprod.double(), "learned_range")
    posterior, step = steps(prediction, x0, t, (v + 1) / 2)
    if t:
        expected = coded = kl_divergence(posterior, step)
    else:
        edges = [(x0 + side * BIN / 2 - step.mean) / step.stddev for side in (-1, 1)]
        coded, expected = -mass(*edges, x0).log(), -step.log_prob(x0)
    mean = lambda terms: terms.flatten(1).mean(1)  # noqa: E731
    torch.testing.assert_close(chain.terms(prediction, x0, times, BIN), mean(coded), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(chain.terms(prediction, x0, times, None), mean(expected), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("edge", "fixed"), [(-1.0, "fixed_small"), (1.0, "fixed_large")])
def test_fixed_variances_are_the_ends_of_the_range(edge: float, fixed: str) -> None:
    x0, t = data(T - 1, 1, 4, 4), torch.arange(1, T)
    alphas_cumprod = PATH.scheduler("epsilon").alphas_cumprod
    learned, known = (ReverseSteps(alphas_cumprod, kind) for kind in ("learned_range", fixed))
    terms = learned.terms(predicted(x0, t, torch.full_like(x0, edge)), x0, t, BIN)
    torch.testing.assert_close(terms, known.terms(predicted(x0, t, None), x0, t, BIN), rtol=1e-4, atol=1e-6)


def test_hybrid_loss() -> None:
    """Its second part has lambda times T, bits, and teaches the variance alone (Nichol & Dhariwal 2021, eq. 16)."""
    objective = Objective(PATH, "epsilon", bin_width=BIN)
    x0 = data(64, 1, 4, 4)
    output = torch.zeros(64, 2, 4, 4, requires_grad=True)
    seen = {}

    def network(x: torch.Tensor, timestep: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        seen.update(x=x, t=timestep)
        return (output,)

    losses = objective.loss(x0, {}, StepContext(network, torch.Generator().manual_seed(0), 0, 0)).loss
    t, level = seen["t"], PATH.level(seen["t"])
    noise = (seen["x"] - level.alpha.view(-1, 1, 1, 1) * x0) / level.sigma.view(-1, 1, 1, 1)
    prediction = Prediction(torch.zeros_like(x0), PredictionType("epsilon"), seen["x"], level)
    bound = []
    for i, time in enumerate(t.tolist()):
        posterior, step = steps(replace(prediction, variance=None), x0, time, torch.tensor(0.5))
        mass = step.cdf(x0 + BIN / 2) - step.cdf(x0 - BIN / 2)
        term = kl_divergence(posterior, step) if time else -mass.clamp(min=1e-30).log()
        bound.append(term[i].mean() / math.log(2))
    simple = noise.square().flatten(1).mean(1)
    coarse = t > 0  # the mass of a bin far away is lost in the closed form
    expected = simple + 0.001 * T * torch.stack(bound).float()
    torch.testing.assert_close(losses[coarse], expected[coarse], rtol=1e-4, atol=1e-5)
    (both,) = torch.autograd.grad(losses.sum(), output, retain_graph=True)
    (of_simple,) = torch.autograd.grad(
        (output[:, :1] - noise).square().flatten(1).mean(1).sum(), output, retain_graph=True
    )
    torch.testing.assert_close(both[:, :1], of_simple[:, :1], rtol=1e-4, atol=1e-6)
    assert (both[:, 1:] != 0).any(dim=(1, 2, 3)).all()


@pytest.mark.parametrize("weight", ["unit", "vlb"])
def test_gradients_are_finite_at_every_timestep(weight: str) -> None:
    """Of 1,000, the first of which divide by almost nothing, and the last of which know almost nothing."""
    objective = replace(RECIPES["improved_ddpm"], weight=weight, bin_width=BIN, low_discrepancy=True)
    x0 = torch.where(data(1000, 1, 2, 2) > 0, 1.0, -1.0)
    output = torch.randn(1000, 2, 2, 2, generator=torch.Generator().manual_seed(3), requires_grad=True)
    context = StepContext(lambda x, timestep, return_dict: (3 * output,), torch.Generator().manual_seed(0), 0, 0)
    losses = objective.loss(x0, {}, context).loss
    (gradient,) = torch.autograd.grad(losses.sum(), output)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


def filled(values: torch.Tensor) -> LossHistory:
    history = LossHistory(len(values))
    for _ in range(LENGTH):
        history.update(torch.arange(len(values)), values)
    history.begin(0)
    return history


def test_timesteps_follow_their_losses() -> None:
    """p_t is in proportion to sqrt(E[L_t^2]), and 1 / (T p_t) makes the mean loss what it was."""
    losses = torch.tensor([1.0, 2.0, 5.0, 0.0])
    history = filled(losses)
    expected = losses.double() / 8 * (1 - UNIFORM) + UNIFORM / 4
    torch.testing.assert_close(history.probabilities(), expected)
    t = history.quantile((torch.arange(10_000) + 0.5) / 10_000)
    torch.testing.assert_close(t.bincount(minlength=4) / 10_000, expected.float(), atol=2e-4, rtol=0)
    assert (losses[t] * history.weights(t)).mean().item() == pytest.approx(losses.mean().item(), rel=1e-3)


def test_draws_are_uniform_until_all_losses_are_known() -> None:
    history = LossHistory(4)
    for _ in range(LENGTH):
        history.update(torch.arange(3), torch.tensor([1.0, 10.0, 100.0]))
    history.begin(0)
    torch.testing.assert_close(history.probabilities(), torch.full((4,), 0.25).double())
    assert torch.equal(history.weights(torch.arange(4)), torch.ones(4))


def test_the_oldest_losses_are_replaced_first(tmp_path: Path) -> None:
    """A timestep that is several times in a batch takes as many places."""
    one, other = filled(torch.zeros(2)), filled(torch.zeros(2))
    one.update(torch.tensor([1, 1, 0]), torch.tensor([3.0, 4.0, 5.0]))
    for t, loss in ((1, 3.0), (0, 5.0), (1, 4.0)):
        other.update(torch.tensor([t]), torch.tensor([loss]))
    one.begin(0)  # that of the losses, which change nothing until it is over
    assert not one.losses.any()
    one.begin(1)
    other.begin(1)
    assert torch.equal(one.losses, other.losses)
    assert one.losses[1].tolist() == [3.0, 4.0] + [0.0] * (LENGTH - 2)
    TensorState(one).collect()(tmp_path / "timesteps")
    resumed = LossHistory(2)
    TensorState(resumed).load(tmp_path / "timesteps")
    assert torch.equal(resumed.losses, one.losses)
    assert torch.equal(resumed.counts, one.counts)
