"""Formats of shards: the units that each can be read by, and their rows, undecoded."""

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import pyarrow
import pyarrow.parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext

from snowmelt.data.storage import Storage, sequential

TAR_UNIT = 128
"""Samples of a tar that are read together."""
TEXTS = ("txt", "text", "transcript", "caption")
"""Extensions of texts in tars."""

Row = dict[str, Any]


class Part(NamedTuple):
    """Rows of a shard that are read together: a row group, or the bytes of some samples of a tar."""

    start: int
    """Number of the row group, or the first byte."""
    stop: int
    """After the last."""
    rows: int


@dataclass(frozen=True)
class Scan:
    """What a shard holds.

    Attributes:
        parts: all of it.
        features: its columns.
        values: distinct ones of a column that was asked for.
    """

    parts: list[Part]
    features: datasets.Features
    values: set[Any]


class Format(NamedTuple):
    """A way to lay rows out in files. Both functions raise whatever libraries do at files that are damaged or gone."""

    scan: Callable[[Storage, str, int, str | None], Scan]
    """Of a storage, a shard's path there and its bytes, and a column of which the distinct values are wanted."""
    read: Callable[[Storage, str, int, Part, list[str]], Sequence[Row]]
    """Rows of a part, with the columns that are named; the first three arguments are those of `scan`."""


@contextmanager
def _parquet(storage: Storage, path: str, size: int) -> Iterator[pyarrow.parquet.ParquetFile]:
    # Of a remote file a column's pages are fetched together; checksums of pages are compared where there are any.
    source = storage.open(path, size)
    given: Any = {"page_checksum_verification": True, "pre_buffer": not storage.is_local}
    with source, pyarrow.parquet.ParquetFile(source, **given) as file:
        yield file


def _scan_parquet(storage: Storage, path: str, size: int, column: str | None) -> Scan:
    """Reads the footer, and but for a column nothing else."""
    with _parquet(storage, path, size) as file:
        rows = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        parts = [Part(group, group + 1, count) for group, count in enumerate(rows) if count]
        features = datasets.Features.from_arrow_schema(file.schema_arrow)
        values: set[Any] = set()
        if column in features:
            for batch in file.iter_batches(columns=[column]):
                values |= set(batch.column(0).unique().to_pylist())
    return Scan(parts, features, values)


def _read_parquet(storage: Storage, path: str, size: int, part: Part, columns: list[str]) -> Sequence[Row]:
    with _parquet(storage, path, size) as file:
        return _TableRows(file.read_row_group(part.start, columns=columns, use_threads=False))


class _TableRows(Sequence[Row]):
    def __init__(self, table: pyarrow.Table) -> None:
        self.columns = {name: table[name].combine_chunks() for name in table.column_names}
        self.length = len(table)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: Any) -> Any:
        return {name: column[row].as_py() for name, column in self.columns.items()}


def _scan_tar(storage: Storage, path: str, size: int, column: str | None) -> Scan:
    """Goes through the whole tar."""
    starts: list[int] = []
    samples, features = 0, datasets.Features()
    values: set[Any] = set()
    with storage.open(path, size) as file, tarfile.open(fileobj=sequential(file), mode="r:") as tar:
        for member, extension, is_first in _members(tar):
            if is_first and samples % TAR_UNIT == 0:
                starts.append(member.offset)
            samples += is_first
            if samples == 1 and (feature := _feature(extension)) is not None:
                features[extension] = feature
            if extension == column:
                values.add(_cell(tar, member, extension))
        stops = [*starts[1:], tar.offset]
    if not starts:
        raise ValueError("a tar without samples, whose files have names such as 0001.jpg and 0001.cls")
    counts = [TAR_UNIT] * (len(starts) - 1) + [samples - TAR_UNIT * (len(starts) - 1)]
    return Scan([Part(*part) for part in zip(starts, stops, counts, strict=True)], features, values)


def _read_tar(storage: Storage, path: str, size: int, part: Part, columns: list[str]) -> Sequence[Row]:
    rows: list[Row] = []
    with tarfile.open(fileobj=io.BytesIO(storage.read(path, part.start, part.stop)), mode="r:") as tar:
        for member, extension, is_first in _members(tar):
            if is_first:
                rows.append(dict.fromkeys(columns))
            if extension in columns:
                rows[-1][extension] = _cell(tar, member, extension)
    return rows


def _members(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, bool]]:
    """Files of samples, their extensions, and whether each is the first of its sample."""
    last = None
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # or it keeps them all
        key, extension = base_plus_ext(member.name)
        if key is not None and member.isfile():
            yield member, extension, key != last
            last = key


def _cell(tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> Any:
    """The content of a file, as `datasets` has it."""
    file = tar.extractfile(member)
    assert file is not None  # it is a regular one
    content = file.read()
    feature = _feature(extension)
    if isinstance(feature, datasets.Image):
        return {"bytes": content, "path": member.name}
    if feature is None:
        return content
    return int(content) if feature.dtype == "int64" else content.decode()


def _feature(extension: str) -> Any:
    """The type of a column; None where it is of no use here."""
    kind = extension.rpartition(".")[2].lower()
    if kind in WebDataset.IMAGE_EXTENSIONS or kind == "npy":
        return datasets.Image()
    if kind in TEXTS:
        return datasets.Value("string")
    return datasets.Value("int64") if WebDataset.DECODERS.get(kind) is int else None


FORMATS: dict[str, Format] = {
    ".parquet": Format(_scan_parquet, _read_parquet),
    ".tar": Format(_scan_tar, _read_tar),
}
"""By the suffixes of files: parquet by row groups; WebDataset, where a sample is the files in a row that share all of
their name but the extension, which is the column."""
