"""The folder of a pipeline, which anybody may have written: what it says that it holds, and which files are its own."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipelines.backbones import COMPONENTS
from pipelines.controlnet import CONTROLNET
from snowmelt.errors import UserError, one_line
from snowmelt.files import checked, read_mapping, read_text, shown
from snowmelt.text.adapters import adapter_in

INDEX_FILE = "model_index.json"
LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
"""Where components may come from; the last is the place in diffusers of Stable Diffusion's safety checker."""
CONFIGS = {
    *("config.json", "generation_config.json", "scheduler_config.json", "preprocessor_config.json"),
    *("processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
}
"""All that a component's folder holds besides weights; of tokenizers, all that those of transformers write."""
WEIGHTS = re.compile(r"[\w-]+(\.(?P<variant>[\w-]+?)(-\d{5}-of-\d{5})?)?\.safetensors")
PICKLES = "a .bin is a pickle, which runs code when it is read: if you trust it, convert it as docs/sampling.md shows"


@dataclass(frozen=True)
class Index:
    """What model_index.json says.

    Attributes:
        values: all of it, the class by its bare name.
        class_name: of the pipeline, an identifier; whose it is, a table must tell.
        components: the names of the sub-folders, and (library, class) of what they hold.
    """

    values: dict[str, Any]
    class_name: str
    components: dict[str, tuple[str, str]]

    @property
    def backbone(self) -> str | None:
        """The component that is the network which denoises, if there is one."""
        return next((name for name in COMPONENTS if name in self.components), None)


def read_index(folder: Path, flag: str = "--model") -> Index:
    """What the folder of a pipeline says that it holds.

    Raises:
        UserError: if there is no model_index.json, or it names what no pipeline can hold.
    """
    path = folder / INDEX_FILE
    if not path.exists() and (adapter := adapter_in(folder)):
        raise UserError(
            f"{flag}: {folder} holds {adapter.what}, and no pipeline; in Python, `{adapter.method}` puts them into the "
            "one that they were trained for"
        )
    if not path.exists() and (folder / CONTROLNET).is_dir():
        raise UserError(
            f"{flag}: {folder} holds a ControlNet, and no pipeline; in Python, StableDiffusionControlNetPipeline puts "
            "it beside the one that it was trained for"
        )
    if not path.exists():
        raise UserError(f"{flag}: {folder} holds no {INDEX_FILE}, so it is not the folder of a pipeline")
    values = read_mapping(own_file(folder, path), {"_class_name": (str, list)})
    name = values["_class_name"]
    name = name[-1] if isinstance(name, list) and name else name  # a published one names its module too
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f"{path}: '_class_name' must be the name of a class, is {shown(values['_class_name'])}")
    components = {}
    for key, value in values.items():
        if key == "_class_name" or not _is_component(value):
            continue
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*", key):
            raise UserError(f"{path}: a component is called {shown(key)}; a name is letters, digits and _")
        library, kind = value
        if library not in LIBRARIES or not (isinstance(kind, str) and kind.isidentifier()):
            allowed = ", ".join(LIBRARIES)
            raise UserError(f"{path}: {key!r} must be a class of {allowed}, is {shown(value)}")
        components[key] = (library, kind)
    return Index(values | {"_class_name": name}, name, components)


def _is_component(value: Any) -> bool:
    """[library, class]; [null, null] stands for one that is left out, and other lists are settings of the pipeline."""
    pair = isinstance(value, list) and len(value) == 2
    return pair and any(isinstance(v, str) for v in value) and all(v is None or isinstance(v, str) for v in value)


def own_file(root: Path, path: Path) -> Path:
    """A regular file below `root`, links followed.

    Raises:
        UserError: if there is none, or a link leads out of `root`.
    """
    real = _inside(root, path)
    if not real.is_file():
        what = "is no regular file" if real.exists() else "leads nowhere" if path.is_symlink() else "is missing"
        raise UserError(f"{path} {what}; restore or remove it")
    return real


def own_files(root: Path, paths: Iterable[Path]) -> dict[str, Path]:
    """Those of these files that are there, by their names; see `own_file`."""
    return {path.name: own_file(root, path) for path in paths if os.path.lexists(path)}


def component_files(root: Path, name: str) -> tuple[dict[str, Path], list[str]]:
    """The files of a component that are known to belong to one, by their names, and the names of the others.

    Raises:
        UserError: if there is no such folder, a link leads out of the model, or weights are missing or damaged.
    """
    folder = root / name
    if not _inside(root, folder).is_dir():
        raise UserError(f"{root}: {INDEX_FILE} names {name!r}, and there is no such folder; restore it")
    paths = {path.name: path for path in sorted(folder.iterdir())}
    known = own_files(root, (p for n, p in paths.items() if n in CONFIGS or _is_weights(n)))
    weights = [path for name, path in known.items() if name.endswith(".safetensors")]
    if "config.json" in known and "tokenizer_config.json" not in known and not weights:
        raise UserError(missing_weights(folder))
    for path in weights:
        tensors(path)
    for file in {"config.json", "scheduler_config.json"} & known.keys():
        check_config(known[file])
    return known, sorted(paths.keys() - known.keys())


def check_config(path: Path) -> dict[str, Any]:
    """The configuration of a component, which unlike other files of JSON may hold infinities, as diffusers writes them.

    Raises:
        UserError: if it isn't one.
    """
    try:
        return checked(path, json.loads(read_text(path)))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not valid JSON ({one_line(error)}); restore it") from error


def missing_weights(folder: Path) -> str:
    """Why a component without safetensors can't be loaded, for a message."""
    pickles = [path.name for path in sorted(folder.glob("*.bin"))] if folder.is_dir() else []
    if not pickles:
        return f"{folder} holds no weights (*.safetensors); restore them"
    return f"{folder} holds its weights as {pickles[0]} alone; {PICKLES}"


def tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a file of weights, by its header.

    Raises:
        UserError: if it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise UserError(f"{path}: not whole safetensors ({one_line(error)}); restore it") from error


def main_weights(folder: Path) -> list[Path]:
    """The files of a component's weights, without those in another precision."""
    paths = sorted(folder.glob("*.safetensors"))
    return [path for path in paths if (name := WEIGHTS.fullmatch(path.name)) and not name["variant"]]


def weights_digest(folders: dict[str, Path]) -> str:
    """A hash of a model's weights: of the files, by component, that hold them."""
    sha = hashlib.sha256()
    for name, folder in sorted(folders.items()):
        for path in main_weights(folder):
            with path.open("rb") as file:
                sha.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return sha.hexdigest()


def _is_weights(name: str) -> bool:
    return bool(WEIGHTS.fullmatch(name.removesuffix(".index.json"))) and not name.startswith(".")


def _inside(root: Path, path: Path) -> Path:
    """`path`, links followed, unless they lead out of `root`, or of the Hub's cache that a snapshot is a part of."""
    base, real = (Path(os.path.realpath(p)) for p in (root, path))
    allowed = [base, base.parents[1] / "blobs"] if base.parent.name == "snapshots" else [base]
    if not any(real.is_relative_to(place) for place in allowed):
        raise UserError(f"{path} leads out of the model, to {real}; put the file itself there")
    return real
