"""Score-based SDEs: their kernels, and samplers with a network that knows the score of a mixture exactly."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, ScoreSdeVeScheduler, UNet2DModel
from torch import Tensor

from pipelines import PixelDiffusionPipeline, ScoreSdePipeline, image_generators, make_scheduler
from pipelines.ode import integrate
from pipelines.prediction import NoiseLevel
from pipelines.predictor_corrector import PREDICTORS, ancestral, annealed_langevin, langevin, reverse_diffusion
from pipelines.sde import SDES, make_sde
from tests.autoencoders import tiny_vae
from tests.pipelines.mixture import STDS, WEIGHTS, distance, draw, mixture_pipeline, parts
from tests.pipelines.models import quiet, tiny_unet

REAL = draw(20_000)
N = 1000
SPREAD = {
    # How far standard deviations are off after 200 steps, which is the first order of their length.
    ("ve", "reverse_diffusion"): 0.045,
    ("ve", "euler_maruyama"): 0.025,
    ("ve", "ancestral"): 0.04,
    ("vp", "euler_maruyama"): 0.03,
    ("vp", "ancestral"): 0.15,
    ("subvp", "euler_maruyama"): 0.02,
}


def sde_of(name: str) -> Any:
    return SDES[name]()  # type: ignore[call-arg]


def sample(pipeline: ScoreSdePipeline, n: int = N, **options: Any) -> Tensor:
    return pipeline(n, generator=torch.Generator().manual_seed(1), output_type="latent", **options).images


def check(x: Tensor, spread: float) -> None:
    """Two-sample tests of two kinds: N real samples are up to 0.055 apart, and their standard deviations 1%."""
    fractions, stds = parts(x)
    assert distance(x, REAL) < 0.075
    assert (fractions - WEIGHTS).abs().max() < 0.05
    assert (stds - 1).abs().max() < spread


@pytest.mark.parametrize("name", SDES)
def test_kernels_are_those_of_the_simulated_sde(name: str) -> None:
    """20,000 paths of Euler and Maruyama from x = 1, with what noise there is at t = 0."""
    sde, g = sde_of(name), torch.Generator().manual_seed(0)
    times = torch.linspace(0, 1, 801, dtype=torch.float64)
    x = 1 + sde.level(times[0]).sigma * torch.randn(20_000, generator=g)
    for s, t in zip(times, times[1:], strict=False):
        noise = torch.randn(x.shape, generator=g)
        x = x + (t - s) * sde.drift(s) * x + sde.diffusion(s) * (t - s).sqrt() * noise
        if t in (0.25, 1):
            alpha, sigma = sde.level(t)[:2]
            assert x.mean().item() == pytest.approx(alpha.item(), abs=0.01 + sigma.item() / 50)
            assert x.std().item() == pytest.approx(sigma.item(), rel=0.02)


@pytest.mark.parametrize("name", SDES)
def test_moments_obey_their_odes(name: str) -> None:
    """dm / dt = f m and dv / dt = 2 f v + g^2 (Särkkä & Solin 2019, section 5.5), solved to 1e-6."""
    sde = sde_of(name)

    def derivative(t: Tensor, state: Tensor, rows: Tensor) -> Tensor:
        f, g = sde.drift(t), sde.diffusion(t)
        return torch.stack([f * state[:, 0], 2 * f * state[:, 1] + g**2], 1)

    start = torch.tensor([[1.0, sde.level(torch.zeros(1)).sigma.item() ** 2]]).double()
    for end in (0.3, 1.0):
        mean, variance = integrate(derivative, start, (0.0, end), 1e-8, 1e-12)[0].tolist()
        alpha, sigma = sde.level(torch.tensor(end, dtype=torch.float64))[:2]
        assert mean == pytest.approx(alpha.item(), rel=1e-5)
        assert variance == pytest.approx(sigma.item() ** 2, rel=1e-5)


@pytest.mark.parametrize("name", SDES)
def test_times_of_noise_levels(name: str) -> None:
    sde, t = sde_of(name), torch.tensor([1e-5, 1e-3, 0.2, 0.9, 1.0], dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-6)):
        level = sde.level(t.to(dtype))
        torch.testing.assert_close(sde.time((level.sigma / level.alpha).log()).double(), t, rtol=1e-3, atol=tolerance)
    assert sde.log_ratio(0.9) == pytest.approx(math.log(level.sigma[3] / level.alpha[3]), rel=1e-5)


def test_the_sdes_of_the_paper() -> None:
    """Their noise at the ends, and the sub-VP's variance, which is at most the VP's."""
    t = torch.tensor([0.0, 0.5, 1.0])
    exploding, preserving, sub = (sde_of(name).level(t) for name in SDES)
    assert exploding.sigma.tolist() == pytest.approx([0.01, 0.5**0.5, 50])
    assert exploding.alpha.tolist() == [1, 1, 1]
    torch.testing.assert_close(exploding.timestep, exploding.sigma)
    torch.testing.assert_close(preserving.alpha**2 + preserving.sigma**2, torch.ones(3))
    torch.testing.assert_close(sub.sigma, preserving.sigma**2)
    torch.testing.assert_close(sub.alpha, preserving.alpha)
    assert preserving.alpha[2].item() == pytest.approx(math.exp(-(0.1 + 20) / 4), rel=1e-5)
    assert preserving.timestep.tolist() == [0, 499.5, 999]


def test_the_vp_is_the_chains_limit() -> None:
    """The saved scheduler's own noise levels, at the times that the network is shown."""
    sde = sde_of("vp")
    scheduler = sde.scheduler("epsilon")
    level = sde.level(torch.arange(1, 1000) / 999)
    torch.testing.assert_close(level.sigma, (1 - scheduler.alphas_cumprod[1:]).sqrt(), atol=0.006, rtol=0)
    assert make_sde(scheduler) == sde
    assert make_sde(make_scheduler("ddim", scheduler), "subvp") == sde_of("subvp")


