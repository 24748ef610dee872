"""Where the shards of a data set lie that is streamed: in a folder, on the Hub, in an object store."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import pyarrow.parquet
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from snowmelt.data.embedded import EMBEDDED
from snowmelt.data.folders import Found, class_by_parent, listed, open_files
from snowmelt.data.places import Place
from snowmelt.data.reading import readable_source
from snowmelt.data.shards import FORMATS, Format
from snowmelt.data.sources import download, find_source, folder_splits, image_files, inside, load_builder
from snowmelt.data.splits import Split
from snowmelt.data.storage import Storage, open_storage
from snowmelt.data.store import cache_root, open_store
from snowmelt.errors import UserError
from snowmelt.options import DataOptions

VERSION = 1  # of the list of a folder's images: raised when it changes
ROWS = "rows.parquet"
LISTED = 256
"""Files of a folder of images that are read together."""


@dataclass(frozen=True)
class Shards:
    """The files of a data set, or what a folder of images is listed in.

    Attributes:
        name: of the data set, in messages.
        storage: that the shards are in.
        paths: of the shards of each split; of folders of images, of each that was asked for.
        format: of all of them.
        features: that its card declares.
        place: where files may lie that rows name, on this machine.
        images: where they are, elsewhere: a storage, and the path below which they must lie.
        identity: a key of the contents, where the shards themselves are no such.
    """

    name: str
    storage: Storage
    paths: dict[str, list[str]]
    format: Format
    features: datasets.Features | None = None
    place: Place = Place()
    images: tuple[Storage, str] | None = None
    identity: str | None = None


def find_shards(options: DataOptions, wanted: Split) -> Shards:
    """The shards of the data set that `options` name.

    Args:
        options: which data set.
        wanted: which rows.

    Raises:
        UserError: if there is no such data set or split, or it isn't of a kind that is streamed.
    """
    given = options.train_data_dir or options.dataset_name or ""
    if "://" in given:
        return _of_url(given, options, wanted)
    name, root = find_source(options, wanted)
    if root is None and name in EMBEDDED:
        raise UserError(f"--streaming: {name} comes with the project, and is in memory; leave out --streaming")
    if root is not None:
        if (root / "state.json").is_file() or (root / "dataset_dict.json").is_file():
            raise UserError(f"--streaming: {name} was written by save_to_disk; write it by to_parquet")
        files = image_files(root)
        if files is not None:
            return _of_images(name, files, *folder_splits(root, files), options, wanted, Place((root,), links=True))
    builder = load_builder(name if root is None else str(root), options, root)
    addresses = {str(split): list(map(str, files)) for split, files in (builder.config.data_files or {}).items()}
    wanted.check(list(addresses), name)
    if isinstance(builder, ImageFolder):
        return _of_addresses(name, builder, addresses, options, wanted, root)
    return _of_files(name, addresses, Place((root,)) if root else Place(), builder.info.features)


def _of_files(
    name: str, addresses: dict[str, list[str]], place: Place, features: datasets.Features | None = None
) -> Shards:
    """Files of one of `FORMATS`."""
    suffixes = {PurePosixPath(file).suffix.lower() for files in addresses.values() for file in files}
    if len(suffixes) != 1 or not suffixes <= FORMATS.keys():
        found = ", ".join(sorted(suffixes)) or "no"
        raise UserError(
            f"--streaming: reads {', '.join(FORMATS)} and images, and {name} has {found} files; leave out --streaming"
        )
    paths: dict[str, list[str]] = {}
    for split, files in addresses.items():
        for file in files:
            storage, path = open_storage(file)
            paths.setdefault(split, []).append(path)
    return Shards(name, storage, paths, FORMATS[suffixes.pop()], features, place)


def _of_url(url: str, options: DataOptions, wanted: Split) -> Shards:
    """A folder of an object store, or of the Hub."""
    wanted.names()
    if options.dataset_config_name:
        raise UserError(f"--dataset_config_name {options.dataset_config_name}: {url} has none; leave it out")
    storage, base = open_storage(url)
    found: dict[str, dict] = storage.retried(lambda: storage.fs.find(base, detail=True), base)
    if not any(PurePosixPath(path).suffix.lower() in FORMATS for path in found):
        files = [
            Found(PurePosixPath(path).relative_to(base), storage.fs.unstrip_protocol(path), (info["size"] or 0, 0))
            for path, info in found.items()
        ]
        if not any(file.is_image for file in files):
            raise UserError(f"{url}: no {', '.join(FORMATS)} or image file in it or below")
        if any(file.is_metadata for file in files):
            raise UserError(f"{url}: metadata beside images are read on disks and the Hub alone; write parquet files")
        listing = folder_splits(Path(base), files)
        return _of_images(url, files, *listing, options, wanted, Place(), (storage, base))
    with readable_source(url):
        patterns = DataFilesDict.from_patterns(get_data_patterns(url), base_path=url)
    addresses = {
        str(split): [str(file) for file in files if PurePosixPath(file).suffix.lower() in FORMATS]
        for split, files in patterns.items()
    }
    wanted.check(list(addresses), url)
    return _of_files(url, addresses, Place())


def _of_addresses(
    name: str, builder: Any, addresses: dict[str, list[str]], options: DataOptions, wanted: Split, root: Path | None
) -> Shards:
    """Image files that `datasets` has listed: on the Hub, where they stay but for metadata, or with a card."""
    own = root or Path(builder._cache_downloaded_dir)
    found: dict[str, list[Found]] = {}
    for split, files in addresses.items():
        if any(address.lower().endswith(".zip") for address in files):
            raise UserError(f"--streaming: reads no zips, as {name} has; leave out --streaming")
        here = [a for a in files if root or Found(PurePosixPath(a), a, (0, 0)).is_metadata]
        with readable_source(name):
            local = here if root else download(builder, here)
        found[split] = listed(zip([inside(a, own) for a in here], map(Path, local), strict=True))
        found[split] += [Found(inside(a, own), a, (0, 0)) for a in set(files).difference(here)]
        found[split].sort(key=lambda file: file.where)
    everything = [file for files in found.values() for file in files]

    def open_split(split: str) -> datasets.Dataset:
        return open_files(own, everything, found[split], class_by_parent)

    if root:
        return _of_images(name, everything, list(found), open_split, options, wanted, Place((root,)))
    address = next(iter(addresses.values()))[0]
    storage, path = open_storage(address)
    below = path.removesuffix(str(inside(address, own))).rstrip("/")
    return _of_images(name, everything, list(found), open_split, options, wanted, Place(), (storage, below))


def _of_images(
    name: str,
    files: list[Found],
    known: list[str],
    open_split: Callable[[str], datasets.Dataset],
    options: DataOptions,
    wanted: Split,
    place: Place,
    images: tuple[Storage, str] | None = None,
) -> Shards:
    """Image files, listed in a parquet file for each split, which is kept."""
    wanted.check(known, name)
    names = wanted.names()
    paths = {}
    for split in known if "all" in names else [split for split in known if split in names]:
        dataset = open_split(split)
        key = {"version": VERSION, "images": dataset._fingerprint}
        folder = cache_root(options) / _hash(key)

        def build(partial: Path, dataset: datasets.Dataset = dataset) -> dict[str, Any]:
            table = dataset.with_format("arrow")[:].cast(dataset.features.arrow_schema)
            pyarrow.parquet.write_table(table, partial / ROWS, row_group_size=LISTED)
            return {}

        open_store(folder, key, (ROWS,), build)
        paths[split] = [str(folder / ROWS)]
    storage, _ = open_storage(str(cache_root(options)))
    identity = _hash([(str(file.where), file.stamp[0]) for file in files])
    return Shards(name, storage, paths, FORMATS[".parquet"], None, place, images, identity)


def _hash(key: Any) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
