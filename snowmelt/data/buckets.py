"""Images of several shapes: each belongs to a bucket, the size that it is cropped to, by its aspect ratio.

A bucket is a cache like any other. One that is made of all buckets stands for the whole set: its images are those of
the first bucket, then those of the second, and so on.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from diffusers.training_utils import find_nearest_bucket
from PIL.ExifTags import Base

from snowmelt.data.agreement import Like, common_channels, common_dtype
from snowmelt.data.cache import ImageCache, build_cache
from snowmelt.data.content import content_key
from snowmelt.data.images import Opened, header
from snowmelt.data.latent_cache import LatentCache
from snowmelt.data.places import Source
from snowmelt.data.rows import readable
from snowmelt.data.store import cache_root, open_store
from snowmelt.errors import UserError
from snowmelt.options import DataOptions
from snowmelt.values import to_buckets, to_resolution

VERSION = 1  # of the choice of a bucket: raised when that changes
NEAREST = "nearest.npy"
ROTATED = (5, 6, 7, 8)
"""EXIF orientations whose height is the width of what is stored."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class BucketedImages(ImageCache):
    """Images of several buckets, `parts`."""

    parts: list[ImageCache]

    def gather(self, indices: np.ndarray, corners: np.ndarray | None) -> np.ndarray:
        """Copy of some images of one bucket, cropped to its size."""
        part, within = _within(self.parts, indices)
        return part.gather(within, corners)

    def as_tensor(self) -> None:
        """None: there is no one shape."""


@dataclass(frozen=True, eq=False)
class BucketedLatents(LatentCache):
    """Latents of several buckets, `parts`; `shape` is that of the first."""

    parts: list[LatentCache]

    def gather(self, indices: np.ndarray, corners: np.ndarray | None) -> np.ndarray:
        """Copy of those at `indices`, all of one bucket."""
        part, within = _within(self.parts, indices)
        return part.gather(within, corners)

    def as_tensor(self) -> None:  # type: ignore[override]
        """None: there is no one shape."""


def parts_of(cache: T) -> list[T]:
    """The buckets of a cache; itself, where it is of one size."""
    return cache.parts if isinstance(cache, BucketedImages | BucketedLatents) else [cache]  # type: ignore[return-value]