def test_ancestral_steps_are_the_posteriors() -> None:
    """Mean and variance of x_s given x_t and x0 (Ho et al. 2020, eq. 7), x0 being what the score says."""
    sde = sde_of("vp")
    s, t = torch.tensor([0.4, 0.5], dtype=torch.float64)
    x, score = torch.randn(2, 5, dtype=torch.float64)
    before, after = ((level.alpha**2).item() for level in (sde.level(s), sde.level(t)))
    x0 = (x + (1 - after) * score) / after**0.5
    beta = 1 - after / before
    mean, std = ancestral(sde, t, s, x, score)
    expected = before**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - before) * x
    torch.testing.assert_close(mean, expected / (1 - after))
    assert std.item() ** 2 == pytest.approx(beta * (1 - before) / (1 - after))
    mean, std = reverse_diffusion(sde, t, s, x, score)  # eq. 46 for the VP: (2 - sqrt(1 - beta)) x + beta score
    torch.testing.assert_close(mean, (2 - (1 - beta) ** 0.5) * x + beta * score)
    assert std.item() ** 2 == pytest.approx(beta)


@pytest.mark.parametrize(("name", "predictor"), SPREAD)
def test_predictors_sample_the_mixture(name: str, predictor: str) -> None:
    pipeline = mixture_pipeline(name)
    x = sample(pipeline, num_inference_steps=200, predictor=predictor, num_corrector_steps=0)
    check(x, SPREAD[name, predictor])
    assert pipeline.unet.calls == len(pipeline.scheduler.timesteps) == 200


@pytest.mark.parametrize("corrector", ["langevin", "annealed_langevin"])
def test_a_corrector_mends_what_few_steps_of_a_predictor_break(corrector: str) -> None:
    pipeline = mixture_pipeline("ve")
    options = {"num_inference_steps": 40, "predictor": "ancestral", "corrector": corrector}
    alone = sample(pipeline, 500, **options, num_corrector_steps=0)
    both = sample(pipeline, 500, **options, num_corrector_steps=2)
    assert pipeline.unet.calls == 40 + 120
    errors = [(parts(x)[1] - 1).abs().max() for x in (alone, both)]
    assert errors[1] < min(0.09, 0.8 * errors[0]), errors


@pytest.mark.parametrize("corrector", ["langevin", "annealed_langevin"])
def test_langevin_dynamics_alone(corrector: str) -> None:
    """The NCSN's sampler, which mixes slowly: many small steps at each noise level."""
    pipeline = mixture_pipeline("ve")
    options = {"num_inference_steps": 100, "predictor": "none", "num_corrector_steps": 8, "snr": 0.2}
    fractions, stds = parts(sample(pipeline, 300, corrector=corrector, **options))
    assert pipeline.unet.calls == len(pipeline.scheduler.timesteps) == 801
    assert (stds - 1).abs().max() < 0.08
    assert (fractions - WEIGHTS).abs().max() < 0.15


