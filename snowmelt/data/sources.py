"""Where images come from: the Hub, a local copy of a data set, a folder of files, or an embedded set."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import datasets
import numpy as np
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from snowmelt.data.agreement import Like
from snowmelt.data.buckets import build_images
from snowmelt.data.cache import ImageCache
from snowmelt.data.columns import image_column, read_labels
from snowmelt.data.embedded import EMBEDDED
from snowmelt.data.folders import Found, class_by_parent, class_by_path, find, listed, open_files, splits
from snowmelt.data.images import background_color
from snowmelt.data.places import Place, Source
from snowmelt.data.reading import readable_source, reason
from snowmelt.data.splits import Split, select
from snowmelt.data.store import cache_root
from snowmelt.errors import UserError, explained, one_line
from snowmelt.files import read_mapping
from snowmelt.options import DataOptions


def load_images(options: DataOptions, split: Split | None = None) -> ImageCache:
    """Open the data set that `options` name and decode its images, or find them decoded.

    Args:
        options: which data set.
        split: which rows, instead of those of `options.split`.

    Raises:
        UserError: for anything in the options or the data that the user can mend.
    """
    return images_of(open_dataset(options, split), options)


def images_of(
    source: Source, options: DataOptions, rows: np.ndarray | None = None, like: Like | None = None
) -> ImageCache:
    """The decoded images of a source.

    Args:
        source: of `open_dataset`.
        options: how they are decoded.
        rows: those to take, ascending; all by default.
        like: take the channels, the type and the range of values of these.

    Raises:
        UserError: for anything in the options or the data that the user can mend.
    """
    column = image_column(source.dataset.features, options.image_column)
    labels, class_names = read_labels(source.dataset, options.label_column)
    if rows is not None:
        labels = None if labels is None else labels[rows]
        source = replace(source, dataset=source.dataset.select(rows))
    cache = build_images(source, options, image_column=column, labels=labels, class_names=class_names, like=like)
    return cache if rows is None else replace(cache, rows=rows[cache.rows])


def open_dataset(options: DataOptions, split: Split | None = None) -> Source:
    """The rows that `options` name, images undecoded; at least one.

    Args:
        options: which data set.
        split: which rows, instead of those of `options.split`.

    Raises:
        UserError: if the source, its configuration or the split doesn't exist, or two sources are given.
    """
    wanted = split or Split(options.split)
    name, root = find_source(options, wanted)
    if root:
        return _open_folder(root, name, options, wanted)
    if name in EMBEDDED:
        _check_unconfigured(options, name)
        return Source(*select(wanted, ["train"], lambda _: EMBEDDED[name](), name), Place(), name)
    return _open_named(name, options, wanted, None)


def find_source(options: DataOptions, wanted: Split) -> tuple[str, Path | None]:
    """The name of the data set that `options` name, and the folder that it is, if it is one.

    Args:
        options: which data set.
        wanted: which rows.

    Raises:
        UserError: if there is no such folder, two sources are given, or other options can't be read.
    """
    background_color(options)  # this and what follows is refused here rather than after a download
    cache_root(options)
    wanted.names()
    name, folder = options.dataset_name, options.train_data_dir
    if name and folder:
        raise UserError(f"--dataset_name {name} and --train_data_dir {folder}: give one of the two")
    if folder:
        root = _folder(folder)
        if root is None:
            raise UserError(f"--train_data_dir {folder}: no such folder")
        return folder, root
    if not name:
        raise UserError("no data: give --dataset_name (of the Hub, or 'digits' or 'scenes') or --train_data_dir")
    if name in EMBEDDED:
        return name, None
    root = _folder(name)
    if root is None and (os.path.exists(name) or name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise UserError(f"--dataset_name {name}: no such folder; give one, or user/name for the Hub")
    return name, root


def _folder(name: str) -> Path | None:
    try:
        root = Path(name).resolve()
        return root if root.is_dir() else None
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a null byte
        raise UserError(f"{name}: {explained(error) if isinstance(error, OSError) else one_line(error)}") from error


def _open_folder(root: Path, name: str, options: DataOptions, wanted: Split) -> Source:
    """What `save_to_disk` wrote, image files, or files as on the Hub, which `datasets` can read."""
    if (root / "state.json").is_file() or (root / "dataset_dict.json").is_file():
        _check_unconfigured(options, name)
        return _open_saved(root, name, wanted)
    files = image_files(root)
    if files is None:
        if options.dataset_name or any(root.rglob("*.parquet")):
            return _open_named(str(root), options, wanted, root)
        raise UserError(f"--train_data_dir {name}: no image, .npy, .zip or .parquet file in it or below")
    _check_unconfigured(options, name)
    dataset, pieces = select(wanted, *folder_splits(root, files), name)
    return Source(dataset, pieces, Place((root,), links=True), name)


def folder_splits(root: Path, files: list[Found]) -> tuple[list[str], Callable[[str], datasets.Dataset]]:
    """The splits of a folder of images, and what opens one of them."""
    known, depth = splits(files)

    def open_split(split: str) -> datasets.Dataset:
        # Metadata above the splits are for all of them.
        chosen = [f for f in files if f.split(depth) == split or (depth == 0 or f.is_metadata) and not f.split(depth)]
        return open_files(root, files, chosen, partial(class_by_path, depth=depth))

    return known, open_split


def image_files(root: Path) -> list[Found] | None:
    """The files of a folder of images; None of any other, and of one whose card says what is in it."""
    card = root / "README.md"
    head = card.read_bytes()[: 2**16].decode(errors="replace") if card.is_file() else ""
    files = find(root)
    return files if any(file.is_image for file in files) and "configs:" not in head else None


def _open_saved(root: Path, name: str, wanted: Split) -> Source:
    """What `save_to_disk` wrote: a `Dataset`, which is the split train, or a `DatasetDict`."""
    known = ["train"]
    if not (root / "state.json").is_file():
        known = read_mapping(root / "dataset_dict.json", {"splits": list})["splits"]
        for split in known:
            if not isinstance(split, str) or not re.fullmatch(r"\w+(\.\w+)*", split):
                raise UserError(f"{root}/dataset_dict.json: {split!r} is not the name of a split; restore it")

    def open_split(split: str) -> datasets.Dataset:
        folder = root if (root / "state.json").is_file() else root / split
        state = read_mapping(folder / "state.json", {"_data_files": list})
        for file in state["_data_files"]:
            if not isinstance(file, dict) or Path(str(file.get("filename", "/"))).name != file.get("filename"):
                raise UserError(f"{folder}/state.json: {file!r} is not a file beside it; restore it")
        for path in (folder / "dataset_info.json", *(folder / file["filename"] for file in state["_data_files"])):
            if not path.is_file():  # a FIFO would block
                raise UserError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}; restore it")
        with readable_source(f"{name}: split {split}"):
            return datasets.Dataset.load_from_disk(str(folder))

    dataset, pieces = select(wanted, known, open_split, name)
    return Source(dataset, pieces, Place((root,)), name)


def load_builder(name: str, options: DataOptions, root: Path | None) -> datasets.DatasetBuilder:
    """What `datasets` knows of a data set of the Hub, or of a local folder laid out like one, before it reads it.

    Args:
        name: on the Hub, or the folder.
        options: its configuration.
        root: the folder.

    Raises:
        UserError: if there is no such, or its card names files elsewhere.
    """
    try:
        builder = datasets.load_dataset_builder(name, options.dataset_config_name, cache_dir=options.cache_dir)
    except Exception as error:  # as in readable_source, but with more to say
        said = one_line(error)
        if isinstance(error, ValueError) and ("BuilderConfig" in said or "Config name is missing" in said):
            given = options.dataset_config_name
            raise UserError(f"--dataset_config_name{f' {given}' if given else ''}: {said}") from error
        if isinstance(error, RuntimeError) and "script" in said:  # which datasets no longer runs
            raise UserError(f"{name}: {said}; use a copy of it in parquet") from error
        raise UserError(f"{name}: can't be opened: {reason(error)}; or give another --dataset_name") from error
    _check_data_files(builder, root)
    return builder


def _open_named(name: str, options: DataOptions, wanted: Split, root: Path | None) -> Source:
    """A data set of the Hub, or a local folder laid out like one."""
    builder = load_builder(name, options, root)
    # Before the download: the splits are known from the files' names, or the card.
    known = [str(split) for split in builder.info.splits or builder.config.data_files or []]
    if known:
        wanted.check(known, name)
    # Downloads of a repository lie in a folder of its own.
    own = root or Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="dataset"))
    if isinstance(builder, ImageFolder):
        return _open_image_files(builder, name, wanted, own)
    with readable_source(name):
        builder.download_and_prepare()
        known = [str(split) for split in builder.info.splits]

    def open_split(split: str) -> datasets.Dataset:
        if builder.info.splits[split].num_examples == 0:  # which as_dataset takes for a mistake
            raise UserError(f"{wanted}: no rows in it; {name} has none in {split}")
        with readable_source(f"{name}: split {split}"):
            return builder.as_dataset(split)

    dataset, pieces = select(wanted, known, open_split, name)
    return Source(dataset, pieces, Place((own,)), name)


def _open_image_files(builder: datasets.DatasetBuilder, name: str, wanted: Split, own: Path) -> Source:
    """A data set of image files, on the Hub or with a card: downloaded, and read as a folder of them is."""
    found = {}
    for split, addresses in builder.config.data_files.items():
        with readable_source(name):
            local = download(builder, list(addresses))
        found[str(split)] = listed(zip([inside(a, own) for a in addresses], map(Path, local), strict=True))
    everything = [file for files in found.values() for file in files]
    dataset, pieces = select(
        wanted, list(found), lambda split: open_files(own, everything, found[split], class_by_parent), name
    )
    return Source(dataset, pieces, Place((own,)), name)


def download(builder: datasets.DatasetBuilder, addresses: list[str]) -> list[str]:
    """Paths of a data set's files on this machine."""
    config = datasets.DownloadConfig(cache_dir=builder._cache_downloaded_dir, token=builder.token)
    return datasets.DownloadManager(download_config=config).download(addresses)


def inside(address: str, own: Path) -> PurePosixPath:
    """Where in its data set a file is: of hf://datasets/user/name@revision/a/b.png, or a path below `own`, a/b.png."""
    where = PurePosixPath(re.sub(r"^hf://datasets/[^@]+@[^/]+/", "", address))
    return where.relative_to(own) if where.is_absolute() else where


def _check_data_files(builder: datasets.DatasetBuilder, root: Path | None) -> None:
    """A data set's card may name its files, also by absolute paths and addresses of others."""
    base = f"{root}/" if root else "hf://datasets/"
    for files in (builder.config.data_files or {}).values():
        for file in files:
            if not str(file).startswith(base):
                where = root or "the Hub"
                raise UserError(f"{builder.dataset_name}: its card names the file {file}, outside of {where}")


def _check_unconfigured(options: DataOptions, name: str) -> None:
    if options.dataset_config_name:
        raise UserError(
            f"--dataset_config_name {options.dataset_config_name}: {name} has no configurations; leave it out"
        )
