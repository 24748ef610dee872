"""Images of a data set's rows, one after another, with those that can't be read named or left out."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import datasets
from tqdm import tqdm

from snowmelt.data.images import BAD_IMAGE, Opened, open_item
from snowmelt.errors import UserError
from snowmelt.options import DataOptions

T = TypeVar("T")


def readable(
    dataset: datasets.Dataset,
    column: str,
    read: Callable[[Opened], T],
    options: DataOptions,
    title: str,
    skipped: list[str],
) -> Iterator[tuple[int, T]]:
    """(row, read(image)) of each image that can be read; names of the others are added to `skipped`."""
    for row, item in enumerate(tqdm(_items(dataset, column), title, len(dataset), unit="img")):
        try:
            result = read(open_item(item))
        except BAD_IMAGE as error:
            name = _name(row, item)
            if not options.skip_bad_images:
                raise UserError(
                    f"{name}: can't be decoded ({error}); replace or remove it, or pass --skip_bad_images"
                ) from error
            skipped.append(name)
        else:
            yield row, result


def _items(dataset: datasets.Dataset, column: str) -> Iterator[Any]:
    """Undecoded images, as `open_item` takes them."""
    dataset = dataset.select_columns([column])
    feature = dataset.features[column]
    if isinstance(feature, datasets.Image | datasets.Value | dict):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    else:
        dataset = dataset.with_format("numpy", dtype=None)  # the column's; the default is int64 or float32
    for batch in dataset.iter(batch_size=32):
        yield from batch[column]


def _name(row: int, item: Any) -> str:
    path = item["path"] if isinstance(item, dict) else None
    if path and item["bytes"] is None:
        return path
    return f"row {row}" + (f" ({path})" if path else "")
