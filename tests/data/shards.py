"""Data sets in shards, whose images say which row they are."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

CLASSES = ["a", "b", "c"]
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})


def png(row: int, side: int = 4, mode: str = "RGB") -> bytes:
    """An image whose red is the row, modulo 256, and whose green how often that goes into it; its blue is noise."""
    file = io.BytesIO()
    pixels = np.random.default_rng(row).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels[..., :2] = row % 256, row // 256
    Image.fromarray(pixels).convert(mode).save(file, "png")
    return file.getvalue()


def table(rows: range, encode: Callable[[int], bytes] = png, features: datasets.Features = FEATURES) -> pa.Table:
    """Rows with their images, classes in turn."""
    schema = features.arrow_schema
    columns: dict = {"image": [{"bytes": encode(row), "path": f"{row}.png"} for row in rows]}
    if "label" in features:
        of_text = not isinstance(features["label"], datasets.ClassLabel) and features["label"].dtype == "string"
        columns["label"] = [CLASSES[row % 3] if of_text else row % 3 for row in rows]
    return pa.table({name: pa.array(columns[name], schema.field(name).type) for name in columns}, schema=schema)


def write_parquet(
    folder: Path,
    shards: tuple[int, ...] = (37, 50, 13),
    *,
    group: int = 10,
    split: str = "train",
    start: int = 0,
    encode: Callable[[int], bytes] = png,
    features: datasets.Features = FEATURES,
) -> Path:
    """Parquet files of so many rows each, in row groups, with checksums of pages."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, count in enumerate(shards):
        made = table(range(start, start + count), encode, features)
        path = folder / f"{split}-{number:05}-of-{len(shards):05}.parquet"
        # Of dictionaries, and of the headers that statistics are in, there are no checksums that pyarrow compares.
        checked = {"write_page_checksum": True, "use_dictionary": False, "write_statistics": False}
        parquet.write_table(made, path, row_group_size=group, **checked)
        start += count
    return folder


def write_tars(folder: Path, shards: tuple[int, ...] = (140, 30), split: str = "train") -> Path:
    """WebDataset: an image and a class for each row, and a text."""
    folder.mkdir(parents=True, exist_ok=True)
    row = 0
    for number, count in enumerate(shards):
        with tarfile.open(folder / f"{split}-{number:05}.tar", "w") as tar:
            for _ in range(count):
                for suffix, content in (("png", png(row)), ("cls", b"%d" % (row % 3)), ("txt", b"a thing")):
                    member = tarfile.TarInfo(f"{row:06}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                row += 1
    return folder


def write_images(folder: Path, count: int = 30) -> Path:
    """Image files in a folder for each class."""
    for row in range(count):
        path = folder / CLASSES[row % 3] / f"{row:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(row))
    return folder


def rows_of(images: np.ndarray) -> np.ndarray:
    """The rows (B,) that images (B, 3, H, W) say that they are."""
    return images[:, 0, 0, 0].astype(int) + 256 * images[:, 1, 0, 0].astype(int)
