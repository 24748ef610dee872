"""Batches without end, in an order that is a function of the seed alone.

The order is one infinite stream: position p belongs to epoch p // N and shows row perm(seed, epoch)[p % N].
Optimizer step k takes positions k*G to (k+1)*G, where G = batch_size * world_size * accumulation, and its
micro-step m on process r takes shard m * world_size + r of them. So the global batches don't depend on how they are
shared out, none is ragged, and a run resumes at any step with no stored state.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import psutil
import torch

from snowmelt.errors import UserError

# Purposes of random numbers, so that no two draw the same.
ORDER, CROP, FLIP, NOISE, HELD_OUT, VALIDATION = range(6)


class Cache(Protocol):
    """What is trained on: N decoded images, or their latents."""

    @property
    def labels(self) -> np.ndarray | None:
        """Classes, (N,) int64, where there are any."""

    @property
    def rows(self) -> np.ndarray:
        """The row of the data set that each comes from, (N,) int64."""

    @property
    def fingerprint(self) -> str:
        """A key of all that the values depend on."""

    def __len__(self) -> int:
        """N."""

    def gather(self, indices: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Copy of those at `indices` (B,); `rng` draws what is random about them, their crops."""

    def as_tensor(self) -> torch.Tensor | None:
        """All N, where nothing is random about them: a read-only view."""

    def mirrored(self, values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """A batch (B, ...) of `gather` or `as_tensor`, with those `chosen`, (B,) bool, mirrored left to right."""


class Shard(NamedTuple):
    """What one process shows in one micro-step."""

    step: int
    number: int  # of the step's shards
    indices: np.ndarray  # (B,) int64


Loaded = tuple[Shard, torch.Tensor]  # and its images, as the cache gives them


def batches(
    cache: Cache,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    rank: int,
    world_size: int,
    accumulation: int,
    device: torch.device,
    num_workers: int,
    random_flip: bool,
    labels: bool,
) -> Iterator[dict[str, torch.Tensor]]:
    """Micro-steps of process `rank`, from optimizer step `start_step` on, without end.

    Yields:
        `images` (B, ...), dtype and shape of the cache's, on `device`; `indices` (B,) int64 on the CPU, which of the
        cache's images these are; and, if `labels`, `labels` (B,) int64 on `device`.

    Raises:
        UserError: if labels are asked for and the data set has none.
    """
    if labels and cache.labels is None:
        raise UserError("the data set has no labels; name their column with --label_column")
    shards = _shards(len(cache), batch_size, seed, start_step, rank, world_size, accumulation)
    resident = _resident(cache, device)
    if resident is not None:
        loaded = _from_memory(resident, shards)
    else:
        loaded = _from_workers(cache, seed, shards, device, num_workers)
    return _finished(cache, loaded, seed, device, random_flip, labels)


def _resident(cache: Cache, device: torch.device) -> torch.Tensor | None:
    """The whole set on `device`, when its images are square and take less than half of the free memory."""
    images = cache.as_tensor()
    cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available
    return None if images is None or 2 * images.nbytes > free else images.to(device)


def _from_memory(images: torch.Tensor, shards: Iterator[Shard]) -> Iterator[Loaded]:
    for shard in shards:
        yield shard, images.index_select(0, _to_device(torch.from_numpy(shard.indices), images.device))


def _from_workers(
    cache: Cache, seed: int, shards: Iterator[Shard], device: torch.device, num_workers: int
) -> Iterator[Loaded]:
    loader = torch.utils.data.DataLoader(
        _Reader(cache, seed),
        batch_size=None,
        sampler=shards,
        num_workers=num_workers,
        collate_fn=_unchanged,
        pin_memory=device.type == "cuda",
    )
    for (step, number, indices), images in loader:
        yield Shard(step, number, indices), images.to(device, non_blocking=True)


class _Reader(torch.utils.data.Dataset):
    def __init__(self, cache: Cache, seed: int) -> None:
        self.cache = cache
        self.seed = seed

    def __getitem__(self, shard: Shard) -> Loaded:
        crops = np.random.default_rng([CROP, self.seed, shard.step, shard.number])
        return shard, torch.from_numpy(self.cache.gather(shard.indices, crops))


def _unchanged(loaded: Any) -> Any:
    """In place of the default, which would turn the shard into tensors."""
    return loaded


def _finished(
    cache: Cache,
    loaded: Iterator[Loaded],
    seed: int,
    device: torch.device,
    random_flip: bool,
    labels: bool,
) -> Iterator[dict[str, torch.Tensor]]:
    for shard, images in loaded:
        if random_flip:
            rng = np.random.default_rng([FLIP, seed, shard.step, shard.number])
            chosen = _to_device(torch.from_numpy(rng.random(len(images)) < 0.5), device)
            images = cache.mirrored(images, chosen)
        batch = {"images": images, "indices": torch.from_numpy(shard.indices)}
        if labels:
            assert cache.labels is not None  # batches() refused
            batch["labels"] = _to_device(torch.from_numpy(cache.labels[shard.indices]), device)
        yield batch


def _to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy that doesn't wait for the device: one from pageable memory would."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _shards(
    rows: int, batch_size: int, seed: int, step: int, rank: int, world_size: int, accumulation: int
) -> Iterator[Shard]:
    @lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:
        return np.random.default_rng([ORDER, seed, epoch]).permutation(rows)

    def stretch(position: int) -> np.ndarray:
        parts, missing = [], batch_size
        while missing:
            epoch, first = divmod(position, rows)
            part = permutation(epoch)[first : first + missing]
            parts.append(part)
            position, missing = position + len(part), missing - len(part)
        return np.concatenate(parts)

    while True:
        for micro_step in range(accumulation):
            number = micro_step * world_size + rank
            yield Shard(step, number, stretch((step * world_size * accumulation + number) * batch_size))
        step += 1
