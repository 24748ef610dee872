"""What is in the shards of a data set: the units that they are read by, the columns, the classes; built once."""

import hashlib
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tqdm import tqdm

from snowmelt.data.columns import is_class, label_column
from snowmelt.data.shards import TAR_UNIT, Part, Scan
from snowmelt.data.splits import Piece, Split
from snowmelt.data.store import cache_root, open_store
from snowmelt.data.stream_source import Shards, find_shards
from snowmelt.errors import UserError
from snowmelt.options import DataOptions

VERSION = 1  # of what is kept: raised when it changes
UNITS = "units.npy"
FILE, START, STOP, SKIP, ROWS, FIRST = range(6)
"""Columns of units: the shard, its `Part`, the rows of that before the first that is taken, and those taken; the
number of the first in the data set."""
SCANNERS = 16
"""Shards that are looked into at once."""
TAIL = 2**16
"""Bytes at the end of a shard, where parquet keeps what it says of all others, that tell its content."""


@dataclass(frozen=True)
class Index:
    """The rows of a data set that are streamed.

    Attributes:
        shards: that they are in.
        files: path and size of each shard.
        units: (U, 6) int64, see `FILE` to `FIRST`, in the order of the data set's rows.
        features: the columns.
        pieces: which rows of which splits they are.
        label_column: of their classes, where these were asked for.
        classes: what is in that column, by the number of the class.
        class_names: of these.
        fingerprint: a key of the contents.
    """

    shards: Shards
    files: list[tuple[str, int]]
    units: np.ndarray
    features: datasets.Features
    pieces: list[Piece]
    label_column: str | None
    classes: list[Any]
    class_names: list[str] | None
    fingerprint: str

    def select(self, units: np.ndarray) -> "Index":
        """Some of the units, (U,) int64, alone."""
        return replace(self, units=self.units[units], fingerprint=_hash([self.fingerprint, units.tolist()]))


class RowNumbers:
    """The row of the data set that each image comes from; they aren't held."""

    def __init__(self, units: np.ndarray) -> None:
        self.firsts = units[:, FIRST]
        self.stops = np.cumsum(units[:, ROWS])

    def __getitem__(self, images: np.ndarray) -> np.ndarray:
        units = np.searchsorted(self.stops, images, side="right")
        return self.firsts[units] + images - np.concatenate([[0], self.stops])[units]


def build_index(options: DataOptions, wanted: Split, *, labels: bool, shards: Shards | None = None) -> Index:
    """Look into the shards of the data set that `options` name, or find what was found there.

    Args:
        options: which data set.
        wanted: which rows.
        labels: whether their classes are needed.
        shards: take these instead of looking for them.

    Raises:
        UserError: for anything in the options or the data that the user can mend.
    """
    shards = shards or find_shards(options, wanted)
    wanted.check(list(shards.paths), shards.name)
    names = wanted.names()
    splits = [name for name in shards.paths if name in names or "all" in names]
    paths = [path for name in splits for path in shards.paths[name]]
    with ThreadPoolExecutor(SCANNERS) as pool:
        infos = list(pool.map(lambda path: _info(shards, path), paths))
    key = {"version": VERSION, "files": [*zip(paths, *zip(*infos, strict=True), strict=True)]}
    key = json.loads(json.dumps(key | {"label_column": options.label_column, "labels": labels}))
    sizes = [size for size, _ in infos]
    content = open_store(
        cache_root(options) / _hash(key),
        key,
        (UNITS,),
        lambda folder: _build(folder, shards, [*zip(paths, sizes, strict=True)], options.label_column, labels),
    )
    units = np.load(cache_root(options) / _hash(key) / UNITS)
    features = datasets.Features.from_dict(content["features"])
    if shards.features is not None and shards.features.keys() == features.keys():
        features = shards.features
    column, classes = _classes(features, options.label_column, content["values"]) if labels else (None, [])
    names_of = [*features[column].names] if column and isinstance(features[column], datasets.ClassLabel) else classes
    class_names = [str(name) for name in names_of] if column else None
    counts = np.bincount(units[:, FILE], weights=units[:, ROWS], minlength=len(paths)).astype(int).tolist()
    of_split = [name for name in splits for _ in shards.paths[name]]
    lengths = {name: sum(n for n, own in zip(counts, of_split, strict=True) if own == name) for name in splits}
    pieces = wanted.pieces(lengths)
    firsts = dict(zip(splits, np.cumsum([0, *lengths.values()]).tolist(), strict=False))
    chosen = np.concatenate([_cut(units, firsts[name] + first, firsts[name] + last) for name, first, last in pieces])
    return Index(
        shards=shards,
        files=[*zip(paths, sizes, strict=True)],
        units=np.column_stack([chosen, np.cumsum(chosen[:, ROWS]) - chosen[:, ROWS]]),
        features=features,
        pieces=pieces,
        label_column=column,
        classes=classes,
        class_names=class_names,
        fingerprint=_hash([shards.identity or content["identity"], pieces, class_names]),
    )


