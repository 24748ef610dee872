"""ControlNets: networks that add to the features of a pretrained one, which stays as it is (Zhang et al. 2023)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from torch import Tensor

from pipelines.controlnet import CONTROL, CONTROLNET, check_controlnet, control_image
from pipelines.schedulers import FEW_STEPS
from pipelines.vae import vae_scale_factor
from snowmelt.config import on_hub
from snowmelt.data.cache import ImageCache
from snowmelt.errors import UserError, one_line
from snowmelt.image_conditions import ConditionImages, make_condition_images
from snowmelt.spaces import LatentSpace, PixelSpace
from snowmelt.text.lora import DTYPES
from snowmelt.text.options import TextToImageConfig

EMBEDDING = (16, 32, 96, 256)
"""Channels of the layers that bring an image to the size of latents, which halve its sides from each to the next:
those of diffusers, as many of them as it takes; the last again where there are more."""


@dataclass(frozen=True)
class ControlImages(ConditionImages):
    """What of a batch a ControlNet is shown.

    Attributes:
        rgb: whether the pipeline is of diffusers, and takes that as a call's `image`.
    """

    name: ClassVar[str] = CONTROL
    rgb: bool = False

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Images (B, K, H, W) in [0, 1]."""
        return control_image(self.condition, self.inputs(batch, generator), self.channels)

    def pairs(self, images: ImageCache, rows: np.ndarray, seed: int) -> tuple[dict[str, Any], Tensor]:
        """What a pipeline's call takes of some images, and these, (n, C, H, W) in [0, 1].

        Args:
            images: the decoded images.
            rows: which of them, (n,).
            seed: of what is random in their conditions.
        """
        given, originals = super().pairs(images, rows, seed)
        if self.rgb:
            given = {"image": control_image(self.condition, 2 * given["image"] - 1, self.channels)}
        return given, originals

    def settings(self) -> dict[str, Any]:
        """Of the pipeline that samples the networks."""
        found: dict[str, Any] = {"condition": self.condition.spec}
        if self.given is not None and self.given.dtype.kind == "f":
            found["condition_range"] = self.given.value_range
        return found


def make_control_images(
    config: TextToImageConfig, images: ImageCache, space: PixelSpace | LatentSpace, pipeline: Any
) -> ControlImages | None:
    """What a ControlNet is to be shown; None if none is trained.

    Args:
        config: the options.
        images: that are trained on, decoded.
        space: that the pretrained network works in.
        pipeline: the pretrained one. Those of diffusers turn images into RGB.

    Raises:
        UserError: as `make_condition_images`, or for a condition that isn't RGB or gray where it must be.
    """
    made = make_condition_images(config, images, space)
    if made is None:
        return None
    channels = made.condition.input_channels(images.channels) if made.given is None else made.given.channels
    rgb = isinstance(pipeline, StableDiffusionPipeline)
    if rgb and channels not in (1, 3):
        raise UserError(
            f"--condition {made.condition.spec}: has {channels} channels, and a StableDiffusionControlNetPipeline "
            "takes RGB images; take another condition, or a pipeline of ours"
        )
    return ControlImages(made.condition, space, 3 if rgb else channels, made.given, rgb=rgb)


def make_controlnet(config: TextToImageConfig, pipeline: Any, channels: int) -> ControlNetModel:
    """A ControlNet for a pretrained pipeline, whose own networks are frozen.

    A new one adds nothing yet. What is frozen is kept in the precision that it computes in, where it isn't saved.

    Args:
        config: its seed, or where another is taken from.
        pipeline: of `load_source`.
        channels: of the condition.

    Raises:
        UserError: if no ControlNet can be made for the network, or that which was named is another's.
    """
    if type(pipeline.scheduler).__name__ in FEW_STEPS:
        raise UserError("--controlnet: models of few steps take none; take one of --objective flow, say")
    unet, factor = pipeline.unet, 1 if pipeline.vae is None else vae_scale_factor(pipeline.vae)
    name, flag = config.controlnet_model_name_or_path, "--controlnet"
    if name:
        controlnet, flag = _load(name), f"--controlnet_model_name_or_path {name}"
    try:
        if not name:
            halvings = factor.bit_length() - 1
            torch.manual_seed(config.seed)
            controlnet = ControlNetModel.from_unet(
                unet,
                conditioning_embedding_out_channels=(EMBEDDING + EMBEDDING[-1:] * halvings)[: halvings + 1],
                conditioning_channels=channels,
            )
        check_controlnet(controlnet, unet, factor, channels)
    except Exception as error:  # whatever diffusers raises at a unet that its class has no ControlNet for
        raise UserError(f"{flag}: {one_line(error)}") from error
    unet.requires_grad_(False)
    if isinstance(pipeline, StableDiffusionPipeline) and config.mixed_precision in DTYPES:
        _keep_in(unet, DTYPES[config.mixed_precision])
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        controlnet.enable_gradient_checkpointing()
    return controlnet


def _keep_in(unet: Any, dtype: torch.dtype) -> None:
    """Give a network another precision that its callers, whose own is float32, see nothing of."""
    torch.nn.Module.to(unet, dtype)  # its own `to` would warn of modules that it hasn't

    def cast(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [cast(part) for part in value]
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        sample, timestep, *others = args  # of which the timestep would lose digits
        return (cast(sample), timestep, *map(cast, others)), {name: cast(value) for name, value in kwargs.items()}

    unet.register_forward_pre_hook(before, with_kwargs=True)
    unet.register_forward_hook(lambda _, args, output: tuple(part.float() for part in output))


def _load(name: str) -> ControlNetModel:
    """The ControlNet of a folder or repository, or of a run's folder.

    Raises:
        UserError: if there is none.
    """
    flag = f"--controlnet_model_name_or_path {name}"
    if not Path(name).is_dir() and not on_hub(name):
        raise UserError(f"{flag}: no such folder; give one, or a name of the Hub")
    found: list[str] = []
    for subfolder in (None, CONTROLNET):
        try:
            kind = ControlNetModel.load_config(name, subfolder=subfolder).get("_class_name")
        except (OSError, ValueError) as error:
            found.append(one_line(error))
            continue
        if kind != ControlNetModel.__name__:
            found.append(f"a {kind}")
            continue
        try:
            controlnet = ControlNetModel.from_pretrained(
                name, subfolder=subfolder, torch_dtype=torch.float32, use_safetensors=True
            )
        except Exception as error:  # whatever diffusers raises at files that anybody may have written
            raise UserError(f"{flag}: can't be loaded ({type(error).__name__}: {one_line(error)})") from error
        controlnet.register_to_config(_name_or_path=None)  # a place on this machine
        return controlnet
    raise UserError(f"{flag}: no ControlNetModel there, nor in its sub-folder {CONTROLNET}: {found[0]}")
