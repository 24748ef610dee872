"""Decoded images in one memory-mapped file, built once and shared by all processes."""

import errno
import hashlib
import json
import math
import os
import shutil
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from filelock import FileLock
from huggingface_hub.constants import HF_HOME
from PIL import Image

from snowmelt.data.images import PICTURE_MODES, Header, Preprocess, background_color, header
from snowmelt.data.rows import readable
from snowmelt.errors import UserError
from snowmelt.options import DataOptions

VERSION = 1  # of the files below and of what they hold: raised when either changes
PIXELS, ROWS, SIZES, METADATA = "pixels.bin", "rows.npy", "sizes.npy", "cache.json"


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
    resolution: int
    skipped: list[str]  # images that couldn't be decoded
    rows: np.ndarray  # (N,) int64, the row of the data set that each image comes from
    sizes: np.ndarray  # (N, 2) int64, heights and widths

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, indices: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Copy of some images, cropped to squares.

        Args:
            indices: (B,) integers in 0..N-1.
            rng: draws the crops of images that aren't square; None crops the centre.

        Returns:
            (B, C, R, R) of dtype `self.dtype`.
        """
        if self._images is not None:
            return self._images[indices]
        side = self.resolution
        spare = self.sizes[indices] - side  # (B, 2)
        corners = (spare // 2 if rng is None else rng.integers(spare + 1)).tolist()
        batch = np.empty((len(indices), self.channels, side, side), self.dtype)
        for out, index, (top, left) in zip(batch, indices.tolist(), corners, strict=True):
            height, width = self.sizes[index]
            start = self._offsets[index]
            image = self._pixels[start : start + self.channels * height * width]
            out[:] = image.reshape(self.channels, height, width)[:, top : top + side, left : left + side]
        return batch

    def as_tensor(self) -> torch.Tensor | None:
        """The whole set, (N, C, R, R), when every image is R x R; else None.

        It is a view of the read-only file: writing to it in place ends the process.
        """
        if self._images is None:
            return None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(self._images)

    def mirrored(self, values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Images (B, C, R, R) of which those `chosen`, (B,) bool, are mirrored left to right."""
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
        """(N, C, R, R) when every image is square."""
        if (self.sizes != self.resolution).any():
            return None
        shape = (len(self), self.channels, self.resolution, self.resolution)
        # A plain ndarray: np.memmap's own indexing costs several times as much per batch.
        return self._pixels.view(np.ndarray).reshape(shape)


def build_cache(
    dataset: datasets.Dataset,
    options: DataOptions,
    *,
    image_column: str,
    labels: np.ndarray | None = None,
    class_names: list[str] | None = None,
) -> ImageCache:
    """Open the cache of a data set's images; decode them first when no process has done so yet.

    Args:
        dataset: rows with undecoded, or decodable, images.
        image_column: the column that holds them.
        labels: (rows,) int64 classes of all rows.
        class_names: their names.

    Raises:
        UserError: for images that can't be read or don't agree, for a bad background, or a full disk.
    """
    root = Path(options.cache_dir or HF_HOME) / "snowmelt"
    fingerprint = _fingerprint(dataset, image_column, options)
    folder = root / fingerprint
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{fingerprint}.lock"):
            if not folder.is_dir():  # another process may have built it while this one waited
                _build(folder, dataset, image_column, options)
    rows = np.load(folder / ROWS)
    metadata = json.loads((folder / METADATA).read_text())
    return ImageCache(
        path=folder,
        labels=None if labels is None else labels[rows],
        class_names=class_names,
        fingerprint=fingerprint,
        dtype=np.dtype(metadata["dtype"]),
        value_range=tuple(metadata["value_range"]),
        channels=metadata["channels"],
        resolution=options.resolution,
        skipped=metadata["skipped"],
        rows=rows,
        sizes=np.load(folder / SIZES),
    )


