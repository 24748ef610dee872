"""Decoded images in one memory-mapped file, built once and shared by all processes."""

import hashlib
import json
import math
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from snowmelt.data.agreement import Like, common_channels, common_dtype
from snowmelt.data.content import content_key
from snowmelt.data.images import Header, Preprocess, background_color, header
from snowmelt.data.places import Source
from snowmelt.data.rows import cores, readable
from snowmelt.data.store import cache_root, check_space, in_units, open_store
from snowmelt.errors import UserError
from snowmelt.options import DataOptions
from snowmelt.values import to_resolution

VERSION = 1  # of the pixels that are made of an image: raised when they change
PIXELS, ROWS, SIZES = "pixels.bin", "rows.npy", "sizes.npy"


@dataclass(frozen=True, eq=False)
class ImageCache:
    """N decoded images, memory-mapped. Nothing here may be written to."""

    path: Path
    labels: np.ndarray | None  # (N,) int64
    class_names: list[str] | None
    fingerprint: str  # content key of the data set and its preprocessing
    dtype: np.dtype  # uint8, uint16 or float32
    value_range: tuple[float, float]  # the raw values that stand for -1 and +1
    channels: int
    size: tuple[int, int]  # height and width that images are cropped to
    skipped: list[str]  # images that couldn't be decoded
    rows: np.ndarray  # (N,) int64, the row of the data set that each image comes from
    sizes: np.ndarray  # (N, 2) int64, heights and widths

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, indices: np.ndarray, corners: np.ndarray | None) -> np.ndarray:
        """Copy of some images, cropped to `size`.

        Args:
            indices: (B,) integers in 0..N-1.
            corners: (B, 2) integers, top and left of the crop in pixels; None crops the centres.

        Returns:
            (B, C, H, W) of dtype `self.dtype`.
        """
        if self._images is not None:
            return self._images[indices]
        height, width = self.size
        if corners is None:
            corners = (self.sizes[indices] - self.size) // 2
        batch = np.empty((len(indices), self.channels, height, width), self.dtype)
        for out, index, (top, left) in zip(batch, indices.tolist(), corners.tolist(), strict=True):
            start, shape = self._offsets[index], (self.channels, *self.sizes[index])
            image = self._pixels[start : start + math.prod(shape)].reshape(shape)
            out[:] = image[:, top : top + height, left : left + width]
        return batch

    def as_tensor(self) -> torch.Tensor | None:
        """The whole set, (N, C, H, W), when every image is H x W and nothing is cropped; else None.

        It is a view of the read-only file: writing to it in place ends the process.
        """
        if self._images is None:
            return None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(self._images)

    def mirrored(self, values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) of which those `chosen`, (B,) bool, are mirrored left to right."""
        # torch can't flip uint16; the bits move just as well under another name.
        bits = values.view(torch.int16) if values.dtype == torch.uint16 else values
        return torch.where(chosen[:, None, None, None], bits.flip(-1), bits).view(values.dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Without the cached views: pickling a memory map would copy the whole set to each worker."""
        return {name: vars(self)[name] for name in self.__dataclass_fields__}

    @cached_property
    def _pixels(self) -> np.ndarray:
        return np.memmap(self.path / PIXELS, self.dtype, mode="r")

    @cached_property
    def _offsets(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.channels * self.sizes.prod(axis=1))])

    @cached_property
    def _images(self) -> np.ndarray | None:
        """(N, C, H, W) when nothing is cropped."""
        if (self.sizes != self.size).any():
            return None
        shape = (len(self), self.channels, *self.size)
        # A plain ndarray: np.memmap's own indexing costs several times as much per batch.
        return self._pixels.view(np.ndarray).reshape(shape)


def build_cache(
    source: Source,
    options: DataOptions,
    *,
    image_column: str,
    labels: np.ndarray | None = None,
    class_names: list[str] | None = None,
    like: Like | None = None,
) -> ImageCache:
    """Open the cache of a data set's images; decode them first when no process has done so yet.

    Args:
        source: rows with undecoded, or decodable, images.
        options: how they are decoded.
        image_column: the column that holds them.
        labels: (rows,) int64 classes of all rows.
        class_names: their names.
        like: take the channels, the type and the range of values of these.

    Raises:
        UserError: for images that can't be read or don't agree, for a bad background, or a full disk.
    """
    key = _key(source, image_column, options, like)
    fingerprint = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_root(options) / fingerprint
    content = open_store(
        folder, key, (PIXELS, ROWS, SIZES), lambda partial: _build(partial, source, image_column, options, like)
    )
    rows = np.load(folder / ROWS)
    return ImageCache(
        path=folder,
        labels=None if labels is None else labels[rows],
        class_names=class_names,
        fingerprint=fingerprint,
        dtype=np.dtype(content["dtype"]),
        value_range=like.value_range if like else tuple(content["value_range"]),
        channels=content["channels"],
        size=options.size,
        skipped=content["skipped"],
        rows=rows,
        sizes=np.load(folder / SIZES),
    )


