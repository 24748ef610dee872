"""Long work as a generator: what it reports is there while it goes on, and it ends when nobody listens any more."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

Report = Callable[[Any], None]


class StoppedError(Exception):
    """What a report raises where nobody listens, to end the work."""


def watched(work: Callable[[Report], Any], lock: threading.Lock) -> Iterator[Any]:
    """What the work reports, the newest alone where several wait, and then what it returns.

    Closing the generator ends the work at its next report.

    Args:
        work: called in a thread with a function to report by; None is no report, and notices the end as well.
        lock: held while it works, so that works of one lock wait for each other.

    Raises:
        Exception: what the work raises.
    """
    newest: queue.Queue[tuple[str, Any]] = queue.Queue(1)
    listening = threading.Event()
    listening.set()

    def put(kind: str, value: Any) -> None:
        with suppress(queue.Empty):
            newest.get_nowait()  # of what nobody has taken; this thread alone puts
        newest.put((kind, value))

    def report(value: Any) -> None:
        if not listening.is_set():
            raise StoppedError
        if value is not None:
            put("report", value)

    def run() -> None:
        try:
            with lock:
                report(None)  # it may have been stopped while it waited
                put("result", work(report))
        except StoppedError:
            pass
        except Exception as error:
            put("error", error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while True:
            kind, value = newest.get()
            if kind == "error":
                raise value
            yield value
            if kind == "result":
                return
    finally:
        listening.clear()
