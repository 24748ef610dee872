"""Images of a data set's rows, one after another, with those that can't be read named or left out."""

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import datasets
from tqdm import tqdm

from snowmelt.data.images import BAD_IMAGE, Opened, open_item
from snowmelt.data.places import Source
from snowmelt.data.reading import readable_source
from snowmelt.errors import UserError, one_line, printable
from snowmelt.options import DataOptions

T = TypeVar("T")


def cores() -> int:
    """CPU cores that this process may use, where each of a machine's processes takes its part."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, own // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def readable(
    source: Source,
    column: str,
    read: Callable[[Opened], T],
    options: DataOptions,
    title: str,
    skipped: list[str],
) -> Iterator[tuple[int, T]]:
    """Images of a column that can be read, one after another.

    Args:
        source: the data set, and where its files may lie.
        column: of the images.
        read: what is made of an opened image.
        options: `skip_bad_images`, to leave out what can't be read.
        title: of the progress bar.
        skipped: names of the images left out are added to it.

    Yields:
        (row, read(image)).

    Raises:
        UserError: for an image that can't be read, unless such are skipped, and for one outside of the data set.
    """
    for row, item in enumerate(tqdm(_items(source, column), title, len(source.dataset), unit="img")):
        file = None
        if isinstance(item, dict) and item["bytes"] is None and item["path"] is not None:
            try:
                file = source.place.locate(item["path"])
            except UserError as error:
                raise UserError(f"{source.name}: row {row} {error}") from error
        try:
            result = read(open_item(item, file))
        except BAD_IMAGE as error:
            name = printable(_name(row, item))
            if not options.skip_bad_images:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
                raise UserError(
                    f"{name}: can't be decoded ({reason}); replace or remove it, or pass --skip_bad_images"
                ) from error
            skipped.append(name)
        else:
            yield row, result


def _items(source: Source, column: str) -> Iterator[Any]:
    """Undecoded images, as `open_item` takes them."""
    with readable_source(source.name):
        dataset = source.dataset.select_columns([column])
        feature = dataset.features[column]
        if isinstance(feature, datasets.Image | datasets.Value | dict):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
        else:
            dataset = dataset.with_format("numpy", dtype=None)  # the column's; the default is int64 or float32
        for batch in dataset.iter(batch_size=32):
            yield from batch[column]


def _name(row: int, item: Any) -> str:
    path = item["path"] if isinstance(item, dict) else None
    if path and item["bytes"] is None and path.startswith(("/", "zip://")):
        return path
    return f"row {row}" + (f" ({path})" if path else "")
