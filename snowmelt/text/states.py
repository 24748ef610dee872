"""What a frozen text encoder says of captions: computed once, kept in one memory-mapped file."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from huggingface_hub.constants import HF_HOME
from tqdm import tqdm

from pipelines import TextToImagePipeline
from snowmelt.errors import UserError
from snowmelt.options import DataOptions

VERSION = 2  # of the file below: raised when it changes
STATES = "states.npy"
CAPTIONS_PER_PASS = 64


def cache_root(config: DataOptions) -> Path:
    """The folder of caches."""
    return Path(config.cache_dir or HF_HOME) / "snowmelt"


def caption_states(tokens: dict[str, np.ndarray], text_encoder: Any, root: Path) -> np.ndarray:
    """The encoder's states of captions, zero at padding, float16 (captions, L, D), memory-mapped.

    They are computed when no process has done so yet, and found again by the tokens and the encoder's weights.

    Args:
        tokens: of the captions, as `token_tables` makes them.
        text_encoder: on the device that it is to run on.
        root: of `cache_root`.

    Raises:
        UserError: if a state isn't finite in float16, or the disk is full.
    """
    folder = root / _fingerprint(tokens, text_encoder)
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():  # another process may have computed them while this one waited
                _build(folder, tokens, text_encoder)
    return np.load(folder / STATES, mmap_mode="r")


def _fingerprint(tokens: dict[str, np.ndarray], text_encoder: Any) -> str:
    kinds = {name: list(table.shape) for name, table in tokens.items()}
    digest = hashlib.sha256(json.dumps([VERSION, type(text_encoder).__name__, kinds]).encode())
    for table in tokens.values():
        digest.update(np.ascontiguousarray(table).data)
    for _, tensor in sorted(text_encoder.state_dict().items()):
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


@torch.no_grad()
def _build(folder: Path, tokens: dict[str, np.ndarray], text_encoder: Any) -> None:
    """Write the file beside its final name and rename it when complete. The caller holds its lock."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        _write(partial / STATES, tokens, text_encoder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{folder.parent}: disk full; free some space or give another --cache_dir") from error
        raise
    os.rename(partial, folder)


def _write(path: Path, tokens: dict[str, np.ndarray], text_encoder: Any) -> None:
    shape = (*tokens["input_ids"].shape, text_encoder.config.hidden_size)
    header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in tqdm(range(0, shape[0], CAPTIONS_PER_PASS), "encoding captions", unit="batch"):
            part = slice(start, start + CAPTIONS_PER_PASS)
            passed = {name: torch.from_numpy(t[part]).to(text_encoder.device) for name, t in tokens.items()}
            states = TextToImagePipeline.hidden_states(text_encoder, **passed).half().cpu()
            if not states.isfinite().all():
                raise UserError("--text_encoder: its states of the captions aren't finite in float16")
            file.write(states.numpy().data)
