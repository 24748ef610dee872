"""From images to noise and back, DDIM at both ends of eta, and interpolation."""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn

from pipelines import PredictionType, make_sampler, make_scheduler, slerp
from pipelines.schedulers import INVERTIBLE, family
from tests.pipelines.mixture import mixture_pipeline
from tests.pipelines.models import tiny_pipeline

DDPM = {"timestep_spacing": "trailing", "clip_sample": False}
MODELS: dict[str, tuple[Any, str | None]] = {
    "epsilon": (DDPMScheduler(**DDPM), None),
    "sample": (DDPMScheduler(**DDPM, prediction_type="sample"), None),
    "v": (DDPMScheduler(**DDPM, prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2"), None),
    "zero snr": (DDPMScheduler(**DDPM, prediction_type="v_prediction", rescale_betas_zero_snr=True), None),
    "flow": (FlowMatchEulerDiscreteScheduler(), None),
    "mixture": (FlowMatchEulerDiscreteScheduler(), "sample"),
    "edm": (EDMEulerScheduler(), None),
}


def images(channels: int = 1) -> Tensor:
    return torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(7)) * 2 - 1


def decode(pipeline: Any, noise: Tensor, steps: int, **options: Any) -> Tensor:
    """Images in [-1, 1], without the clipping of pictures."""
    pipeline.scheduler = make_scheduler(INVERTIBLE[family(pipeline.scheduler)], pipeline.scheduler)
    seen = []

    def look(pipeline: Any, step: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"])
        return tensors

    pipeline(len(noise), latents=noise, num_inference_steps=steps, callback_on_step_end=look, **options)
    return seen[-1]


class Fixed(nn.Module):
    """Says the same wherever it is asked."""

    def forward(self, x: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (torch.linspace(-1, 1, x.shape[2]).expand_as(x),)


class Normal(nn.Module):
    """E[x0 | x_t] where all pixels are unit normal, as the model's prediction type says it."""

    def __init__(self, scheduler: Any, prediction_type: PredictionType) -> None:
        super().__init__()
        self.alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
        self.prediction_type = prediction_type

    def forward(self, x: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        flow, t = self.alphas_cumprod is None, timestep.view(-1, 1, 1, 1)
        alpha = 1 - t / 1000 if flow else self.alphas_cumprod[t].sqrt()
        sigma = t / 1000 if flow else (1 - alpha**2).sqrt()
        x0 = alpha * x / (alpha**2 + sigma**2)
        a, b = self.prediction_type.coefficients(alpha, sigma)
        return (a * x0 + b * (x - alpha * x0) / sigma,)


@pytest.mark.parametrize("model", [name for name in MODELS if name != "edm"])
def test_of_normal_data_the_noise_is_known(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ODE leaves x_t / sqrt(alpha^2 + sigma^2) as it is, so that the noise of an image is that image."""
    scheduler, given = MODELS[model]
    pipeline = tiny_pipeline(scheduler, prediction_type=given)
    network = Normal(scheduler, PredictionType(given) if given else make_sampler(scheduler).prediction_type)
    monkeypatch.setattr(pipeline.unet, "forward", network.forward)
    noise = pipeline.invert(images(), num_inference_steps=500, num_fixed_point_iterations=2)
    torch.testing.assert_close(noise, images(), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("model", [name for name in MODELS if name not in ("sample", "mixture")])
def test_steps_are_undone_exactly(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the network's outputs that the way back has, whatever it predicts."""
    scheduler, prediction_type = MODELS[model]
    pipeline = tiny_pipeline(scheduler, prediction_type=prediction_type)
    monkeypatch.setattr(pipeline.unet, "forward", Fixed().forward)
    noise = pipeline.invert(images(), num_inference_steps=20)
    tolerance = 1e-3 if model in ("epsilon", "edm") else 1e-4  # x0 of noise has large factors there
    torch.testing.assert_close(decode(pipeline, noise, 20), images(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("model", ["epsilon", "v", "flow", "edm"])
def test_round_trip(model: str) -> None:
    """More steps come closer, and fixed-point iterations come closer still."""
    scheduler, _ = MODELS[model]

    def smooth() -> Any:
        pipeline = tiny_pipeline(scheduler)
        pipeline.unet.conv_out.weight.data *= 0.1
        return pipeline

    errors = [
        (decode(p := smooth(), p.invert(images(), **options), steps) - images()).square().mean().sqrt()
        for steps, options in (
            (10, {"num_inference_steps": 10}),
            (50, {"num_inference_steps": 50}),
            (10, {"num_inference_steps": 10, "num_fixed_point_iterations": 8}),
        )
    ]
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.1 * errors[0]


def test_without_iterations_it_is_diffusers_inverse_scheduler() -> None:
    pipeline = tiny_pipeline(MODELS["epsilon"][0])
    ours = pipeline.invert(images(), num_inference_steps=20)
    inverse = DDIMInverseScheduler.from_config(pipeline.scheduler.config)
    inverse.set_timesteps(20)
    x = images()
    with torch.no_grad():
        for t in inverse.timesteps:
            x = inverse.step(pipeline.unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=0)


def test_a_class_is_exchanged() -> None:
    """Encoded under a label and decoded under it, an image is itself again; under another it isn't."""
    pipeline = tiny_pipeline(MODELS["flow"][0], num_class_embeds=4, id2label={0: "ant", 1: "bee", 2: "cat"})
    pipeline.unet.class_embedding.weight.data *= 5
    noise = pipeline.invert(images(), class_labels="bee", num_inference_steps=10, num_fixed_point_iterations=5)
    torch.testing.assert_close(decode(pipeline, noise, 10, class_labels="bee"), images(), atol=1e-2, rtol=0)
    assert (decode(pipeline, noise, 10, class_labels="cat") - images()).abs().max() > 0.1


@pytest.mark.parametrize("clip_sample", [True, False])
def test_eta_1_is_ddpm(clip_sample: bool) -> None:
    """Given the same noise, at every step of the chain (Song et al. 2021, eq. 16)."""
    config = {"num_train_timesteps": 20, "timestep_spacing": "trailing", "clip_sample": clip_sample}
    results = []
    for scheduler, options in ((DDPMScheduler(**config), {}), (DDIMScheduler(**config), {"eta": 1.0})):
        pipeline = tiny_pipeline(scheduler)
        generator = torch.Generator().manual_seed(0)
        results.append(pipeline(generator=generator, num_inference_steps=20, output_type="pt", **options).images)
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)


def test_slerp() -> None:
    first, second = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    middle = slerp(first, second, 0.5)
    torch.testing.assert_close(slerp(first, second, 0.0), first)
    torch.testing.assert_close(slerp(first, second, 1.0), second)
    assert middle.std().item() == pytest.approx(1, abs=0.02)  # where the mean of the two has 0.7
    assert (middle - first).norm().item() == pytest.approx((middle - second).norm().item(), rel=0.02)
    torch.testing.assert_close(slerp(first, first, 0.3), first)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": "cat.png"}, TypeError, "images: "),
        ({"images": torch.zeros(2, 3, 16, 16)}, ValueError, "images: .* 1 channels"),
        ({"images": images(), "num_inference_steps": 0}, ValueError, "num_inference_steps: "),
        ({"images": images(), "num_fixed_point_iterations": -1}, ValueError, "num_fixed_point_iterations: "),
        ({"images": images(), "class_labels": 1}, ValueError, "class_labels: "),
        ({"images": images(), "guidance_scale": 2.0}, ValueError, "guidance_scale: "),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny_pipeline().invert(**arguments)


def test_sdes_invert_nothing() -> None:
    with pytest.raises(NotImplementedError, match="invert: for deterministic samplers of a scheduler"):
        mixture_pipeline("subvp").invert(torch.zeros(1, 1, 16, 16))
