"""What a frozen text encoder says of captions: computed once, kept in one memory-mapped file."""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pipelines.text import encode_tokens
from snowmelt.data.store import cache_root, check_space, open_store
from snowmelt.errors import UserError

__all__ = ["cache_root", "caption_embeddings", "embed"]

VERSION = 3  # of the file below: raised when it changes
EMBEDDINGS = "states.npy"
CAPTIONS_PER_PASS = 16


def caption_embeddings(tokens: dict[str, np.ndarray], text_encoder: Any, root: Path) -> np.ndarray:
    """The encoder's embeddings of captions, zero at padding, float16 (captions, L, D), memory-mapped.

    They are computed when no process has done so yet, and found again by the tokens and the encoder's weights.

    Args:
        tokens: of the captions, as `token_tables` makes them.
        text_encoder: on the device that it is to run on.
        root: of `cache_root`.

    Raises:
        UserError: if a state isn't finite in float16, or the disk is full.
    """
    fingerprint = _fingerprint(tokens, text_encoder)
    folder = root / fingerprint
    open_store(folder, {"states": fingerprint}, (EMBEDDINGS,), lambda partial: _build(partial, tokens, text_encoder))
    return np.load(folder / EMBEDDINGS, mmap_mode="r")


@torch.no_grad()
def embed(tokens: dict[str, np.ndarray], text_encoder: Any, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The encoder's embeddings of captions, pass by pass.

    A pass is of `CAPTIONS_PER_PASS` captions, the last one too, which is filled up: sums are then of one order, and the
    embedding of a caption doesn't depend on those that are encoded with it.

    Args:
        tokens: of the captions, as `token_tables` makes them.
        text_encoder: on the device that it is to run on.
        dtype: in which embeddings are kept, float16 or float32.

    Yields:
        (B, L, D), zero at padding.

    Raises:
        UserError: if one isn't finite in `dtype`.
    """
    count = len(tokens["input_ids"])
    for start in range(0, count, CAPTIONS_PER_PASS):
        rows = np.minimum(np.arange(start, start + CAPTIONS_PER_PASS), count - 1)
        passed = {name: torch.from_numpy(table[rows]).to(text_encoder.device) for name, table in tokens.items()}
        embeds = encode_tokens(text_encoder, **passed)[: count - start].float().cpu().numpy()
        with np.errstate(over="ignore"):  # checked below
            embeds = np.ascontiguousarray(embeds, dtype)
        if not np.isfinite(embeds).all():
            raise UserError(f"--text_encoder: its embeddings of the captions aren't finite in {embeds.dtype}")
        yield embeds


def _fingerprint(tokens: dict[str, np.ndarray], text_encoder: Any) -> str:
    kinds = {name: list(table.shape) for name, table in tokens.items()}
    digest = hashlib.sha256(json.dumps([VERSION, type(text_encoder).__name__, kinds]).encode())
    for table in tokens.values():
        digest.update(np.ascontiguousarray(table).data)
    for _, tensor in sorted(text_encoder.state_dict().items()):
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _build(folder: Path, tokens: dict[str, np.ndarray], text_encoder: Any) -> dict[str, Any]:
    """Compute the embeddings into a file in `folder`."""
    shape = (*tokens["input_ids"].shape, text_encoder.config.hidden_size)
    check_space(folder.parent, 2 * math.prod(shape), "the embeddings of the captions")
    header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": shape}
    with (folder / EMBEDDINGS).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        passes = embed(tokens, text_encoder, np.dtype(np.float16))
        for embeds in tqdm(passes, "encoding captions", -(-shape[0] // CAPTIONS_PER_PASS), unit="batch"):
            file.write(embeds.data)
    return {}
