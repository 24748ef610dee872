"""Images from a network that works in the latent space of an autoencoder (Rombach et al. 2022)."""

from typing import Any

import torch
from diffusers import DiTTransformer2DModel, UNet2DModel

from pipelines.unet import TransformerPipeline, UNetPipeline
from pipelines.vae import shift_and_scale


class LatentDiffusionPipeline(UNetPipeline):
    """Unconditional or class-conditional generation in latent space: an autoencoder decodes what the network makes.

    Where memory asks for it, `pipeline.vae.enable_slicing()` decodes one image at a time and
    `pipeline.vae.enable_tiling()` a part at a time; `VQModel` has neither.

    Args:
        vae: a stock `AutoencoderKL`, `VQModel`, `AutoencoderTiny` or `AutoencoderDC`.

    The other arguments are those of `UNetPipeline`.
    """

    model_cpu_offload_seq = "unet->vae"
    OUTPUT_TYPES = (*UNetPipeline.OUTPUT_TYPES, "latent")

    def __init__(
        self,
        vae: Any,
        unet: UNet2DModel,
        scheduler: Any,
        prediction_type: str | None = None,
        id2label: dict | None = None,
        value_range: tuple[float, float] | None = None,
        self_condition: bool = False,
        flow_map: bool = False,
    ) -> None:
        super().__init__(unet, scheduler, prediction_type, id2label, value_range, None, self_condition, flow_map)
        self.register_modules(vae=_checked_vae(vae))


class LatentTransformerPipeline(TransformerPipeline):
    """As `LatentDiffusionPipeline`, with a transformer: what diffusers' `DiTPipeline` does, for any sampler.

    Args:
        vae: as there.
        transformer: a `DiTTransformer2DModel`.

    The other arguments are those of `TransformerPipeline`.
    """

    model_cpu_offload_seq = "transformer->vae"
    OUTPUT_TYPES = (*TransformerPipeline.OUTPUT_TYPES, "latent")

    def __init__(
        self,
        vae: Any,
        transformer: DiTTransformer2DModel,
        scheduler: Any,
        prediction_type: str | None = None,
        id2label: dict | None = None,
        value_range: tuple[float, float] | None = None,
        self_condition: bool = False,
        flow_map: bool = False,
    ) -> None:
        super().__init__(transformer, scheduler, prediction_type, id2label, value_range, None, self_condition, flow_map)
        self.register_modules(vae=_checked_vae(vae))


def _checked_vae(vae: Any) -> Any:
    """The autoencoder, which must be one whose latents can be shifted and scaled."""
    if not isinstance(vae, torch.nn.Module):
        raise TypeError(f"vae: must be an autoencoder of diffusers, got {type(vae).__name__}")
    shift_and_scale(vae)
    return vae
