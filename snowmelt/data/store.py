"""Folders of cached files: built once, by one process while the others wait, and verified before they are used."""

import contextlib
import errno
import json
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME

from snowmelt.data.locks import locked
from snowmelt.errors import UserError, explained, printable
from snowmelt.files import read_mapping
from snowmelt.options import ImageOptions

FORMAT = 2  # of the manifest: raised when it changes
MANIFEST = "cache.json"
# Files up to this size are read whole. Of larger ones, of which that would take minutes, blocks are read, and the time
# of their last change must be the recorded one. CRC-32 reads 2 GB a second; it is for accidents, not for forgers, who
# could write a manifest too.
WHOLE, BLOCK, BLOCKS = 2**28, 2**16, 2**12


def cache_root(options: ImageOptions) -> Path:
    """The folder of caches, which need not exist yet.

    Raises:
        UserError: if it can't be made or read.
    """
    root = Path(options.cache_dir or HF_HOME) / "snowmelt"
    with _named(root):
        for folder in (root, *root.parents):
            try:
                kind = folder.stat().st_mode
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(kind):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
            if not os.access(folder, os.X_OK if folder == root else os.X_OK | os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
            break
    return root


def open_store(
    folder: Path,
    key: dict[str, Any],
    names: Sequence[str],
    build: Callable[[Path], dict[str, Any]],
    *,
    resumable: bool = False,
) -> dict[str, Any]:
    """Verify a cached folder; build it first when no process has done so yet, or when it isn't what was written.

    It is written beside its final name and renamed when complete.

    Args:
        folder: where it is; its name follows from `key`.
        key: all that its content depends on, as JSON holds it.
        names: its files.
        build: writes them into the folder that it is given, and returns what is to be remembered with them.
        resumable: whether `build` resumes from what a killed process has left, or an error leaves.

    Returns:
        What `build` returned.

    Raises:
        UserError: if the disk is full, or the folder can't be written; and what `build` raises.
    """
    found = _verified(folder, key, names)
    if isinstance(found, dict):
        return found
    with _lock(folder):
        found = _verified(folder, key, names)  # another process may have built it while this one waited
        if isinstance(found, dict):
            return found
        with _named(folder.parent):
            if os.path.lexists(folder):
                print(printable(f"{folder}: {found}; building it again"), flush=True)
                _remove(folder)
            partial = folder.with_suffix(".partial")
            if not (resumable and partial.is_dir() and not partial.is_symlink()):
                _remove(partial)  # its builder was killed
                partial.mkdir()
        try:
            content = build(partial)
            body = {"format": FORMAT, "key": key, "files": {n: _stamp(partial / n) for n in names}, "content": content}
            (partial / MANIFEST).write_text(json.dumps(body | {"crc": _crc_of(body)}))
            os.rename(partial, folder)
        except BaseException as error:
            if not resumable:
                _remove(partial)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(f"{folder.parent}: disk full; free some space or give another --cache_dir") from error
            raise
    return json.loads(json.dumps(content))  # as it will be found again


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse what doesn't fit on the disk of a folder.

    Args:
        folder: the folder, which exists.
        needed: bytes.
        what: takes them, in the plural, for the message.

    Raises:
        UserError: if they aren't free there.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: {what} need {in_units(needed)} and {in_units(free)} are free; free some space or give another "
            "--cache_dir"
        )


def in_units(count: float) -> str:
    """A number of bytes with a decimal unit, such as "1.5 GB"."""
    units = ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while count >= 1000 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.0f} {units[0]}" if count >= 100 or units[0] == "bytes" else f"{count:.1f} {units[0]}"


def _verified(folder: Path, key: dict[str, Any], names: Sequence[str]) -> dict[str, Any] | str:
    """What was remembered with a folder's files, or what is wrong with it."""
    if not os.path.lexists(folder):
        return "there is none"
    try:
        manifest = read_mapping(folder / MANIFEST, {"files": dict, "key": dict, "content": dict, "crc": int})
    except UserError:
        return "its manifest is missing, damaged or of an older version"
    body = {name: value for name, value in manifest.items() if name != "crc"}
    if manifest["crc"] != _crc_of(body) or manifest["key"] != key or set(manifest["files"]) != set(names):
        return "its manifest is damaged, or of other data"
    for name, written in manifest["files"].items():
        try:
            if (size := (folder / name).stat().st_size) != written["size"]:
                return f"{name} has {size} bytes, and was written with {written['size']}"
            if _stamp(folder / name) != written:
                return f"{name} has changed since it was written"
        except OSError as error:
            return explained(error)
    return manifest["content"]


def _stamp(path: Path) -> dict[str, int]:
    """What tells a file from another: its size and a checksum; of a large one its time of change too."""
    if not path.is_file():  # a FIFO, say, which would block
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        size, crc = status.st_size, 0
        starts: Iterator[int] | range = range(0, size, BLOCK)
        if size > WHOLE:
            starts = ((size - BLOCK) * n // (BLOCKS - 1) for n in range(BLOCKS))
        for start in starts:
            file.seek(start)
            crc = zlib.crc32(file.read(BLOCK), crc)
    return {"size": size, "crc": crc} | ({"changed": status.st_mtime_ns} if size > WHOLE else {})


def _crc_of(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        with _named(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder, "building the cache"))
        yield


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """What the operating system refuses there is said with the option that can change it."""
    try:
        yield
    except (OSError, NotImplementedError) as error:  # the latter of a file system without locks
        reason = explained(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"--cache_dir: the cache {folder} can't be used ({reason})") from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