def _info(shards: Shards, path: str) -> tuple[int, str]:
    """The size of a shard, and what differs where its content does."""
    info = shards.storage.retried(lambda: shards.storage.fs.info(path), path)
    names = ("ETag", "etag", "blob_id", "mtime", "last_modified", "LastModified", "updated")
    return int(info["size"]), str(next((info[name] for name in names if info.get(name)), ""))


def _build(
    folder: Path, shards: Shards, files: list[tuple[str, int]], column: str | None, labels: bool
) -> dict[str, Any]:
    """Look into all shards; what is to be known of them."""
    storage = shards.storage

    def scan(file: tuple[str, int], column: str | None) -> tuple[Scan, int]:
        path, size = file
        tail = storage.retried(lambda: storage.read(path, max(0, size - TAIL), size), path)
        return storage.retried(lambda: shards.format.scan(storage, path, size, column), path), zlib.crc32(tail)

    first, _ = scan(files[0], None)
    if labels:
        column = label_column(shards.features or first.features, column)
    units, values, identity = [], set(), []
    with ThreadPoolExecutor(SCANNERS) as pool:
        results = pool.map(lambda file: scan(file, column if labels else None), files)
        for number, (found, tail) in enumerate(tqdm(results, "looking into shards", len(files), unit="shard")):
            _check_same(shards, files[0][0], first.features, files[number][0], found.features)
            units += [(number, part.start, part.stop, 0, part.rows) for part in found.parts]
            values |= found.values
            identity.append([files[number][1], found.parts, tail])
    np.save(folder / UNITS, np.array(units, np.int64).reshape(-1, 5))
    kept = sorted(values, key=lambda value: (value is not None, value))
    return {"features": first.features.to_dict(), "values": kept, "identity": _hash(identity)}


def _check_same(shards: Shards, path: str, features: datasets.Features, other: str, theirs: datasets.Features) -> None:
    """Refuse shards whose columns differ."""
    ours, types = ({name: _type(f) for name, f in columns.items()} for columns in (features, theirs))
    differ = sorted(name for name in ours.keys() | types.keys() if ours.get(name) != types.get(name))
    if differ:
        said = ", ".join(f"{name} ({types.get(name, 'missing')}, not {ours.get(name, 'missing')})" for name in differ)
        raise UserError(
            f"{shards.storage.shown(other)}: its columns aren't those of {shards.storage.shown(path)}: {said}; write "
            "all shards alike"
        )


def _type(feature: Any) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return f"classes {', '.join(feature.names)}"
    return str(datasets.Features({"column": feature}).arrow_schema.field(0).type)


def _classes(features: datasets.Features, name: str | None, values: list[Any]) -> tuple[str | None, list[Any]]:
    """The column of labels and what stands in it for each class, by the rules of `read_labels`."""
    column = label_column(features, name)
    bad = [value for value in values if not is_class(value)]
    if bad and name is not None:
        raise UserError(f"--label_column {name}: some rows have {bad[0]}; every row needs a class, from 0 up")
    if bad or column is None:
        return None, []
    feature = features[column]
    if not isinstance(feature, datasets.ClassLabel):
        return column, values
    if values[-1] >= len(feature.names):
        raise UserError(
            f"column {column}: some rows have label {values[-1]}, but there are {len(feature.names)} classes, from "
            f"0 to {len(feature.names) - 1}; correct the rows or the list of names"
        )
    return column, [*range(len(feature.names))]


def divided(index: Index, fraction: float, seed: tuple[int, ...]) -> tuple[Index, Index]:
    """Units to train on, and units held out that have about a fraction of the rows.

    Args:
        index: of all.
        fraction: of the rows, above 0.
        seed: a key of the choice.

    Raises:
        UserError: if there must be no unit on one side.
    """
    order = np.random.default_rng(list(seed)).permutation(len(index.units))
    rows = np.cumsum(index.units[order, ROWS])
    count = int(np.searchsorted(rows, fraction * rows[-1])) + 1
    if count >= len(order):
        raise UserError(
            f"--validation_share {fraction}: with --streaming row groups (of tars, {TAR_UNIT} samples) are held out "
            f"whole, and there are {len(order)}; give --validation_split"
        )
    return index.select(np.sort(order[count:])), index.select(np.sort(order[:count]))


def _cut(units: np.ndarray, first: int, last: int) -> np.ndarray:
    """Rows from the first number to before the last of all that units have."""
    stops = np.cumsum(units[:, ROWS])
    starts = stops - units[:, ROWS]
    kept = (stops > first) & (starts < last)
    cut = units[kept].copy()
    before = np.maximum(first - starts[kept], 0)
    cut[:, SKIP] += before
    cut[:, ROWS] -= before + np.maximum(stops[kept] - last, 0)
    return cut


def part_of(unit: np.ndarray) -> Part:
    """What is read of a shard for a unit (6,): all rows of its part."""
    return Part(int(unit[START]), int(unit[STOP]), int(unit[SKIP] + unit[ROWS]))


def _hash(key: Any) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
