"""Images of a data set, and maybe their captions, on their way to encoders."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from snowmelt.data.cache import ImageCache
from snowmelt.data.captions import Captions, caption_column, load_captioned
from snowmelt.data.read_ahead import read_ahead
from snowmelt.data.rows import cores, in_order
from snowmelt.data.sources import load_images
from snowmelt.data.splits import Split
from snowmelt.data.stream import StreamedImages, Unit, open_stream
from snowmelt.data.stream_captions import RowCaptions
from snowmelt.data.stream_index import FIRST, ROWS, SKIP, build_index
from snowmelt.data.stream_order import RowOrder
from snowmelt.errors import UserError
from snowmelt.options import DataOptions


class Pass(NamedTuple):
    """Images that are encoded together."""

    pixels: np.ndarray
    """(B, C, H, W), raw."""
    labels: np.ndarray | None
    """(B,) int64 classes, where there are any."""
    captions: list[list[str]] | None
    """(B,) captions of each, where these are encoded too."""


@dataclass(frozen=True, eq=False)
class ToEncode:
    """Images of a data set, and maybe their captions.

    Attributes:
        images: decoded, or in their shards.
        captions: of decoded images; those in shards bring theirs.
    """

    images: ImageCache
    captions: Captions | None

    @property
    def key(self) -> str | None:
        """A key of the captions, beside that of the images; None without such."""
        if self.captions is None:
            of_row = self.images.captions if isinstance(self.images, StreamedImages) else None
            return None if of_row is None else f"column {of_row.column}"
        content = [self.captions.texts, self.captions.starts.tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]

    def texts(self) -> Iterator[str]:
        """All captions, of those in shards unit by unit.

        Raises:
            UserError: for a row without any.
        """
        images = self.images
        if self.captions is not None:
            yield from self.captions.texts
        if not isinstance(images, StreamedImages) or not isinstance(images.captions, RowCaptions):
            return
        of_row, units = images.captions, images.index.units

        def read(unit: int) -> list[list[str]]:
            skipped, taken, first = units[unit, [SKIP, ROWS, FIRST]].tolist()
            rows = images.fetch(unit, columns=[of_row.column])
            return [of_row(rows[skipped + place], first + place) for place in range(taken)]

        for _, result in in_order(read, range(len(units)), cores()):
            for texts in result():
                yield from texts

    def passes(self, stretches: Iterator[np.ndarray], threads: int) -> Iterator[Pass]:
        """Images of stretches of rows, read ahead where they are in shards."""
        images, captions = self.images, self.captions
        if not isinstance(images, StreamedImages):
            for rows in stretches:
                labels = None if images.labels is None else images.labels[rows]
                said = None if captions is None else [captions.of(row) for row in rows.tolist()]
                yield Pass(images.gather(rows, None), labels, said)
            return

        def make(_: None, rows: np.ndarray, units: dict[int, Unit]) -> Pass:
            decoded = images.decode(rows, units)
            return Pass(images.crop(decoded, None), decoded.labels, decoded.captions)

        order = RowOrder(images.index.units[:, ROWS])
        yield from read_ahead(((None, rows) for rows in stretches), order, images.fetch, make, threads)


def load_to_encode(options: DataOptions, *, captions: bool, column: str | None, skip_empty: bool) -> ToEncode:
    """The images that `options` name, decoded or, with `streaming`, in their shards.

    Args:
        options: name the data set.
        captions: whether their captions are encoded too.
        column: of these; found by name or type when None.
        skip_empty: leave out decoded images without a caption instead of refusing them.

    Raises:
        UserError: as `load_images` and `load_captioned`; or if they aren't of one shape.
    """
    if options.streaming:
        index = build_index(options, Split(options.split), labels=True)
        rows = RowCaptions(caption_column(index.features, column)) if captions else None
        return ToEncode(open_stream(options, index, captions=rows), None)
    images, found = load_captioned(options, column, skip_empty=skip_empty) if captions else (load_images(options), None)
    if images.as_tensor() is None:
        raise UserError("the images aren't all of one shape, and each is encoded once; add --center_crop")
    return ToEncode(images, found)
