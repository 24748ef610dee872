"""Pipelines of flow maps: steps, guidance, other samplers, editing, storing, and what they refuse."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel, FlowMapEulerDiscreteScheduler, UNet2DModel

from pipelines import LatentDiffusionPipeline, PixelDiffusionPipeline, PixelTransformerPipeline, make_scheduler
from pipelines.flow_map import TARGET_CHANNELS
from tests.autoencoders import tiny_vae
from tests.objectives.test_flow_maps import MEAN, STD, ExactNetwork
from tests.pipelines.models import quiet, tiny_unet
from tests.pipelines.test_transformer import BLOCKS
from tests.publishing.test_self_contained import stranger

CLASSES = {"id2label": {0: "a", 1: "b"}}


def unet(channels: int = 1, num_class_embeds: int | None = 3) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=channels + TARGET_CHANNELS,
        out_channels=channels,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=num_class_embeds,
    ).eval()


def pipeline_of(kind: str) -> Any:
    scheduler = FlowMapEulerDiscreteScheduler()
    if kind == "unet":
        return quiet(PixelDiffusionPipeline(unet(), scheduler, **CLASSES, flow_map=True))
    if kind == "latent":
        return quiet(LatentDiffusionPipeline(tiny_vae("sd", 1), unet(4), scheduler, **CLASSES, flow_map=True))
    torch.manual_seed(0)
    dit = DiTTransformer2DModel(in_channels=1 + TARGET_CHANNELS, out_channels=1, num_embeds_ada_norm=2, **BLOCKS).eval()
    return quiet(PixelTransformerPipeline(dit, scheduler, **CLASSES, flow_map=True))


class Exact(UNet2DModel):
    """The flow map of normal data, as a network of diffusers."""

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, return_dict: bool = True) -> Any:
        return ExactNetwork()(sample, timestep)


def normal_map() -> Any:
    net = Exact(
        sample_size=8,
        in_channels=1 + TARGET_CHANNELS,
        out_channels=1,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    return quiet(PixelDiffusionPipeline(net, FlowMapEulerDiscreteScheduler(), flow_map=True))


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_any_number_of_steps_ends_where_the_ode_does(steps: int) -> None:
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = normal_map()(batch_size=4, latents=noise, num_inference_steps=steps, output_type="pt").images
    torch.testing.assert_close(images * 2 - 1, (MEAN + STD * noise).clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_other_samplers_get_velocities() -> None:
    """Of many steps of Euler, as no network of a velocity could with one."""
    pipeline = normal_map()
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for name, error in (("flow-euler", 0.02), ("dpmsolver++", 0.01), ("flow-heun", 0.01)):
        pipeline.scheduler = make_scheduler(name, pipeline.scheduler)
        images = pipeline(batch_size=4, latents=noise, num_inference_steps=100, output_type="pt").images
        torch.testing.assert_close(images * 2 - 1, (MEAN + STD * noise).clamp(-1, 1), rtol=0, atol=error)
    noise = pipeline.invert((MEAN + STD * noise).clamp(-1, 1), num_inference_steps=100)
    assert noise.std() == pytest.approx(0.9, abs=0.2)


@pytest.mark.parametrize("kind", ["unet", "dit", "latent"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_steps_by_hand(kind: str, scale: float) -> None:
    """x_r = x_t - (t - r) u by the stock scheduler, the two times shown by planes, guidance as ever."""
    pipeline = pipeline_of(kind)
    channels = pipeline.data_channels
    noise = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    output = {"output_type": "latent"} if kind == "latent" else {"output_type": "pt"}
    images = pipeline(2, class_labels=[0, 1], guidance_scale=scale, latents=noise, num_inference_steps=3, **output)

    scheduler, x = FlowMapEulerDiscreteScheduler(), noise
    scheduler.set_timesteps(3)
    for i, t in enumerate(scheduler.timesteps):
        d = float(scheduler.sigmas[i] - scheduler.sigmas[i + 1])
        k = np.array([0.5, 1, 2, 4]) * np.pi * d
        features = torch.tensor(np.concatenate([np.sin(k), 1 - np.cos(k)]), dtype=torch.float32)
        planes = features[:, None, None].expand(2, -1, *x.shape[2:])
        outputs = []
        for labels in ([2, 2], [0, 1]):
            given = torch.cat([x, planes], 1), t.float().expand(2)
            with torch.no_grad():
                outputs.append(pipeline.network(given[0], timestep=given[1], class_labels=torch.tensor(labels)).sample)
        x = scheduler.step(outputs[0] + scale * (outputs[1] - outputs[0]), t, x).prev_sample
    expected = x if kind == "latent" else (x / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images.images, expected, rtol=1e-4, atol=1e-5)


def test_few_steps_are_the_default() -> None:
    pipeline = pipeline_of("unet")
    assert len(pipeline(return_trajectory=True).trajectory.timesteps) == 4
    pipeline.scheduler = make_scheduler("flow-euler", pipeline.scheduler)
    assert len(pipeline(return_trajectory=True).trajectory.timesteps) == 50


def test_editing() -> None:
    """An image is noised to where steps are left, and what a mask keeps stays."""
    pipeline = pipeline_of("unet")
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert pipeline(image=image, strength=0.5, num_inference_steps=4, output_type="pt").images.isfinite().all()
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    made = pipeline(image=image, mask_image=mask, jump_n_sample=2, jump_length=1, output_type="pt").images
    assert torch.equal(made[..., 4:], image[..., 4:])
    assert not torch.equal(made[..., :4], image[..., :4])


@pytest.mark.parametrize(
    "kind", ["unet", pytest.param("dit", marks=pytest.mark.slow), pytest.param("latent", marks=pytest.mark.slow)]
)
def test_saved_and_loaded_by_diffusers_alone(kind: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(kind)
    pipeline.save_pretrained(tmp_path / "map")
    pipeline.complete(tmp_path / "map")
    again = type(pipeline).from_pretrained(tmp_path / "map")
    assert again.config["flow_map"]
    assert again.data_channels == pipeline.data_channels
    code = (
        "p = load(sys.argv[1], custom_pipeline=sys.argv[1], trust_remote_code=True)\n"
        "np.save(sys.argv[2], p(class_labels=1, generator=torch.Generator().manual_seed(3), output_type='np').images)"
    )
    run = stranger(code, tmp_path / "map", tmp_path / "images.npy")
    assert run.returncode == 0, run.stderr
    own = again(class_labels=1, generator=torch.Generator().manual_seed(3), output_type="np").images
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), own, atol=1e-6)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="flow_map: needs a network with 8 input channels besides the data's"):
        PixelDiffusionPipeline(tiny_unet(), FlowMapEulerDiscreteScheduler(), flow_map=True)
    with pytest.raises(TypeError, match="flow_map: must be True or False"):
        PixelDiffusionPipeline(unet(), FlowMapEulerDiscreteScheduler(), flow_map="yes")
