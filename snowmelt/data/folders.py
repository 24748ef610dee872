"""A folder of image files, as they lie on a disk or were packed into zips: classes, splits, captions beside them."""

import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import datasets
from datasets.fingerprint import Hasher
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from snowmelt.data.metadata import METADATA_FILES, read_metadata
from snowmelt.data.places import open_zip
from snowmelt.errors import UserError, explained, printable

IMAGE_SUFFIXES = {*ImageFolder.EXTENSIONS, ".npy"}
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
"""Splits, and the folders that are taken for them, as `datasets` does."""
_SPLIT_OF = {folder: split for split, folders in SPLITS.items() for folder in folders}


class Found(NamedTuple):
    """A file, perhaps in a zip."""

    where: PurePosixPath  # below the top, as if zips were unpacked where they lie
    name: str  # as rows name it: an absolute path, or zip://member::path
    stamp: tuple[int, int]  # differs where contents do: size, and time of change or checksum

    @property
    def is_image(self) -> bool:
        """Whether its suffix is among `IMAGE_SUFFIXES`, in lower or upper case."""
        return self.where.suffix.lower() in IMAGE_SUFFIXES

    @property
    def is_metadata(self) -> bool:
        """Whether it bears a name of `METADATA_FILES`."""
        return self.where.name in METADATA_FILES

    def split(self, depth: int) -> str | None:
        """The split whose folder it lies in, where such folders are the `depth`-th on the way to a file."""
        return _SPLIT_OF.get(self.where.parts[depth - 1]) if len(self.where.parts) > depth > 0 else None


def find(root: Path) -> list[Found]:
    """Images and metadata files below an absolute folder, also in zips, sorted.

    Raises:
        UserError: for a folder or zip that can't be read, or a name that isn't UTF-8.
    """
    return listed((PurePosixPath(path.relative_to(root).as_posix()), path) for path in _walk(root))


def listed(files: Iterable[tuple[PurePosixPath, Path]]) -> list[Found]:
    """Images and metadata files among these, also in zips, of which is given where they are and where they lie.

    Raises:
        UserError: for a zip that can't be read, or a name that isn't UTF-8.
    """
    found: list[Found] = []
    for where, path in files:
        if where.suffix.lower() == ".zip":
            found += _members(path, where)
        elif where.suffix.lower() in IMAGE_SUFFIXES or where.name in METADATA_FILES:
            try:
                status = path.stat()
            except OSError:  # a link to nothing is an image that can't be read, like any other
                status = path.lstat()
            found.append(Found(where, str(path), (status.st_size, status.st_mtime_ns)))
    for file in found:
        if any("\ud800" <= c <= "\udfff" for c in file.name):
            raise UserError(f"{file.name}: the name isn't UTF-8, and can't be kept in a table; rename it")
    return found


def splits(files: Iterable[Found]) -> tuple[list[str], int]:
    """The splits of a folder: those whose folders hold all images, at the top or in one folder there; else `train`.

    Returns:
        Their names, and at which depth their folders are: 0 where there are none.
    """
    images = [file for file in files if file.is_image]
    for depth in range(1, min((len(f.where.parts) for f in images), default=1)):
        found = {file.split(depth) for file in images}
        if None not in found:
            return [name for name in SPLITS if name in found], depth
        if len({file.where.parts[:depth] for file in images}) > 1:
            break
    return ["train"], 0


def class_by_path(file: Found, depth: int = 0) -> str:
    """The folder of an image, below that at a depth."""
    return "/".join(file.where.parent.parts[depth:])


def class_by_parent(file: Found) -> str:
    """The name of an image's folder, unless that is a split's: the rule of `datasets`."""
    return "" if file.where.parent.name in _SPLIT_OF else file.where.parent.name


def open_files(
    root: Path, files: Sequence[Found], chosen: Sequence[Found], class_of: Callable[[Found], str]
) -> datasets.Dataset:
    """Some images of a folder, with the columns of their metadata or, without any, the classes of their folders.

    `datasets`' own imagefolder drops the labels of folders at unequal depths and files whose path contains a word such
    as "test", takes captions such as NA and null for missing ones, and mistakes the labels in zips.

    Args:
        root: the folder.
        files: all in it.
        chosen: those of a split, with the metadata for it.
        class_of: the class of an image, or "".

    Returns:
        Columns `image` and either those of the metadata or, when each chosen image has a class, `label`.

    Raises:
        UserError: for metadata that can't be read, or that name files elsewhere.
    """
    metadata = [f for f in chosen if f.is_metadata]
    images = [f for f in chosen if f.is_image]
    if metadata:
        return read_metadata(root, metadata, {f.where: f for f in files if f.is_image}, {f.where for f in images})
    columns: dict = {"image": [f.name for f in images]}
    features: dict = {"image": datasets.Image()}
    classes = [class_of(f) for f in images]
    if all(classes):
        columns["label"] = classes
        names = {class_of(f) for f in files if f.is_image} - {""}  # the same for all splits
        features["label"] = datasets.ClassLabel(names=sorted(names))
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    # from_dict hashes the paths alone; a file that is replaced must give another fingerprint.
    dataset._fingerprint = Hasher.hash([dataset._fingerprint, [f.stamp for f in images]])
    return dataset


def _walk(root: Path) -> list[Path]:
    """All files below a folder, sorted, through links and without the hidden ones. Each folder is read once."""
    files: list[Path] = []
    again: list[str] = []
    seen = {_identity(folder) for folder in root.parents}  # a link to one of them leads back here
    folders, links = [root], []  # type: ignore[var-annotated]
    while folders or links:
        links.sort(reverse=True)
        folder = folders.pop() if folders else links.pop()
        try:
            identity = _identity(folder)
            if identity in seen:
                again.append(folder.relative_to(root).as_posix())
                continue
            seen.add(identity)
            for entry in sorted(os.scandir(folder), key=lambda e: e.name):
                if entry.name.startswith("."):
                    continue
                path = Path(entry.path)
                if entry.is_symlink() and os.path.isdir(path):
                    links.append(path)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                else:
                    files.append(path)
        except OSError as error:
            raise UserError(f"a folder of images can't be read: {explained(error)}") from error
    if again:
        shown = ", ".join(again[:5]) + (", ..." if len(again) > 5 else "")
        print(printable(f"{root}: left out {len(again)} links to folders that are read already: {shown}"))
    return sorted(files)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _members(path: Path, where: PurePosixPath) -> list[Found]:
    """Images and metadata files in a zip: train.zip at the top is the split train."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        members = [m for m in open_zip(path, status.st_mtime_ns).infolist() if not m.is_dir()]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        reason = explained(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: a zip that can't be read ({reason}); replace or remove it") from error
    top = where.parent
    if len(where.parts) == 1 and where.stem in _SPLIT_OF:
        top = PurePosixPath(where.stem)
    found = []
    for member in sorted(members, key=lambda m: m.filename):
        inside = PurePosixPath(os.path.normpath(member.filename))
        if inside.is_absolute() or inside.parts[0] == "..":
            raise UserError(f"{path}: holds a file called {member.filename}, which leads out of it; remove it")
        if any(part.startswith((".", "__MACOSX")) for part in inside.parts):
            continue  # hidden
        if len(top.parts) == 1 and inside.parts[0] == where.stem:
            inside = inside.relative_to(where.stem)  # train.zip holds train/
        file = Found(top / inside, f"zip://{member.filename}::{path}", (member.file_size, member.CRC))
        if file.is_image or file.is_metadata:
            found.append(file)
    return found
