"""Files wherever `fsspec` finds them: on a disk, on the Hub, in an object store. What stumbles is asked again."""

import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import HfFileSystem
from huggingface_hub.errors import HfHubHTTPError

from snowmelt.data.reading import reason
from snowmelt.errors import UserError, one_line

DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between attempts to read what is not on this machine."""
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, MemoryError)
"""Errors that no repetition mends; and answers of the Hub: no token, no permission, not there."""
FINAL_STATUSES = (401, 403, 404, 410)
CHUNK = 2**23
"""Bytes of a remote file that are fetched together where it is read from its beginning to its end."""

T = TypeVar("T")


@dataclass(frozen=True)
class Storage:
    """A file system."""

    fs: Any

    @property
    def is_local(self) -> bool:
        """Whether files are on this machine, or seem to be."""
        return isinstance(self.fs, LocalFileSystem)

    def open(self, path: str, size: int) -> BinaryIO:
        """A file that can be read from anywhere; of a remote one, of so many bytes, each read is a request."""
        if self.is_local:
            return open(path, "rb")
        return cast(BinaryIO, _Remote(self, path, size))

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Bytes of a file.

        Args:
            path: of the file.
            start: the first byte.
            stop: after the last.

        Raises:
            OSError: if there are fewer; and whatever the file system raises.
        """
        if self.is_local:
            with open(path, "rb") as file:
                file.seek(start)
                content = file.read(stop - start)
        else:
            # The Hub's would fetch five megabytes more.
            given = {"cache_type": "none"} if isinstance(self.fs, HfFileSystem) else {}
            content = self.fs.cat_file(path, start=start, end=stop, **given)
        if len(content) != stop - start:
            raise OSError(f"it ends at byte {start + len(content)}, before {stop}")
        return content

    def whole(self, path: str) -> bytes:
        """A file's content."""
        return cast(bytes, self.retried(lambda: self.fs.cat_file(path), path))

    def retried(self, call: Callable[[], T], path: str, closed: threading.Event | None = None) -> T:
        """What a call returns, repeated with longer and longer delays where what it reads isn't on this machine.

        Args:
            call: reads; it must change nothing.
            path: of what is read, for the message.
            closed: set when nobody wants it any more.

        Raises:
            UserError: naming the file, once there is no hope.
        """
        for delay in (*DELAYS, None):
            try:
                return call()
            except UserError:
                raise
            except Exception as error:  # of pyarrow, fsspec, its file systems and their clients: no closed list
                closing = closed is not None and closed.is_set()
                if delay is None or closing or self.is_local or not _passing(error):
                    raise UserError(f"{self.shown(path)}: can't be read: {_said(error)}") from error
            (closed or threading.Event()).wait(delay)
        raise AssertionError  # the last attempt returned or raised

    def shown(self, path: str) -> str:
        """A path, as messages have it."""
        return path if self.is_local else self.fs.unstrip_protocol(path)


def open_storage(url: str) -> tuple[Storage, str]:
    """The storage that a path or URL is in, and its path there.

    Raises:
        UserError: for a protocol that there isn't, or whose package isn't installed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: can't be opened: {one_line(error)}") from error
    return Storage(fs), path


def _passing(error: Exception) -> bool:
    """Whether it may be gone when one asks again."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, HfHubHTTPError) and link.response is not None:
            return link.response.status_code not in FINAL_STATUSES
        if isinstance(link, FINAL):
            return False
        link = link.__cause__
    return True


def _said(error: Exception) -> str:
    """The reason in a line; what is gone is called so."""
    if isinstance(error, FileNotFoundError):
        return "no such file; restore it, or start a new run on the files that there are"
    if isinstance(error, OSError) and error.errno is None and not isinstance(error, HfHubHTTPError):
        return f"{one_line(error)}; restore it"
    return reason(error)


class _Remote(io.RawIOBase):
    """A remote file, each read of which is one request."""

    def __init__(self, storage: Storage, path: str, size: int) -> None:
        self.storage, self.path, self.size, self.position = storage, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def read(self, count: int | None = -1) -> bytes:
        stop = self.size if count is None or count < 0 else min(self.size, self.position + count)
        content = self.storage.read(self.path, self.position, stop) if stop > self.position else b""
        self.position += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def sequential(file: BinaryIO) -> BinaryIO:
    """The same file, for one who reads it from its beginning to its end."""
    return io.BufferedReader(file, CHUNK) if isinstance(file, _Remote) else file