@pytest.mark.parametrize("name", SDES)
def test_the_ode_samples_the_mixture(name: str) -> None:
    """With tolerance to spare, and the distribution that the SDE has."""
    pipeline = mixture_pipeline(name)
    x = sample(pipeline, predictor="probability_flow", tolerance=1e-4)
    check(x, 0.015)
    assert 50 < pipeline.unet.calls < 200
    loose = sample(pipeline, predictor="probability_flow", tolerance=1e-1)  # no step leaps over what happens
    assert (loose - x).abs().median() < 1e-3
    if name == "ve":
        assert distance(x, sample(pipeline, num_inference_steps=200, num_corrector_steps=0)) < 0.09


def test_step_sizes() -> None:
    """Song et al. 2021, algorithm 4, and Song & Ermon 2019, algorithm 1, where snr = sqrt(epsilon / 2) / sigma_L."""
    score, noise = torch.randn(2, 3, 1, 4, 4)
    sizes = langevin(0.16, score, noise, torch.tensor(2.0))
    assert sizes.shape == (3, 1, 1, 1)
    assert sizes[1].item() == pytest.approx(2 * (0.16 * noise[1].norm() / score[1].norm()).item() ** 2)
    epsilon, last = 2e-5, 0.01
    snr = (epsilon / 2) ** 0.5 / last
    assert annealed_langevin(snr, score, noise, torch.tensor(1.0)).item() == pytest.approx(epsilon / last**2)


@pytest.mark.parametrize("corrections", [0, 2])
def test_the_ve_is_diffusers_own(corrections: int) -> None:
    """Reverse diffusion and Langevin steps as `ScoreSdeVeScheduler` takes them, with the same noise and network."""
    steps, pipeline = 40, mixture_pipeline("ve")
    scheduler = ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50, snr=0.16, correct_steps=corrections)
    pipeline.scheduler = scheduler
    start = torch.randn(1, 1, 8, 8)
    options = {"output_type": "latent", "latents": start, "num_inference_steps": steps}
    ours = pipeline(1, generator=torch.Generator().manual_seed(2), **options).images

    g, x = torch.Generator().manual_seed(2), 50 * start
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)

    def score(sigma: Tensor) -> Tensor:
        return pipeline.unet(x / (1 + sigma**2).sqrt(), sigma)[0]

    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        for _ in range(corrections):
            x = scheduler.step_correct(score(sigma), x, generator=g).prev_sample
        x, mean = scheduler.step_pred(score(sigma), t, x, generator=g, return_dict=False)
    torch.testing.assert_close(ours, mean, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    "options",
    [{"num_corrector_steps": 1}, {"predictor": "ancestral"}, {"predictor": "probability_flow", "tolerance": 1e-2}],
)
def test_an_image_does_not_depend_on_its_batch(options: dict[str, Any]) -> None:
    """Neither by its noise, nor by norms, nor by the steps of the ODE, which are its own."""
    pipeline = mixture_pipeline("ve", classes=True)
    usual = {"num_inference_steps": 20, "output_type": "latent", "guidance_scale": 1.5, "guidance_interval": (0.1, 3)}
    together = pipeline(3, class_labels=[0, 1, 2], generator=image_generators(0, range(3)), **usual, **options).images
    alone = pipeline(1, class_labels=2, generator=image_generators(0, [2]), **usual, **options).images
    torch.testing.assert_close(together[2], alone[0], atol=1e-4, rtol=0)
    assert (together[1] - together[2]).abs().max() > 0.1


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "probability_flow"])
def test_classes_and_guidance(predictor: str) -> None:
    """A label's samples are its part's; guidance takes them away from the other parts'."""
    pipeline = mixture_pipeline("vp", classes=True)
    options = {"num_inference_steps": 60, "predictor": predictor, "tolerance": 1e-3, "class_labels": ["c", "b"] * 50}
    x = sample(pipeline, 100, **options)
    fractions, _ = parts(x[::2])
    assert fractions.tolist() == [0, 0, 1]
    far = sample(pipeline, 100, **options, guidance_scale=4.0)
    assert (far - x).abs().mean() > 1e-3
    same = sample(pipeline, 100, **options, guidance_scale=4.0, guidance_interval=(1e6, 1e7))
    torch.testing.assert_close(same, x)
    null = sample(pipeline, 400, **options | {"class_labels": None})
    assert (parts(null)[0] - WEIGHTS).abs().max() < 0.1


