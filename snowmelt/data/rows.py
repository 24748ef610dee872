"""Images of a data set's rows, one after another, with those that can't be read named or left out."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import datasets
from tqdm import tqdm

from snowmelt.data.images import BAD_IMAGE, Opened, open_item
from snowmelt.data.places import Source
from snowmelt.data.reading import readable_source
from snowmelt.errors import UserError, one_line, printable
from snowmelt.options import DataOptions

S = TypeVar("S")
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
    threads: int | None = None,
) -> Iterator[tuple[int, T]]:
    """Images of a column that can be read, one after another.

    Args:
        source: the data set, and where its files may lie.
        column: of the images.
        read: what is made of an opened image, by several threads.
        options: `skip_bad_images`, to leave out what can't be read.
        title: of the progress bar.
        skipped: names of the images left out are added to it.
        threads: as many as there are cores by default.

    Yields:
        (row, read(image)).

    Raises:
        UserError: for an image that can't be read, unless such are skipped, and for one outside of the data set.
    """

    def opened(item: Any, file: tuple[Path, str | None] | None) -> T:
        return read(open_item(item, file))

    for (row, item), result in read_items(source, column, opened, title, threads):
        try:
            made = result()
        except UserError:
            raise
        except BAD_IMAGE as error:
            name = printable(_name(row, item))
            if not options.skip_bad_images:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
                raise UserError(
                    f"{name}: can't be decoded ({reason}); replace or remove it, or pass --skip_bad_images"
                ) from error
            skipped.append(name)
        else:
            yield row, made


def read_items(
    source: Source,
    column: str,
    read: Callable[[Any, tuple[Path, str | None] | None], T],
    title: str,
    threads: int | None = None,
) -> Iterator[tuple[tuple[int, Any], Callable[[], T]]]:
    """What a column holds, row by row, with what returns what is read of it, or raises what `read` does.

    Args:
        source: the data set, and where its files may lie.
        column: of the images.
        read: called in threads with what a row holds, and the file that it names: its path, and the member of a zip.
        title: of the progress bar.
        threads: as many as there are cores by default.

    Raises:
        UserError: for a file outside of the data set.
    """

    def located(numbered: tuple[int, Any]) -> T:
        row, item = numbered
        if not isinstance(item, dict) or item["bytes"] is not None or item["path"] is None:
            return read(item, None)
        try:
            file = source.place.locate(item["path"])
        except UserError as error:
            raise UserError(f"{source.name}: row {row} {error}") from error
        return read(item, file)

    numbered = in_order(located, enumerate(_items(source, column)), threads or cores())
    yield from tqdm(numbered, title, len(source.dataset), unit="img")


def in_order(function: Callable[[S], T], items: Iterable[S], threads: int) -> Iterator[tuple[S, Callable[[], T]]]:
    """Items, each with what returns the function of it, or raises what that does; some are worked on ahead.

    Args:
        function: called in threads.
        items: its arguments, of which no more are taken than are worked on.
        threads: that work.
    """
    pool, waiting = ThreadPoolExecutor(threads), deque[tuple[S, Callable[[], T]]]()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item).result))
            if len(waiting) > 2 * threads:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


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
