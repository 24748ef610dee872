"""Where images come from: the Hub, a local copy of a data set, a folder of files, or an embedded set."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow
from datasets.fingerprint import Hasher
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from snowmelt.data.cache import ImageCache, build_cache
from snowmelt.data.columns import image_column, read_labels
from snowmelt.data.embedded import EMBEDDED
from snowmelt.data.images import background_color
from snowmelt.errors import UserError, one_line
from snowmelt.options import DataOptions

IMAGE_SUFFIXES = {*ImageFolder.EXTENSIONS, ".npy"}
METADATA_FILES = set(ImageFolder.METADATA_FILENAMES)
SPLIT_FOLDERS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval"}


def load_images(options: DataOptions, choose: Callable[[int], np.ndarray] | None = None) -> ImageCache:
    """Open the data set that `options` name and decode its images, or find them decoded.

    Args:
        options: which data set.
        choose: from the number of its rows those to take; all by default.

    Raises:
        UserError: for anything in the options or the data that the user can mend.
    """
    background_color(options)  # refused here rather than after a download
    dataset = open_dataset(options)
    if len(dataset) == 0:
        raise UserError(f"--split {options.split}: no rows in it")
    column = image_column(dataset.features, options.image_column)
    labels, class_names = read_labels(dataset, options.label_column)
    if choose is None:
        return build_cache(dataset, options, image_column=column, labels=labels, class_names=class_names)
    rows = choose(len(dataset))
    labels = None if labels is None else labels[rows]
    cache = build_cache(dataset.select(rows), options, image_column=column, labels=labels, class_names=class_names)
    return replace(cache, rows=rows[cache.rows])


def open_dataset(options: DataOptions) -> datasets.Dataset:
    """The rows that `options` name, images undecoded.

    Raises:
        UserError: if the source, its configuration or the split doesn't exist, or two sources are given.
    """
    name, folder = options.dataset_name, options.train_data_dir
    if name and folder:
        raise UserError(f"--dataset_name {name} and --train_data_dir {folder}: give one of the two")
    if folder:
        return _open_folder(folder, options)
    if not name:
        raise UserError("no data: give --dataset_name (of the Hub, or 'digits' or 'scenes') or --train_data_dir")
    if name in EMBEDDED:
        _check_split(options.split, ["train"], name)
        return EMBEDDED[name]()
    if _is_saved(Path(name)):
        return _open_saved(name, options)
    return _open_named(name, options)


def _open_named(name: str, options: DataOptions) -> datasets.Dataset:
    """A data set of the Hub, or a local folder laid out like one."""
    try:
        builder = datasets.load_dataset_builder(name, options.dataset_config_name, cache_dir=options.cache_dir)
    except (FileNotFoundError, ConnectionError) as error:
        raise UserError(
            f"{name}: no such data set ({one_line(error)}); give user/name, a local path, 'digits' or 'scenes'"
        ) from error
    except RuntimeError as error:  # a data set that is a script, which datasets no longer runs
        raise UserError(f"{name}: {one_line(error)}; use a copy of it in parquet") from error
    except ValueError as error:
        if "BuilderConfig" not in str(error) and "Config name is missing" not in str(error):
            raise
        raise UserError(f"--dataset_config_name {options.dataset_config_name}: {one_line(error)}") from error
    # Before the download: as_dataset notices an unknown split only after it.
    _check_split(options.split, list(builder.info.splits or builder.config.data_files or []), name)
    with _readable(name):
        builder.download_and_prepare()
    try:
        return builder.as_dataset(options.split)
    except ValueError as error:  # a slice that can't be read, or that is empty
        raise UserError(f"--split {options.split}: {one_line(error)}") from error


@contextmanager
def _readable(source: str) -> Iterator[None]:
    """Whatever `datasets` finds wrong with files inside becomes a `UserError` with the reason that it gives."""
    try:
        yield
    except (datasets.exceptions.DatasetsError, pyarrow.ArrowException, ValueError, OSError) as error:
        reason = one_line(error.__cause__ or error)
        raise UserError(f"{source}: can't be read ({reason}); check its files, the network and the disk") from error


def _is_saved(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _open_saved(folder: str, options: DataOptions) -> datasets.Dataset:
    """What `save_to_disk` wrote."""
    saved = datasets.load_from_disk(folder)
    if isinstance(saved, datasets.Dataset):
        return saved
    _check_split(options.split, list(saved), folder)
    return saved[options.split]


def _open_folder(folder: str, options: DataOptions) -> datasets.Dataset:
    root = Path(folder).resolve()
    if not root.is_dir():
        raise UserError(f"--train_data_dir {folder}: no such folder")
    if _is_saved(root):
        return _open_saved(folder, options)
    files = _walk(root)
    if not any(_is_image_file(f) for f in files) and any(f.suffix == ".parquet" for f in files):
        return _open_named(str(root), options)
    root = _split_root(root, files, options.split)
    files = [f for f in files if f.is_relative_to(root)]
    images = [f for f in files if _is_image_file(f)]
    if not images:
        raise UserError(f"--train_data_dir {folder}: no image, .npy or .parquet file in it or below")
    if any(f.name in METADATA_FILES for f in files):
        with _readable(folder):
            return datasets.load_dataset(
                "imagefolder", data_dir=str(root), data_files="**", split="train", cache_dir=options.cache_dir
            )
    return _from_files(root, images)


def _from_files(root: Path, images: list[Path]) -> datasets.Dataset:
    """Columns `image` and, when every image is in a sub-folder, `label`: that folder's path below `root`.

    `datasets`' imagefolder drops the labels of folders at unequal depths, and files whose path happens to
    contain a word such as "test"; and it would walk the tree a second time.
    """
    columns: dict = {"image": [str(f) for f in images]}
    features: dict = {"image": datasets.Image()}
    classes = [f.parent.relative_to(root).as_posix() for f in images]
    if "." not in classes:
        columns["label"] = classes
        features["label"] = datasets.ClassLabel(names=sorted(set(classes)))
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    stats = [(s.st_size, s.st_mtime_ns) for s in map(os.stat, images)]
    # from_dict hashes the paths alone; a file that is replaced must give another fingerprint.
    dataset._fingerprint = Hasher.hash([dataset._fingerprint, stats])
    return dataset


def _walk(root: Path) -> list[Path]:
    """All files below a folder, sorted, through links and without the hidden ones."""
    files = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith(".")]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(files)


def _is_image_file(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _split_root(root: Path, files: list[Path], split: str) -> Path:
    """The sub-folder of a split when all that is at the top is folders named as splits; else `root`."""
    top = {f.relative_to(root).parts[0] for f in files if _is_image_file(f) or f.name in METADATA_FILES}
    if not top or not top <= SPLIT_FOLDERS:
        top = set()
    _check_split(split, sorted(top) or ["train"], str(root))
    return root / split if top else root


def _check_split(split: str, known: list[str], source: str) -> None:
    """Refuse a split, a sum or a slice of splits ("train[:10%]+test") with a name that isn't known."""
    names = {part.partition("[")[0].strip() for part in split.split("+")}
    if known and not names <= {*known, "all"}:
        raise UserError(f"--split {split}: {source} has {', '.join(map(str, known))}")