def test_callbacks_and_trajectory() -> None:
    pipeline, seen = mixture_pipeline("subvp"), []

    def callback(pipe: Any, i: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((i, t.item(), tensors["latents"]))
        return {"latents": tensors["latents"] * 0} if i == 7 else {}

    names = ["latents", "pred_original_sample"]
    output = pipeline(
        2,
        num_inference_steps=4,
        num_corrector_steps=1,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=names,
        return_trajectory=True,
        output_type="np",
    )
    assert [i for i, _, _ in seen] == list(range(8))
    assert [t for _, t, _ in seen] == pytest.approx([1, 1, 0.667, 0.667, 0.334, 0.334, 0.001, 0.001], abs=1e-9)
    assert (output.images == 0.5).all()
    assert output.trajectory.denoised.shape == (8, 2, 1, 8, 8)
    assert output.trajectory.timesteps.tolist() == pytest.approx([999 * t for _, t, _ in seen])
    assert not torch.equal(seen[6][2], seen[7][2])
    assert pipeline(2, num_inference_steps=2, output_type="pt", return_dict=False)[0].shape == (2, 1, 8, 8)


def fourier_unet(channels: int = 2, classes: int | None = 3) -> UNet2DModel:
    config = {name: value for name, value in tiny_unet(channels, classes).config.items() if name[0] != "_"}
    torch.manual_seed(0)
    return UNet2DModel(**config | {"time_embedding_type": "fourier"}).eval()


def test_a_real_network_saved_and_loaded(tmp_path: Path) -> None:
    """Two channels and classes, by the VE; diffusers' own pipeline takes three channels and none."""
    scheduler = ScoreSdeVeScheduler(sigma_min=0.02, sigma_max=20, snr=0.2)
    pipeline = quiet(ScoreSdePipeline(fourier_unet(), scheduler, id2label={0: "a", 1: "b"}))
    options = {"num_inference_steps": 3, "class_labels": "b", "guidance_scale": 2.0, "output_type": "np"}
    images = pipeline(2, generator=image_generators(0, range(2)), **options).images
    assert images.shape == (2, 16, 16, 2)
    pipeline.save_pretrained(tmp_path)
    again = quiet(ScoreSdePipeline.from_pretrained(tmp_path))
    assert again.sde == make_sde(scheduler)
    assert (again.sde.sigma_min, again.sde.sigma_max) == (0.02, 20)
    assert (again(2, generator=image_generators(0, range(2)), **options).images == images).all()
    ode = again(1, class_labels="a", predictor="probability_flow", tolerance=1e-1, output_type="np").images
    assert ode.shape == (1, 16, 16, 2)


def test_latents() -> None:
    pipeline = quiet(ScoreSdePipeline(tiny_unet(4), DDPMScheduler(), vae=tiny_vae()))
    images = pipeline(2, num_inference_steps=2, output_type="pt").images
    assert images.shape[1:] == (pipeline.channels, 16 * pipeline.vae_scale_factor, 16 * pipeline.vae_scale_factor)
    assert pipeline(2, num_inference_steps=2, output_type="latent").images.shape == (2, 4, 16, 16)


def test_a_vp_model_is_a_chains_too() -> None:
    """A model of linear betas can be sampled in continuous time, and one of the VP SDE by a chain's samplers."""
    network = mixture_pipeline("vp").unet
    chain = quiet(PixelDiffusionPipeline(network, DDIMScheduler(clip_sample=False, timestep_spacing="trailing")))
    x = chain(N, num_inference_steps=200, generator=torch.Generator().manual_seed(0), output_type="pt").images * 2 - 1
    fractions, stds = parts(x)
    assert (fractions - WEIGHTS).abs().max() < 0.05
    # Values are cut off at -1 and 1, which narrows the parts at the edges; the third is far from them.
    assert stds[2].item() == pytest.approx(1, abs=0.05)
    assert STDS[2] == STDS.max()
    learned = ScoreSdePipeline(network, DDPMScheduler(num_train_timesteps=500, beta_end=0.04, beta_start=0.0002))
    assert learned.sde.beta_min == pytest.approx(0.1)
    assert learned.sde.beta_max == pytest.approx(20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"predictor": "euler"},
            "^predictor: 'euler' is not one of reverse_diffusion, euler_maruyama, ",
        ),
        ({"corrector": "mcmc"}, "^corrector: 'mcmc' is not one of langevin, annealed_langevin"),
        ({"snr": 0}, "^snr: must be more than 0"),
        ({"snr": -0.1}, "^snr: must be a finite number of 0 or more, got -0.1"),
        ({"tolerance": 0}, "^tolerance: must be more than 0"),
        ({"num_corrector_steps": -1}, "^num_corrector_steps: must be from 0"),
        (
            {"predictor": "none", "num_corrector_steps": 0},
            "^num_corrector_steps: must be at least 1 with predictor='none'",
        ),
        (
            {"predictor": "probability_flow", "num_corrector_steps": 1},
            "^num_corrector_steps: must be 0 with predictor=",
        ),
        ({"predictor": "probability_flow", "return_trajectory": True}, "^return_trajectory: not with predictor="),
        (
            {"predictor": "probability_flow", "callback_on_step_end": print},
            "^callback_on_step_end: not with predictor=",
        ),
        ({"num_inference_steps": 0}, "^num_inference_steps: must be from 1"),
        ({"guidance_scale": 2}, "^guidance_scale: must be 1, since this model was not trained with dropped labels"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixture_pipeline("ve")(**options)


def test_types() -> None:
    for name, value in {"predictor": 5, "corrector": None, "snr": "x", "num_corrector_steps": 0.5}.items():
        with pytest.raises(TypeError, match=f"^{name}: must be"):
            mixture_pipeline("ve")(**{name: value})
    with pytest.raises(TypeError, match="^vae: must be an autoencoder"):
        ScoreSdePipeline(tiny_unet(), DDPMScheduler(), vae="vae")
    with pytest.raises(TypeError, match="^sde: must be a text"):
        ScoreSdePipeline(tiny_unet(), DDPMScheduler(), sde=5)


@pytest.mark.parametrize(
    ("scheduler", "sde", "message"),
    [
        (
            EDMEulerScheduler(),
            None,
            "^scheduler: EDMEulerScheduler holds no SDE's parameters; ScoreSdeVeScheduler does",
        ),
        (DDPMScheduler(beta_schedule="squaredcos_cap_v2"), None, "^scheduler: DDPMScheduler holds no SDE's parameters"),
        (DDPMScheduler(rescale_betas_zero_snr=True), "vp", "^scheduler: DDPMScheduler holds no SDE's parameters"),
        (DDPMScheduler(), "ve", "^sde: 've' doesn't fit DDPMScheduler, which stands for vp or subvp"),
        (ScoreSdeVeScheduler(), "subvp", "^sde: 'subvp' doesn't fit ScoreSdeVeScheduler, which stands for ve"),
    ],
)
def test_schedulers_that_do_not_fit(scheduler: Any, sde: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreSdePipeline(tiny_unet(), scheduler, sde=sde)


def test_rounded_fourier_features_are_refused() -> None:
    """In bfloat16 they turn by most of a circle: the network wouldn't know the noise level."""
    pipeline = ScoreSdePipeline(fourier_unet(1, None).bfloat16(), ScoreSdeVeScheduler())
    with pytest.raises(
        ValueError, match=r"^unet: its Fourier features of the noise level are rounded to torch.bfloat16"
    ):
        pipeline(num_inference_steps=1)
    half = quiet(ScoreSdePipeline(tiny_unet().bfloat16(), DDPMScheduler()))
    assert half(num_inference_steps=2, output_type="latent").images.dtype == torch.float32


def test_predictors_are_those_of_the_options() -> None:
    from snowmelt.loading import SamplerOptions

    choices = {name: SamplerOptions.fields()[name].metadata["choices"] for name in ("predictor", "corrector")}
    assert set(choices["predictor"]) == {*PREDICTORS, "probability_flow"}
    assert set(choices["corrector"]) == {"langevin", "annealed_langevin"}


def test_levels_hold_no_double_for_the_network() -> None:
    """Some devices have none."""
    for name in SDES:
        level: NoiseLevel = sde_of(name).level(torch.tensor(0.5, dtype=torch.float64))
        assert level.timestep.dtype == torch.float32
        assert level.sigma.dtype == torch.float64
