"""Captions of encoded images, and what is kept of a text encoder's embeddings of them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from snowmelt.data.captions import Captions
from snowmelt.data.storage import Storage
from snowmelt.data.stream_captions import RowStates
from snowmelt.errors import UserError
from snowmelt.files import checked, shown

CAPTIONS, STATES = "captions", "states"
"""Columns: lists of strings, and lists of as many embeddings."""
EMPTY = "empty_caption.bin"
"""The embeddings (tokens, D) of the empty caption, beside the files of images."""
KEYS: dict[str, Any] = {"encoder": str, "length": int, "width": int, "masked": bool}
EMPTY_KEYS = {"bytes": int, "sha256": str}


@dataclass(frozen=True)
class EncodedCaptions:
    """Captions of N images, encoded.

    Attributes:
        name: of the folder.
        encoder: a key of the text encoder and its tokenizer.
        rows: which embeddings its rows have.
        empty: those of the empty caption, (tokens, D).
        count: N.
        read: the captions of an image.
    """

    name: str
    encoder: str
    rows: RowStates
    empty: np.ndarray
    count: int
    read: Callable[[int], list[str]]

    def __len__(self) -> int:
        return self.count

    def of(self, image: int) -> list[str]:
        """The captions of one image."""
        return self.read(image)

    def padded(self, states: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """Embeddings of captions as a network is shown them.

        Args:
            states: (tokens, D) of each of B captions.

        Returns:
            (B, L, D), zero at padding, and the attention mask, int64 (B, L); None where padding isn't masked.
        """
        values = np.zeros((len(states), self.rows.length, self.rows.width), self.rows.dtype)
        for place, own in zip(values, states, strict=True):
            place[: len(own)] = own
        if not self.rows.masked:
            return values, None
        tokens = np.array([[len(own)] for own in states])
        return values, (np.arange(self.rows.length) < tokens).astype(np.int64)


AnyCaptions = Captions | EncodedCaptions
"""Captions of images, whether they are encoded or not."""


def states_of(source: str, manifest: dict[str, Any]) -> RowStates | None:
    """Which embeddings the rows have that a manifest is of; None for none.

    Args:
        source: of the manifest, for messages.
        manifest: whose `dtype` is checked.

    Raises:
        UserError: if encode.py didn't write it.
    """
    text = manifest.get("text")
    if text is None:
        return None
    checked(f"{source}: 'text'", text, KEYS)
    checked(f"{source}: 'empty_caption'", manifest.get("empty_caption"), EMPTY_KEYS)
    for key in ("length", "width"):
        if not 1 <= text[key] < 2**20:
            raise UserError(f"{source}: {key!r} can't be {shown(text[key])}; restore it")
    return RowStates(text["length"], text["width"], np.dtype(manifest["dtype"]), text["masked"], STATES)


def read_empty(storage: Storage, base: str, rows: RowStates, written: dict[str, Any]) -> np.ndarray:
    """The embeddings (tokens, D) of the empty caption.

    Args:
        storage: that the folder is in.
        base: its path there.
        rows: what they are like.
        written: what the manifest says of the file.

    Raises:
        UserError: if it isn't as it was written.
    """
    path = f"{base}/{EMPTY}"
    size = storage.retried(lambda: storage.fs.info(path), path)["size"]
    content = storage.whole(path) if size == written["bytes"] else b""
    if hashlib.sha256(content).hexdigest() != written["sha256"]:
        raise UserError(f"{storage.shown(path)}: isn't as it was written; restore it, or run encode.py again")
    try:
        return rows.read(content)
    except ValueError as error:
        raise UserError(f"{storage.shown(path)}: {error}; restore it, or run encode.py again") from error
