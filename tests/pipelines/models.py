"""Small real networks and the pipelines around them."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor

from pipelines import PixelDiffusionPipeline
from pipelines.denoiser import conditioned
from pipelines.samplers import make_sampler
from pipelines.sampling import OnStep, sample
from snowmelt.checkpoint import STATE_FILE, _digest, _state_digest


def tiny_unet(channels: int = 1, num_class_embeds: int | None = None) -> UNet2DModel:
    """An untrained network, whose last layer is large enough to matter."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        num_class_embeds=num_class_embeds,
    )
    return unet.eval()


def quiet(pipeline: PixelDiffusionPipeline) -> PixelDiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_pipeline(
    scheduler: Any = None, channels: int = 1, num_class_embeds: int | None = None, **arguments: Any
) -> Any:
    scheduler = scheduler or DDPMScheduler(timestep_spacing="trailing")
    return quiet(PixelDiffusionPipeline(tiny_unet(channels, num_class_embeds), scheduler, **arguments))


def run_loop(
    pipeline: Any,
    shape: tuple[int, ...],
    *,
    num_inference_steps: int = 50,
    generator: Any = None,
    latents: torch.Tensor | None = None,
    image: torch.Tensor | None = None,
    strength: float = 1.0,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """The data that the loop makes with a pipeline's parts, without conditions."""
    sampler = make_sampler(pipeline.scheduler, generator=generator)
    sampler.set_timesteps(num_inference_steps, None, torch.device("cpu"))
    noise = randn_tensor(shape, generator=generator) if latents is None else latents
    denoiser = conditioned(pipeline._predictor(sampler), {})
    x = sampler.start(noise) if image is None else sampler.start_from(image, noise, strength)
    return sample(denoiser, sampler, x, on_step=on_step)


def seal(checkpoint: Path) -> None:
    """Make a folder a complete checkpoint of what is in it."""
    (checkpoint / STATE_FILE).unlink(missing_ok=True)
    files = {str(p.relative_to(checkpoint)): _digest(p) for p in sorted(checkpoint.rglob("*")) if p.is_file()}
    state = {"step": int(checkpoint.name.removeprefix("checkpoint-")), "files": files}
    (checkpoint / STATE_FILE).write_text(json.dumps(state | {"sha256": _state_digest(state)}))
