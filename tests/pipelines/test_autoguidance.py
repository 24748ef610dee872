"""Guidance by a worse network (Karras et al. 2024)."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from pipelines import PixelDiffusionPipeline
from pipelines.denoiser import Predictor, autoguided, conditioned
from pipelines.prediction import NoiseLevel, PredictionType
from tests.pipelines.mixture import mixture_pipeline
from tests.pipelines.models import tiny_pipeline, tiny_unet
from tests.pipelines.test_text2img import make as make_text2img

OPTIONS = {"num_inference_steps": 4, "output_type": "pt"}


def worse(*arguments: Any) -> Any:
    """A network that differs from `tiny_unet`."""
    unet = tiny_unet(*arguments)
    for parameter in unet.parameters():
        parameter.data.mul_(0.8)
    return unet


@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "edm"])
def test_the_expected_data_are_extrapolated(name: str) -> None:
    """D_guide + w (D - D_guide), Karras et al. 2024, eq. 3, of the data that each expects; labels reach both."""
    kind = PredictionType(name)
    predict, guide = Predictor(tiny_unet(1, 4), kind), Predictor(worse(1, 4), kind)
    x_t, conditions = torch.randn(2, 1, 16, 16), {"class_labels": torch.tensor([1, 2])}
    level = NoiseLevel(torch.tensor(0.6), torch.tensor(0.8), torch.tensor(300.0))
    own, other = (conditioned(p, conditions)(x_t, level).x0 for p in (predict, guide))
    guided = autoguided(predict, guide, conditions, 1.7)(x_t, level).x0
    torch.testing.assert_close(guided, other + 1.7 * (own - other), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(guided, own, atol=1e-2)


def test_noise_levels_of_their_own_are_guided_by_themselves() -> None:
    """Within the interval, above it, and below it."""
    predict, guide = (Predictor(net, PredictionType("epsilon")) for net in (tiny_unet(), worse()))
    x_t, sigma = torch.randn(3, 1, 16, 16), torch.tensor([1.0, 30.0, 0.01])
    level = NoiseLevel(torch.ones(3), sigma, torch.tensor([500, 990, 10]))
    output = autoguided(predict, guide, {}, 3.0, (0.1, 10.0))(x_t, level).output
    plain, all_guided = predict(x_t, level, {}).output, autoguided(predict, guide, {}, 3.0)(x_t, level).output
    assert torch.equal(output[0], all_guided[0])
    assert torch.equal(output[1:], plain[1:])
    assert not torch.allclose(plain[0], all_guided[0], atol=1e-2)


@pytest.mark.parametrize(
    "scheduler", [DDPMScheduler(timestep_spacing="trailing"), FlowMatchEulerDiscreteScheduler(), EDMEulerScheduler()]
)
def test_pipelines_guide_by_a_model(scheduler: Any) -> None:
    """In place of the null class, which a model then needn't have; outside the interval neither is asked."""
    pipeline, guide = tiny_pipeline(scheduler, 1, 3, id2label={0: "a", 1: "b", 2: "c"}), worse(1, 3)
    calls: list[Any] = []
    guide.register_forward_hook(lambda *_: calls.append(None))

    def draw(**arguments: Any) -> torch.Tensor:
        calls.clear()
        generator = torch.Generator().manual_seed(0)
        images: torch.Tensor = pipeline(2, class_labels=[0, 2], generator=generator, **OPTIONS | arguments).images
        return images

    plain = draw()
    assert torch.equal(draw(guidance_model=guide), plain)  # of weight 1
    assert not calls
    assert torch.equal(draw(guidance_model=guide, guidance_scale=2.0, guidance_interval=(1e5, 1e6)), plain)
    assert not calls
    assert torch.allclose(draw(guidance_model=tiny_unet(1, 3), guidance_scale=2.0), plain, atol=1e-4)
    assert not torch.allclose(draw(guidance_model=guide, guidance_scale=2.0), plain, atol=1e-2)
    assert len(calls) == 4


def test_weight_0_is_the_guide_itself() -> None:
    guide = worse()
    expected = PixelDiffusionPipeline(guide, EDMEulerScheduler())
    expected.set_progress_bar_config(disable=True)
    pipeline = tiny_pipeline(EDMEulerScheduler())
    a, b = (
        p(generator=torch.Generator().manual_seed(0), **OPTIONS | given).images
        for p, given in ((pipeline, {"guidance_model": guide, "guidance_scale": 0.0}), (expected, {}))
    )
    assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_images_are_encoded_under_guidance() -> None:
    pipeline, guide = tiny_pipeline(EDMEulerScheduler()), worse()
    guidance = {"guidance_model": guide, "guidance_scale": 3.0, "num_inference_steps": 20}
    image = torch.randn(1, 1, 16, 16).clamp(-1, 1)
    noise = pipeline.invert(image, num_fixed_point_iterations=20, **guidance)
    back = pipeline(latents=noise, output_type="pt", **guidance).images * 2 - 1
    unguided = pipeline(latents=noise, num_inference_steps=20, output_type="pt").images * 2 - 1
    assert (back - image).abs().mean() < 0.02 < 0.06 < (unguided - image).abs().mean()


@pytest.mark.parametrize(
    ("guide", "error", "line"),
    [
        (lambda: tiny_pipeline(), TypeError, "guidance_model: must be a network, as another pipeline's `network` is"),
        (lambda: "runs/small", TypeError, "guidance_model: must be a network, .* got str"),
        (lambda: tiny_unet(3), ValueError, "guidance_model: has 3 input channels, and the model's own network 1"),
        (lambda: tiny_unet(1, 5), ValueError, "guidance_model: has 5 rows in its label table, .* 0"),
        (
            lambda: DiTTransformer2DModel(
                num_attention_heads=1, in_channels=1, out_channels=1, num_layers=1, sample_size=8
            ),
            ValueError,
            r"guidance_model: has \(8, 8\) height and width, .* \(16, 16\)",
        ),
        (lambda: make_text2img(latent=False).unet, ValueError, "guidance_model: has "),
        (lambda: tiny_unet().to("meta"), ValueError, "guidance_model: is on meta, and the model runs on cpu"),
    ],
)
def test_networks_that_do_not_fit(guide: Any, error: type[Exception], line: str) -> None:
    with pytest.raises(error, match=line):
        tiny_pipeline()(guidance_model=guide(), guidance_scale=2.0, **OPTIONS)


def mixture_samples(pipeline: Any, **options: Any) -> torch.Tensor:
    images: torch.Tensor = pipeline(
        50, generator=torch.Generator().manual_seed(1), output_type="latent", **options
    ).images
    return images


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "probability_flow"])
def test_sdes_are_guided_by_a_model(predictor: str) -> None:
    """By itself it changes nothing; by one that takes every label for `a`, samples leave that part."""
    pipeline, guide = mixture_pipeline("vp", classes=True), mixture_pipeline("vp", classes=True).network
    options = {"num_inference_steps": 60, "predictor": predictor, "tolerance": 1e-3, "guidance_scale": 3.0}
    plain = mixture_samples(pipeline, **options | {"guidance_scale": 1.0}, class_labels="b")
    same = mixture_samples(pipeline, **options, class_labels="b", guidance_model=guide)
    torch.testing.assert_close(same, plain, atol=1e-3, rtol=0)
    guide.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"class_labels": torch.zeros_like(kwargs["class_labels"])}),
        with_kwargs=True,
    )
    guided = mixture_samples(pipeline, **options, class_labels="b", guidance_model=guide)
    assert (guided - plain).abs().mean() > 1e-2
