"""Heun's method and churn (Karras et al. 2022), against their algorithm written out and closed forms."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler
from torch import Tensor

from pipelines import PixelDiffusionPipeline, TextToImagePipeline, image_generators, make_sampler, make_scheduler
from pipelines.churn import Churn
from pipelines.denoiser import Predictor, conditioned
from pipelines.prediction import PredictionType
from pipelines.sampling import sample
from tests.pipelines.models import quiet, tiny_pipeline
from tests.pipelines.oracle import MEAN, SIGMA_DATA, STD, Oracle
from tests.pipelines.test_reverse_process import TRAINED
from tests.text.models import tiny_encoder, tiny_tokenizer
from tests.text.stable_diffusion import tiny_unet as tiny_text_unet

EDM = EDMEulerScheduler()
CHURN = {"s_churn": 10.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
SHAPE = (2, 1, 16, 16)


def algorithm_2(unet: Any, x: Tensor, steps: int, churn: Churn, generator: Any, heun: bool = True) -> Tensor:
    """Karras et al. 2022, algorithm 2, with its table 1, in float64 but for the network."""
    ramp = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    sigmas = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    sigmas = [*sigmas.tolist(), 0.0]

    def denoise(x: Tensor, sigma: float) -> Tensor:
        total = sigma**2 + SIGMA_DATA**2
        output = unet((x / total**0.5).float(), torch.full((len(x),), math.log(sigma) / 4)).sample.double()
        return SIGMA_DATA**2 / total * x + sigma * SIGMA_DATA / total**0.5 * output

    x = x.double()
    for i in range(steps):
        gamma = min(churn.s_churn / steps, 2**0.5 - 1) if churn.s_tmin <= sigmas[i] <= churn.s_tmax else 0
        raised = sigmas[i] + gamma * sigmas[i]
        if gamma:
            noise = torch.randn(x.shape, generator=generator).double() * churn.s_noise
            x = x + (raised**2 - sigmas[i] ** 2) ** 0.5 * noise
        slope = (x - denoise(x, raised)) / raised
        euler = x + (sigmas[i + 1] - raised) * slope
        if heun and sigmas[i + 1]:
            slope = (slope + (euler - denoise(euler, sigmas[i + 1])) / sigmas[i + 1]) / 2
            euler = x + (sigmas[i + 1] - raised) * slope
        x = euler
    return x.float()


@pytest.mark.parametrize("name", ["edm-euler", "edm-heun"])
@pytest.mark.parametrize("churn", [Churn(), Churn(**CHURN), Churn(100.0)])
@torch.no_grad()
def test_agrees_with_algorithm_2(name: str, churn: Churn) -> None:
    """Of a network that isn't linear; noise drawn from the same generator."""
    pipeline = tiny_pipeline(make_scheduler(name, EDM))
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    ours = pipeline(
        2,
        num_inference_steps=9,
        latents=noise,
        generator=torch.Generator().manual_seed(2),
        output_type="pt",
        **churn._asdict(),
    ).images
    x = noise * EDM.init_noise_sigma
    theirs = algorithm_2(pipeline.unet, x, 9, churn, torch.Generator().manual_seed(2), name == "edm-heun")
    assert torch.allclose(ours, pipeline.to_images(theirs, "pt"), atol=2e-4)
    assert 0.05 < ours.std() < 0.6  # not all of it clipped


def oracle(name: str, x: Tensor, steps: int, churn: Churn | None = None) -> Tensor:
    """What a sampler makes of the state x with the optimal network for normal data."""
    sampler = make_sampler(make_scheduler(name, EDM), generator=torch.Generator().manual_seed(3), churn=churn)
    sampler.set_timesteps(steps, None, torch.device("cpu"))
    predict = Predictor(Oracle("edm", "edm"), PredictionType("edm"))
    return sample(conditioned(predict, {}), sampler, sampler._churned(x, 0))


