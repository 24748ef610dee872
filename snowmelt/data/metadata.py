"""metadata.csv, .jsonl and .parquet: columns that stand beside the files of a folder, as `datasets` lays them out."""

import csv
import io
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import datasets
import pyarrow
import pyarrow.parquet
from datasets.fingerprint import Hasher

from snowmelt.data.places import Place, open_file
from snowmelt.errors import UserError, explained, one_line
from snowmelt.files import checked, parse_json, shown

FILE_NAME = "file_name"
TEXT_COLUMNS = ("text", "caption", "captions", "texts")
"""Names of columns that hold captions, and so text whatever it looks like."""


class File(Protocol):
    """One of a folder, as `snowmelt.data.folders` finds it."""

    @property
    def where(self) -> PurePosixPath:
        """Its path below the folder, as if zips were unpacked where they lie."""

    @property
    def name(self) -> str:
        """As rows name it: an absolute path, or zip://member::path."""

    @property
    def stamp(self) -> tuple[int, int]:
        """Differs where contents do: size, and time of change or checksum."""


def read_metadata(
    root: Path, metadata: Sequence[File], images: Mapping[PurePosixPath, File], chosen: Collection[PurePosixPath]
) -> datasets.Dataset:
    """The rows of metadata files whose images are among those chosen; file_name becomes the column image.

    Args:
        root: the folder.
        metadata: such files in it.
        images: all images of the folder, by where they are.
        chosen: those of a split. Rows with images that don't exist belong to it too, and fail when they are read.

    Raises:
        UserError: if a file can't be read, has no column file_name, or names files outside of the folder.
    """
    tables, contents, stamps = [], [], []
    for file in metadata:
        source = str(root / file.where)
        content = _content(root, file, source)
        try:
            table = METADATA_FILES[file.where.name](content, source)
        except (pyarrow.ArrowException, OSError) as error:  # the latter for parquet that is cut
            raise UserError(f"{source}: can't be read ({one_line(error)}); mend it") from error
        if len(table) == 0:
            raise UserError(f"{source}: has no rows; fill or remove it")
        columns = [c for c in table.column_names if c == FILE_NAME or c.endswith(f"_{FILE_NAME}")]
        if not columns:
            raise UserError(
                f"{source}: has no column file_name, the path of each row's image beside it; it has "
                f"{', '.join(table.column_names) or 'no columns'}"
            )
        keep = [True] * len(table)
        for column in columns:
            new = column.removesuffix(FILE_NAME).rstrip("_") or "image"
            if new in table.column_names:
                raise UserError(f"{source}: has columns {column} and {new}, which would be one; rename {new}")
            names: list[str] = []
            for row, value in enumerate(table[column].to_pylist()):
                where = _beside(file.where, value, f"{source}: row {row + 1}: {column}")
                image = images.get(where)
                names.append(image.name if image else str(root / where))
                stamps.append(image.stamp if image else (0, 0))
                keep[row] &= where in chosen or image is None
            cells = datasets.Image().cast_storage(pyarrow.array(names, pyarrow.string()))
            table = table.set_column(table.column_names.index(column), pyarrow.field(new, cells.type), cells)
            # Its features in the schema: else the column would be a struct of bytes and path.
            features = datasets.Features(datasets.Features.from_arrow_schema(table.schema) | {new: datasets.Image()})
            table = table.replace_schema_metadata(features.arrow_schema.metadata)
        tables.append(table.filter(pyarrow.array(keep)))
        contents.append([content, keep])
    try:
        joined = pyarrow.concat_tables(tables, promote_options="default")
    except pyarrow.ArrowException as error:
        listed = ", ".join(str(f.where) for f in metadata)
        raise UserError(f"{root}: {listed} don't have the same types of columns ({one_line(error)})") from error
    return datasets.Dataset(
        datasets.table.InMemoryTable(joined), fingerprint=Hasher.hash([contents, str(root), stamps])
    )


def _content(root: Path, file: File, source: str) -> bytes:
    path, member = Place((root,), links=True).locate(file.name)
    try:
        opened = open_file(path, member)
        return opened.read_bytes() if isinstance(opened, Path) else opened.read()
    except (OSError, ValueError) as error:
        reason = explained(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"{source}: can't be read ({reason}); replace or remove it") from error


def _beside(metadata: PurePosixPath, value: Any, row: str) -> PurePosixPath:
    """Where the file is that a row of a metadata file names."""
    if not isinstance(value, str) or not value:
        raise UserError(f"{row} is {shown(value)}; it must be the path of an image file, relative to that file")
    where = PurePosixPath(os.path.normpath(metadata.parent / value))
    if "://" in value or "\0" in value or where.is_absolute() or where.parts[:1] == ("..",):
        raise UserError(f"{row} names {value}, outside of the folder; only files in it are read")
    return where


def _text(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: is not text in UTF-8 ({error.reason} at byte {error.start}); convert it") from error


def _csv(content: bytes, source: str) -> pyarrow.Table:
    """Cells are strings, None where empty; a column of whole numbers is one of numbers, unless it is called a text."""
    rows = csv.reader(io.StringIO(_text(content, source), newline=""), strict=True)
    columns: dict[str, list[Any]] = {}
    try:
        for cells in rows:
            if not columns:
                columns = {name: [] for name in cells}
                if len(columns) < len(cells):
                    raise UserError(f"{source}: line {rows.line_num} names a column twice; rename one")
            elif len(cells) == len(columns):
                for name, cell in zip(columns, cells, strict=True):
                    columns[name].append(cell or None)
            elif cells:  # not an empty line
                raise UserError(
                    f"{source}: line {rows.line_num} has {len(cells)} values for {len(columns)} columns; put double "
                    "quotes around those that hold commas"
                )
    except csv.Error as error:
        raise UserError(f"{source}: line {rows.line_num}: {one_line(error)}; mend it") from error
    for name, values in columns.items():
        given = [v for v in values if v is not None]
        if given and name not in TEXT_COLUMNS and all(re.fullmatch(r"-?[0-9]{1,18}", v) for v in given):
            columns[name] = [None if v is None else int(v) for v in values]
    return pyarrow.table(columns)


def _jsonl(content: bytes, source: str) -> pyarrow.Table:
    columns: dict[str, list[Any]] = {}
    count = 0
    for number, line in enumerate(_text(content, source).split("\n"), 1):
        if not line.strip():
            continue
        row = checked(f"{source}: line {number}", parse_json(line, f"{source}: line {number}"))
        for name, value in row.items():
            columns.setdefault(name, [None] * count).append(value)
        count += 1
        for values in columns.values():
            values += [None] * (count - len(values))
    return pyarrow.table(columns)


def _parquet(content: bytes, source: str) -> pyarrow.Table:
    return pyarrow.parquet.read_table(io.BytesIO(content))


METADATA_FILES: dict[str, Callable[[bytes, str], pyarrow.Table]] = {
    "metadata.csv": _csv,
    "metadata.jsonl": _jsonl,
    "metadata.parquet": _parquet,
}
