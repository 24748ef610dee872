"""Pictures from a UNet2DModel that works in the latent space of an autoencoder (Rombach et al. 2022)."""

from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from pipelines.base import SamplingOutput, Trajectory
from pipelines.unet import UNetPipeline


class LatentDiffusionPipeline(UNetPipeline):
    """Unconditional or class-conditional generation in latent space: an autoencoder decodes what the network makes.

    Where memory asks for it, `pipeline.vae.enable_slicing()` decodes one image at a time and
    `pipeline.vae.enable_tiling()` a part at a time; `VQModel` has neither.

    Args:
        vae: a stock `AutoencoderKL`, `VQModel`, `AutoencoderTiny` or `AutoencoderDC`.

    The other arguments are those of `UNetPipeline`.
    """

    vae: Any
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
    ) -> None:
        super().__init__(unet, scheduler, prediction_type, id2label, value_range)
        self.register_modules(vae=vae)

    @staticmethod
    def shift_and_scale(vae: Any) -> tuple[Tensor, Tensor]:
        """(shift, scale), float32 (1, c or 1, 1, 1): an autoencoder's z is (z - shift) * scale to the network.

        They are what diffusers reads in the autoencoder's configuration: `scaling_factor` with `shift_factor`, or with
        `latents_mean` and `latents_std` for each channel.
        """
        config = vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            mean, std = config.get("shift_factor") or 0.0, 1.0
        shift, std = (torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1) for values in (mean, std))
        return shift, config.get("scaling_factor", 1.0) / std

    @staticmethod
    def downsampling(vae: Any) -> int:
        """Side of the square of pixels that one latent stands for."""
        blocks = vae.config.get("block_out_channels") or vae.config["encoder_block_out_channels"]
        return 2 ** (len(blocks) - 1)

    @property
    def channels(self) -> int:
        """Of the images."""
        return self.vae.config.get("out_channels") or self.vae.config["in_channels"]

    @property
    def pixels_per_cell(self) -> int:
        """Side of the square of pixels that one place in the network's data stands for."""
        return self.downsampling(self.vae)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W), float32 in about [-1, 1], of latents (B, c, h, w) as the network makes them.

        Runs in the autoencoder's own precision, but in float32 where that overflows or is known to (`force_upcast`).

        Raises:
            ValueError: if the images overflow in float32 too.
        """
        vae, own, device = self.vae, self.vae.dtype, self._execution_device
        shift, scale = self.shift_and_scale(vae)
        z = (latents.float() / scale.to(latents.device) + shift.to(latents.device)).to(device)
        upcast = own == torch.float16 and vae.config.get("force_upcast")
        try:
            for dtype in [torch.float32] if upcast else dict.fromkeys([own, torch.float32]):
                images = vae.to(dtype).decode(z.to(dtype), return_dict=False)[0].float()
                if images.isfinite().all():
                    return images
        finally:
            vae.to(own)
            self.maybe_free_model_hooks()
        raise ValueError(f"images: not finite when {type(vae).__name__} decodes these latents; are they its own?")

    def _finish(self, x0: Tensor, trajectory: Trajectory | None, output_type: str) -> SamplingOutput:
        if output_type == "latent":
            return self._output_class(x0, trajectory)
        if trajectory is not None:
            steps = (trajectory.noisy, trajectory.denoised)
            decoded = [torch.stack([self.decode(latents).cpu() for latents in step]) for step in steps]
            trajectory = self._trajectory_class(trajectory.timesteps, *decoded)
        return self._output_class(self.to_images(self.decode(x0), output_type), trajectory)