@pytest.mark.parametrize(("name", "order"), [("edm-euler", 1), ("edm-heun", 2)])
def test_order_of_convergence(name: str, order: int) -> None:
    """The ODE's own solution is MEAN + (x - MEAN) STD / sqrt(STD^2 + sigma^2) for normal data."""
    x = torch.tensor([-100.0, 30.0, 150.0]).view(3, 1, 1, 1)
    exact = MEAN + (x - MEAN) * STD / (STD**2 + 80**2) ** 0.5
    errors = [(oracle(name, x, steps) - exact).abs().max().item() for steps in (20, 40, 80)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


def euler_std(sigmas: list[float], churn: Churn) -> float:
    """Standard deviation of what Euler's steps make of normal data: each multiplies, and churn adds to the variance."""
    variance = sigmas[0] ** 2 + STD**2
    for sigma, after in zip(sigmas, sigmas[1:], strict=False):
        raised = churn.raised(sigma, len(sigmas) - 1)
        variance += raised**2 - sigma**2
        variance *= (1 + (after - raised) * raised / (STD**2 + raised**2)) ** 2
    return variance**0.5


@pytest.mark.parametrize(
    ("model", "name"), [("edm", "edm-heun"), ("edm", "edm-euler"), ("epsilon", "heun"), ("epsilon", "euler")]
)
def test_churned_samples_are_of_the_same_distribution(model: str, name: str) -> None:
    """Heun's but for its error, Euler's with just the error that is its own."""
    scheduler: Any = make_scheduler(name, TRAINED[model])
    network = Oracle("edm" if model == "edm" else "discrete", model)
    churn = Churn(60.0, 0.05, 50.0)
    generator = torch.Generator().manual_seed(0)
    pipeline = quiet(PixelDiffusionPipeline(network, scheduler))
    options = {"num_inference_steps": 200, "output_type": "pt"}
    images = pipeline(4, generator=generator, **options, **churn._asdict()).images
    scheduler.set_timesteps(200)
    expected = STD if "heun" in name else euler_std(scheduler.sigmas.tolist(), churn)
    assert float(images.mean() * 2 - 1) == pytest.approx(MEAN, abs=0.006)
    assert float(images.std() * 2) == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize("name", ["edm-euler", "edm-heun"])
def test_a_churned_image_depends_on_its_own_generator_alone(name: str) -> None:
    pipeline = tiny_pipeline(make_scheduler(name, EDM))
    options = {"num_inference_steps": 5, "output_type": "pt", **CHURN}
    together = pipeline(3, generator=image_generators(0, range(3)), **options).images
    alone = pipeline(1, generator=image_generators(0, [2]), **options).images
    again = pipeline(3, generator=image_generators(0, range(3)), **options).images
    still = pipeline(3, generator=image_generators(0, range(3)), num_inference_steps=5, output_type="pt").images
    assert torch.allclose(together[2], alone[0], atol=1e-4)
    assert torch.equal(together, again)  # the noise levels that a call raises are laid out anew by the next
    assert not torch.allclose(together, still, atol=1e-2)


def test_evaluations_of_heun() -> None:
    pipeline = tiny_pipeline(make_scheduler("edm-heun", EDM))
    calls: list[Any] = []
    pipeline.unet.register_forward_hook(lambda *_: calls.append(None))
    trajectory = pipeline(num_inference_steps=6, return_trajectory=True).trajectory
    assert len(calls) == len(trajectory.timesteps) == len(pipeline.scheduler.timesteps) == 11
    assert trajectory.timesteps[1] == trajectory.timesteps[2]


def test_heun_is_saved_with_the_scheduler(tmp_path: Path) -> None:
    """diffusers keeps what it doesn't know of a configuration; another choice takes it away again."""
    pipeline = tiny_pipeline(make_scheduler("edm-heun", EDMEulerScheduler(sigma_data=0.7, rho=5.0)))
    pipeline.save_pretrained(tmp_path)
    again = quiet(PixelDiffusionPipeline.from_pretrained(tmp_path))
    options = {"num_inference_steps": 4, "output_type": "pt"}
    a, b = (p(generator=torch.Generator().manual_seed(0), **options).images for p in (pipeline, again))
    assert torch.allclose(a, b, atol=1e-4)
    assert len(again.scheduler.timesteps) == 7
    for name in ("edm-euler", "edm-dpmsolver++"):
        scheduler: Any = make_scheduler(name, again.scheduler)
        assert scheduler.config.sigma_data == 0.7
        again.scheduler = scheduler
        again(**options)
        assert len(scheduler.timesteps) == 4


def test_churn_of_texts_and_of_images_to_start_from() -> None:
    tokenizer = tiny_tokenizer()
    parts = {"text_encoder": tiny_encoder("clip", len(tokenizer)), "tokenizer": tokenizer}
    pipeline = quiet(TextToImagePipeline(tiny_text_unet(3), make_scheduler("edm-heun", EDM), **parts))
    options = {"prompt": "a cat", "num_inference_steps": 6, "output_type": "pt", "strength": 0.5}
    start = torch.rand(1, 3, 16, 16)
    still, churned = (
        pipeline(image=start, generator=torch.Generator().manual_seed(0), s_churn=s_churn, **options).images
        for s_churn in (0.0, 2.0)
    )
    assert churned.isfinite().all()
    assert not torch.allclose(still, churned, atol=1e-2)


@pytest.mark.parametrize(
    ("model", "name", "line"),
    [
        ("epsilon", "ddim", "s_churn: DDIMScheduler takes none; EDMEuler, EulerDiscrete and HeunDiscrete do"),
        ("epsilon", "euler-a", "s_churn: EulerAncestralDiscreteScheduler takes none"),
        ("edm", "edm-dpmsolver++", "s_churn: EDMDPMSolverMultistepScheduler takes none"),
        ("flow", "flow-heun", "s_churn: FlowMatchHeunDiscreteScheduler takes none"),
    ],
)
def test_samplers_without_churn_refuse_it(model: str, name: str, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        tiny_pipeline(make_scheduler(name, TRAINED[model]))(s_churn=1.0)


@pytest.mark.parametrize(
    ("given", "error", "line"),
    [
        ({"s_churn": -1.0}, ValueError, "s_churn: must be a finite number of 0 or more"),
        ({"s_churn": math.inf}, ValueError, "s_churn: must be a finite number"),
        ({"s_tmin": "1"}, TypeError, "s_tmin: must be a number"),
        ({"s_tmin": 2.0, "s_tmax": 1.0}, ValueError, "s_tmin: must be at most s_tmax, got 2 and 1"),
        ({"s_noise": math.nan}, ValueError, "s_noise: must be a finite number"),
    ],
)
def test_bad_arguments(given: dict[str, Any], error: type[Exception], line: str) -> None:
    with pytest.raises(error, match=line):
        tiny_pipeline(DDPMScheduler())(**given)
