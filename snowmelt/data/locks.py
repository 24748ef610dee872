"""Locks by which one process makes what all need, while the others wait, and say so."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

SAY = 60.0
"""Seconds of waiting, after each of which a line says for what."""


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of a file or folder, which other processes may have had for long.

    Args:
        path: of the file or folder; the lock is beside it.
        what: the other process is doing, for the line that is printed while this one waits.

    Raises:
        OSError: if the lock can't be made; NotImplementedError where the file system has no locks.
    """
    lock, waited = FileLock(path.with_suffix(".lock")), 0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=SAY)
        except Timeout:
            waited += round(SAY)
            print(f"waiting since {waited} s for another process, which is {what} ({path})", flush=True)
    try:
        yield
    finally:
        lock.release()
