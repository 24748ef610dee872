"""Where a network works: in pixels, or in the latent space of an autoencoder."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipelines.base import ReverseProcessPipeline, SamplingOutput, Trajectory


class DataSpacePipeline(ReverseProcessPipeline):
    """Base of pipelines whose `unet` makes images, or what an autoencoder `vae` turns into images."""

    unet: Any
    vae: Any = None
    PIXELS_PER_PASS = 2**20  # of the autoencoder: 16 images of 256 x 256

    @classmethod
    def shift_and_scale(cls, vae: Any) -> tuple[Tensor, Tensor]:
        """(shift, scale), float32 (1, c or 1, 1, 1): an autoencoder's z is (z - shift) * scale to the network.

        They are what diffusers reads in the autoencoder's configuration: `scaling_factor` with `shift_factor`, or with
        `latents_mean` and `latents_std` for each channel.

        Raises:
            TypeError: for what are no numbers there.
            ValueError: for numbers that aren't finite, or a scale of 0.
        """
        config = vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            mean, std = config.get("shift_factor") or 0.0, 1.0
        shift, std = (cls._numbers("vae", v).reshape(1, -1, 1, 1) for v in (mean, std))
        scale = cls._numbers("vae: scaling_factor", config.get("scaling_factor", 1.0)) / std
        if not scale.isfinite().all() or not scale.all():
            raise ValueError(f"vae: its latents are scaled by {scale.flatten().tolist()}, which can't be undone")
        return shift, scale

    @staticmethod
    def downsampling(vae: Any) -> int:
        """Side of the square of pixels that one latent stands for."""
        blocks = vae.config.get("block_out_channels") or vae.config["encoder_block_out_channels"]
        return 2 ** (len(blocks) - 1)

    @property
    def channels(self) -> int:
        """Of the images."""
        if self.vae is None:
            return self.unet.config.in_channels
        return self.vae.config.get("out_channels") or self.vae.config["in_channels"]

    @property
    def pixels_per_cell(self) -> int:
        """Side of the square of pixels that one place in the network's data stands for."""
        return 1 if self.vae is None else self.downsampling(self.vae)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The network's data (B, c, h, w) of images (B, C, H, W) in [-1, 1]: the mean, where encoding is random.

        Raises:
            TypeError: for what is no tensor of real numbers.
            ValueError: for another shape, or if latents overflow in float32 too.
        """
        self._check_data("images", images, self.channels, self.pixels_per_cell)
        if self.vae is None:
            return images

        def encode(part: Tensor) -> Tensor:
            encoded = self.vae.encode(part, return_dict=False)[0]
            return encoded if isinstance(encoded, Tensor) else encoded.mode()

        shift, scale = (t.to(images.device) for t in self.shift_and_scale(self.vae))
        latents = self._in_passes(encode, images, images.shape[2] * images.shape[3])
        return (latents.to(images.device) - shift) * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W), float32 in about [-1, 1], of the network's data (B, c, h, w).

        Raises:
            TypeError: for what is no tensor of real numbers.
            ValueError: for another shape, or if the images overflow in float32 too.
        """
        self._check_data("latents", latents, self.unet.config.in_channels, 1)
        if self.vae is None:
            return latents
        shift, scale = (t.to(latents.device) for t in self.shift_and_scale(self.vae))
        z = latents.float() / scale + shift
        pixels = z.shape[2] * z.shape[3] * self.pixels_per_cell**2
        return self._in_passes(lambda part: self.vae.decode(part, return_dict=False)[0], z, pixels)

    def _check_data(self, name: str, values: Any, channels: int, factor: int) -> None:
        """Of images and latents: that many channels, and sides of which the autoencoder makes whole cells."""
        shape = self._real_tensor(name, values, "B, C, H, W").shape
        if shape[1] != channels or shape[2] % factor or shape[3] % factor:
            sides = f" and sides that are multiples of {factor}" if factor > 1 else ""
            raise ValueError(f"{name}: of shape {tuple(shape)}; must have {channels} channels{sides}")

    def _in_passes(self, run: Callable[[Tensor], Tensor], values: Tensor, pixels: int) -> Tensor:
        """What the autoencoder makes of values (B, ...), float32, few enough of them at a time for its activations.

        It runs in its own precision, but in float32 where that overflows or is known to (`force_upcast`).

        Args:
            run: a pass of it.
            values: images or latents.
            pixels: of an image.

        Raises:
            ValueError: if the result overflows in float32 too.
        """
        vae, own = self.vae, self.vae.dtype
        parts = values.to(self._execution_device).split(max(1, self.PIXELS_PER_PASS // pixels))
        upcast = own == torch.float16 and vae.config.get("force_upcast")
        try:
            for dtype in [torch.float32] if upcast else dict.fromkeys([own, torch.float32]):
                torch.nn.Module.to(vae, dtype)  # its own `to` would warn of modules to keep in float32: it has none
                made = torch.cat([run(part.to(dtype)).float() for part in parts])
                if made.isfinite().all():
                    return made
        finally:
            torch.nn.Module.to(vae, own)
            self.maybe_free_model_hooks()
        raise ValueError(f"images: not finite when {type(vae).__name__} makes them or reads them; are they its own?")

    def _finish(self, x0: Tensor, trajectory: Trajectory | None, output_type: str) -> SamplingOutput:
        """What is returned for the network's data (B, c, h, w)."""
        if output_type == "latent":
            return self._output_class(x0, trajectory)
        if trajectory is not None and self.vae is not None:
            steps = (trajectory.noisy, trajectory.denoised)
            decoded = [torch.stack([self.decode(latents).cpu() for latents in step]) for step in steps]
            trajectory = self._trajectory_class(trajectory.timesteps, *decoded)
        return self._output_class(self.to_images(self.decode(x0), output_type), trajectory)

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width of the network's data for those of images."""
        cell = self.pixels_per_cell
        trained = self.unet.config.sample_size
        default = (trained, trained) if isinstance(trained, int | None) else trained
        factor = cell * 2 ** (len(self.unet.config.block_out_channels) - 1)
        size = []
        for name, given, cells in zip(("height", "width"), (height, width), default, strict=True):
            if given is None and cells is None:
                raise ValueError(f"{name}: needed, since the network doesn't say which size it was trained for")
            side = cells * cell if given is None else self._whole(name, given, 1, self.MOST)
            if side % factor:
                raise ValueError(f"{name}: {side} is not a multiple of {factor}, by which the network divides it")
            size.append(side // cell)
        return size[0], size[1]
