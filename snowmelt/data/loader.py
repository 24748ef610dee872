"""Batches without end, in an order that is a function of the seed alone: see `snowmelt.data.order`."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import psutil
import torch

from snowmelt.data.buckets import parts_of
from snowmelt.data.order import CROP, FLIP, ORDER, Shard, shards_of
from snowmelt.data.read_ahead import read_ahead
from snowmelt.data.rows import cores
from snowmelt.data.stream import StreamedImages, Unit
from snowmelt.data.stream_order import Numbered, strided
from snowmelt.errors import UserError


class Cache(Protocol):
    """A field of what is trained on: N decoded images, or their latents."""

    @property
    def labels(self) -> np.ndarray | None:
        """Classes, (N,) int64, where there are any."""

    @property
    def rows(self) -> np.ndarray:
        """The row of the data set that each comes from, (N,) int64."""

    @property
    def fingerprint(self) -> str:
        """A key of all that the values depend on."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that images are cropped to."""

    @property
    def sizes(self) -> np.ndarray:
        """Heights and widths of the images before they are cropped, (N, 2) int64."""

    def __len__(self) -> int:
        """N."""

    def gather(self, indices: np.ndarray, corners: np.ndarray | None) -> np.ndarray:
        """Copy (B, ...) of those at `indices` (B,), cropped from `corners` (B, 2) on; None for their centres."""

    def as_tensor(self) -> torch.Tensor | None:
        """All N, where there is nothing to crop: a read-only view."""

    def mirrored(self, values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """A batch (B, ...) of `gather` or `as_tensor`, with those `chosen`, (B,) bool, mirrored left to right."""


Loaded = tuple[Shard, dict[str, torch.Tensor]]  # and its fields, as the caches give them


def batches(
    fields: dict[str, Cache],
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

    Args:
        fields: what a batch consists of by name, such as an image and the mask that belongs to it: caches of the same
            rows, which share one crop and one mirror. The first has the labels.
        batch_size: B, of this process and micro-step.
        seed: of the order, the crops and the mirrors.
        start_step: optimizer step to begin with.
        rank: of this process.
        world_size: processes.
        accumulation: micro-steps in an optimizer step.
        device: of the tensors.
        num_workers: processes that read, where the data don't stay on the device.
        random_flip: mirror each image left to right with probability 1 / 2.
        labels: whether a batch has `label`.

    Yields:
        Each field (B, ...), dtype and shape of the cache's, on `device`; `indices` (B,) int64 on the CPU, which of the
        caches' images these are; if `labels`, `label` (B,) int64 on `device`; and `captions` where a stream has them,
        a list of B, on the host.

    Raises:
        UserError: if labels are asked for and the data set has none, or the fields don't belong together.
    """
    first = next(iter(fields.values()))
    if isinstance(first, StreamedImages):
        assert len(fields) == 1  # others are refused
        positions = strided(batch_size, start_step, rank, world_size, accumulation)
        loaded = _from_stream(first, seed, positions, device, num_workers)
        return _finished([fields], loaded, seed, device, random_flip, None)
    if labels and first.labels is None:
        raise UserError("the data set has no labels; name their column with --label_column")
    buckets = [dict(zip(fields, parts, strict=True)) for parts in zip(*map(parts_of, fields.values()), strict=True)]
    for bucket in buckets:
        _check_aligned(bucket)
    lengths = [len(part) for part in parts_of(first)]
    shards = shards_of(lengths, batch_size, seed, start_step, rank, world_size, accumulation)
    resident = _resident(buckets, device)
    if resident is not None:
        loaded = _from_memory(resident, shards)
    else:
        loaded = _from_workers(buckets, seed, shards, device, num_workers)
    return _finished(buckets, loaded, seed, device, random_flip, first.labels if labels else None)


def batch_of(
    fields: dict[str, Cache], indices: np.ndarray, *, labels: bool, random_flip: bool, device: torch.device
) -> dict[str, torch.Tensor]:
    """A batch of the images at `indices` (B,), as `batches` yields it: their centres, and none is mirrored.

    Args:
        fields: what it consists of.
        indices: which images.
        labels: whether it has `label`.
        random_flip: whether the fields have mirror images too.
        device: of the tensors.
    """
    first = next(iter(fields.values()))
    if isinstance(first, StreamedImages):
        values = first.batch(first.take(indices), None)
    else:
        values = {name: torch.from_numpy(field.gather(indices, None)) for name, field in fields.items()}
        if labels:
            values["label"] = torch.from_numpy(labels_of(first, indices))
    values = {name: _on(value, device) for name, value in values.items()}
    if random_flip:
        none = torch.zeros(len(indices), dtype=torch.bool, device=device)
        values |= {name: field.mirrored(values[name], none) for name, field in fields.items()}
    return values | {"indices": torch.from_numpy(indices)}


def labels_of(images: Any, indices: np.ndarray) -> np.ndarray:
    """Classes (B,) int64 of images (B,) that have such."""
    if isinstance(images, StreamedImages):
        return images.read_labels(indices)
    assert images.labels is not None  # it was refused
    return images.labels[indices]


def _check_aligned(fields: dict[str, Cache]) -> None:
    """Whether row by row the fields are images of one shape, and at most of another resolution."""
    (name, first), *others = fields.items()
    for other, field in others:
        if not np.array_equal(field.rows, first.rows):
            raise UserError(f"{other}: not of the same rows of the data set as {name}; some could not be decoded")
        factor = first.size[0] // field.size[0]
        shapes = (field.size, first.size), (field.sizes, first.sizes)
        if not all(np.array_equal(np.multiply(small, factor), large) for small, large in shapes):
            raise UserError(f"{other}: its images don't have the shapes of those of {name}, which they belong to")


def _resident(buckets: list[dict[str, Cache]], device: torch.device) -> list[dict[str, torch.Tensor]] | None:
    """The whole set on `device`, when nothing is cropped and it takes less than half of the free memory."""
    tensors = [{name: field.as_tensor() for name, field in fields.items()} for fields in buckets]
    held = [{name: tensor for name, tensor in all_of.items() if tensor is not None} for all_of in tensors]
    cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available
    needed = sum(tensor.nbytes for all_of in held for tensor in all_of.values())
    if [*map(len, held)] != [*map(len, tensors)] or 2 * needed > free:
        return None
    return [{name: tensor.to(device) for name, tensor in all_of.items()} for all_of in held]


def _from_memory(tensors: list[dict[str, torch.Tensor]], shards: Iterator[Shard]) -> Iterator[Loaded]:
    for shard in shards:
        indices, held = torch.from_numpy(shard.indices), tensors[shard.bucket]
        yield shard, {name: t.index_select(0, to_device(indices, t.device)) for name, t in held.items()}


def _from_workers(
    buckets: list[dict[str, Cache]], seed: int, shards: Iterator[Shard], device: torch.device, num_workers: int
) -> Iterator[Loaded]:
    loader = torch.utils.data.DataLoader(
        _Reader(buckets, seed),
        batch_size=None,
        sampler=shards,
        num_workers=num_workers,
        collate_fn=_unchanged,
        pin_memory=device.type == "cuda",
    )
    for shard, values in loader:
        yield Shard(*shard), {name: value.to(device, non_blocking=True) for name, value in values.items()}


def _from_stream(
    stream: StreamedImages,
    seed: int,
    positions: Iterator[tuple[Numbered, np.ndarray]],
    device: torch.device,
    num_workers: int,
) -> Iterator[Loaded]:
    def make(numbered: Numbered, indices: np.ndarray, units: dict[int, Unit]) -> Loaded:
        decoded = stream.decode(indices, units)
        shard = Shard(numbered.step, numbered.number, 0, indices)
        corners = _corners(seed, shard, stream.sizes_of(decoded), stream.size)
        return shard, stream.batch(decoded, corners)

    order = stream.order((ORDER, seed))
    for shard, values in read_ahead(positions, order, stream.fetch, make, num_workers or cores()):
        yield shard, {name: _on(value, device) for name, value in values.items()}


def _on(value: Any, device: torch.device) -> Any:
    """A tensor on the device; what is no tensor stays on the host."""
    return to_device(value, device) if isinstance(value, torch.Tensor) else value


def _corners(seed: int, shard: Shard, sizes: Any, size: tuple[int, int], unit: int = 1) -> np.ndarray:
    """Where images (B, 2) of these sizes are cropped, on a grid of so many pixels."""
    rng = np.random.default_rng([CROP, seed, shard.step, shard.number])
    return unit * rng.integers((sizes - size) // unit + 1)


class _Reader(torch.utils.data.Dataset):
    def __init__(self, buckets: list[dict[str, Cache]], seed: int) -> None:
        self.buckets = buckets
        self.seed = seed

    def __getitem__(self, shard: Shard) -> Loaded:
        fields = self.buckets[shard.bucket]
        first = next(iter(fields.values()))
        # Corners are drawn on the grid of the coarsest field, on which all of them can begin.
        unit = first.size[0] // min(field.size[0] for field in fields.values())
        corners = _corners(self.seed, shard, first.sizes[shard.indices], first.size, unit)
        return shard, {
            name: torch.from_numpy(field.gather(shard.indices, corners * field.size[0] // first.size[0]))
            for name, field in fields.items()
        }


def _unchanged(loaded: Any) -> Any:
    """In place of the default, which would turn the shard into tensors."""
    return loaded


def _finished(
    buckets: list[dict[str, Cache]],
    loaded: Iterator[Loaded],
    seed: int,
    device: torch.device,
    random_flip: bool,
    labels: np.ndarray | None,
) -> Iterator[dict[str, torch.Tensor]]:
    starts = np.cumsum([0, *(len(next(iter(fields.values()))) for fields in buckets)])
    for shard, values in loaded:
        batch, fields, indices = values, buckets[shard.bucket], starts[shard.bucket] + shard.indices
        if random_flip:
            rng = np.random.default_rng([FLIP, seed, shard.step, shard.number])
            chosen = to_device(torch.from_numpy(rng.random(len(shard.indices)) < 0.5), device)
            batch = values | {name: field.mirrored(values[name], chosen) for name, field in fields.items()}
        batch["indices"] = torch.from_numpy(indices)
        if labels is not None:
            batch["label"] = to_device(torch.from_numpy(labels[indices]), device)
        yield batch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy that doesn't wait for the device: one from pageable memory would."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