def _key(source: Source, image_column: str, options: DataOptions, like: Like | None) -> dict[str, Any]:
    key = {
        "version": VERSION,
        "content": content_key(source, image_column, options),
        **{
            name: getattr(options, name)
            for name in (
                "resolution",
                "interpolation",
                "center_crop",
                "channels",
                "background",
                "preserve_input_precision",
                "skip_bad_images",
            )
        },
    }
    return key | ({"like": [like.channels, like.dtype.name]} if like else {})


def _build(folder: Path, source: Source, column: str, options: DataOptions, like: Like | None) -> dict[str, Any]:
    """Decode the images into files in `folder`; what else is to be known of them."""
    headers = [h for _, h in readable(source, column, header, options, "checking images", skipped=[])]
    if not headers:
        raise UserError(f"none of the {len(source.dataset)} images can be decoded; check the files, or --image_column")
    preprocess = Preprocess(
        channels=common_channels(headers, options, like),
        dtype=common_dtype(headers, options, like),
        size=options.size,
        resampling=Image.Resampling[options.interpolation.upper()],
        center_crop=options.center_crop,
        background=background_color(options),
    )
    threads = _check_sizes(folder.parent, headers, preprocess)
    _say_conversions(headers, preprocess.channels, options)
    content = _write(folder, source, column, options, preprocess, threads)
    low, high = content["value_range"]
    if low == high and like is None:
        raise UserError(f"all values of the float images are {low}: there is nothing to learn; check the data")
    return content


def _check_sizes(folder: Path, headers: list[Header], preprocess: Preprocess) -> int:
    """Refuse before any work what can't be held by the memory or the disk; how many images may be decoded at once."""
    areas = [math.prod(preprocess.resized(h.width, h.height)) for h in headers]
    resolution, channels = to_resolution(*preprocess.size), preprocess.channels
    # Two copies in float32 of the largest image, before or after the resize: less than is needed, but in the measure.
    largest = max(*areas, *(h.height * h.width for h in headers))
    needed, free = 8 * channels * largest, psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"--resolution {resolution}: to resize one image takes {in_units(needed)} of memory, and "
            f"{in_units(free)} are free; give a smaller one"
        )
    pixels = len(areas) * math.prod(preprocess.size) if preprocess.center_crop else sum(areas)
    check_space(
        folder, pixels * channels * preprocess.dtype.itemsize, f"the images, decoded at --resolution {resolution},"
    )
    # Up to twice as many results wait for their turn.
    return min(cores(), max(1, free // (4 * needed)))


def _say_conversions(headers: list[Header], channels: int, options: DataOptions) -> None:
    converted = Counter(h.channels for h in headers if h.is_pil and h.channels != channels)
    if not converted:
        return
    names = {1: "gray", 3: "RGB", 4: "RGBA"}
    laid = f" laid on {options.background}" if channels != 4 else ""
    listed = ", ".join(f"{n} {names[c]}{laid if c == 4 else ''}" for c, n in sorted(converted.items()))
    print(
        f"{converted.total()} of {len(headers)} images become {names[channels]}: {listed}; --channels chooses otherwise"
    )


def _write(
    folder: Path, source: Source, column: str, options: DataOptions, preprocess: Preprocess, threads: int
) -> dict[str, Any]:
    rows, sizes, skipped = [], [], []  # type: ignore[var-annotated]
    low, high = np.inf, -np.inf
    with (folder / PIXELS).open("wb") as file:
        for row, pixels in readable(source, column, preprocess, options, "decoding images", skipped, threads):
            # Written, not memory-mapped: a full disk is then an exception and not a SIGBUS.
            file.write(pixels.data)
            rows.append(row)
            sizes.append(pixels.shape[1:])
            if preprocess.dtype == np.float32:
                low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
    if not rows:
        raise UserError(f"none of the {len(source.dataset)} images can be decoded; check the files, or --image_column")
    if preprocess.dtype != np.float32:
        low, high = 0.0, float(np.iinfo(preprocess.dtype).max)
    if skipped:
        print(f"left out {len(skipped)} of {len(source.dataset)} images that can't be decoded: {_shortened(skipped)}")
    np.save(folder / ROWS, np.array(rows, np.int64))
    np.save(folder / SIZES, np.array(sizes, np.int64))
    return {
        "dtype": preprocess.dtype.name,
        "value_range": [low, high],
        "channels": preprocess.channels,
        "skipped": skipped,
    }


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
