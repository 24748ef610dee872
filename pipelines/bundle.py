"""Pipelines that bring their own code: one file beside the weights, for machines that have diffusers alone.

`save_pretrained` of diffusers writes a class's bare name and no source, which only code that knows the class can load.
What is saved here has the list form, ["pipeline", class], with `pipeline.py` beside it: diffusers loads code and
weights from one revision, with `trust_remote_code=True`.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CODE_FILE = "pipeline.py"
INDEX_FILE = "model_index.json"

PACKAGE = __name__.split(".")[0]
PUBLISHED = PACKAGE == "diffusers_modules"
"""Whether this is the code of a published folder, that diffusers has loaded."""

# Read when the package is imported: whoever edits it while a model is in training must not change what is saved with
# it. That of a published folder is in one file, this one, and diffusers keeps those of all folders at one path.
TEXTS = (
    {"": Path(__file__).read_text()}
    if PUBLISHED
    else {f"{PACKAGE}.{path.stem}": path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))}
)

FOOTER = """
# diffusers would run the code of the next published pipeline in this module, and replace the names in it.
__import__("sys").modules.pop(__name__, None)
"""


def bundled_source(module: str) -> str:
    """A module of the package as one file with all that it imports from there, each after what it needs itself.

    Args:
        module: its full name.

    Raises:
        ValueError: if one of them imports a module of the package by another form than `from package.module import`,
            or two define the same name.
    """
    if PUBLISHED:
        return TEXTS[""]
    modules = list(_needed(module, set()))
    homes: dict[str, str] = {}
    for name in modules:
        for defined in _defined(name):
            if homes.setdefault(defined, name) != name:
                raise ValueError(f"{name}: {defined} is defined in {homes[defined]} too; in one file they'd be one")
    return "\n\n".join(_without_siblings(name) for name in modules) + FOOTER


def _defined(module: str) -> Iterator[str]:
    """Names that a module defines."""
    for node in ast.parse(TEXTS[module]).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def _needed(module: str, known: set[str]) -> Iterator[str]:
    """The module and those that it imports, each once, the imported first."""
    known.add(module)
    for node in _siblings(module):
        if node.module not in known:
            yield from _needed(str(node.module), known)
    yield module


def _siblings(module: str) -> list[ast.ImportFrom]:
    """Imports of the package in a module."""
    found = []
    tree = ast.parse(TEXTS[module])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        if PACKAGE not in [name.split(".")[0] for name in names]:
            continue
        plain = isinstance(node, ast.ImportFrom) and node.module in TEXTS and node in tree.body
        if not plain or any(alias.asname for alias in node.names) or isinstance(node, ast.Import):
            raise ValueError(
                f"{module}: {ast.unparse(node)!r} can't be bundled; write 'from {PACKAGE}.module import name'"
            )
        found.append(node)
    return found


def _without_siblings(module: str) -> str:
    lines = TEXTS[module].splitlines(keepends=True)
    for node in _siblings(module):
        lines[node.lineno - 1 : node.end_lineno] = [""] * len(lines[node.lineno - 1 : node.end_lineno])
    return "".join(lines).strip() + "\n"


def complete_folder(folder: str | Path, name: str, code: str | None) -> None:
    """Turn a folder of diffusers' `save_pretrained` into one that diffusers loads.

    The paths that the parts were loaded from, which diffusers notes in their configurations, are left out.

    Args:
        folder: of the pipeline.
        name: of its class.
        code: its source; None for a class of diffusers, which needs none.
    """
    folder = Path(folder)
    forget_paths(folder)
    index = read_json(folder / INDEX_FILE)
    _write_json(folder / INDEX_FILE, index | {"_class_name": name if code is None else [Path(CODE_FILE).stem, name]})
    if code is None:
        (folder / CODE_FILE).unlink(missing_ok=True)  # what was saved here before
    else:
        (folder / CODE_FILE).write_text(code)


def forget_paths(folder: Path) -> None:
    """Leave out, in a folder of `save_pretrained`, the paths that the parts were loaded from."""
    index = read_json(folder / INDEX_FILE)
    paths = [path for name in index for path in sorted((folder / name).glob("*config.json"))]
    for path in [folder / INDEX_FILE, *paths]:
        values = read_json(path)
        if values.pop("_name_or_path", None) is not None:
            _write_json(path, values)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
