"""Latents of a data set, written once into shards by all processes, for `snowmelt.data.encoded` to read.

File i is of process i modulo their number. It is complete when a note on it lies in the folder `UNFINISHED`; the main
process waits for all notes, and makes the manifest of them.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from tqdm import tqdm

from snowmelt.data.cache import ImageCache
from snowmelt.data.encoded import KIND, MANIFEST, PREFIX, UNFINISHED, digest_of
from snowmelt.data.latent_cache import Encode, encode_pass, passes_of
from snowmelt.data.read_ahead import read_ahead
from snowmelt.data.rows import cores
from snowmelt.data.sources import load_images
from snowmelt.data.splits import Split
from snowmelt.data.store import check_space
from snowmelt.data.stream import StreamedImages, Unit, open_stream
from snowmelt.data.stream_index import ROWS, build_index
from snowmelt.data.stream_order import RowOrder
from snowmelt.errors import UserError
from snowmelt.files import read_mapping
from snowmelt.options import DataOptions

VERSION = 1  # of what is written: raised when it changes
ROWS_TOGETHER = 100
"""Rows of a row group, at least: training reads one at once."""
NAMED = {
    "autoencoder": "--autoencoder",
    "random_flip": "--random_flip",
    "dtype": "--mixed_precision",
    "rows_per_file": "--rows_per_file",
    "size": "--resolution",
}
"""What differs between two encodings, by the flag; else it is the data, or how they are decoded."""
POLL, SAY = 0.2, 60.0
"""Seconds between looks at what others have finished, and between lines that say so."""

Pass = tuple[np.ndarray, np.ndarray | None]
"""Raw images (B, C, H, W), and their classes (B,) where there are any."""


def load_images_to_encode(options: DataOptions) -> ImageCache:
    """The images that `options` name, decoded or, with `streaming`, in their shards.

    Raises:
        UserError: as `load_images`; or if they aren't of one shape.
    """
    if options.streaming:
        return open_stream(options, build_index(options, Split(options.split), labels=True))
    images = load_images(options)
    if images.as_tensor() is None:
        raise UserError("the images aren't all of one shape, and each is encoded once; add --center_crop")
    return images


def write_encoded(
    output_dir: str,
    images: ImageCache,
    encode: Encode,
    options: DataOptions,
    *,
    autoencoder: str,
    rows_per_file: int,
    dtype: str,
    rank: int,
    world_size: int,
) -> None:
    """Write what is missing of the latents of some images.

    Args:
        output_dir: folder of the files; other processes may write there at the same time.
        images: decoded, or in their shards.
        encode: the encoder.
        options: whether images are mirrored, and the threads that decode.
        autoencoder: a key of its weights and configuration.
        rows_per_file: images in a file; made a multiple of those that are encoded together.
        dtype: in which latents are kept, float16 or float32.
        rank: of this process.
        world_size: processes.

    Raises:
        UserError: if the folder holds something else, a latent isn't finite in `dtype`, or the disk is full.
    """
    folder, batch = Path(output_dir), passes_of(images.size)
    length = -(-rows_per_file // batch) * batch
    first = next(_passes(images, iter([np.arange(1)]), 1))[0]
    shape = _latents(images, first, np.arange(1), encode, options, dtype).shape[1:]
    key = {
        "kind": KIND,
        "version": VERSION,
        "autoencoder": autoencoder,
        "images": images.fingerprint,
        "rows": len(images),
        "size": list(images.size),
        "channels": images.channels,
        "image_dtype": images.dtype.name,
        "value_range": list(images.value_range),
        "class_names": images.class_names,
        "random_flip": options.random_flip,
        "dtype": dtype,
        "shape": list(shape),
        "rows_per_file": rows_per_file,
    }
    parts = [np.arange(start, min(start + length, len(images))) for start in range(0, len(images), length)]
    names = [f"{PREFIX}-{number:05}-of-{len(parts):05}.parquet" for number in range(len(parts))]
    done = _complete(folder, key, names)
    if set(done) == set(names) and (folder / MANIFEST).is_file():
        return
    mine = [(name, rows) for name, rows in [*zip(names, parts, strict=True)][rank::world_size] if name not in done]
    if not mine and rank > 0:
        return
    (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    check_space(folder, sum(len(rows) for _, rows in mine) * size, "the latents")
    stretches = (rows[start : start + batch] for _, rows in mine for start in range(0, len(rows), batch))
    passes = _passes(images, stretches, options.dataloader_num_workers or cores())
    with tqdm(total=sum(len(rows) for _, rows in mine), desc="encoding images", unit="img", disable=rank > 0) as bar:
        for name, rows in mine:
            _write(folder, name, key, rows, batch, passes, images, encode, options, bar)
    if rank == 0:
        _finish(folder, key, names)


def _passes(images: ImageCache, stretches: Iterator[np.ndarray], threads: int) -> Iterator[Pass]:
    """Images of stretches of rows, read ahead where they are in shards."""
    if not isinstance(images, StreamedImages):
        for rows in stretches:
            yield images.gather(rows, None), None if images.labels is None else images.labels[rows]
        return

    def make(_: None, rows: np.ndarray, units: dict[int, Unit]) -> Pass:
        decoded = images.decode(rows, units)
        return images.crop(decoded, None), decoded.labels

    order = RowOrder(images.index.units[:, ROWS])
    yield from read_ahead(((None, rows) for rows in stretches), order, images.fetch, make, threads)


def _latents(
    images: ImageCache, pixels: np.ndarray, rows: np.ndarray, encode: Encode, options: DataOptions, dtype: str
) -> np.ndarray:
    given: Any = {"random_flip": options.random_flip, "dtype": np.dtype(dtype)}
    return encode_pass(images, torch.from_numpy(pixels), images.rows[rows], encode, **given)


def _write(
    folder: Path,
    name: str,
    key: dict[str, Any],
    rows: np.ndarray,
    batch: int,
    passes: Iterator[Pass],
    images: ImageCache,
    encode: Encode,
    options: DataOptions,
    bar: Any,
) -> None:
    """Write a file, beside its name until it is complete, and the note on it."""
    features = datasets.Features({"latents": datasets.Value("binary")})
    if key["class_names"] is not None:
        features["label"] = datasets.ClassLabel(names=key["class_names"])
    schema, partial = features.arrow_schema, folder / UNFINISHED / name
    # As in pages with checksums that pyarrow compares: these are without dictionaries and statistics.
    given: Any = {"write_page_checksum": True, "use_dictionary": False, "write_statistics": False}
    with pyarrow.parquet.ParquetWriter(partial, schema, compression="none", **given) as writer:
        together = batch * -(-ROWS_TOGETHER // batch)
        for start in range(0, len(rows), together):
            group = rows[start : start + together]
            columns: dict[str, list[Any]] = {column: [] for column in features}
            for first in range(0, len(group), batch):
                pixels, labels = next(passes)
                values = _latents(images, pixels, group[first : first + batch], encode, options, key["dtype"])
                columns["latents"] += [value.tobytes() for value in values]
                if labels is not None:
                    columns["label"] += labels.tolist()
                bar.update(len(values))
            writer.write_table(pyarrow.table(columns, schema=schema))
    with partial.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    note = {"key": key, "name": name, "rows": len(rows), "bytes": partial.stat().st_size, "sha256": digest}
    os.rename(partial, folder / name)
    _replace(folder / UNFINISHED / f"{name}.json", note)


def _replace(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that it is there as a whole, or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.rename(partial, path)


def _complete(folder: Path, key: dict[str, Any], names: list[str]) -> dict[str, dict[str, Any]]:
    """What is known of the files that are complete, by name; refuses a folder that holds something else."""
    if not folder.exists() or not any(folder.iterdir()):
        return {}
    found = []
    if (folder / MANIFEST).is_file():
        manifest = read_mapping(folder / MANIFEST, {"files": list, "sha256": str})
        _check_same(folder, {name: manifest.get(name) for name in key}, key)
        found += manifest["files"]
    elif not (folder / UNFINISHED).is_dir():
        raise UserError(f"--output_dir {folder} is not empty, and holds no latents of encode.py; name another")
    for path in (folder / UNFINISHED).glob("*.json"):
        try:
            note = read_mapping(path, {"key": dict, "name": str, "rows": int, "bytes": int, "sha256": str})
        except UserError:
            if path.exists():
                raise
            return _complete(folder, key, names)  # the main process has just made the manifest of them
        _check_same(folder, note.pop("key"), key)
        found.append(note)
    return {
        note["name"]: note
        for note in found
        if note["name"] in names
        and (folder / note["name"]).is_file()
        and (folder / note["name"]).stat().st_size == note["bytes"]
    }


def _check_same(folder: Path, there: dict[str, Any], key: dict[str, Any]) -> None:
    key = json.loads(json.dumps(key))
    differing = [name for name in key if there.get(name) != key[name]]
    if differing:
        named = next((flag for name, flag in NAMED.items() if name in differing), None)
        what = f"another {named}" if named else "other data, or other options of how they are decoded"
        raise UserError(f"--output_dir {folder}: was begun with {what}; give the same again, or another folder")


def _finish(folder: Path, key: dict[str, Any], names: list[str]) -> None:
    """Write the manifest, once all files are complete."""
    for waited in count():
        done = _complete(folder, key, names)
        missing = [name for name in names if name not in done]
        if not missing:
            break
        if waited * POLL % SAY == 0:
            print(f"waiting for other processes: {len(missing)} of {len(names)} files aren't complete", flush=True)
        time.sleep(POLL)
    body = {**key, "files": [done[name] for name in names]}
    _replace(folder / MANIFEST, {**body, "sha256": digest_of(json.loads(json.dumps(body)))})
    shutil.rmtree(folder / UNFINISHED)