def build_images(
    source: Source,
    options: DataOptions,
    *,
    image_column: str,
    labels: np.ndarray | None = None,
    class_names: list[str] | None = None,
    like: Like | None = None,
) -> ImageCache:
    """The cache of a data set's images, or those of its buckets: see `build_cache`.

    Args:
        source: rows with undecoded, or decodable, images.
        options: how they are decoded, and their buckets.
        image_column: the column that holds them.
        labels: (rows,) int64 classes of all rows.
        class_names: their names.
        like: take the channels, the type and the range of values of these; not all buckets need have images then.

    Raises:
        UserError: as `build_cache`; for buckets that have no images; for float images in buckets.
    """
    if options.aspect_ratio_buckets is None:
        return build_cache(
            source, options, image_column=image_column, labels=labels, class_names=class_names, like=like
        )
    sizes = to_buckets(options.aspect_ratio_buckets)
    nearest, common = _sort(source, options, image_column, sizes, like)
    rows = {size: np.flatnonzero(nearest == number) for number, size in enumerate(sizes)}
    empty = [size for size, own in rows.items() if not len(own)]
    if empty and like is None:
        raise UserError(f"--aspect_ratio_buckets: {_shown(empty[0])} is nearest to no image; leave it out")
    parts = []
    for size, own in rows.items():
        if size in empty:
            continue
        given: Any = replace(
            options, resolution=to_resolution(*size), aspect_ratio_buckets=None, channels=common.channels
        )
        part = build_cache(
            replace(source, dataset=source.dataset.select(own)),
            given,
            image_column=image_column,
            labels=None if labels is None else labels[own],
            class_names=class_names,
            like=common,
        )
        parts.append(replace(part, rows=own[part.rows]))
    first, all_labels = parts[0], [part.labels for part in parts if part.labels is not None]
    return BucketedImages(
        path=first.path,
        labels=np.concatenate(all_labels) if all_labels else None,
        class_names=class_names,
        fingerprint=_joined([part.fingerprint for part in parts]),
        dtype=first.dtype,
        value_range=first.value_range,
        channels=first.channels,
        size=options.size,
        skipped=[name for part in parts for name in part.skipped],
        rows=np.concatenate([part.rows for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
        parts=parts,
    )


def join_latents(images: BucketedImages, parts: list[LatentCache]) -> BucketedLatents:
    """Latents of all buckets, of those of each."""
    first, fingerprint = parts[0], _joined([part.fingerprint for part in parts])
    return BucketedLatents(first.path, images, fingerprint, first.dtype, first.shape, parts)


def check_buckets(images: ImageCache, multiple: int, square: bool) -> None:
    """Refuse buckets that a network doesn't take.

    Args:
        images: in buckets or not.
        multiple: what the sides of images must be multiples of, for the network and its autoencoder.
        square: whether the network takes squares alone.

    Raises:
        UserError: naming the first that it doesn't take.
    """
    if not isinstance(images, BucketedImages):
        return
    for part in images.parts:
        what = f"--aspect_ratio_buckets: {_shown(part.size)}"
        if square and part.size[0] != part.size[1]:
            raise UserError(f"{what} isn't square, and this network makes squares alone; take --backbone unet")
        if any(side % multiple for side in part.size):
            raise UserError(f"{what} has a side that isn't a multiple of {multiple}, by which the network divides it")


def _sort(
    source: Source, options: DataOptions, column: str, sizes: list[tuple[int, int]], like: Like | None
) -> tuple[np.ndarray, Like]:
    """The number of the bucket of each row (rows,), and what the images of all buckets have in common."""
    key = {
        "version": VERSION,
        "content": content_key(source, column, options),
        "buckets": sizes,
        **{name: getattr(options, name) for name in ("channels", "preserve_input_precision", "skip_bad_images")},
    }
    if like is not None:
        key["like"] = [like.channels, like.dtype.name]
    key = json.loads(json.dumps(key))

    def build(folder: Path) -> dict[str, Any]:
        nearest, headers = np.zeros(len(source.dataset), np.int64), []  # what can't be read is named by the first

        def look(image: Opened) -> tuple[Any, tuple[int, int]]:
            return header(image), _upright(image)

        for row, (head, size) in readable(source, column, look, options, "sorting images by shape", skipped=[]):
            headers.append(head)
            nearest[row] = find_nearest_bucket(*size, sizes)
        np.save(folder / NEAREST, nearest)
        if not headers:
            raise UserError(f"none of the {len(source.dataset)} images can be decoded; check the files")
        return {
            "channels": common_channels(headers, options, like),
            "dtype": common_dtype(headers, options, like).name,
        }

    folder = cache_root(options) / _joined([json.dumps(key, sort_keys=True)])
    content = open_store(folder, key, (NEAREST,), build)
    dtype = np.dtype(content["dtype"])
    if dtype.kind == "f":
        raise UserError("--aspect_ratio_buckets: isn't for float images, whose range is that of a whole set")
    made = Like(content["channels"], dtype, (0.0, float(np.iinfo(dtype).max)), "--split")
    return np.load(folder / NEAREST), like or made


def _upright(image: Opened) -> tuple[int, int]:
    """Height and width, as the image is seen."""
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    rotated = image.getexif().get(Base.Orientation) in ROTATED
    return (image.width, image.height) if rotated else (image.height, image.width)


def _within(parts: list[Any], indices: np.ndarray) -> tuple[Any, np.ndarray]:
    """The bucket that images belong to, and their numbers in it."""
    for part in parts:
        if indices.max() < len(part):
            assert indices.min() >= 0  # or they are of two buckets, which no batch is
            return part, indices
        indices = indices - len(part)
    raise IndexError("no such images")


def _joined(keys: list[str]) -> str:
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:32]


def _shown(size: tuple[int, int]) -> str:
    return ",".join(map(str, size))
