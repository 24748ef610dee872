"""A folder of image files, as they lie on a disk or were packed into zips: classes, splits, captions beside them."""

import os
import stat
import zipfile
from collections.abc import Iterable
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
        return self.where.suffix.lower() in IMAGE_SUFFIXES

    @property
    def is_metadata(self) -> bool:
        return self.where.name in METADATA_FILES

    def split(self) -> str | None:
        """That whose folder it lies in."""
        return _SPLIT_OF.get(self.where.parts[0]) if len(self.where.parts) > 1 else None


def find(root: Path) -> list[Found]:
    """Images and metadata files below an absolute folder, also in zips, sorted.

    Raises:
        UserError: for a folder or zip that can't be read, or a name that isn't UTF-8.
    """
    found: list[Found] = []
    for path in _walk(root):
        where = PurePosixPath(path.relative_to(root).as_posix())
        if path.suffix.lower() == ".zip":
            found += _members(path, where)
        elif path.suffix.lower() in IMAGE_SUFFIXES or path.name in METADATA_FILES:
            # A link to nothing is an image that can't be read, like any other.
            status = path.stat() if path.exists() else path.lstat()
            found.append(Found(where, str(path), (status.st_size, status.st_mtime_ns)))
    for file in found:
        if not file.name.isprintable() and any("\ud800" <= c <= "\udfff" for c in file.name):
            raise UserError(f"{file.name}: the name isn't UTF-8, and can't be kept in a table; rename it")
    return found


def splits(files: Iterable[Found]) -> list[str]:
    """The splits of a folder whose images all lie in sub-folders named as splits; else `train` alone."""
    found = {file.split() for file in files if file.is_image}
    return [name for name in SPLITS if name in found] if found and None not in found else ["train"]


def open_files(root: Path, files: list[Found], split: str | None) -> datasets.Dataset:
    """The images of a split, or of the whole folder, with the columns of their metadata or their folders as classes.

    Without metadata: `image` and, when every image is in a sub-folder, `label`, which is that folder's path.
    (`datasets`' imagefolder drops the labels of folders at unequal depths and files whose path contains a word such as
    "test", counts the captions NA, null and None as missing, and would walk the tree a second time.)

    Raises:
        UserError: for metadata that can't be read, or that name files elsewhere.
    """
    metadata = [f for f in files if f.is_metadata and (split is None or f.split() in (split, None))]
    images = {f.where: f for f in files if f.is_image}
    if metadata:
        chosen = {w for w, f in images.items() if split is None or f.split() == split}
        return read_metadata(root, metadata, images, chosen)
    ours = [f for f in images.values() if split is None or f.split() == split]
    columns: dict = {"image": [f.name for f in ours]}
    features: dict = {"image": datasets.Image()}
    tops = 0 if split is None else 1
    classes = ["/".join(f.where.parent.parts[tops:]) for f in ours]
    if "" not in classes:
        columns["label"] = classes
        features["label"] = datasets.ClassLabel(names=sorted(set(classes)))
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    # from_dict hashes the paths alone; a file that is replaced must give another fingerprint.
    dataset._fingerprint = Hasher.hash([dataset._fingerprint, [f.stamp for f in ours]])
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
                if os.path.isdir(path):
                    (links if entry.is_symlink() else folders).append(path)
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
        if inside.is_absolute() or any(part.startswith((".", "__MACOSX")) for part in inside.parts):
            continue  # hidden; and nothing is unpacked, so a name that climbs leads nowhere
        if len(top.parts) == 1 and inside.parts[0] == where.stem:
            inside = inside.relative_to(where.stem)  # train.zip holds train/
        file = Found(top / inside, f"zip://{member.filename}::{path}", (member.file_size, member.CRC))
        if file.is_image or file.is_metadata:
            found.append(file)
    return found
