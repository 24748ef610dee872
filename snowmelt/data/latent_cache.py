"""Latents of decoded images in one memory-mapped file, encoded once and shared by all processes."""

import hashlib
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snowmelt.data.cache import ImageCache
from snowmelt.data.passes import write_passes
from snowmelt.data.store import open_store
from snowmelt.errors import UserError
from snowmelt.values import to_resolution

VERSION = 1  # of what is kept of an image: raised when that changes
VALUES = "latents.bin"
PIXELS_PER_PASS = 2**20  # of the images that are encoded together

Encode = Callable[[torch.Tensor], torch.Tensor]
"""Raw images (B, C, H, W) to what is kept of their latents, float32 (B, k, h, w) on the CPU."""


@dataclass(frozen=True, eq=False)
class LatentCache:
    """Latents of N images, memory-mapped. Nothing here may be written to."""

    path: Path
    images: ImageCache
    fingerprint: str  # content key of the images, of the autoencoder and of what is kept
    dtype: np.dtype  # float16 or float32
    shape: tuple[int, ...]  # of what is kept of one image: (k, h, w), or (2, k, h, w) with that of its mirror image

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> np.ndarray | None:
        """Classes, (N,) int64, where there are any."""
        return self.images.labels

    @property
    def rows(self) -> np.ndarray:
        """The row of the data set that each comes from, (N,) int64."""
        return self.images.rows

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the images."""
        return self.images.size

    @property
    def sizes(self) -> np.ndarray:
        """Heights and widths of the images, (N, 2) int64: all the same."""
        return self.images.sizes

    def gather(self, indices: np.ndarray, corners: np.ndarray | None) -> np.ndarray:
        """Copy of those at `indices` (B,), (B, *shape), whole."""
        return self._values[indices]

    def as_tensor(self) -> torch.Tensor:
        """All N, (N, *shape): a view of the read-only file; writing to it in place ends the process."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(self._values)

    def mirrored(self, values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Of pairs (B, 2, k, h, w) the latents of the images, or of the mirror images where `chosen`, (B,) bool.

        To mirror latents themselves wouldn't do: a mirrored latent is not the latent of a mirrored image.
        """
        return one_of_pairs(values, chosen)

    def __getstate__(self) -> dict[str, Any]:
        """Without the cached view: pickling a memory map would copy the whole set to each worker."""
        return {name: vars(self)[name] for name in self.__dataclass_fields__}

    @cached_property
    def _values(self) -> np.ndarray:
        # A plain ndarray: np.memmap's own indexing costs several times as much per batch.
        return np.memmap(self.path / VALUES, self.dtype, mode="r", shape=(len(self), *self.shape)).view(np.ndarray)


def build_latents(
    images: ImageCache, encode: Encode, *, autoencoder: str, random_flip: bool, dtype: type[np.floating]
) -> LatentCache:
    """Open the cache of some images' latents; encode the images first when no process has done so yet.

    A process that is killed leaves the latents that it has finished, and the next one resumes there.

    Args:
        images: that aren't cropped.
        encode: the encoder.
        autoencoder: a key of its weights and configuration.
        random_flip: keep the latents of the mirror images too.
        dtype: in which latents are kept, float16 or float32.

    Raises:
        UserError: if the images aren't all of one shape, a latent isn't finite in `dtype`, or the disk is full.
    """
    if images.as_tensor() is None:
        shape = "square" if images.size[0] == images.size[1] else f"of the shape {to_resolution(*images.size)}"
        raise UserError(f"the images aren't all {shape}, and each is encoded once; add --center_crop")
    key = {
        "version": VERSION,
        "images": images.fingerprint,
        "autoencoder": autoencoder,
        "random_flip": random_flip,
        "dtype": np.dtype(dtype).name,
    }
    fingerprint = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    folder = images.path.parent / fingerprint
    content = open_store(folder, key, (VALUES,), lambda partial: _build(partial, images, encode, key), resumable=True)
    return LatentCache(folder, images, fingerprint, np.dtype(dtype), tuple(content["shape"]))


def one_of_pairs(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Of pairs (B, 2, k, h, w) the first ones, or the second ones where `chosen`, (B,) bool."""
    return torch.where(chosen[:, None, None, None], values[:, 1], values[:, 0])


def passes_of(size: tuple[int, int]) -> int:
    """How many images of a height and width are encoded together."""
    return max(1, min(256, PIXELS_PER_PASS // math.prod(size)))


def encode_pass(
    images: ImageCache, batch: torch.Tensor, rows: np.ndarray, encode: Encode, *, random_flip: bool, dtype: np.dtype
) -> np.ndarray:
    """What is kept of some images, (B, *shape) contiguous.

    Args:
        images: that they are of.
        batch: (B, C, H, W), raw.
        rows: (B,) of the data set, for messages.
        encode: the encoder.
        random_flip: keep the latents of the mirror images too.
        dtype: in which latents are kept.

    Raises:
        UserError: if a latent isn't finite in `dtype`.
    """
    encoded = encode(batch)
    if random_flip:
        every = torch.ones(len(batch), dtype=torch.bool)
        encoded = torch.stack([encoded, encode(images.mirrored(batch, every))], 1)
    with np.errstate(over="ignore"):  # checked below
        values = np.ascontiguousarray(encoded.numpy(), dtype)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if len(bad):
        raise UserError(
            f"latents of row {rows[bad[0]]} aren't finite in {values.dtype}; "
            "check its weights, or take --mixed_precision no, which keeps latents in float32"
        )
    return values


def _build(folder: Path, images: ImageCache, encode: Encode, key: dict[str, Any]) -> dict[str, Any]:
    """Encode the images into a file in `folder`; the shape of what is kept of one."""
    pixels = images.as_tensor()
    assert pixels is not None  # build_latents refused
    dtype = np.dtype(key["dtype"])

    def values_of(start: int, stop: int) -> np.ndarray:
        given, rows = pixels[start:stop], images.rows[start:stop]
        return encode_pass(images, given, rows, encode, random_flip=key["random_flip"], dtype=dtype)

    shape = values_of(0, 1).shape[1:]
    write_passes(
        folder / VALUES,
        values_of,
        count=len(images),
        batch=passes_of(images.size),
        size=math.prod(shape) * dtype.itemsize,
        what="the latents",
        doing="encoding images",
    )
    return {"shape": shape}
