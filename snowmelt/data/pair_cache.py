"""Pairs of noise and what a flow model makes of it, sampled once, in one memory-mapped file."""

import hashlib
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snowmelt.data.passes import write_passes
from snowmelt.data.store import open_store

VALUES = "pairs.bin"
NOISE, SAMPLE = 0, 1

Generate = Callable[[int, int], np.ndarray]
"""Numbers of pairs, from the first up to the second -> noise and samples, float32 (B, 2, c, h, w)."""


@dataclass(frozen=True, eq=False)
class PairCache:
    """The noise of N pairs, or their samples, as the network knows data; memory-mapped. Nothing here may be written to.

    Attributes:
        path: the folder.
        key: a hash of all that the pairs depend on.
        shape: (c, h, w).
        labels: classes that the samples were made with, the null class too, (N,) int64; None without classes.
        count: N.
        half: `NOISE` or `SAMPLE`.
    """

    path: Path
    key: str
    shape: tuple[int, int, int]
    labels: np.ndarray | None
    count: int
    half: int

    def __len__(self) -> int:
        return self.count

    @property
    def fingerprint(self) -> str:
        """The key, and which half it is."""
        return f"{self.key}-{self.half}"

    @property
    def rows(self) -> np.ndarray:
        """Numbers of the pairs, (N,) int64."""
        return np.arange(self.count)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the data."""
        return self.shape[1:]

    @property
    def sizes(self) -> np.ndarray:
        """Heights and widths, (N, 2) int64: all the same."""
        return np.full((self.count, 2), self.size)

    def gather(self, indices: np.ndarray, corners: np.ndarray | None) -> np.ndarray:
        """Copy of those at `indices` (B,), (B, c, h, w), whole."""
        return self._values[indices, self.half]

    def as_tensor(self) -> torch.Tensor:
        """All N, (N, c, h, w): a view of the read-only file; writing to it in place ends the process."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(self._values[:, self.half])

    def mirrored(self, values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The values as they are: what the model makes of mirrored noise is no mirror image."""
        return values

    def __getstate__(self) -> dict[str, Any]:
        """Without the cached view: pickling a memory map would copy the whole set to each worker."""
        return {name: vars(self)[name] for name in self.__dataclass_fields__}

    @cached_property
    def _values(self) -> np.ndarray:
        return np.memmap(self.path / VALUES, np.float32, mode="r", shape=(self.count, 2, *self.shape)).view(np.ndarray)


def build_pairs(
    parent: Path,
    generate: Generate,
    *,
    count: int,
    shape: tuple[int, int, int],
    labels: np.ndarray | None,
    batch: int,
    depends_on: dict[str, Any],
) -> tuple[PairCache, PairCache]:
    """Noise and samples; they are made first when no process has done so yet.

    A process that is killed leaves the pairs that it has finished, and the next one resumes there.

    Args:
        parent: the folder of caches.
        generate: makes pairs.
        count: N.
        shape: (c, h, w) of the data.
        labels: classes of the pairs, (N,) int64.
        batch: pairs that are made together.
        depends_on: what else they follow from, as JSON holds it.

    Raises:
        UserError: if the disk is full; and what `generate` raises.
    """
    digest = None if labels is None else hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()
    key = depends_on | {"count": count, "shape": list(shape), "labels": digest, "batch": batch}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]

    def build(partial: Path) -> dict[str, Any]:
        size = 2 * math.prod(shape) * 4
        write_passes(
            partial / VALUES, generate, count=count, batch=batch, size=size, what="the pairs", doing="sampling pairs"
        )
        return {}

    open_store(parent / name, key, (VALUES,), build, resumable=True)
    noise = PairCache(parent / name, name, shape, labels, count, NOISE)
    return noise, replace(noise, half=SAMPLE)
