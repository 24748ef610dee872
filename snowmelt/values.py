"""Values of options: of the type and in the range that the option declares, wherever they come from."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snowmelt.errors import UserError
from snowmelt.files import shown

Resolution = int | str
"""The side of a square, or a text HEIGHTxWIDTH of two sides that differ."""

KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Resolution: "a whole number, or HEIGHTxWIDTH such as 64x96",
}


def to_resolution(height: int, width: int) -> Resolution:
    """Height and width, as options, files and messages write them."""
    return height if height == width else f"{height}x{width}"


def to_size(resolution: Resolution) -> tuple[int, int]:
    """Height and width of a value that `check_value` has seen."""
    height, _, width = str(resolution).partition("x")
    return int(height), int(width or height)


def to_buckets(text: str) -> list[tuple[int, int]]:
    """Heights and widths of --aspect_ratio_buckets, written as in diffusers' scripts.

    Raises:
        UserError: if it is something else, a side is 0, or a size is there twice.
    """
    flag = f"--aspect_ratio_buckets {text}"
    if not re.fullmatch(r"(\s*\d{1,9}\s*,\s*\d{1,9}\s*(;(?=.)|$))+", text, re.ASCII):
        raise UserError(f"{flag}: must be sizes HEIGHT,WIDTH, such as 64,96;96,64;80,80")
    sizes = [tuple(map(int, pair.split(","))) for pair in text.split(";")]
    if min(map(min, sizes)) < 1:
        raise UserError(f"{flag}: holds a side of 0; take at least 1")
    if len(set(sizes)) < len(sizes):
        raise UserError(f"{flag}: holds a size twice; leave one out")
    return [(height, width) for height, width in sizes]


def multiples_near(side: int, multiple: int) -> str:
    """The multiples next to a side that is none, as messages offer them."""
    below = side - side % multiple
    return " or ".join(str(near) for near in (below, below + multiple) if near)


def element_type(annotation: Any) -> tuple[Any, bool, bool]:
    """(type of one value, may be None, is a list) of an annotation such as `int`, `str | None`, `list[float]`."""
    optional = False
    if annotation == Resolution:
        return annotation, False, False
    if isinstance(annotation, types.UnionType):
        arms = [a for a in typing.get_args(annotation) if a is not type(None)]
        annotation, optional = arms[0], True
    if typing.get_origin(annotation) is list:
        return typing.get_args(annotation)[0], optional, True
    return annotation, optional, False


def check_value(f: dataclasses.Field, value: Any) -> Any:
    """A value of a field that `option` made, as its type.

    Raises:
        UserError: saying what is allowed, if the type is another, or it isn't among the choices or in the range.
    """
    name = f.name
    kind, optional, is_list = element_type(f.type)
    if value is None and optional:
        return None
    if is_list:
        if not isinstance(value, list):
            raise UserError(f"--{name}: must be a list, each {KINDS[kind]}, got {shown(value)}")
        return [_element(name, kind, v, f.metadata) for v in value]
    if value == "":
        raise UserError(f"--{name}: is empty; give {KINDS[kind]}, or leave it out")
    return _element(name, kind, value, f.metadata)


def _element(name: str, kind: Any, value: Any, metadata: Any) -> Any:
    value = _scalar(name, kind, value)
    choices = metadata["choices"]
    if choices and value not in choices:
        raise UserError(f"--{name}: {value!r} is not one of {', '.join(choices)}")
    if kind in (int, float):
        _check_range(name, value, metadata)
    if kind == Resolution:
        for side in to_size(value):
            _check_range(name, side, metadata)
    return value


def _check_range(name: str, value: float, metadata: Any) -> None:
    minimum, above, maximum, below = (metadata[limit] for limit in ("minimum", "above", "maximum", "below"))
    inside = (
        math.isfinite(value)
        and (minimum is None or value >= minimum)
        and (above is None or value > above)
        and (maximum is None or value <= maximum)
        and (below is None or value < below)
    )
    if inside:
        return
    limits = [
        f"at least {minimum}" if minimum is not None else f"more than {above}" if above is not None else "",
        f"at most {maximum}" if maximum is not None else f"less than {below}" if below is not None else "",
    ]
    raise UserError(f"--{name}: must be {' and '.join(filter(None, limits)) or 'finite'}, got {value}")


def _scalar(name: str, kind: Any, value: Any) -> Any:
    if kind is str and isinstance(value, Path):
        value = str(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (int, Resolution) and number:
        if value != value // 1 or not math.isfinite(value):
            raise UserError(f"--{name}: must be {KINDS[kind]}, got {value!r}")
        return int(value)
    if kind == Resolution and (sides := re.fullmatch(r"(\d{1,9})x(\d{1,9})", str(value), re.ASCII)):
        return to_resolution(*map(int, sides.groups()))
    if kind is float and number:
        return _to_float(value)
    if kind is str and isinstance(value, str):
        if "\0" in value or not value.isascii() and value.encode("utf-8", "ignore").decode() != value:
            raise UserError(f"--{name}: must be text in UTF-8 without zeros, got {value!r}")
        return value
    quoted = "; put it in quotes" if kind is str and value is not None else ""
    raise UserError(f"--{name}: must be {KINDS[kind]}, got {shown(value)}{quoted}")


def _to_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # of a whole number beyond all floats
        return math.inf if value > 0 else -math.inf


def read_resolution(text: str) -> Resolution:
    """A resolution on the command line, as in YAML; what is none is left to `check_value`."""
    return int(text) if re.fullmatch(r"[-+]?\d{1,9}", text, re.ASCII) else text


def number_reader(kind: type) -> Callable[[str], Any]:
    """A reader of numbers on the command line, as in YAML: without Python's `1_000` and digits of other scripts."""

    def read(text: str) -> Any:
        pattern = r"[-+]?\d+" if kind is int else r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(inf|nan)"
        if not re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE):
            raise ValueError(text)
        return kind(text)

    read.__name__ = kind.__name__  # argparse says it
    return read
