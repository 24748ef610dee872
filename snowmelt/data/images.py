"""One row of a data set to an array of pixels: open, orient, convert, resize, crop.

There are two roads. *PIL images*, what Pillow reads at 8 bits per channel, are converted between gray, RGB and RGBA
as the user asks. *Arrays*, which are 16-bit and float images, `.npy` files and array columns, have channels whose
meaning isn't known: they are resized one channel at a time in float32 and never mixed.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from snowmelt.data.places import open_file
from snowmelt.errors import UserError
from snowmelt.options import DataOptions

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
BAD_IMAGE = (OSError, ValueError)
"""What the functions here raise for a file that is broken, truncated or not an image at all."""

Opened = Image.Image | np.ndarray

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # it is for half of MOST_PIXELS
MOST_PIXELS = 178_956_970  # of an image before it is resized: where Pillow too sees an attack on the memory
MOST_ASPECT = 50  # the longer side by the shorter, which alone is bounded by a resize


@dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are decoded."""

    channels: int  # 1 gray, 3 colour, 4 with transparency; the array's own count for arrays
    depth: str  # "uint8", "uint16" or "float32"
    is_pil: bool
    height: int
    width: int


@contextmanager
def _decoding() -> Iterator[None]:
    """Pillow's and numpy's decoders raise anything for broken files: AssertionError, struct.error, TokenError, ..."""
    try:
        yield
    except UnidentifiedImageError as error:  # which shows an object in memory
        raise ValueError("cannot identify it as an image") from error
    except BAD_IMAGE:
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__} {error}".strip()) from error


@_decoding()
def open_item(item: Any, file: tuple[Path, str | None] | None) -> Opened:
    """Open, without decoding, what a row holds.

    Args:
        item: `{"bytes", "path"}` of an undecoded `datasets.Image`, or a numeric array.
        file: where its path leads, and which member of it when that is a zip.

    Returns:
        A Pillow image, or an array (H, W, C) with the dtype it had.

    Raises:
        One of `BAD_IMAGE` if it isn't an image.
    """
    if item is None or (isinstance(item, dict) and item["bytes"] is None and item["path"] is None):
        raise ValueError("no image there")
    if isinstance(item, np.ndarray):
        return _channels_last(item)
    opened = open_file(*file) if file else io.BytesIO(item["bytes"])
    path = item["path"] or ""
    if (file[1] or file[0].name if file else path).lower().endswith(".npy"):
        # Mapped, so that the header of a large file is read and no more.
        return _channels_last(np.load(opened, mmap_mode="r" if isinstance(opened, Path) else None, allow_pickle=False))
    return Image.open(opened, formats=_formats())


@_decoding()
def header(image: Opened) -> Header:
    """What is known of an image before its pixels are decoded.

    Raises:
        ValueError: if it is too large, or too long, to be decoded.
    """
    height, width = image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)
    if height * width > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than {MOST_PIXELS:,}; make it smaller")
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise ValueError(f"{width} x {height} pixels, one side more than {MOST_ASPECT} times the other; crop it")
    if isinstance(image, np.ndarray):
        channels = image.shape[2]
        return Header(channels, _depth(image), False, height, width)
    depth = _depth(image)
    if depth != "uint8":
        channels = 1
    elif image.has_transparency_data:
        channels = 4
    else:
        channels = 1 if image.mode in ("1", "L") else 3
    return Header(channels, depth, depth == "uint8", image.height, image.width)


