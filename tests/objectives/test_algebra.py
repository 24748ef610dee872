"""The table (a, b): closed forms, inverses, and agreement with diffusers' own schedulers."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler

from pipelines.denoiser import Predictor
from pipelines.prediction import PredictionType, expand
from pipelines.samplers import make_sampler
from pipelines.sde import SDES
from snowmelt.objective_options import ObjectiveOptions
from snowmelt.objectives import RECIPES, Objective, make_objective
from snowmelt.objectives.paths import DiscretePath, EdmPath, Path, SdePath, StraightPath

DISCRETE = [name for name, o in RECIPES.items() if isinstance(o.path, DiscretePath)]
SHAPE = (16, 2, 3, 3)
SHAPED = torch.empty(SHAPE)


def draw(objective: Objective, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """x0, eps, t and the noisy x_t of an objective."""
    g = torch.Generator().manual_seed(seed)
    t, _ = objective.draw_times(SHAPE[0], g)
    x0, eps = torch.randn(SHAPE, generator=g), torch.randn(SHAPE, generator=g)
    alpha, sigma = (expand(c, SHAPED) for c in objective.path.level(t)[:2])
    return x0, eps, t, alpha * x0 + sigma * eps


def target(objective: Objective, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    a, b = (expand(c, x0) for c in objective.coefficients(objective.path.level(t)))
    return a * x0 + b * eps


def fed(path: Path, x_t: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a network on the path is given."""
    given = []

    def net(x: torch.Tensor, timestep: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        given.extend([x, timestep])
        return (x,)

    Predictor(net, PredictionType("sample"))(x_t, path.level(t), {})
    return given[0], given[1]


@pytest.mark.parametrize("name", RECIPES)
def test_denoise_recovers_both(name):
    objective = RECIPES[name]
    x0, eps, t, x_t = draw(objective)
    got = objective.read(target(objective, x0, eps, t), x_t, t)
    # What can be recovered in float32 shrinks with the fraction of what is recovered in x_t.
    alpha, sigma = (expand(c, SHAPED) for c in objective.path.level(t)[:2])
    assert ((got.x0 - x0) * alpha / (alpha + sigma)).abs().max() < 1e-5
    assert ((got.eps - eps) * sigma / (alpha + sigma)).abs().max() < 1e-5


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_discrete_noising_is_the_schedulers(schedule, zero_snr):
    path = DiscretePath(schedule, 100, zero_snr)
    scheduler = path.scheduler("v_prediction")
    t = torch.arange(100)
    x0, eps = torch.randn(100, 1, 2, 2), torch.randn(100, 1, 2, 2)
    alpha, sigma = (expand(c, x0) for c in path.level(t)[:2])
    torch.testing.assert_close(alpha * x0 + sigma * eps, scheduler.add_noise(x0, eps, t), atol=1e-5, rtol=1e-5)
    a, b = PredictionType("v_prediction").coefficients(alpha, sigma)
    torch.testing.assert_close(a * x0 + b * eps, scheduler.get_velocity(x0, eps, t), atol=1e-5, rtol=1e-5)
    assert (alpha[-1].item() == 0) == zero_snr


@pytest.mark.parametrize("target_name", ["epsilon", "sample", "v_prediction"])
def test_discrete_step_sees_the_same_x0(target_name):
    """DDPM's and DDIM's own predicted x0, from the exact output, is x0."""
    objective = Objective(DiscretePath("squaredcos_cap_v2"), target_name)
    x0, eps, _, _ = draw(objective)
    for step in (1, 200, 700):
        t = torch.full((SHAPE[0],), step)
        alpha, sigma = (expand(c, SHAPED) for c in objective.path.level(t)[:2])
        x_t, output = alpha * x0 + sigma * eps, target(objective, x0, eps, t)
        for scheduler in (objective.scheduler(), DDIMScheduler.from_config(objective.scheduler().config)):
            scheduler.register_to_config(clip_sample=False)
            scheduler.set_timesteps(1000)
            predicted = scheduler.step(output, step, x_t).pred_original_sample
            torch.testing.assert_close(predicted, objective.read(output, x_t, t).x0, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(predicted, x0, atol=2e-5, rtol=1e-5)


def test_flow_step_follows_the_line():
    """From the exact velocity, one Euler step of the saved scheduler lands on the path at the next time."""
    objective = RECIPES["flow"]
    scheduler = objective.scheduler()
    scheduler.set_timesteps(10)
    x0, eps, _, _ = draw(objective)
    for i in range(10):
        now, after = scheduler.sigmas[i], scheduler.sigmas[i + 1]
        t = now.expand(SHAPE[0])
        x_t = (1 - now) * x0 + now * eps
        got = scheduler.step(target(objective, x0, eps, t), scheduler.timesteps[i], x_t).prev_sample
        torch.testing.assert_close(got, (1 - after) * x0 + after * eps, atol=1e-5, rtol=1e-5)
        x, shown = fed(objective.path, x_t, t)
        torch.testing.assert_close(shown, scheduler.timesteps[i].expand(SHAPE[0]), atol=1e-5, rtol=1e-5)
        assert torch.equal(x, x_t)


def test_mixture_moves_part_of_the_way():
    """x + (t' - t)(x - x0) / t is a step of (t - t') / t of the way to the predicted image."""
    objective = RECIPES["mixture"]
    x0, eps, t, x_t = draw(objective)
    part = t.view(-1, 1, 1, 1)
    torch.testing.assert_close(x_t, (1 - part) * x0 + part * eps)
    got = objective.read(x0, x_t, t)
    torch.testing.assert_close(got.eps - x0, (x_t - x0) / part, atol=1e-4, rtol=1e-4)
    assert objective.pipeline_prediction_type == "sample"


@pytest.mark.parametrize("latent", [False, True])
def test_edm_preconditioning_is_the_schedulers(latent):
    objective = make_objective(ObjectiveOptions(objective="edm"), latent=latent)
    scheduler = objective.scheduler()
    assert isinstance(scheduler, EDMEulerScheduler)
    x0, eps, t, x_t = draw(objective)
    output = target(objective, x0, eps, t)
    x, shown = fed(objective.path, x_t, t)
    for i, sigma in enumerate(t):
        torch.testing.assert_close(x[i], scheduler.precondition_inputs(x_t[i], sigma), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(shown[i], scheduler.precondition_noise(sigma), atol=1e-6, rtol=1e-5)
        theirs = scheduler.precondition_outputs(x_t[i], output[i], sigma)
        torch.testing.assert_close(theirs, x0[i], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(objective.read(output, x_t, t).x0[i], theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", [EdmPath(), EdmPath().for_latents()])
def test_edm_target_has_unit_variance(path):
    """What preconditioning is for: unit variance of input and target at any noise level (Karras et al. 2022, B.6)."""
    objective = Objective(path, "edm", timestep_sampling="log_normal")
    g = torch.Generator().manual_seed(1)
    x0, eps = path.sigma_data * torch.randn(3, 40000, generator=g), torch.randn(3, 40000, generator=g)
    t = torch.tensor([0.01, 0.7, 40.0])
    a, b = (c[:, None] for c in objective.coefficients(path.level(t)))
    assert torch.allclose((a * x0 + b * eps).std(1), torch.ones(3), atol=0.02)
    x, _ = fed(path, x0 + t[:, None] * eps, t)
    assert torch.allclose(x.std(1), torch.ones(3), atol=0.02)


def test_edm_of_latents_is_edm_of_pixels_in_other_units():
    """Of data twice as large, at twice the noise, as often."""
    pixels, latents = (make_objective(ObjectiveOptions(objective="edm"), latent=latent) for latent in (False, True))
    (t, _), (t2, _) = (o.draw_times(9, torch.Generator().manual_seed(0)) for o in (pixels, latents))
    torch.testing.assert_close(t2, 2 * t)
    x0, eps = torch.randn(2, 9, 4)
    (a, _), (b, _) = (
        fed(o.path, scale * (x0 + time[:, None] * eps), scale * time)
        for o, scale, time in ((pixels, 1, t), (latents, 2, t))
    )
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", RECIPES)
def test_only_pixels_are_clipped(name):
    pixels, latents = (make_objective(ObjectiveOptions(objective=name), latent=latent) for latent in (False, True))
    ours, theirs = (dict(o.scheduler().config) for o in (latents, pixels))
    assert not ours.get("clip_sample")
    changed = {key for key in ours if ours[key] != theirs[key]}
    assert changed <= {"clip_sample", "clip_denoised", "sigma_data"}
    assert bool(changed) == (name in DISCRETE or name in ("edm", "ect"))


def test_pipelines_read_outputs_as_objectives_teach_them() -> None:
    """The saved scheduler's adapter has the prediction type and, at the same noise level, the same row."""
    for name in ("epsilon", "sample", "v", "flow", "edm"):
        objective = RECIPES[name]
        sampler = make_sampler(objective.scheduler())
        assert sampler.prediction_type == objective.path.prediction_type(objective.prediction_type)
        sampler.set_timesteps(7, None, torch.device("cpu"))
        for i in sampler.evaluations():
            theirs = sampler.level(i)
            time = theirs.sigma if name in ("flow", "edm") else theirs.timestep
            ours = objective.path.level(time[None])
            for a, b in zip(ours, theirs, strict=True):
                assert (a is None) == (b is None)
                assert a is None or a[0].item() == pytest.approx(b.item(), rel=1e-4, abs=1e-5)


def test_edm_rows_are_the_schedulers() -> None:
    """c_skip and c_out, read off what diffusers makes of ones and zeros."""
    scheduler, kind = EDMEulerScheduler(sigma_data=0.7), PredictionType("edm", 0.7)
    for sigma in (0.002, 0.5, 80.0):
        one, noise = torch.ones(()), torch.tensor(sigma)
        c_skip = scheduler.precondition_outputs(1.0, 0.0, noise)
        c_out = scheduler.precondition_outputs(0.0, 1.0, noise)
        a, b = kind.coefficients(one, noise)
        assert a.item() == pytest.approx(((1 - c_skip) / c_out).item(), rel=1e-4)
        assert b.item() == pytest.approx((-c_skip * noise / c_out).item(), rel=1e-4)


@pytest.mark.parametrize(("path", "name"), [(DiscretePath(), "flow_prediction"), (StraightPath(), "edm")])
def test_a_path_knows_what_can_be_predicted_on_it(path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"prediction_type: '{name}' is none of the"):
        Objective(path, name)


def test_prediction_type_is_given_only_where_the_scheduler_cannot_be():
    given = {name: o.pipeline_prediction_type for name, o in RECIPES.items()}
    assert {name for name, kind in given.items() if kind} == {"mixture"}


def test_score_based_objectives_weigh_the_noise_alike() -> None:
    """An error of the score counts sigma^2 (Song et al. 2021, section 3.3): one of eps counts 1, at any time."""
    for name in SDES:
        objective = RECIPES[name]
        t, _ = objective.draw_times(64, torch.Generator().manual_seed(0))
        assert 1e-5 < t.min() < t.max() < 1
        level = objective.path.level(t)
        _, b = objective.coefficients(level)
        torch.testing.assert_close(objective.weights(level) * b**2, torch.ones(64))
    exploding = RECIPES["ve"].path
    assert isinstance(exploding, SdePath)
    assert exploding.fourier
    for t in torch.tensor([[1e-5], [0.5], [1.0]]):
        x_t = torch.randn(1, 4096) + exploding.level(t).sigma * torch.randn(1, 4096)
        x, shown = fed(exploding, x_t, t)
        assert x.std().item() == pytest.approx(1, abs=0.05)  # of unit data; the network sees nothing without bounds
        torch.testing.assert_close(shown, exploding.level(t).sigma)
    with pytest.raises(ValueError, match="prediction_type: 'epsilon' is none of the SDE's: score"):
        Objective(exploding, "epsilon")
    with pytest.raises(ValueError, match="prediction_type: 'score' is none of the SDE's: epsilon, sample"):
        Objective(RECIPES["vp"].path, "score")


def test_discrete_schedulers_know_the_prediction_type() -> None:
    for name in DISCRETE:
        assert RECIPES[name].scheduler().config.prediction_type == RECIPES[name].prediction_type


def test_first_timesteps_are_noisy_in_float32():
    """In half precision the first timesteps of the linear betas would get no noise at all."""
    alpha, sigma = DiscretePath("linear").level(torch.arange(3))[:2]
    assert alpha.dtype == sigma.dtype == torch.float32
    assert sigma[0].item() == pytest.approx(math.sqrt(1e-4), rel=1e-3)


def test_straight_path_reaches_both_ends():
    alpha, sigma = StraightPath().level(torch.tensor([0.0, 1.0]))[:2]
    assert alpha.tolist() == [1, 0]
    assert sigma.tolist() == [0, 1]
