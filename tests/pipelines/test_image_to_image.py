"""Sampling that starts from an image, against closed forms."""

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from pipelines import PixelDiffusionPipeline, make_sampler, make_scheduler
from tests.pipelines.models import quiet, run_loop, tiny_pipeline
from tests.pipelines.oracle import MEAN, STD, Oracle
from tests.pipelines.test_reverse_process import EVERY, FAMILY, TOLERANCE, TRAINED

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, to the schedulers

RANDOM = ("ddpm", "ddpm-fixed-small", "ddpm-fixed-large", "euler-a", "kdpm2-a", "sde-dpmsolver++")
SHAPE = (4, 1, 64, 64)


def oracle_pipeline(model: str, name: str) -> Any:
    scheduler: Any = make_scheduler(name, TRAINED[model])
    family = FAMILY.get(model, "discrete")
    native = {"flow": "flow_prediction", "edm": "edm"}.get(family, scheduler.config.get("prediction_type"))
    config = TRAINED[model].config
    schedule = {k: config[k] for k in ("beta_schedule", "rescale_betas_zero_snr") if k in config}
    return quiet(PixelDiffusionPipeline(Oracle(family, native, schedule), scheduler))


def first_level(pipeline: Any, steps: int, strength: float) -> float:
    """sigma / alpha of the noise at the first of the steps that are left, from the scheduler's own times."""
    scheduler: SchedulerMixin = pipeline.scheduler
    scheduler.set_timesteps(steps)
    skipped = steps - int(steps * strength)
    t = scheduler.timesteps.unique(sorted=True).flip(0) if scheduler.order == 1 else scheduler.timesteps[::2]
    if scheduler.order == 1 and len(scheduler.timesteps) == steps:
        t = scheduler.timesteps
    time = float(t[skipped])
    if "edm" in type(scheduler).__name__.lower():
        return float(torch.tensor(4 * time).exp())
    if not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("use_flow_sigmas"):
        return time / 1000 / (1 - time / 1000)
    alpha2 = float(torch.as_tensor(scheduler.alphas_cumprod)[round(time)])
    return ((1 - alpha2) / alpha2) ** 0.5


@pytest.mark.parametrize(("model", "name"), EVERY)
def test_every_sampler_starts_from_an_image(model: str, name: str) -> None:
    """Noised data has the marginal that training saw there, and so becomes data again.

    Without fresh noise, the ODE of normal data maps x_t = alpha x0 + sigma eps to MEAN + STD (x_t - alpha MEAN) / std,
    std being that of x_t.
    """
    image = MEAN + STD * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    pipeline = oracle_pipeline(model, name)
    x0 = run_loop(
        pipeline,
        SHAPE,
        num_inference_steps=200,
        image=image,
        latents=noise,
        strength=0.3,
        generator=torch.Generator().manual_seed(3),
    )
    assert float(x0.mean()) == pytest.approx(MEAN, abs=0.008)
    assert float(x0.std()) == pytest.approx(STD, rel=TOLERANCE.get(name, 0.015) + 0.01)
    ratio = first_level(oracle_pipeline(model, name), 200, 0.3)
    correlation = float(torch.corrcoef(torch.stack([x0.flatten(), image.flatten()]))[0, 1])
    kept = STD / (STD**2 + ratio**2) ** 0.5  # of the image, after the noise
    if name in RANDOM:
        assert 0 < correlation < kept + 0.02
    else:
        mapped = MEAN + STD * (image - MEAN + ratio * noise) / (STD**2 + ratio**2) ** 0.5
        assert correlation == pytest.approx(kept, abs=0.02)
        assert float((x0 - mapped).abs().mean()) < 0.03 * STD


@pytest.mark.parametrize(("model", "name"), EVERY)
def test_few_steps_are_left_where_strength_is_small(model: str, name: str) -> None:
    pipeline = tiny_pipeline(make_scheduler(name, TRAINED[model]))
    seen: list[int] = []
    shape = (1, 1, 16, 16)

    def count(i: int, x: torch.Tensor, prediction: Any) -> torch.Tensor:
        seen.append(i)
        return x

    x0 = run_loop(pipeline, shape, num_inference_steps=10, image=torch.zeros(shape), strength=0.39, on_step=count)
    order = make_sampler(pipeline.scheduler).order
    evaluations = {"pndm": 4}.get(name, 3 * order - (order - 1))
    assert [i - seen[0] for i in seen] == list(range(evaluations))
    assert x0.isfinite().all()


@pytest.mark.parametrize("strength", [0.0, 0.09, 1.1])
def test_a_strength_that_leaves_no_step_is_refused(strength: float) -> None:
    pipeline, image = tiny_pipeline(), torch.zeros(1, 1, 16, 16)
    with pytest.raises(ValueError, match=f"strength: {strength} of 10 steps"):
        run_loop(pipeline, (1, 1, 16, 16), num_inference_steps=10, image=image, strength=strength)
