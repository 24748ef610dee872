"""Where the files that rows name may lie, and how they are opened: nothing outside the data set is."""

import io
import os
import stat
import zipfile
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import BinaryIO

import datasets

from snowmelt.data.splits import Piece
from snowmelt.errors import UserError

LARGEST_MEMBER = 2**30  # bytes of a file in a zip, which is unpacked in memory


@dataclass(frozen=True)
class Place:
    """Where the files that rows name may lie: below `folders`; without any, rows must hold their images themselves.

    Rows are written by anybody: those of a table from the Hub may name /etc/passwd.
    """

    folders: tuple[Path, ...] = ()  # absolute
    links: bool = False  # whether links in them may lead out, in a folder of files whose owner laid them

    def locate(self, name: str) -> tuple[Path, str | None]:
        """The file that a row names, and which member of it when that file is a zip (zip://member::file).

        A relative name is taken below the first of the folders.

        Raises:
            UserError: if it lies elsewhere.
        """
        file, member = name, None
        if name.startswith("zip://"):
            member, _, file = name.removeprefix("zip://").rpartition("::")
        path = Path(os.path.normpath(self.folders[0] / file if self.folders else file))
        if "://" not in file and "\0" not in file:
            for folder in self.folders:
                if (
                    path.is_relative_to(folder)
                    if self.links
                    else Path(os.path.realpath(path)).is_relative_to(_real(folder))
                ):
                    return path, member
        where = f"outside {self.folders[0]}" if self.folders else "outside the data set"
        raise UserError(f"names the file {name}, {where}; only files of the data set itself are read")


@cache
def _real(folder: Path) -> str:
    return os.path.realpath(folder)


def open_file(path: Path, member: str | None) -> Path | BinaryIO:
    """Something that Pillow and numpy can open, of a file that may be in a zip.

    Raises:
        OSError, ValueError: if there is no such file, or it isn't a regular one.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if member is None:
        return path
    try:
        archive = open_zip(path, status.st_mtime_ns)
        if archive.getinfo(member).file_size > LARGEST_MEMBER:
            raise ValueError(f"more than {LARGEST_MEMBER} bytes in a zip; unpack it")
        return io.BytesIO(archive.read(member))
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, KeyError) as error:
        raise ValueError(f"in a zip that can't be read: {error}") from error


@lru_cache(maxsize=8)
def open_zip(path: Path, changed: int) -> zipfile.ZipFile:
    """A zip last changed at that time, kept open: to find its members takes the longer, the more there are."""
    return zipfile.ZipFile(path)


@dataclass(frozen=True)
class Source:
    """Rows with undecoded images."""

    dataset: datasets.Dataset
    pieces: list[Piece]  # which rows of which splits they are
    place: Place
    name: str  # what the data set is called in messages
