"""Networks that say the variance of the reverse step, and DDPM's steps of every variance."""

from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from pipelines import PixelDiffusionPipeline, fitting_schedulers, image_generators, make_scheduler
from tests.pipelines.models import quiet, tiny_unet


def scheduler(variance_type: str = "learned_range", **config: Any) -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=20, timestep_spacing="trailing", variance_type=variance_type, **config)


def learned(channels: int = 3, num_class_embeds: int | None = None) -> UNet2DModel:
    plain = tiny_unet(channels, num_class_embeds)
    torch.manual_seed(1)
    config = dict(plain.config) | {"out_channels": 2 * channels}
    return UNet2DModel(**{k: v for k, v in config.items() if k[0] != "_"}).eval()


def make(own: DDPMScheduler | None = None, **options: Any) -> PixelDiffusionPipeline:
    return quiet(PixelDiffusionPipeline(learned(**options), own or scheduler()))


def test_every_step_agrees_with_diffusers() -> None:
    pipeline = make()
    ours = pipeline(generator=torch.Generator().manual_seed(0), num_inference_steps=20, output_type="np").images
    theirs = quiet(DDPMPipeline(pipeline.unet, scheduler()))
    expected = theirs(generator=torch.Generator().manual_seed(0), num_inference_steps=20, output_type="np").images
    torch.testing.assert_close(torch.from_numpy(ours), torch.from_numpy(expected), atol=1e-5, rtol=0)
    pipeline.scheduler = scheduler("fixed_small")
    small = pipeline(generator=torch.Generator().manual_seed(0), num_inference_steps=20, output_type="np").images
    assert abs(small - ours).max() > 0.01


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
def test_strided_sampling_ends_without_noise(variance_type: str) -> None:
    """The last of 4 steps starts from timestep 4, where diffusers' scheduler still adds noise."""
    pipeline = make(scheduler(variance_type))
    options = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 4, "output_type": "pt"}
    output = pipeline(**options, return_trajectory=True)
    expected = (output.trajectory.denoised[-1] / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(output.images, expected, atol=1e-6, rtol=0)


def test_thresholding_reaches_the_last_step() -> None:
    own = scheduler(thresholding=True, sample_max_value=1.5, clip_sample=False)
    pipeline = make(own)
    seen = []

    def look(pipeline: Any, step: int, t: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(tensors["latents"])
        return tensors

    pipeline(num_inference_steps=4, callback_on_step_end=look, output_type="np")
    assert seen[-1].abs().max() <= 1


@pytest.mark.parametrize("channels", [1, 4])
def test_every_fitting_sampler_takes_such_a_network(channels: int) -> None:
    """All but DDPM sample the mean: the variance changes nothing."""
    pipeline, own = make(channels=channels), scheduler()
    plain = tiny_unet(channels)
    for (name, weight), (_, source) in zip(
        plain.named_parameters(), pipeline.unet.named_parameters(), strict=True
    ):  # the same but for the outputs that are the variance
        weight.data.copy_(source.data[: len(weight)] if "conv_out" in name else source.data)
    mean = quiet(PixelDiffusionPipeline(plain, own))
    for name in fitting_schedulers(own):
        pipeline.scheduler, mean.scheduler = make_scheduler(name, own), make_scheduler(name, own)
        if name == "ddpm":
            assert pipeline.scheduler.config.variance_type == "learned_range"
            continue
        images, expected = (
            p(2, num_inference_steps=4, generator=image_generators(0, range(2)), output_type="np").images
            for p in (pipeline, mean)
        )
        torch.testing.assert_close(torch.from_numpy(images), torch.from_numpy(expected), atol=1e-4, rtol=0, msg=name)


def test_guidance_leaves_the_variance_of_the_condition() -> None:
    pipeline = make(num_class_embeds=3)
    pipeline.register_to_config(id2label={0: "a", 1: "b"})
    options = {"class_labels": [1], "num_inference_steps": 20, "output_type": "np"}
    guided = pipeline(**options, guidance_scale=2.0, generator=torch.Generator().manual_seed(0)).images
    x = torch.randn(1, 3, 16, 16, generator=(generator := torch.Generator().manual_seed(0)))
    steps = scheduler()
    steps.set_timesteps(20)
    with torch.no_grad():
        for t in steps.timesteps:
            given, null = (pipeline.unet(x, t, torch.tensor([label])).sample for label in (1, 2))
            output = torch.cat([null[:, :3] + 2 * (given - null)[:, :3], given[:, 3:]], 1)
            x = steps.step(output, t, x, generator=generator).prev_sample
    expected = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(torch.from_numpy(guided), expected, atol=1e-5, rtol=0)


def test_a_network_without_a_variance_is_refused() -> None:
    pipeline = quiet(PixelDiffusionPipeline(tiny_unet(3), scheduler()))
    message = "scheduler: its variance_type 'learned_range' needs a network .* 6 output channels; this one has 3"
    with pytest.raises(ValueError, match=message):
        pipeline()


@pytest.mark.parametrize("name", ["ddim", "dpmsolver++", "euler", "heun", "unipc"])
def test_samplers_know_sigmoid_betas(name: str) -> None:
    own = scheduler(beta_schedule="sigmoid")
    torch.testing.assert_close(make_scheduler(name, own).alphas_cumprod, own.alphas_cumprod)
