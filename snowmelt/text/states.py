"""What a frozen text encoder says of captions: computed once, kept in one memory-mapped file."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from tqdm import tqdm

from pipelines import TextToImagePipeline
from snowmelt.errors import UserError

VERSION = 1  # of the file below: raised when it changes
STATES = "states.npy"
CAPTIONS_PER_PASS = 64


def caption_states(texts: Sequence[str], text_encoder: Any, tokenizer: Any, root: Path) -> np.ndarray:
    """The encoder's states of captions, zero at padding, float16 (captions, L, D), memory-mapped.

    They are computed when no process has done so yet, and found again by the captions, the tokenizer's work on them and
    the encoder's weights.

    Args:
        texts: captions, cut or padded to the tokenizer's `model_max_length`.
        text_encoder: on the device that it is to run on.
        tokenizer: its tokenizer.
        root: the folder of caches.

    Raises:
        UserError: if a state isn't finite in float16, or the disk is full.
    """
    tokens = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    folder = root / _fingerprint(ids, mask, text_encoder)
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():  # another process may have computed them while this one waited
                _build(folder, ids, mask, text_encoder)
    return np.load(folder / STATES, mmap_mode="r")


def _fingerprint(ids: torch.Tensor, mask: torch.Tensor, text_encoder: Any) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, type(text_encoder).__name__, list(ids.shape)]).encode())
    for tensor in (ids, mask, *(t for _, t in sorted(text_encoder.state_dict().items()))):
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


@torch.no_grad()
def _build(folder: Path, ids: torch.Tensor, mask: torch.Tensor, text_encoder: Any) -> None:
    """Write the file beside its final name and rename it when complete. The caller holds its lock."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        _write(partial / STATES, ids, mask, text_encoder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{folder.parent}: disk full; free some space or give another --cache_dir") from error
        raise
    os.rename(partial, folder)


def _write(path: Path, ids: torch.Tensor, mask: torch.Tensor, text_encoder: Any) -> None:
    shape = (*ids.shape, text_encoder.config.hidden_size)
    header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in tqdm(range(0, len(ids), CAPTIONS_PER_PASS), "encoding captions", unit="batch"):
            passed = [t[start : start + CAPTIONS_PER_PASS].to(text_encoder.device) for t in (ids, mask)]
            states = TextToImagePipeline.hidden_states(text_encoder, *passed).half().cpu()
            if not states.isfinite().all():
                raise UserError("--text_encoder: its states of the captions aren't finite in float16")
            file.write(states.numpy().data)
