"""Images that are read from their shards while they are trained on, instead of being decoded first and kept.

`snowmelt.data.read_ahead` fetches and decodes them before they are needed.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from snowmelt.data.agreement import Like, common_channels, common_dtype
from snowmelt.data.cache import ImageCache
from snowmelt.data.columns import image_column
from snowmelt.data.images import BAD_IMAGE, Header, header
from snowmelt.data.shards import Row
from snowmelt.data.store import cache_root
from snowmelt.data.stream_captions import RowCaptions, RowStates
from snowmelt.data.stream_index import FILE, ROWS, SKIP, Index, RowNumbers, part_of
from snowmelt.data.stream_order import StreamOrder
from snowmelt.data.stream_pixels import FLOATS, RowLatents, RowPixels
from snowmelt.errors import UserError, one_line, printable
from snowmelt.options import DataOptions

SAMPLE = 64
"""Images by which channels and type of all are decided."""

Unit = Future[Sequence[Row]]


class Decoded(NamedTuple):
    """Some images, and what belongs to them."""

    images: list[np.ndarray]
    """(C, H, W) each, not cropped unless that was asked for."""
    labels: np.ndarray | None
    """(B,) int64 classes, where there are any."""
    captions: list[Any] | None
    """(B,) what is made of the captions of each, where they are read."""


@dataclass(frozen=True, eq=False)
class StreamedImages(ImageCache):
    """N images in shards. Their labels and sizes aren't known before they are read.

    Attributes:
        index: their shards.
        pixels: what becomes of a row.
        buffer_size: rows that are shuffled among each other.
        captions: what becomes of its captions, where they are read.
    """

    index: Index
    pixels: RowPixels | RowLatents
    buffer_size: int
    captions: RowCaptions | RowStates | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def as_tensor(self) -> None:
        """None: they are never all there."""

    def gather(self, indices: np.ndarray, corners: np.ndarray | None) -> np.ndarray:
        """Copy (B, C, H, W) of the images at `indices` (B,), cropped to `size`; see `ImageCache.gather`."""
        return self.crop(self.take(indices), corners)

    def take(self, indices: np.ndarray) -> Decoded:
        """The images at `indices` (B,), and their labels; the units of the last are kept for the next."""
        units: dict[int, Unit] = {unit: Future() for unit in np.unique(self._unit_of(indices)).tolist()}
        for unit, future in units.items():
            future.set_result(self._kept(unit))
        return self.decode(indices, units)

    def crop(self, decoded: Decoded, corners: np.ndarray | None) -> np.ndarray:
        """Images (B, C, H, W) of `size`, from `corners` (B, 2) on; None for their centres."""
        height, width = self.size
        if corners is None:
            corners = np.array([[(i.shape[1] - height) // 2, (i.shape[2] - width) // 2] for i in decoded.images])
        cropped = [
            image[:, top : top + height, left : left + width]
            for image, (top, left) in zip(decoded.images, corners.tolist(), strict=True)
        ]
        return np.stack(cropped)

    def sizes_of(self, decoded: Decoded) -> np.ndarray:
        """Heights and widths (B, 2) of images before they are cropped."""
        return np.array([image.shape[1:] for image in decoded.images])

    def batch(self, decoded: Decoded, corners: np.ndarray | None) -> dict[str, Any]:
        """What a batch has of them: `image` as `crop` makes it, and `label` and `captions` where there are such."""
        values: dict[str, Any] = {"image": torch.from_numpy(self.crop(decoded, corners))}
        if decoded.labels is not None:
            values["label"] = torch.from_numpy(decoded.labels)
        return values if decoded.captions is None else values | {"captions": decoded.captions}

    def order(self, seed: tuple[int, ...]) -> StreamOrder:
        """The order that they are shown in."""
        return StreamOrder(self.index.units[:, ROWS], seed, self.buffer_size)

    def fetch(
        self, unit: int, closed: threading.Event | None = None, columns: Sequence[str] | None = None
    ) -> Sequence[Row]:
        """The rows of a unit, undecoded.

        Args:
            unit: its number.
            closed: set when nobody wants them any more.
            columns: those that are wanted; by default all that are needed to decode them.

        Raises:
            UserError: if they can't be read, or aren't there any more.
        """
        shards, place = self.index.shards, self.index.units[unit]
        path, size = self.index.files[place[FILE]]
        columns = self._columns if columns is None else columns
        rows = shards.storage.retried(
            lambda: shards.format.read(shards.storage, path, size, part_of(place), [*columns]), path, closed
        )
        if len(rows) < place[SKIP] + place[ROWS]:
            raise UserError(f"{shards.storage.shown(path)}: has changed since the run began; start anew")
        return rows

    def read_labels(self, indices: np.ndarray) -> np.ndarray:
        """Classes (B,) int64 of the images at `indices` (B,)."""
        units = self._unit_of(indices).tolist()
        places = [
            (index, self._kept(u)[self._place(u, index)]) for u, index in zip(units, indices.tolist(), strict=True)
        ]
        return np.array([self._label(index, row) for index, row in places], np.int64)

    def headers(self, indices: np.ndarray) -> list[Header]:
        """What is known of the images at `indices` (B,) before they are decoded; of those that can be opened."""
        assert isinstance(self.pixels, RowPixels)
        found = []
        for index, unit in zip(indices.tolist(), self._unit_of(indices).tolist(), strict=True):
            row = self._kept(unit)[self._place(unit, index)]
            try:
                found.append(header(self.pixels.open(row, self.rows[index])))
            except UserError:
                raise
            except BAD_IMAGE:  # it is named when its turn comes
                continue
        if not found:
            raise UserError(f"none of the first {len(indices)} images can be decoded; check the files")
        return found

    def decode(self, indices: np.ndarray, units: dict[int, Unit]) -> Decoded:
        """The images at `indices` (B,), and what belongs to them.

        Args:
            indices: which.
            units: those that they are in, or that are to come.

        Raises:
            UserError: for an image that can't be decoded, unless such are skipped, or a label that is none.
        """
        images, labels, captions = [], [], []
        for index, unit in zip(indices.tolist(), self._unit_of(indices).tolist(), strict=True):
            image, said, row = self._readable(index, unit, units)
            images.append(image)
            captions.append(said)
            if self.index.label_column:
                labels.append(self._label(index, row))
        classes = np.array(labels, np.int64) if self.index.label_column else None
        return Decoded(images, classes, None if self.captions is None else captions)

    def _readable(self, index: int, unit: int, units: dict[int, Unit]) -> tuple[np.ndarray, Any, Row]:
        """An image, or where such are skipped the next of its unit that can be decoded; its captions and its row."""
        first, count = int(self._starts[unit]), int(self.index.units[unit, ROWS])
        for n in range(count):
            number = first + (index - first + n) % count
            try:
                return self._decoded(unit, number, units)
            except UserError:
                raise
            except BAD_IMAGE as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
                name = printable(f"{self._file(unit)}: row {self.rows[number]}")
                if not self.pixels.options.skip_bad_images:
                    raise UserError(
                        f"{name}: can't be decoded ({reason}); replace or remove it, or pass --skip_bad_images"
                    ) from error
                tqdm.write(f"{name}: can't be decoded ({reason}); the next one is shown instead")
        raise UserError(f"{self._file(unit)}: none of {count} images can be decoded; replace it")

    def _decoded(self, unit: int, number: int, units: dict[int, Unit]) -> tuple[np.ndarray, Any, Row]:
        """An image of a unit, its captions and its row."""
        place = self._place(unit, number)
        try:
            return self._made(units[unit].result()[place], number)
        except BAD_IMAGE as error:
            if isinstance(error, UserError) or self.index.shards.storage.is_local:
                raise
        # What was fetched may have been damaged on its way.
        units[unit] = Future()
        units[unit].set_result(self.fetch(unit))
        return self._made(units[unit].result()[place], number)

    def _made(self, row: Row, number: int) -> tuple[np.ndarray, Any, Row]:
        of_set = self.rows[number]
        return self.pixels(row, of_set), None if self.captions is None else self.captions(row, of_set), row

    def _label(self, index: int, row: Row) -> int:
        value = row[self.index.label_column or ""]
        if value not in self._numbers:
            raise UserError(
                f"column {self.index.label_column}: row {self.rows[index]} has {value}, no class; start anew"
            )
        return self._numbers[value]

    def _place(self, unit: int, index: int) -> int:
        """Where in what is fetched of a unit a row is."""
        return index - int(self._starts[unit]) + int(self.index.units[unit, SKIP])

    def _file(self, unit: int) -> str:
        return self.index.shards.storage.shown(self.index.files[self.index.units[unit, FILE]][0])

    def _unit_of(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, indices, side="right") - 1

    @property
    def _columns(self) -> list[str]:
        """That are needed to decode rows."""
        others = [self.index.label_column, None if self.captions is None else self.captions.column]
        return [self.pixels.column, *(column for column in others if column)]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.index.units[:, ROWS])])

    @cached_property
    def _kept(self) -> Callable[[int], Sequence[Row]]:
        return lru_cache(maxsize=2)(self.fetch)

    @cached_property
    def _numbers(self) -> dict[Any, int]:
        return {value: number for number, value in enumerate(self.index.classes)}


def open_stream(
    options: DataOptions, index: Index, like: Like | None = None, captions: RowCaptions | None = None
) -> StreamedImages:
    """The images of some shards, whose channels and type are those of the first that there are.

    Args:
        options: how they are decoded.
        index: the shards.
        like: take the channels and the type of these.
        captions: what becomes of their captions, where these are read.

    Raises:
        UserError: for anything in the options or the data that the user can mend.
    """
    column = image_column(index.features, options.image_column)
    pixels = RowPixels(options, index.shards, column, index.features[column], 1, np.dtype(np.uint8))
    images = StreamedImages(
        path=cache_root(options),
        labels=None,
        class_names=index.class_names,
        fingerprint="",
        dtype=pixels.dtype,
        value_range=(0.0, 255.0),
        channels=1,
        size=options.size,
        skipped=[],
        rows=RowNumbers(index.units),  # type: ignore[arg-type]
        sizes=np.empty((0, 2), np.int64),
        index=index,
        pixels=pixels,
        buffer_size=options.shuffle_buffer_size,
        captions=captions,
    )
    heads = images.headers(np.unique(np.r_[: min(SAMPLE, len(images)), len(images) - 1]))
    if any(head.depth == "float32" for head in heads):
        raise UserError(f"--streaming: {FLOATS}")
    channels, dtype = common_channels(heads, options, like), common_dtype(heads, options, like)
    names = ("resolution", "interpolation", "center_crop", "background", "preserve_input_precision", "skip_bad_images")
    key = [index.fingerprint, column, channels, dtype.name, images.buffer_size, *(getattr(options, n) for n in names)]
    return replace(
        images,
        fingerprint=f"stream-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}",
        dtype=dtype,
        value_range=(0.0, float(np.iinfo(dtype).max)),
        channels=channels,
        pixels=replace(pixels, channels=channels, dtype=dtype),
    )
