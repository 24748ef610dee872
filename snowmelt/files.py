"""JSON and YAML files, which anybody may have written: read in one place, where what is wrong is said in a line."""

import json
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from snowmelt.errors import UserError, explained, one_line

Kind = type | tuple[type, ...]

LARGEST = 64 * 2**20
"""Bytes of a file that is read whole."""


def read_mapping(path: Path, keys: Mapping[str, Kind] | None = None) -> dict[str, Any]:
    """The mapping in a JSON or, by its suffix, YAML file.

    Args:
        path: of the file.
        keys: those that it must have, with the types that their values may be of.

    Raises:
        UserError: if it can't be read or doesn't hold that; it names the file and the key.
    """
    text = read_text(path)
    return checked(path, parse_yaml(text, path) if path.suffix in (".yaml", ".yml") else parse_json(text, path), keys)


def checked(source: Path | str, values: Any, keys: Mapping[str, Kind] | None = None) -> dict[str, Any]:
    """The values, if they are a mapping with these keys.

    Args:
        source: where they come from, for messages.
        values: as they were parsed.
        keys: those that they must have, with the types that their values may be of; True and False are no numbers.

    Raises:
        UserError: if they aren't; it names the source and the key.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source}: must map names to values, holds {_name(type(values))}")
    for key, kind in (keys or {}).items():
        if key not in values:
            raise UserError(f"{source}: has no {key!r}, so it isn't what was written there; restore it")
        value = values[key]
        # In Python, True is a number too.
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            allowed = " or ".join(map(_name, kinds))
            raise UserError(f"{source}: {key!r} must be {allowed}, is {shown(value)}; restore it")
    return values


def shown(value: Any) -> str:
    """A value for use in a message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        UserError: if it can't be read, isn't a regular file, or is too large to be what is asked for.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: {'no file' if path.exists() else 'there is no such file'}; restore it")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: has {path.stat().st_size / 1e6:.0f} MB, too much for such a file; restore it")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(explained(error)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8 ({error.reason} at byte {error.start}); restore it") from error


def parse_json(text: str, source: Path | str) -> Any:
    """The value of a JSON text read from `source`.

    Raises:
        UserError: if it isn't strict JSON: NaN, Infinity and keys that are given twice are refused.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not valid JSON ({one_line(error)}); restore it") from error


def parse_yaml(text: str, source: Path | str) -> Any:
    """The value of a YAML 1.2 text read from `source`, None for an empty one.

    Raises:
        UserError: if it isn't valid, holds tags, or a key twice.
    """
    try:
        return yaml.load(text, _Yaml)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: not valid YAML ({one_line(error)})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} is given twice")
    return values


class _Yaml(yaml.SafeLoader):
    """The core schema of YAML 1.2, where `no` is a word, and `1:30`, `010` and `1_000` are no numbers in disguise."""

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} can't be a key", node.start_mark)
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
):
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _name(kind: type) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing", bool: "true or false"}
    return names.get(kind, "a whole number" if kind is int else "a number" if kind is float else kind.__name__)
