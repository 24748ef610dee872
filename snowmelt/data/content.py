"""What the images of a data set are, whatever the paths and times of change of their files."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from snowmelt.data.images import BAD_IMAGE
from snowmelt.data.places import Source, open_file
from snowmelt.data.rows import read_items
from snowmelt.data.store import cache_root, open_store
from snowmelt.options import ImageOptions

VERSION = 1  # of the key: raised when it changes


def content_key(source: Source, column: str, options: ImageOptions) -> str:
    """A key of the contents of a column of images.

    They are read once, and then not again until the data set's own fingerprint changes, which for folders follows from
    paths, sizes and times of change.

    Args:
        source: the data set.
        column: of the images.
        options: where keys are kept.

    Raises:
        UserError: for an image outside of the data set, or if the files that hold rows can't be read.
    """
    key: dict[str, Any] = {"version": VERSION, "dataset": source.dataset._fingerprint, "column": column}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]

    def build(folder: Path) -> dict[str, Any]:
        digest = hashlib.sha256()
        for _, content in read_items(source, column, _digest, "reading images"):
            digest.update(content())
        return {"content": digest.hexdigest()[:32]}

    return str(open_store(cache_root(options) / name, key, (), build)["content"])


def _digest(item: Any, file: tuple[Path, str | None] | None) -> bytes:
    """Of the bytes of an image, and of whether its name makes it an array; of one that can't be read, of that fact."""
    digest = hashlib.sha256()
    if isinstance(item, np.ndarray):
        digest.update(f"{item.dtype} {item.shape}".encode() + np.ascontiguousarray(item).tobytes())
    elif item is not None and file is None:
        digest.update(item["bytes"] or b"")
    elif file is not None:
        try:
            opened = open_file(*file)
            with opened.open("rb") if isinstance(opened, Path) else opened as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())  # type: ignore[arg-type]
        except BAD_IMAGE:
            digest.update(b"can't be read")
    name = (file[1] or file[0].name) if file else str(isinstance(item, dict) and item["path"] or "")
    digest.update(str(name.lower().endswith(".npy")).encode())
    return digest.digest()
