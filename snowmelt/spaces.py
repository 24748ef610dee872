"""What the network learns to make, between the cache of decoded images and the loss: pixels, or latents."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import numpy as np
import torch
from torch import Tensor

from pipelines.vae import shift_and_scale, vae_scale_factor
from snowmelt.checkpoint import STATE_FILE
from snowmelt.config import on_hub
from snowmelt.data.buckets import BucketedImages, join_latents
from snowmelt.data.cache import ImageCache
from snowmelt.data.encoded import EncodedLatents
from snowmelt.data.latent_cache import LatentCache, build_latents
from snowmelt.errors import UserError, one_line
from snowmelt.run_files import settle
from snowmelt.values import to_resolution

AUTOENCODERS = ("AutoencoderKL", "VQModel", "AutoencoderTiny", "AutoencoderDC")
"""diffusers' classes for images."""


@dataclass(frozen=True)
class PixelSpace:
    """Pixels: cached values, of whatever type, on a straight line to [-1, 1].

    Args:
        value_range: the raw values that become -1 and 1.
    """

    value_range: tuple[float, float] = (0, 255)
    vae_scale_factor: ClassVar[int] = 1  # side of an image over that of x0

    def channels(self, images: ImageCache) -> int:
        """Number of channels of x0."""
        return images.channels

    def size(self, images: ImageCache) -> tuple[int, int]:
        """Height and width of x0."""
        return images.size

    def bin_width(self, images: ImageCache) -> float | None:
        """Distance between two values of x0; None for float data, which have none."""
        return None if images.dtype.kind == "f" else 2 / (self.value_range[1] - self.value_range[0])

    def encode(self, images: ImageCache, *, random_flip: bool, mixed_precision: str | None) -> ImageCache:
        """What is trained on: the images themselves.

        Args:
            images: the decoded images.
            random_flip: unused; pixels are mirrored when they are read.
            mixed_precision: unused.
        """
        return images

    def describe(self, images: Any) -> str:
        """A line on what is trained on: number, channels and sides of the images."""
        return f"{len(images)} images of {images.channels} x {images.size[0]} x {images.size[1]}"

    def from_cache(self, raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Cached images (B, C, H, W) to x0, float32 of the same shape."""
        low, high = self.value_range
        return raw.to(torch.float32, copy=True).sub_(low).mul_(2 / (high - low)).sub_(1)


class LatentSpace:
    """What an autoencoder makes of images, shifted and scaled as its configuration says.

    Args:
        vae: a stock autoencoder, on the device of training. It runs in `to_cache` only.
        pixels: values of images to its input.
        flag: the option that it was given by.
    """

    def __init__(self, vae: Any, pixels: PixelSpace, flag: str = "--autoencoder") -> None:
        self.flag = flag
        self.vae = vae.eval().requires_grad_(False)
        self.pixels = pixels
        self.vae_scale_factor = vae_scale_factor(vae)
        self.latent_channels: int = vae.config.get("vq_embed_dim") or vae.config["latent_channels"]
        self.shift, self.scale = (t.to(vae.device) for t in shift_and_scale(vae))

    @torch.no_grad()
    def to_cache(self, images: Tensor) -> Tensor:
        """Raw images (B, C, H, W) to all that is known of their latents, float32 on the CPU.

        Returns:
            Mean and standard deviation of the posterior, (B, 2c, h, w), where the autoencoder has one; else the
            latents, (B, c, h, w), of a `VQModel` before they are quantized.
        """
        encoded = self.vae.encode(self.pixels.from_cache(images.to(self.vae.device)), return_dict=False)[0]
        values = encoded if isinstance(encoded, Tensor) else torch.cat([encoded.mean, encoded.std], 1)
        return values.float().cpu()

    def from_cache(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """Cached values (B, c or 2c, h, w) to x0, float32 (B, c, h, w): a fresh draw from the posterior."""
        values = raw.float()
        if raw.shape[1] == 2 * self.latent_channels:
            mean, std = values.chunk(2, 1)
            values = torch.randn(mean.shape, generator=generator, device=raw.device).mul_(std).add_(mean)
        return (values - self.shift) * self.scale

    def channels(self, images: ImageCache) -> int:
        """Number of channels of x0.

        Raises:
            UserError: if the autoencoder takes images of other channels, or of sides that it can divide.
        """
        expected = self.vae.config["in_channels"]
        if images.channels != expected:
            raise UserError(
                f"{self.flag}: takes {expected} channels, the images have {images.channels}; convert them with "
                f"--channels {expected}, or take another autoencoder"
            )
        if any(side % self.vae_scale_factor for side in images.size):
            raise UserError(
                f"--resolution {to_resolution(*images.size)}: not a multiple of {self.vae_scale_factor}, by which "
                f"{self.flag} divides it"
            )
        return self.latent_channels

    def size(self, images: ImageCache) -> tuple[int, int]:
        """Height and width of x0."""
        return images.size[0] // self.vae_scale_factor, images.size[1] // self.vae_scale_factor

    def bin_width(self, images: ImageCache) -> float | None:
        """None: latents may have any value."""
        return None

    def encode(
        self, images: ImageCache, *, random_flip: bool, mixed_precision: str | None
    ) -> LatentCache | EncodedLatents:
        """What is trained on: latents of all images.

        Args:
            images: the decoded images, of one shape; or their latents, which are taken as they are.
            random_flip: whether the mirror images are encoded too.
            mixed_precision: "no" to keep latents in float32, else they are kept in float16.

        Raises:
            UserError: as `build_latents`.
        """
        if isinstance(images, BucketedImages):
            given: Any = {"random_flip": random_flip, "mixed_precision": mixed_precision}
            parts: list[Any] = [self.encode(part, **given) for part in images.parts]
            return join_latents(images, parts)
        if isinstance(images, EncodedLatents):
            return images
        return build_latents(
            images,
            self.to_cache,
            autoencoder=self.fingerprint,
            random_flip=random_flip,
            dtype=np.float32 if mixed_precision == "no" else np.float16,
        )

    def describe(self, latents: Any, count: int = 1000) -> str:
        """A line on what is trained on: x0 of up to `count` images, which should have mean 0 and std 1."""
        held = latents.as_tensor()
        if held is None:
            raw = torch.from_numpy(latents.gather(np.arange(min(count, len(latents))), None))
        else:
            raw = held[:: -(-len(latents) // count)]
        raw = raw.flatten(0, -4).to(self.shift.device)
        x0 = self.from_cache(raw, torch.Generator(raw.device).manual_seed(0))
        mean, std = x0.mean().item(), x0.std().item()
        fits = 0.5 < std < 2 and abs(mean) < 0.5
        doubt = "" if fits else ": far from 0 and 1, so the autoencoder's scaling doesn't suit these images"
        shape = " x ".join(map(str, x0.shape[1:]))
        return f"{len(latents)} latents of {shape}, mean {mean:.2f}, standard deviation {std:.2f}{doubt}"

    @cached_property
    def fingerprint(self) -> str:
        """A key of the autoencoder's weights and configuration."""
        config = {k: v for k, v in self.vae.config.items() if not k.startswith("_")}
        digest = hashlib.sha256(json.dumps([type(self.vae).__name__, config], sort_keys=True).encode())
        for name, tensor in sorted(self.vae.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:32]


def load_autoencoder(name: str, kinds: tuple[str, ...] = AUTOENCODERS, flag: str = "--autoencoder") -> Any:
    """A stock autoencoder, float32.

    Args:
        name: its folder, that of a pipeline or run that has it as `vae` (or `vqvae`), or a Hub repository of either.
        kinds: diffusers' classes that will do.
        flag: what the name was given by.

    Raises:
        UserError: if there is none.
    """
    if not Path(name).is_dir() and not on_hub(name):
        raise UserError(f"{flag} {name}: no such folder; give one, or a name of the Hub")
    settle(Path(name))
    if (Path(name) / STATE_FILE).is_file():
        raise UserError(f"{flag} {name}: a checkpoint, whose latents nobody has measured; name the run's folder")
    there: list[str] = []
    for subfolder in (None, "vae", "vqvae"):
        try:
            kind = diffusers.AutoencoderKL.load_config(name, subfolder=subfolder).get("_class_name")
        except (OSError, ValueError) as error:
            there.append(one_line(error))
            continue
        if kind in kinds:
            return _load(kind, name, subfolder, flag)
        there.append(f"a {kind}")
    known = ", ".join(kinds)
    raise UserError(f"{flag} {name}: no {known} there, nor in its sub-folder vae or vqvae: {there[0]}")


def _load(kind: str, name: str, subfolder: str | None, flag: str) -> Any:
    try:
        return getattr(diffusers, kind).from_pretrained(
            name, subfolder=subfolder, torch_dtype=torch.float32, use_safetensors=True
        )
    except Exception as error:  # whatever diffusers raises at files that anybody may have written
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{flag} {name}: can't read its weights ({reason})") from error
