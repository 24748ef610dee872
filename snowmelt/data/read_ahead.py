"""Reads what is needed soon, and decodes it, while what was read before is in use.

Units are fetched by a few threads, and batches made of them by as many as there are cores. Pillow and the readers of
shards release Python's lock, so threads do as well as processes would, and share what was fetched. What is held is
bounded: the units that the order calls for soon, and some batches.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from snowmelt.data.stream_order import StreamOrder

FETCHERS = 8
"""Units that are fetched at once."""

S = TypeVar("S")
U = TypeVar("U")
T = TypeVar("T")


def read_ahead(
    parts: Iterator[tuple[S, np.ndarray]],
    order: StreamOrder,
    fetch: Callable[[int, threading.Event], U],
    make: Callable[[S, np.ndarray, dict[int, Future[U]]], T],
    threads: int,
) -> Iterator[T]:
    """Batches, in their order.

    Args:
        parts: whatever `make` needs of each batch, and positions (B,) in the order.
        order: of the rows.
        fetch: reads a unit; the event is set when nobody wants it any more.
        make: makes a batch, in a thread, of rows (B,) and the units that they are in, which may be on their way.
        threads: that do so.

    Raises:
        UserError: as `fetch` and `make`, when the turn of that batch comes.
    """
    closed = threading.Event()
    fetching, making = ThreadPoolExecutor(FETCHERS, "fetch"), ThreadPoolExecutor(threads, "decode")
    units: dict[int, Future[Any]] = {}
    waiting: deque[Future[T]] = deque()
    try:
        for part, positions in parts:
            rows = order(positions)
            needed = np.unique(order.unit_of(rows)).tolist()
            wanted = dict.fromkeys([*needed, *order.soon(positions)])  # what is needed first is fetched first
            units = {unit: units.get(unit) or fetching.submit(fetch, unit, closed) for unit in wanted}
            waiting.append(making.submit(make, part, rows, {unit: units[unit] for unit in needed}))
            if len(waiting) > threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        closed.set()
        for pool in (fetching, making):
            pool.shutdown(wait=False, cancel_futures=True)
