"""What an autoencoder, and maybe a text encoder, make of a data set, written once into shards by all processes, for
`snowmelt.data.encoded` to read.

File i is of process i modulo their number. It is complete when a note on it lies in the folder `UNFINISHED`; the main
process waits for all notes, and makes the manifest of them (`snowmelt.data.encoding_files`).
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from tqdm import tqdm

from snowmelt.data.encoded import KIND, MANIFEST, PREFIX, UNFINISHED
from snowmelt.data.encoded_captions import CAPTIONS, STATES
from snowmelt.data.encoding_files import complete, damaged, finish, replace_json, sha256_of
from snowmelt.data.latent_cache import Encode, encode_pass, passes_of
from snowmelt.data.rows import cores
from snowmelt.data.store import check_space
from snowmelt.data.to_encode import Pass, ToEncode

VERSION = 1  # of what is written: raised when it changes
ROWS_TOGETHER = 100
"""Rows of a row group, at least: training reads one at once."""


class EncodeCaptions(Protocol):
    """A text encoder."""

    @property
    def key(self) -> dict[str, Any]:
        """What its embeddings depend on and are like, as `snowmelt.data.encoded_captions` reads it."""

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Embeddings (tokens, D) of each caption, contiguous."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """What is written of images, and of their captions.

    Attributes:
        data: these.
        encode: the encoder of images.
        encode_captions: that of captions; None if they aren't encoded.
        random_flip: whether mirror images are encoded too.
        dtype: in which values are kept, float16 or float32.
    """

    data: ToEncode
    encode: Encode
    encode_captions: EncodeCaptions | None
    random_flip: bool
    dtype: np.dtype

    @property
    def features(self) -> datasets.Features:
        """The columns."""
        features = datasets.Features({"latents": datasets.Value("binary")})
        if self.data.images.class_names is not None:
            features["label"] = datasets.ClassLabel(names=self.data.images.class_names)
        if self.encode_captions is not None:
            features[CAPTIONS] = datasets.List(datasets.Value("string"))
            features[STATES] = datasets.List(datasets.Value("binary"))
        return features

    def latents(self, pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """What is kept of images (B, C, H, W) of rows (B,): (B, *shape)."""
        images, flip = self.data.images, self.random_flip
        given = images, torch.from_numpy(pixels), images.rows[rows], self.encode
        return encode_pass(*given, random_flip=flip, dtype=self.dtype)

    def states(self, captions: list[list[str]]) -> list[list[bytes]]:
        """What is kept of the captions of some images; each text is encoded once."""
        assert self.encode_captions is not None
        distinct = [*dict.fromkeys(text for texts in captions for text in texts)]
        kept = dict(zip(distinct, map(np.ndarray.tobytes, self.encode_captions(distinct)), strict=True))
        return [[kept[text] for text in texts] for texts in captions]


def write_encoded(
    output_dir: str,
    encoding: Encoding,
    *,
    autoencoder: str,
    rows_per_file: int,
    threads: int,
    rank: int,
    world_size: int,
) -> None:
    """Write what is missing; of files that are all there, those that aren't as they were written.

    Args:
        output_dir: folder of the files; other processes may write there at the same time.
        encoding: what is written.
        autoencoder: a key of its weights and configuration.
        rows_per_file: images in a file; made a multiple of those that are encoded together.
        threads: that decode images in shards; 0 for as many as there are cores.
        rank: of this process.
        world_size: processes.

    Raises:
        UserError: if the folder holds something else, a value isn't finite in its type, or the disk is full.
    """
    images, text, threads = encoding.data.images, encoding.encode_captions, threads or cores()
    folder, batch = Path(output_dir), passes_of(images.size)
    length = -(-rows_per_file // batch) * batch
    first = next(encoding.data.passes(iter([np.arange(1)]), 1)).pixels
    shape = encoding.latents(first, np.arange(1)).shape[1:]
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
        "random_flip": encoding.random_flip,
        "dtype": encoding.dtype.name,
        "shape": list(shape),
        "rows_per_file": rows_per_file,
        "text": None if text is None else {**text.key, "captions": encoding.data.key},
    }
    parts = [np.arange(start, min(start + length, len(images))) for start in range(0, len(images), length)]
    names = [f"{PREFIX}-{number:05}-of-{len(parts):05}.parquet" for number in range(len(parts))]
    done = complete(folder, key, names)
    mine = [(name, rows) for name, rows in [*zip(names, parts, strict=True)][rank::world_size] if name not in done]
    if set(done) == set(names) and (folder / MANIFEST).is_file():
        changed = damaged(folder, done) if rank == 0 else []
        mine = [(name, rows) for name, rows in zip(names, parts, strict=True) if name in changed]
        if not changed:
            return
    if not mine and rank > 0:
        return
    (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
    empty = None if text is None else text([""])[0].tobytes()
    least = int(np.prod(shape)) * encoding.dtype.itemsize + len(empty or b"")  # no caption has fewer tokens
    check_space(folder, sum(len(rows) for _, rows in mine) * least, "what is encoded")
    stretches = (rows[start : start + batch] for _, rows in mine for start in range(0, len(rows), batch))
    passes = encoding.data.passes(stretches, threads)
    with tqdm(total=sum(len(rows) for _, rows in mine), desc="encoding images", unit="img", disable=rank > 0) as bar:
        for name, rows in mine:
            _write(folder, name, key, encoding, rows, batch, passes, bar)
    if rank == 0:
        finish(folder, key, names, empty)


def _write(
    folder: Path,
    name: str,
    key: dict[str, Any],
    encoding: Encoding,
    rows: np.ndarray,
    batch: int,
    passes: Iterator[Pass],
    bar: Any,
) -> None:
    """Write a file, beside its name until it is complete, and the note on it."""
    schema, partial = encoding.features.arrow_schema, folder / UNFINISHED / name
    # As in pages with checksums that pyarrow compares: these are without dictionaries and statistics.
    given: Any = {"write_page_checksum": True, "use_dictionary": False, "write_statistics": False}
    with pyarrow.parquet.ParquetWriter(partial, schema, compression="none", **given) as writer:
        together = batch * -(-ROWS_TOGETHER // batch)
        for start in range(0, len(rows), together):
            group = rows[start : start + together]
            columns: dict[str, list[Any]] = {column: [] for column in schema.names}
            for first in range(0, len(group), batch):
                pixels, labels, captions = next(passes)
                values = encoding.latents(pixels, group[first : first + batch])
                columns["latents"] += [value.tobytes() for value in values]
                if labels is not None:
                    columns["label"] += labels.tolist()
                if encoding.encode_captions is not None:
                    columns[CAPTIONS] += captions or []
                bar.update(len(values))
            if encoding.encode_captions is not None:
                columns[STATES] = encoding.states(columns[CAPTIONS])
            writer.write_table(pyarrow.table(columns, schema=schema))
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    note = {"name": name, "rows": len(rows), "bytes": partial.stat().st_size, "sha256": sha256_of(partial)}
    os.rename(partial, folder / name)
    replace_json(folder / UNFINISHED / f"{name}.json", {"key": key, **note})