@dataclass(frozen=True)
class Preprocess:
    """Turns an opened image into the pixels that are cached."""

    channels: int
    dtype: np.dtype
    size: tuple[int, int]  # height and width of what is cropped
    resampling: Image.Resampling
    center_crop: bool
    background: tuple[int, int, int]

    @_decoding()
    def __call__(self, image: Opened) -> np.ndarray:
        """Pixels (C, H, W) of dtype `self.dtype`: of `size` after a centre crop, else of it or longer on one side.

        Raises:
            One of `BAD_IMAGE` if it can't be decoded, or holds values that can't be represented.
        """
        if isinstance(image, Image.Image):
            ImageOps.exif_transpose(image, in_place=True)
        pixels = self._pil_image(image) if header(image).is_pil else self._array(image)  # (H, W, C)
        if self.center_crop:
            height, width = self.size
            top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
            pixels = pixels[top : top + height, left : left + width]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _pil_image(self, image: Any) -> np.ndarray:
        if self.channels != 4 and image.has_transparency_data:
            canvas = Image.new("RGBA", image.size, self.background)
            canvas.alpha_composite(image.convert("RGBA"))
            image = canvas
        image = image.convert(PIL_MODES[self.channels])
        size = self.resized(image.width, image.height)
        if image.size != size:
            # Pillow filters RGBA premultiplied by alpha, so transparent pixels' colours don't bleed.
            image = image.resize(size, self.resampling)
        pixels = np.array(image).reshape(size[1], size[0], self.channels)
        if self.channels == 4:
            # Encoders leave anything under alpha 0; one colour there is one less thing to learn.
            pixels[pixels[..., 3] == 0, :3] = self.background
        return pixels if self.dtype == np.uint8 else _cast(pixels.astype(np.float32), "uint8", self.dtype)

    def _array(self, image: Opened) -> np.ndarray:
        depth = _depth(image)
        with np.errstate(over="ignore"):  # checked below
            values = _channels_last(np.asarray(image)).astype(np.float32)  # (H, W, C)
        if not np.isfinite(values).all():
            raise ValueError("it holds NaN, infinity or values beyond float32")
        if depth == "uint16" and (values.min() < 0 or values.max() > 65535):
            raise ValueError("32-bit integers outside 0..65535; save it as float")
        if np.asarray(image).dtype == bool:
            values *= 255
        size = self.resized(values.shape[1], values.shape[0])
        if size != (values.shape[1], values.shape[0]):
            planes = [Image.fromarray(plane) for plane in np.ascontiguousarray(values.transpose(2, 0, 1))]
            resized = np.stack([np.asarray(p.resize(size, self.resampling)) for p in planes], axis=-1)
            values = resized.clip(values.min(), values.max())  # bicubic and lanczos overshoot
        return _cast(np.broadcast_to(values, (*values.shape[:2], self.channels)), depth, self.dtype)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that covers `size`, one side being as long: of squares the shorter side."""
        least_height, least_width = self.size
        scale = max(least_height / height, least_width / width)
        return max(least_width, round(width * scale)), max(least_height, round(height * scale))


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name != "EPS"]  # a program, for which Pillow starts Ghostscript


def background_color(options: DataOptions) -> tuple[int, int, int]:
    """`options.background` as RGB.

    Raises:
        UserError: if it names no colour.
    """
    try:
        red, green, blue = ImageColor.getrgb(options.background)[:3]
        bytes((red, green, blue))  # or rgb(300, 0, 0) would pass
    except ValueError as error:
        raise UserError(
            f"--background {options.background!r} is not a colour; give a name such as 'white', or '#rrggbb'"
        ) from error
    return red, green, blue


def _channels_last(array: np.ndarray) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) as (H, W, C): of the first and last axes the smaller is the channels."""
    if array.dtype.kind not in "buif" or array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"an array of {array.dtype} {array.shape}, not (H, W), (H, W, C) or (C, H, W) numbers")
    if array.ndim == 2:
        return array[..., None]
    return array.transpose(1, 2, 0) if array.shape[0] < array.shape[2] else array


def _depth(image: Opened) -> str:
    if isinstance(image, Image.Image):
        return "float32" if image.mode == "F" else "uint16" if image.mode.startswith("I") else "uint8"
    if image.dtype.kind in "bu" and image.dtype.itemsize <= 2:
        return "uint8" if image.dtype.itemsize == 1 else "uint16"
    return "float32"  # wider integers too: nothing tells which of their values are black and white


def _cast(values: np.ndarray, depth: str, dtype: np.dtype) -> np.ndarray:
    """Float32 values of an image of `depth`, rescaled and rounded to `dtype`."""
    if dtype == np.float32:
        return values
    return np.rint(values * (np.iinfo(dtype).max / np.iinfo(depth).max)).astype(dtype)
