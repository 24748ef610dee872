"""What becomes of a row of a shard: the pixels of its image, or the latents that it holds."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import datasets
import numpy as np
from PIL import Image

from snowmelt.data.agreement import common_channels
from snowmelt.data.images import Opened, Preprocess, background_color, header, open_item
from snowmelt.data.shards import Row
from snowmelt.data.stream_source import Shards
from snowmelt.errors import UserError
from snowmelt.options import DataOptions

FLOATS = "float images aren't streamed, since their range is that of the whole set; leave out --streaming"


@dataclass(frozen=True, eq=False)
class RowPixels:
    """Rows to pixels.

    Attributes:
        options: how images are decoded.
        shards: which say where files are that rows name.
        column: of the images.
        feature: its type.
        channels: that all images are given.
        dtype: of their values, uint8 or uint16.
    """

    options: DataOptions
    shards: Shards
    column: str
    feature: Any
    channels: int
    dtype: np.dtype

    def __call__(self, row: Row, number: int) -> np.ndarray:
        """The pixels (C, H, W) of a row's image, cropped where the centre is asked for.

        Args:
            row: the row.
            number: its number in the data set, for messages.

        Raises:
            One of `BAD_IMAGE` if it can't be decoded.
            UserError: if it isn't such an image as the first were, or lies elsewhere.
        """
        image = self.open(row, number)
        head = header(image)
        if head.depth == "float32":
            raise UserError(f"row {number}: {FLOATS}")
        if head.channels > self.channels == 1 and self.options.channels is None:
            raise UserError(f"row {number} has {head.channels} channels, and the first have 1; give --channels 3, or 1")
        if (kind := (head.channels, head.is_pil)) not in self._convertible:
            common_channels([head], replace(self.options, channels=self.channels), None)  # or it can't be given them
            self._convertible.add(kind)
        return self._preprocess(image)

    def open(self, row: Row, number: int) -> Opened:
        """A row's image, not decoded yet; arguments and errors as above."""
        item, shards, file = self._item(row[self.column]), self.shards, None
        if isinstance(item, dict) and item["bytes"] is None and item["path"] is not None:
            if shards.images is not None:
                storage, base = shards.images
                path = storage.fs._strip_protocol(item["path"])
                if path.startswith(f"{base}/") and ".." not in path.split("/"):
                    return open_item({"bytes": storage.whole(path), "path": path}, None)
            try:
                file = shards.place.locate(item["path"])
            except UserError as error:
                raise UserError(f"{shards.name}: row {number} {error}") from error
        return open_item(item, file)

    def _item(self, cell: Any) -> Any:
        """A cell, as `open_item` takes it."""
        if isinstance(cell, bytes | str):
            name = "bytes" if isinstance(cell, bytes) else "path"
            return {"bytes": None, "path": None, name: cell}
        return np.asarray(cell, self._element) if isinstance(cell, list) else cell

    @cached_property
    def _element(self) -> str | None:
        """The type of an array's elements."""
        feature = self.feature
        while isinstance(feature, datasets.List | datasets.LargeList):
            feature = feature.feature
        return getattr(feature, "dtype", None)

    @cached_property
    def _convertible(self) -> set[tuple[int, bool]]:
        """Channels, and whether they are Pillow's, of images that can be given those of all."""
        return set()

    @cached_property
    def _preprocess(self) -> Preprocess:
        return Preprocess(
            channels=self.channels,
            dtype=self.dtype,
            size=self.options.size,
            resampling=Image.Resampling[self.options.interpolation.upper()],
            center_crop=self.options.center_crop,
            background=background_color(self.options),
        )


@dataclass(frozen=True, eq=False)
class RowLatents:
    """Rows to latents.

    Attributes:
        options: of the data.
        shape: of what a row holds, (k, h, w), or (2, k, h, w) with that of the mirror image.
        dtype: of its values.
        pairs: whether both of a pair are wanted.
        column: of the latents.
    """

    options: DataOptions
    shape: tuple[int, ...]
    dtype: np.dtype
    pairs: bool
    column: str = "latents"

    def __call__(self, row: Row, number: int) -> np.ndarray:
        """What is kept of a row's image, (k, h, w) or (2, k, h, w); arguments and errors as of `RowPixels`."""
        values = np.frombuffer(row[self.column], self.dtype).reshape(self.shape)
        return values[0] if len(self.shape) == 4 and not self.pairs else values
