"""Images as conditions: what a clean image is degraded to in training, and how it enters the network."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate, pad

LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue in gray (ITU-R BT.601), as Pillow has them."""


@dataclass(frozen=True)
class ImageCondition:
    """What a model makes images of; by itself, an image of as many channels that belongs to each.

    Attributes:
        spec: as `make_condition` reads it.
    """

    spec: str
    scale = 1
    """Side of the images that are made over that of those given."""
    mask_channels = 0
    """Of the input, the last ones, which say where it is unknown."""

    def input_channels(self, channels: int) -> int:
        """Channels of the input for images of so many."""
        return channels

    def check(self, channels: int, size: tuple[int, int]) -> None:
        """Refuse images of so many channels, height and width that have no such input.

        Raises:
            ValueError: saying why.
        """

    def degrade(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The input (B, k, h, w) that belongs to clean images (B, C, H, W), both in [-1, 1].

        Args:
            images: the clean images.
            generator: of all that is random, on their device.

        Raises:
            NotImplementedError: where it comes from the data set alone.
        """
        raise NotImplementedError(self.spec)

    def resized(self, images: Tensor) -> Tensor:
        """The input's images (B, k, h, w) at the size of those that are made."""
        return images


@dataclass(frozen=True)
class LowResolution(ImageCondition):
    """An image of 1 / `scale` of the height and the width: super-resolution."""

    scale: int = 4

    def check(self, channels: int, size: tuple[int, int]) -> None:
        """Refuse sides that `scale` doesn't divide."""
        if any(side % self.scale for side in size):
            raise ValueError(f"images of {size[0]} x {size[1]} pixels can't be divided by {self.scale}")

    def degrade(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """By cubics, antialiased."""
        size = [side // self.scale for side in images.shape[2:]]
        return interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)

    def resized(self, images: Tensor) -> Tensor:
        """By cubics."""
        size = [side * self.scale for side in images.shape[2:]]
        return interpolate(images, size, mode="bicubic").clamp(-1, 1)


@dataclass(frozen=True)
class Gray(ImageCondition):
    """An image without its colours: colourisation."""

    def input_channels(self, channels: int) -> int:
        """One."""
        return 1

    def check(self, channels: int, size: tuple[int, int]) -> None:
        """Refuse all but RGB images."""
        if channels != 3:
            raise ValueError(f"images of {channels} channels aren't RGB ones, of which gray ones are made")

    def degrade(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Their luma, weighed as Pillow does."""
        return sum(weight * images[:, i : i + 1] for i, weight in enumerate(LUMA))  # type: ignore[return-value]


@dataclass(frozen=True)
class Masked(ImageCondition):
    """An image with a part missing, where it is 0, and a mask that is 1 there and -1 elsewhere: inpainting.

    Half of the masks are rectangles, which may reach the edges or beyond; the others are scattered blocks. None of
    them is empty.
    """

    mask_channels = 1

    def input_channels(self, channels: int) -> int:
        """Those of the images, and the mask."""
        return channels + 1

    def degrade(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images without what a random mask has, and the mask."""
        return self.join(images, random_masks(images, generator))

    @staticmethod
    def join(images: Tensor, mask: Tensor) -> Tensor:
        """Images (B, C, H, W) without what a mask, bool (B, 1, H, W), has, and the mask."""
        return torch.cat([images.masked_fill(mask, 0), 2 * mask.to(images.dtype) - 1], 1)


@dataclass(frozen=True)
class Noisy(ImageCondition):
    """An image with white noise, cut off at black and white: denoising.

    Attributes:
        std: of the noise, for values in [0, 1].
    """

    std: float = 0.1

    def degrade(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images with noise."""
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        return (images + 2 * self.std * noise).clamp(-1, 1)


@dataclass(frozen=True)
class Edges(ImageCondition):
    """How much an image changes from pixel to pixel, black where it doesn't: a picture from a drawing.

    That is the length of the gradient by Sobel's filters, the largest of the channels.
    """

    def input_channels(self, channels: int) -> int:
        """One."""
        return 1

    def degrade(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Lengths of gradients, (B, 1, H, W): 1 for the largest there can be along an axis."""
        x = pad(images, (1, 1, 1, 1), mode="replicate")
        down = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
        across = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
        gradient = torch.hypot(down[..., 2:] - down[..., :-2], across[..., 2:, :] - across[..., :-2, :]) / 8
        return 2 * gradient.amax(1, keepdim=True).clamp(max=1) - 1


@dataclass(frozen=True)
class Column(ImageCondition):
    """An image that the data set has beside each: a segmentation map, depth, a sketch.

    Attributes:
        column: its name.
    """

    column: str = ""


CONDITIONS: dict[str, tuple[type[ImageCondition], str | None]] = {
    # name: (class, its attribute that stands behind a colon)
    "lowres": (LowResolution, "scale"),
    "gray": (Gray, None),
    "mask": (Masked, None),
    "noise": (Noisy, "std"),
    "edges": (Edges, None),
    "column": (Column, "column"),
}


def make_condition(spec: Any) -> ImageCondition:
    """The condition called lowres:4, gray, mask, noise:0.3, edges or column:NAME.

    Raises:
        TypeError: for what is no string.
        ValueError: for another name, or an argument that doesn't fit it.
    """
    if not isinstance(spec, str):
        raise TypeError(f"condition: must be a string such as lowres:4, got {type(spec).__name__}")
    name, colon, argument = spec.partition(":")
    allowed = "lowres:4, gray, mask, noise:0.3, edges or column:NAME"
    if name not in CONDITIONS:
        raise ValueError(f"condition: {spec[:80]!r} is not one of {allowed}")
    kind, attribute = CONDITIONS[name]
    if attribute is None and not colon:
        return kind(spec)
    value: Any = None
    if name == "lowres" and re.fullmatch("[0-9]{1,2}", argument) and 2 <= int(argument) <= 64:
        value = int(argument)
    elif name == "noise":
        value = _fraction(argument)
    elif name == "column" and argument:
        value = argument
    if value is None:
        raise ValueError(f"condition: {spec[:80]!r} can't be read; give {allowed}")
    return kind(spec, **{str(attribute): value})


def network_condition(
    condition: ImageCondition,
    inputs: Tensor,
    encode: Callable[[Tensor], Tensor],
    noise_level: Tensor | None = None,
    noise: Callable[[tuple[int, ...]], Tensor] | None = None,
) -> Tensor:
    """What joins x_t in the network's input (B, K, h, w).

    Args:
        condition: what the model is conditioned on.
        inputs: (B, k, h', w') in [-1, 1], as `degrade` makes them.
        encode: images (B, C, H, W) in [-1, 1] to the network's data (B, c, h, w).
        noise_level: s in [0, 1), (B,): the encoded images c become sqrt(1 - s^2) c + s eps, and a plane of s joins them
            (Ho et al. 2022, cascaded diffusion models, section 4.2); None for a network that doesn't know s.
        noise: unit normal numbers eps of a shape.
    """
    images, mask = inputs, None
    if condition.mask_channels:
        images, mask = inputs[:, : -condition.mask_channels], inputs[:, -condition.mask_channels :]
    data = encode(condition.resized(images))
    planes = [data]
    if noise_level is not None:
        s = noise_level.to(data).view(-1, 1, 1, 1)
        if noise is not None:
            planes = [(1 - s**2).sqrt() * data + s * noise(tuple(data.shape))]
        planes.append(s.expand(-1, 1, *data.shape[2:]))
    if mask is not None:
        planes.append(adaptive_max_pool2d(mask, data.shape[2:]))  # what any unknown pixel is part of is unknown
    return torch.cat(planes, 1)


def random_masks(images: Tensor, generator: torch.Generator) -> Tensor:
    """Masks of images (B, C, H, W), bool (B, 1, H, W): rectangles and scattered blocks, in turn at random."""
    (n, _, height, width), device = images.shape, images.device
    u = torch.rand(n, 6, 1, 1, generator=generator, device=device)
    y = (torch.arange(height, device=device) + 0.5).view(1, -1, 1) / height
    x = (torch.arange(width, device=device) + 0.5).view(1, 1, -1) / width
    # Centres anywhere, sides of a quarter to all of the image's.
    rectangle = (y - u[:, 0]).abs() < 0.125 + 0.375 * u[:, 1]
    rectangle = rectangle & ((x - u[:, 2]).abs() < 0.125 + 0.375 * u[:, 3])
    coarse = torch.rand(n, 1, -(-height // 4), -(-width // 4), generator=generator, device=device) < u[:, 4:5]
    blocks = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, 0, :height, :width]
    pixel = (u[:, 0] * height).long() * width + (u[:, 2] * width).long()  # one at least is missing
    one = torch.arange(height * width, device=device).view(1, height, width) == pixel
    return (torch.where(u[:, 5] < 0.5, rectangle, blocks) | one)[:, None]


def _fraction(text: str) -> float | None:
    value = float(text) if re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?", text) else 0.0
    return value if 0 < value <= 1 else None