def _fingerprint(dataset: datasets.Dataset, image_column: str, options: DataOptions) -> str:
    key = {
        "version": VERSION,
        "dataset": dataset._fingerprint,
        "column": image_column,
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
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _build(folder: Path, dataset: datasets.Dataset, column: str, options: DataOptions) -> None:
    """Write the cache beside its final name and rename it when complete. The caller holds its lock."""
    partial = folder.with_suffix(".partial")
    if partial.exists():  # its builder was killed
        shutil.rmtree(partial)
    headers = [h for _, h in readable(dataset, column, header, options, "checking images", skipped=[])]
    if not headers:
        raise UserError(f"none of the {len(dataset)} images can be decoded; check the files, or --image_column")
    preprocess = Preprocess(
        channels=_channels(headers, options),
        dtype=_dtype(headers, options),
        resolution=options.resolution,
        resampling=Image.Resampling[options.interpolation.upper()],
        center_crop=options.center_crop,
        background=background_color(options),
    )
    _check_space(folder.parent, headers, preprocess)
    partial.mkdir()
    try:
        _write(partial, dataset, column, options, preprocess)
    except BaseException as error:
        shutil.rmtree(partial)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{folder.parent}: disk full; free some space or give another --cache_dir") from error
        raise
    os.rename(partial, folder)


def _check_space(folder: Path, headers: list[Header], preprocess: Preprocess) -> None:
    areas = [math.prod(preprocess.resized(h.width, h.height)) for h in headers]
    pixels = len(areas) * preprocess.resolution**2 if preprocess.center_crop else sum(areas)
    needed = pixels * preprocess.channels * preprocess.dtype.itemsize
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: the decoded images need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "free some space or give another --cache_dir"
        )


def _write(folder: Path, dataset: datasets.Dataset, column: str, options: DataOptions, preprocess: Preprocess) -> None:
    rows, sizes, skipped = [], [], []  # type: ignore[var-annotated]
    low, high = np.inf, -np.inf
    with (folder / PIXELS).open("wb") as file:
        for row, pixels in readable(dataset, column, preprocess, options, "decoding images", skipped):
            # Written, not memory-mapped: a full disk is then an exception and not a SIGBUS.
            file.write(pixels.data)
            rows.append(row)
            sizes.append(pixels.shape[1:])
            if preprocess.dtype == np.float32:
                low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
    if not rows:
        raise UserError(f"none of the {len(dataset)} images can be decoded; check the files, or --image_column")
    if preprocess.dtype != np.float32:
        low, high = 0.0, float(np.iinfo(preprocess.dtype).max)
    if low == high:
        raise UserError(f"all values of the float images are {low}: there is nothing to learn; check the data")
    if skipped:
        print(f"left out {len(skipped)} of {len(dataset)} images that can't be decoded: {_shortened(skipped)}")
    np.save(folder / ROWS, np.array(rows, np.int64))
    np.save(folder / SIZES, np.array(sizes, np.int64))
    metadata = {
        "dtype": preprocess.dtype.name,
        "value_range": [low, high],
        "channels": preprocess.channels,
        "skipped": skipped,
    }
    (folder / METADATA).write_text(json.dumps(metadata))


def _channels(headers: list[Header], options: DataOptions) -> int:
    counts = Counter(h.channels for h in headers)
    channels = options.channels
    if channels is None:
        if len(counts) > 1:
            found = ", ".join(f"{n} with {c} ({PICTURE_MODES.get(c, 'array')})" for c, n in counts.most_common())
            raise UserError(f"images differ in their channels: {found}; pass --channels 1, 3 or 4 to convert them")
        return headers[0].channels
    for h in headers:
        if channels not in ((1, 3, 4) if h.is_picture else (1, 3) if h.channels == 1 else (h.channels,)):
            kind = "pictures can be given 1, 3 or 4" if h.is_picture else f"an array here has {h.channels}"
            raise UserError(f"--channels {channels}: {kind}")
    return channels


def _dtype(headers: list[Header], options: DataOptions) -> np.dtype:
    depths = Counter(h.depth for h in headers)
    if "float32" in depths:
        if len(depths) > 1:
            found = ", ".join(f"{n} {depth}" for depth, n in depths.most_common())
            raise UserError(f"images differ in their values: {found}; float images can't be mixed with others")
        return np.dtype(np.float32)
    return np.dtype(np.uint16 if options.preserve_input_precision and "uint16" in depths else np.uint8)


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
