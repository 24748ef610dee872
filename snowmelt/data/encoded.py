"""Latents in shards, as `snowmelt.data.encoding` writes them: streamed in training as images are."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch

from snowmelt.data.captions import texts_of
from snowmelt.data.encoded_captions import CAPTIONS, EncodedCaptions, read_empty, states_of
from snowmelt.data.latent_cache import one_of_pairs
from snowmelt.data.shards import FORMATS, Row
from snowmelt.data.storage import open_storage
from snowmelt.data.store import cache_root
from snowmelt.data.stream import Decoded, StreamedImages
from snowmelt.data.stream_captions import RowStates
from snowmelt.data.stream_index import Index, RowNumbers
from snowmelt.data.stream_pixels import RowLatents
from snowmelt.data.stream_source import Shards
from snowmelt.errors import UserError
from snowmelt.files import checked, parse_json, shown
from snowmelt.options import DataOptions
from snowmelt.values import to_resolution

KIND = "snowmelt latents"
MANIFEST = "manifest.json"
UNFINISHED = "encoding"
"""Folder, inside that of the files, of what isn't complete."""
PREFIX = "latents"
"""Of the files' names."""
FILE_NAME = rf"{PREFIX}-\d{{5,}}-of-\d{{5,}}\.parquet"
KEYS: dict[str, Any] = {
    "files": list,
    "autoencoder": str,
    "channels": int,
    "size": list,
    "image_dtype": str,
    "value_range": list,
    "class_names": (list, type(None)),
    "random_flip": bool,
    "dtype": str,
    "shape": list,
    "sha256": str,
}
FILE_KEYS = {"name": str, "rows": int, "bytes": int}
"""What a manifest says, and of each file, as far as reading goes by it."""
DTYPES, IMAGE_DTYPES = ("float16", "float32"), ("uint8", "uint16", "float32")
NEED_PIXELS = (
    "condition",
    "augment_p",
    "eval_metrics",
    "reflow_from",
    "aspect_ratio_buckets",
    "with_prior_preservation",
)
NEED_TEXTS = ("caption_column", "skip_empty_captions", "instance_prompt", "placeholder_token", "train_text_encoder")


def digest_of(body: dict[str, Any]) -> str:
    """SHA-256 of what a manifest says."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class EncodedLatents(StreamedImages):
    """N latents in shards. What it says of channels, type, values and sizes is that of the images they are of."""

    pixels: RowLatents

    def crop(self, decoded: Decoded, corners: np.ndarray | None) -> np.ndarray:
        """Latents (B, *shape), whole."""
        return np.stack(decoded.images)

    def sizes_of(self, decoded: Decoded) -> np.ndarray:
        """Height and width, (B, 2), of the images: what they were cropped to."""
        return np.tile(self.size, (len(decoded.images), 1))

    def texts(self, image: int) -> list[str]:
        """The captions of an image, where there are any."""
        unit = int(self._unit_of(np.array([image]))[0])
        return texts_of(self._texts(unit)[self._place(unit, image)][CAPTIONS])

    @cached_property
    def _texts(self) -> Callable[[int], Sequence[Row]]:
        return lru_cache(maxsize=2)(lambda unit: self.fetch(unit, columns=[CAPTIONS]))

    def mirrored(self, values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Of pairs (B, 2, k, h, w) the latents of the images, or of the mirror images where `chosen`, (B,) bool."""
        return one_of_pairs(values, chosen)


@dataclass(frozen=True)
class Encoded:
    """A folder of latents.

    Attributes:
        shards: its files.
        manifest: what it says of them.
        base: its path, in the storage of the files.
        states: which text embeddings its rows have, where there are any.
    """

    shards: Shards
    manifest: dict[str, Any]
    base: str
    states: RowStates | None

    def check_autoencoder(self, fingerprint: str, flag: str = "--autoencoder") -> None:
        """Refuse latents of another autoencoder.

        Args:
            fingerprint: of the one in use.
            flag: that it was given by.

        Raises:
            UserError: if the fingerprint isn't theirs.
        """
        if fingerprint != self.manifest["autoencoder"]:
            own = "its autoencoder isn't" if flag == "--pretrained_model_name_or_path" else "isn't"
            raise UserError(
                f"{flag}: {own} the one that the latents in {self.shards.name} are of; name that one, or run "
                "encode.py with this one and another --output_dir"
            )

    def captions_of(self, latents: EncodedLatents) -> EncodedCaptions:
        """The captions of some of the rows.

        Args:
            latents: of `open`.

        Raises:
            UserError: if there are none, or the file of the empty one isn't as it was written.
        """
        name, manifest = self.shards.name, self.manifest
        if self.states is None:
            raise UserError(
                f"--train_data_dir {name}: holds latents without captions; run encode.py with --text_encoder and "
                "another --output_dir"
            )
        empty = read_empty(self.shards.storage, self.base, self.states, manifest["empty_caption"])
        return EncodedCaptions(name, manifest["text"]["encoder"], self.states, empty, len(latents), latents.texts)

    def open(self, options: DataOptions, index: Index, *, captions: bool = False) -> EncodedLatents:
        """The latents of some of the rows.

        Args:
            options: of the training.
            index: the rows.
            captions: whether the embeddings of their captions are read too.

        Raises:
            UserError: if a file isn't as long as it was written.
        """
        manifest, storage = self.manifest, self.shards.storage
        for (path, size), file in zip(index.files, manifest["files"], strict=True):
            if size != file["bytes"]:
                raise UserError(
                    f"{storage.shown(path)}: has {size} bytes, and was written with {file['bytes']}; restore it, or "
                    "remove it and run encode.py again"
                )
        shape, dtype = tuple(manifest["shape"]), np.dtype(manifest["dtype"])
        key = [KIND, index.fingerprint, options.shuffle_buffer_size, options.random_flip]
        return EncodedLatents(
            path=cache_root(options),
            labels=None,
            class_names=index.class_names,
            fingerprint=f"stream-{digest_of({'key': key})[:32]}",
            dtype=np.dtype(manifest["image_dtype"]),
            value_range=tuple(manifest["value_range"]),
            channels=manifest["channels"],
            size=tuple(manifest["size"]),
            skipped=[],
            rows=RowNumbers(index.units),  # type: ignore[arg-type]
            sizes=np.empty((0, 2), np.int64),
            index=index,
            pixels=RowLatents(options, shape, dtype, options.random_flip),
            buffer_size=options.shuffle_buffer_size,
            captions=self.states if captions else None,
        )


