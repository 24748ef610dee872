"""Configurations: dataclasses that become command-line flags, YAML keys and the saved `config.yaml`.

A field's value comes, weakest first, from its default, from a YAML file (`--config`), from the command line.
This module imports neither torch nor diffusers, so that `--help` is immediate.
"""

import argparse
import dataclasses
import difflib
import re
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml

from snowmelt.errors import UserError
from snowmelt.files import checked, parse_yaml, read_text
from snowmelt.shipped import shipped
from snowmelt.values import Resolution, check_value, element_type, number_reader, read_resolution

RECIPES = shipped("recipes")

C = TypeVar("C", bound="Config")


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    resumable: bool = False,
    saved: bool = True,
    path: bool = False,
    published: bool = True,
    aliases: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that is also a flag.

    A number is finite, and every option that takes one declares its range.

    Args:
        default: the field's default; a list is copied for each configuration.
        help: what `--help` says of it.
        choices: the strings allowed.
        minimum: the smallest number allowed.
        above: all numbers allowed are larger.
        maximum: the largest number allowed.
        below: all numbers allowed are smaller.
        resumable: whether it may differ between a checkpoint and the run that resumes it: it changes what is reported
            or how long training goes on, never a step that both runs take.
        saved: False for what concerns a single call, and is in no file.
        path: whether it may hold a path; it is published only where it holds a name on the Hub instead.
        published: False for what concerns the user's account or machine.
        aliases: names of the flag in those of diffusers' scripts that call it otherwise.
    """
    limits = {"choices": choices, "minimum": minimum, "above": above, "maximum": maximum, "below": below}
    metadata = {"help": help, "resumable": resumable, "saved": saved, "path": path, "published": published, **limits}
    metadata["aliases"] = aliases
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class Config:
    """Base of all configurations: groups of options are its mixins, named by the first line of their docstring."""

    source: ClassVar[str | None] = None  # the YAML file or recipe that values came from

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            setattr(self, f.name, check_value(f, getattr(self, f.name)))

    @classmethod
    def fields(cls) -> dict[str, dataclasses.Field]:
        """The dataclass fields by name."""
        return {f.name: f for f in dataclasses.fields(cls)}

    def to_dict(self) -> dict[str, Any]:
        """The values that are saved, by name: not those of options that concern a single call, such as the token."""
        fields = self.fields()
        return {k: v for k, v in dataclasses.asdict(self).items() if fields[k].metadata["saved"]}

    def to_publish(self) -> dict[str, Any]:
        """The values that strangers may see: none that name a path of this machine."""
        fields = self.fields()
        return {
            k: v
            for k, v in self.to_dict().items()
            if fields[k].metadata["published"] and not (fields[k].metadata["path"] and v and not on_hub(v))
        }

    def save(self, path: Path) -> None:
        """Write the values of `to_dict` as YAML in UTF-8."""
        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")


def on_hub(name: str) -> bool:
    """Whether this is a name on the Hub, or an embedded one, rather than a path of this machine."""
    return bool(re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name, re.ASCII)) and not Path(name).exists()


def parse(
    cls: type[C],
    argv: list[str] | None = None,
    *,
    default_recipe: str = "",
    needs: tuple[str, ...] = (),
    defaults_with: tuple[str, str] | None = None,
) -> C:
    """Build a configuration from the command line.

    Args:
        cls: the configuration class.
        argv: arguments, without the program's name; those of the process by default.
        default_recipe: the recipe taken when neither `--config` nor any flag of `needs` is given.
        needs: flags that say what to work on.
        defaults_with: an option, and the recipe whose values are the defaults of a run that has it.

    Raises:
        UserError: for an unknown flag or YAML key, or a value that isn't allowed.
    """
    parser = make_parser(cls)
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        word = unknown[0].split("=")[0]
        raise UserError(f"unknown flag {word}{_suggest(word.lstrip('-'), list(cls.fields()), '--')}")
    given = vars(namespace)
    source = given.pop("config", None)
    other = defaults_with and given.get(defaults_with[0])
    if source is None and default_recipe and not other and not any(name in given for name in needs):
        source = default_recipe
    values = load_yaml(cls, source) if source else {}
    if defaults_with and (given | values).get(defaults_with[0]):
        values = load_yaml(cls, defaults_with[1]) | values
    config = cls(**{**values, **given})
    config.source = source  # type: ignore[misc]
    return config


def load_yaml(cls: type[Config], source: str | Path) -> dict[str, Any]:
    """The values in a YAML file, given by path or by the name of a recipe.

    Raises:
        UserError: if there is no such file, it can't be read, or it has keys that `cls` doesn't have.
    """
    path = Path(source)
    if not path.exists():
        path = RECIPES / f"{source}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise UserError(f"--config {source}: no such file or recipe; recipes: {known}")
    values = checked(path, parse_yaml(read_text(path), path) or {})
    for key in values:
        if key not in cls.fields():
            raise UserError(f"{path}: unknown key {key!r}{_suggest(str(key), list(cls.fields()))}")
    return values


def differences(saved: dict[str, Any], config: Config) -> list[str]:
    """Options in which a saved configuration differs from `config` in a way that would change the training.

    An option that came after the configuration was saved had its default then.
    """
    fields = type(config).fields()
    before = {name: saved.get(name, _default(f)) for name, f in fields.items()}
    return [
        f"--{name} {before[name]!r} (now {value!r})"
        for name, value in config.to_dict().items()
        if not fields[name].metadata["resumable"] and before[name] != value
    ]


def _default(f: dataclasses.Field) -> Any:
    return f.default_factory() if callable(f.default_factory) else f.default


def _suggest(word: str, known: list[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else "; --help lists all"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}; --help lists all options")


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)


def make_parser(cls: type[Config]) -> argparse.ArgumentParser:
    """The flags of a configuration, in the groups of its mixins."""
    parser = _Parser(
        description=sys.modules["__main__"].__doc__,
        formatter_class=_Formatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        usage="%(prog)s [options]",
    )
    known: set[str] = set()  # an option that a class defines anew stands where its base has it
    parser.add_argument("--config", metavar="FILE", help="YAML file, or the name of a recipe; flags win over it")
    for mixin in reversed(cls.__mro__):
        own = [n for n in mixin.__dict__.get("__annotations__", {}) if n in cls.fields() and n not in known]
        if not own:
            continue
        known |= set(own)
        group = parser.add_argument_group((mixin.__doc__ or mixin.__name__).splitlines()[0].rstrip("."))
        for name in own:
            _add_flag(group, cls.fields()[name])
    return parser


def _add_flag(group: Any, f: dataclasses.Field) -> None:
    kind, _, is_list = element_type(f.type)
    default = f.default if f.default is not dataclasses.MISSING else []
    shown = "" if default is None or default is False or default == [] else f" (default: {default})"
    text = (f.metadata["help"] + shown).replace("%", "%%")
    flags = [f"--{name}" for name in (f.name, *f.metadata["aliases"])]
    if kind is bool:
        group.add_argument(*flags, action=argparse.BooleanOptionalAction, help=text)
    else:
        metavar = None if f.metadata["choices"] else "SIZE" if kind == Resolution else kind.__name__.upper()
        group.add_argument(
            *flags,
            type={str: str, Resolution: read_resolution}.get(kind) or number_reader(kind),
            nargs="*" if is_list else None,
            metavar=metavar,
            choices=f.metadata["choices"],
            help=text,
        )
