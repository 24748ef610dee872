"""Images with their captions, one or several each."""

from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np

from snowmelt.data.cache import ImageCache
from snowmelt.data.metadata import TEXT_COLUMNS
from snowmelt.data.places import Source
from snowmelt.data.reading import values_of
from snowmelt.data.sources import images_of, open_dataset
from snowmelt.data.splits import Split
from snowmelt.errors import UserError
from snowmelt.options import DataOptions


@dataclass(frozen=True)
class Captions:
    """Captions of N images: those of image i are `texts[starts[i] : starts[i + 1]]`."""

    texts: list[str]
    starts: np.ndarray  # (N + 1,) int64, ascending

    def of(self, image: int) -> list[str]:
        """The captions of one image."""
        return self.texts[self.starts[image] : self.starts[image + 1]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def first(self, count: int) -> "Captions":
        """Those of the first so many images."""
        return replace(self, starts=self.starts[: count + 1])

    def followed_by(self, text: str, count: int) -> "Captions":
        """These, and then so many images that all have one caption."""
        more = self.starts[-1] + np.arange(1, count + 1)
        return Captions([*self.texts, *[text] * count], np.concatenate([self.starts, more]))


@dataclass(frozen=True)
class CaptionedSource(Source):
    """Rows of a data set that have captions, and these: a list of them for each row."""

    captions: list[list[str]]

    def of(self, images: ImageCache) -> Captions:
        """The captions of images that were decoded of these rows."""
        found = [self.captions[row] for row in images.rows.tolist()]
        starts = np.cumsum([0, *map(len, found)], dtype=np.int64)
        return Captions([text for texts in found for text in texts], starts)


def open_captioned(
    options: DataOptions,
    column: str | None,
    *,
    skip_empty: bool,
    most: int | None = None,
    split: Split | None = None,
    shared: list[str] | None = None,
) -> CaptionedSource:
    """Open the data set that `options` name, images undecoded, and read its captions.

    Args:
        options: name the data set.
        column: of the captions, strings or lists of strings; found by name or type when None.
        skip_empty: leave out rows without a caption instead of refusing them.
        most: take no more than the first so many rows.
        split: which rows, instead of those of `options.split`.
        shared: captions that all rows have, instead of those of a column.

    Raises:
        UserError: for anything in the options or the data that the user can mend.
    """
    source = open_dataset(options, split)
    dataset = source.dataset
    if most is not None:
        dataset = dataset.select(range(min(most, len(dataset))))
    if shared is not None:
        return CaptionedSource(dataset, source.pieces, source.place, source.name, [shared] * len(dataset))
    name = caption_column(dataset.features, column)
    captions = _read(dataset, name)
    empty = [row for row, texts in enumerate(captions) if not texts]
    if empty:
        if not skip_empty or len(empty) == len(captions):
            shown = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
            raise UserError(
                f"--caption_column {name}: {len(empty)} of {len(captions)} rows have no caption (rows {shown}); mend "
                "them, or leave their images out with --skip_empty_captions"
            )
        print(f"left out {len(empty)} of {len(captions)} images that have no caption")
        kept = [row for row, texts in enumerate(captions) if texts]
        dataset, captions = dataset.select(kept), [captions[row] for row in kept]
    return CaptionedSource(dataset, source.pieces, source.place, source.name, captions)


def load_captioned(
    options: DataOptions, column: str | None, *, skip_empty: bool, most: int | None = None, split: Split | None = None
) -> tuple[ImageCache, Captions]:
    """Open the data set that `options` name; decode its images, or find them decoded, and read their captions.

    Args:
        options: name the data set.
        column: of the captions; this and the others as in `open_captioned`.
        skip_empty: leave out rows without a caption.
        most: rows, at most.
        split: which rows.

    Raises:
        UserError: for anything in the options or the data that the user can mend.
    """
    source = open_captioned(options, column, skip_empty=skip_empty, most=most, split=split)
    images = images_of(source, options)
    return images, source.of(images)


def caption_column(features: datasets.Features, name: str | None) -> str:
    """The column of captions: `name`, or the one with a usual name, or the only one of strings.

    Raises:
        UserError: if it doesn't exist, holds something else, or several could be meant.
    """
    texts = [column for column, feature in features.items() if _is_text(feature)]
    listing = f"columns of text: {', '.join(texts) or 'none'}; all columns: {', '.join(features)}"
    if name is not None:
        if name not in features:
            raise UserError(f"--caption_column {name}: no such column; {listing}")
        if name not in texts:
            raise UserError(f"--caption_column {name}: holds no strings, nor lists of them; {listing}")
        return name
    found = [column for column in TEXT_COLUMNS if column in texts] or texts
    if not found:
        raise UserError(
            f"no column holds captions; {listing}; name one with --caption_column, or take captioned images"
        )
    if len(found) > 1:
        raise UserError(f"several columns may hold the captions: {', '.join(found)}; choose with --caption_column")
    return found[0]


def _is_text(feature: Any) -> bool:
    if isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "string_view")


def _read(dataset: datasets.Dataset, column: str) -> list[list[str]]:
    """The captions of each row, without those that are empty."""
    return [texts_of(value) for value in values_of(dataset, column)]


def texts_of(value: Any) -> list[str]:
    """The captions in a cell, a string or a list of them, without those that are empty."""
    return [text for text in ([value] if isinstance(value, str) else value or []) if text and text.strip()]