def find_encoded(options: DataOptions, autoencoder: str | None) -> Encoded | None:
    """The latents in `options.train_data_dir`, if there are such.

    Args:
        options: of the training.
        autoencoder: that was given.

    Raises:
        UserError: if they aren't complete, or the options aren't for them.
    """
    name = options.train_data_dir
    if name is None:
        return None
    storage, base = open_storage(name.rstrip("/") or name)
    path = f"{base}/{MANIFEST}"
    if not storage.fs.exists(path):
        if storage.fs.exists(f"{base}/{UNFINISHED}"):
            raise UserError(f"--train_data_dir {name}: encode.py hasn't finished there; run it again, and it goes on")
        if storage.fs.glob(f"{base}/{PREFIX}-00000-of-*.parquet"):
            raise UserError(f"--train_data_dir {name}: holds latents without their {MANIFEST}; restore it")
        return None
    source = storage.shown(path)
    manifest = parse_json(storage.whole(path).decode(errors="replace"), source)
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        return None  # somebody else's
    _check_manifest(source, manifest)
    _check_options(options, autoencoder, manifest)
    paths = [f"{base}/{file['name']}" for file in manifest["files"]]
    shards = Shards(name, storage, {"train": paths}, FORMATS[".parquet"], identity=manifest["sha256"])
    return Encoded(shards, manifest, base, states_of(source, manifest))


def _check_manifest(source: str, manifest: dict[str, Any]) -> None:
    """Refuse a manifest that encode.py didn't write: its digest shows damage, and anybody can make one."""
    checked(source, manifest, KEYS)
    for file in manifest["files"]:
        checked(source, file, FILE_KEYS)
        if not re.fullmatch(FILE_NAME, file["name"]):
            raise UserError(f"{source}: {shown(file['name'])} isn't a file of encode.py; restore the manifest")
    for key, allowed in (("dtype", DTYPES), ("image_dtype", IMAGE_DTYPES)):
        if manifest[key] not in allowed:
            raise UserError(
                f"{source}: {key!r} must be one of {', '.join(allowed)}, is {shown(manifest[key])}; restore it"
            )
    for key, count, kind in (
        ("shape", 3 + manifest["random_flip"], int),
        ("size", 2, int),
        ("value_range", 2, (int, float)),
    ):
        values = manifest[key]
        numbers = all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
        if len(values) != count or not numbers or (kind is int and min(values) < 1):
            raise UserError(f"{source}: {key!r} can't be {shown(values)}; restore it")
    if not all(isinstance(name, str) for name in manifest["class_names"] or []):
        raise UserError(f"{source}: 'class_names' must be texts, are {shown(manifest['class_names'])}; restore it")
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest["sha256"] != digest_of(body):
        raise UserError(f"{source}: isn't as it was written; restore it, or remove it and run encode.py again")


def _check_options(options: DataOptions, autoencoder: str | None, manifest: dict[str, Any]) -> None:
    """Refuse options that aren't for these latents."""
    name, size = options.train_data_dir, tuple(manifest["size"])
    if options.dataset_name:
        raise UserError(f"--dataset_name {options.dataset_name} and --train_data_dir {name}: give one of the two")
    if autoencoder is None:
        raise UserError(f"--train_data_dir {name}: holds latents; give the --autoencoder that they are of")
    for flag in NEED_PIXELS:
        if getattr(options, flag, None):
            raise UserError(f"--{flag}: needs images, and {name} holds latents; leave it out, or train on the images")
    for flag in NEED_TEXTS:
        if getattr(options, flag, None):
            raise UserError(
                f"--{flag}: {name} holds captions as a text encoder has encoded them; leave it out, or train on the "
                "images"
            )
    if most := getattr(options, "max_train_samples", None):
        raise UserError(f"--max_train_samples: isn't for latents; leave it out, or give --split 'train[:{most}]'")
    if options.size != size:
        raise UserError(
            f"--resolution {options.resolution}: the latents in {name} are of images of {to_resolution(*size)}; give "
            f"--resolution {to_resolution(*size)}"
        )
    if options.channels not in (None, manifest["channels"]):
        raise UserError(
            f"--channels {options.channels}: the latents in {name} are of images of {manifest['channels']} channels; "
            "leave it out"
        )
    if options.random_flip and not manifest["random_flip"]:
        raise UserError(
            f"--random_flip: {name} was written without it, and has no mirror images; leave it out, or run encode.py "
            "with it and another --output_dir"
        )
