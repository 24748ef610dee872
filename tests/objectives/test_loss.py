"""Losses, weights and distributions of timesteps."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from scipy import stats

from pipelines.prediction import expand
from snowmelt.errors import UserError
from snowmelt.objectives import DEFAULT, RECIPES, Losses, Objective, StepContext, make_objective
from snowmelt.objectives.paths import DiscretePath, StraightPath
from snowmelt.objectives.timesteps import DISTRIBUTIONS, uniform
from snowmelt.options import UnconditionalConfig

OF_ONE_TIME = [name for name, objective in RECIPES.items() if not objective.of_two_times]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(objective: Objective, t: torch.Tensor) -> torch.Tensor:
    """Of the squared error of the output at times t."""
    return objective.weights(objective.path.level(t))


def loss_of(objective: Objective, net, x0: torch.Tensor, conditions: dict) -> Losses:
    return objective.loss(x0, conditions, StepContext(net, generator(), 0, 0))


def zero(x, timestep, **condition):
    return (torch.zeros_like(x),)


@pytest.mark.parametrize("name", OF_ONE_TIME)
def test_loss_of_a_network_that_says_nothing(name):
    """It is the mean square of the target, a^2 E x0^2 + b^2, since x0 and eps are independent."""
    objective = replace(RECIPES[name], vlb_weight=0.0)
    x0 = 0.5 * torch.randn(256, 3, 16, 16, generator=generator(1))
    losses = loss_of(objective, zero, x0, {})
    t, u = objective.draw_times(256, generator())
    level = objective.path.level(t)
    a, b = objective.coefficients(level)
    expected = (a**2 * x0.square().flatten(1).mean(1) + b**2) * objective.weights(level)
    torch.testing.assert_close(losses.loss, expected, atol=0.02, rtol=0.25)
    assert losses.loss.mean().item() == pytest.approx(expected.mean().item(), rel=0.02)
    assert torch.equal(losses.quantile, u)


@pytest.mark.parametrize("name", OF_ONE_TIME)
def test_exact_network_has_no_loss(name):
    """A network that knows x0 returns F* from what it is given alone, so the target is a function of (x_t, t, x0)."""
    objective = replace(RECIPES[name], vlb_weight=0.0)
    x0 = torch.randn(8, 3, 4, 4, generator=generator(1))
    t, _ = objective.draw_times(8, generator())
    level = objective.path.level(t)
    alpha, sigma, a, b = (expand(c, x0) for c in (*level[:2], *objective.coefficients(level)))
    scale = 1 if level.input_scale is None else expand(level.input_scale, x0)

    def oracle(x, timestep, return_dict, **condition):
        eps = (x / scale - alpha * x0) / sigma
        return ((a * x0 + b * eps).bfloat16() if condition else a * x0 + b * eps,)

    assert loss_of(objective, oracle, x0, {}).loss.max() < 1e-6
    half = loss_of(objective, oracle, x0, {"class_labels": None}).loss
    assert half.dtype == torch.float32
    assert 0 < half.max() < 1e-2


def test_loss_is_weighted():
    plain, weighted = (Objective(DiscretePath("linear"), "epsilon", weight=w) for w in ("unit", "min_snr"))
    x0 = torch.randn(32, 1, 4, 4, generator=generator(1))
    t, _ = plain.draw_times(32, generator())
    expected = loss_of(plain, zero, x0, {}).loss * weights(weighted, t)
    torch.testing.assert_close(loss_of(weighted, zero, x0, {}).loss, expected)


def test_low_discrepancy_reaches_the_loss():
    objective = Objective(DiscretePath("linear"), "epsilon", low_discrepancy=True)
    levels = loss_of(objective, zero, torch.zeros(16, 1, 2, 2), {}).quantile
    assert sorted((levels * 16).long().tolist()) == list(range(16))


CLOSED = {
    # target -> weight on its own error that min-SNR puts, from SNR and gamma (Hang et al. 2023)
    "epsilon": lambda snr, gamma: snr.clamp(max=gamma) / snr,
    "sample": lambda snr, gamma: snr.clamp(max=gamma),
    "v_prediction": lambda snr, gamma: snr.clamp(max=gamma) / (snr + 1),
}


@pytest.mark.parametrize("target", CLOSED)
def test_min_snr_weights(target):
    objective = Objective(DiscretePath("linear"), target, weight="min_snr", gamma=5.0)
    t = torch.arange(0, 1000, 7)
    alpha, sigma = objective.path.level(t)[:2]
    snr = (alpha / sigma) ** 2
    torch.testing.assert_close(weights(objective, t), CLOSED[target](snr, 5.0), rtol=1e-4, atol=1e-5)


def test_weights_are_the_same_for_every_prediction_type():
    """A weight is on the error of x0: two targets with the same x0 error have the same weighted loss."""
    t = torch.arange(50, 950, 50)
    error = 0.1 * torch.randn(len(t), generator=generator())
    for weight in ("min_snr", "soft_min_snr", "p2", "edm"):
        weighted = []
        for target in ("epsilon", "sample", "v_prediction"):
            objective = Objective(DiscretePath("linear"), target, weight=weight)
            level = objective.path.level(t)
            (alpha, sigma), (a, b) = level[:2], objective.coefficients(level)
            output_error = -error * (alpha * b - sigma * a) / sigma
            weighted.append(weights(objective, t) * output_error**2)
        torch.testing.assert_close(weighted[0], weighted[1], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(weighted[0], weighted[2], rtol=1e-3, atol=1e-6)


def test_p2_and_edm_weights_closed_form():
    t = torch.arange(1, 1000, 13)
    epsilon = Objective(DiscretePath("linear"), "epsilon", weight="p2")
    alpha, sigma = epsilon.path.level(t)[:2]
    torch.testing.assert_close(weights(epsilon, t), 1 / (1 + (alpha / sigma) ** 2), rtol=1e-4, atol=1e-6)
    edm = RECIPES["edm"]
    sigmas = torch.tensor([0.01, 0.5, 3.0, 50.0])
    named = Objective(edm.path, "edm", weight="edm", timestep_sampling="log_normal")
    torch.testing.assert_close(weights(named, sigmas), weights(edm, sigmas), rtol=1e-4, atol=1e-4)


def test_the_edm_weight_knows_the_variance_of_latents():
    """Karras et al. 2022, table 1: (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on the error of x0."""
    sigmas = torch.tensor([0.01, 0.5, 3.0, 50.0])
    objective = make_objective(options(objective="mixture", loss_weight="edm"), latent=True)
    t = sigmas / (1 + sigmas)  # of the straight path
    torch.testing.assert_close(weights(objective, t), (sigmas**2 + 1) / sigmas**2, rtol=1e-4, atol=1e-4)
    named = make_objective(options(objective="edm", loss_weight="edm"), latent=True)
    torch.testing.assert_close(weights(named, sigmas), torch.ones(4), rtol=1e-4, atol=1e-4)


def test_diffusers_weight_of_predicted_samples():
    """alpha^2 / sigma^2 on the error of x0, for the flag without an objective."""
    objective = make_objective(options(prediction_type="sample"))
    t = torch.arange(0, 1000, 37)
    alpha, sigma = objective.path.level(t)[:2]
    torch.testing.assert_close(weights(objective, t), (alpha / sigma) ** 2, rtol=1e-4, atol=1e-7)
    assert make_objective(options(prediction_type="sample", objective="epsilon")).weight == "unit"
    assert make_objective(options(prediction_type="sample", loss_weight="unit")).weight == "unit"


@pytest.mark.parametrize("name", ["epsilon", "v", "flow", "edm"])
def test_dream_adds_the_networks_own_error_to_the_noise(name):
    """A network that always expects the noise e and data to match: the error after the shift is in closed form."""
    objective = replace(RECIPES[name], dream_detail_preservation=1.0)
    x0 = torch.randn(4, 1, 8, 8, generator=generator(3))
    calls = []

    def net(x, timestep, return_dict):
        calls.append(x)
        return (torch.zeros_like(x),)

    loss_of(objective, net, x0, {})
    t, _ = objective.draw_times(4, same := generator())
    noise = torch.randn(x0.shape, generator=same)
    level = objective.path.level(t)
    alpha, sigma = (expand(c, x0) for c in level[:2])
    x_t = alpha * x0 + sigma * noise
    predicted = objective.read(torch.zeros_like(x_t), x_t, t).eps
    shifted = noise + sigma / torch.hypot(alpha, sigma) * (noise - predicted)
    expected = alpha * x0 + sigma * shifted
    if level.input_scale is not None:
        expected = expected * expand(level.input_scale, x0)
    assert len(calls) == 2
    torch.testing.assert_close(calls[1], expected, rtol=1e-4, atol=1e-4)


def test_soft_min_snr_is_a_smooth_minimum():
    objective = Objective(StraightPath(), "sample", weight="soft_min_snr", gamma=5.0)
    r = lambda t: (t / (1 - t)) ** 2  # noqa: E731
    t = torch.tensor([0.001, 0.3, 0.999])
    snr = 1 / r(t)
    torch.testing.assert_close(weights(objective, t), snr * 5 / (snr + 5), rtol=1e-4, atol=1e-6)


def test_zero_terminal_snr_trains():
    objective = Objective(DiscretePath("linear", 10, zero_snr=True), "v_prediction", weight="min_snr")
    assert weights(objective, torch.arange(10)).isfinite().all()


EXPECTED = {
    "uniform": stats.uniform(),
    "logit_normal": stats.norm(),
    "beta": stats.beta(3, 1),
    "log_normal": stats.norm(-1.2, 1.2),
}


@pytest.mark.parametrize("low_discrepancy", [False, True])
@pytest.mark.parametrize("name", EXPECTED)
def test_timestep_distributions(name, low_discrepancy):
    u = torch.cat([uniform(64, generator(i), low_discrepancy) for i in range(60)])
    draws = DISTRIBUTIONS[name].quantile(u)
    seen = {"logit_normal": draws.logit(), "log_normal": draws.log()}.get(name, draws)
    assert stats.kstest(seen.numpy(), EXPECTED[name].cdf).pvalue > 1e-3
    assert draws.isfinite().all()


def test_low_discrepancy_covers_every_bin():
    u = uniform(64, generator(), low_discrepancy=True)
    assert sorted((u * 64).long().tolist()) == list(range(64))
    assert sorted((uniform(64, generator(), low_discrepancy=False) * 64).long().tolist()) != list(range(64))


def test_discrete_times_cover_all_steps():
    path = DiscretePath("linear", 4)
    assert path.time(torch.tensor([0.0, 0.26, 0.5, 0.99, 1.0])).tolist() == [0, 1, 2, 3, 3]


def options(**values):
    return UnconditionalConfig(**values)


def test_default_and_diffusers_flags():
    assert make_objective(options()) == RECIPES[DEFAULT]
    assert make_objective(options(prediction_type="epsilon")) == RECIPES["epsilon"]
    changed = make_objective(options(ddpm_num_steps=500, ddpm_beta_schedule="scaled_linear", prediction_type="sample"))
    scheduler = changed.scheduler()
    assert (scheduler.config.num_train_timesteps, scheduler.config.beta_schedule) == (500, "scaled_linear")
    assert scheduler.config.prediction_type == "sample"
    weighted = make_objective(options(loss_weight="min_snr", snr_gamma=3.0, low_discrepancy=True))
    assert (weighted.weight, weighted.gamma, weighted.low_discrepancy) == ("min_snr", 3.0, True)
    assert make_objective(options(snr_gamma=3.0)).weight == "min_snr"
    assert make_objective(options(loss_weight="soft_min_snr", snr_gamma=3.0)).weight == "soft_min_snr"
    assert make_objective(options(loss_weight="min_snr")).gamma == 5.0
    kept = make_objective(options(objective="v", ddpm_num_steps=100))
    assert (kept.prediction_type, kept.path.beta_schedule, kept.path.num_train_timesteps) == (
        "v_prediction",
        "squaredcos_cap_v2",
        100,
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"objective": "elbo"}, "known: epsilon"),
        ({"objective": "flow", "prediction_type": "epsilon"}, "--prediction_type is for discrete-time objectives"),
        ({"objective": "edm", "timestep_sampling": "uniform"}, "takes log_normal"),
        ({"loss_weight": "big"}, "known: unit"),
        ({"rescale_betas_zero_snr": True}, "add --prediction_type v_prediction"),
    ],
)
def test_combinations_that_cannot_be_trained(values, said):
    with pytest.raises(UserError, match=said):
        make_objective(options(**values))


class Watched:
    """A network that gives back what it sees."""

    def __call__(self, x, timestep, return_dict):
        self.seen = x
        return (x,)


def test_offset_noise_is_asked_for_and_perturbation_is_not():
    """Of x0 = 0: at the last time of the straight path the network sees the noise alone."""
    x0 = torch.zeros(64, 3, 16, 16)
    for objective, within, between, error in (
        (Objective(StraightPath(), "epsilon"), 1.0, 0.0, 0.0),
        (Objective(StraightPath(), "epsilon", noise_offset=2.0), 1.0, 4.0, 0.0),
        (Objective(StraightPath(), "epsilon", input_perturbation=0.5), 1.25, 0.0, 0.25),
    ):
        net = Watched()
        with patch.object(Objective, "draw_times", lambda *_: (torch.ones(64), torch.ones(64))):
            losses = loss_of(objective, net, x0, {})
        assert net.seen.var((2, 3)).mean().item() == pytest.approx(within, rel=0.02)
        assert net.seen.mean((2, 3)).var().item() == pytest.approx(between + within / 256, rel=0.2)
        assert losses.loss.mean().item() == pytest.approx(error, rel=0.02)


def test_contrastive_flow_matching():
    """The squared error, less a fraction of the squared distance from the target of the row before."""
    x0 = torch.randn(5, 1, 2, 2, generator=generator(1))
    objective = replace(RECIPES["flow"], contrastive_weight=0.25)
    objective.draw_times(5, same := generator())
    target = torch.randn(x0.shape, generator=same) - x0
    output = torch.randn(x0.shape, generator=generator(2))
    losses = loss_of(objective, lambda x, timestep, return_dict: (output,), x0, {}).loss
    others = target[[4, 0, 1, 2, 3]]
    expected = (output - target).square().mean((1, 2, 3)) - 0.25 * (output - others).square().mean((1, 2, 3))
    torch.testing.assert_close(losses, expected)
