"""Where a trained pipeline is: its folder or repository, and the checkpoint or EMA that its weights are taken from."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import hf_hub_download, snapshot_download

from pipelines import PIPELINES, PixelDiffusionPipeline
from pipelines.controlnet import CONTROLNET
from snowmelt.checkpoint import complete, verify
from snowmelt.errors import UserError, one_line
from snowmelt.model_folder import (
    INDEX_FILE,
    PICKLES,
    Index,
    component_files,
    main_weights,
    read_index,
    tensors,
    weights_digest,
)
from snowmelt.run_files import settle


@dataclass(frozen=True)
class Source:
    """Where a pipeline comes from.

    Attributes:
        folder: its own, or the snapshot of a repository.
        index: what it says that it holds.
        kind: the class of ours that reads it.
        weights: the folders of components that come from a checkpoint or an EMA instead.
        checkpoint: whose they are.
    """

    folder: Path
    index: Index
    kind: type[DiffusionPipeline]
    weights: dict[str, Path]
    checkpoint: str | None

    def digest(self) -> str:
        """A hash of the weights; see `weights_digest`."""
        return weights_digest({name: self.folder / name for name in self.index.components} | self.weights)

    def load(self) -> Any:
        """The pipeline.

        Raises:
            UserError: if a part of it can't be loaded, or weights are missing.
        """
        with _readable(str(self.folder)):
            pipeline = self.kind.from_pretrained(self.folder, use_safetensors=True)
            for name, folder in self.weights.items():
                part = type(getattr(pipeline, name)).from_pretrained(folder, use_safetensors=True)
                pipeline.register_modules(**{name: part})
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                _check_whole(part, self.weights.get(name, self.folder / name))
        return pipeline


def find_source(
    model: str, revision: str | None = None, checkpoint: str | None = None, ema: float | None = None
) -> Source:
    """A model, found and, as far as that is quick, checked.

    Args:
        model: folder or Hub repository of the pipeline.
        revision: of the repository.
        checkpoint: of the run's folder, by name or step; the weights come from there, and are what was written.
        ema: sigma_rel of the EMA to take, where there are several.

    Raises:
        UserError: if there is no such model, checkpoint or EMA, or it isn't what it is to be.
    """
    local = Path(model).is_dir()
    if local:
        settle(Path(model))
    folder = Path(model) if local else _index_of(model, revision)
    index = read_index(folder)
    # Stock pipelines of a network and a scheduler, as diffusers' DDPMPipeline, are read by the pixel one.
    kind = PIPELINES.get(index.class_name)
    if kind is None and index.components.keys() != {"unet", "scheduler"}:
        parts = ", ".join(sorted(index.components))
        raise UserError(f"--model: {model} is a {index.class_name} of {parts}; load it with diffusers itself")
    kind = kind or PixelDiffusionPipeline
    if not local:
        with _readable(model):
            folder = Path(kind.download(model, revision=revision, use_safetensors=True))
            if ema is not None:
                patterns = [f"*_ema_{ema:.3f}/*"]
                folder = Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    for name in index.components:
        component_files(folder, name)
    parent = folder if checkpoint is None else _checkpoint(folder, checkpoint)
    if checkpoint is not None:
        verify(parent, ())
    weights = _weights(parent, index, checkpoint, ema)
    if checkpoint is not None:
        verify(parent, weights.values())
    for name, chosen in weights.items():
        if not (chosen / "config.json").is_file():
            raise UserError(
                f"{parent}: {chosen.name} holds what was trained beside a frozen {name} (LoRA), and no network by "
                "itself; in Python, `load_lora_weights` puts the run's matrices into the pipeline they were trained for"
            )
    return Source(folder, index, kind, weights, parent.name if checkpoint is not None else None)


def _index_of(model: str, revision: str | None) -> Path:
    """The snapshot of a repository of the Hub, of which model_index.json is there."""
    if Path(model).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        what = "is a file" if Path(model).exists() else "is no folder, and no name on the Hub"
        raise UserError(f"--model: can't load {model}: it {what}; give the folder of a run or a pipeline, or user/name")
    with _readable(model):
        return Path(hf_hub_download(model, INDEX_FILE, revision=revision)).parent


@contextmanager
def _readable(model: str) -> Iterator[None]:
    """Whatever libraries raise at files that anybody may have written becomes a line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if "necessary `safetensors` weights" in str(error):
            raise UserError(f"--model: {model} has no safetensors; {PICKLES}") from error
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise UserError(f"--model: can't load {model}: {kind}{one_line(error)}") from error


def _check_whole(part: Any, folder: Path) -> None:
    """Refuse a network of which weights were missing: diffusers leaves them without values, transformers draws some."""
    state = part.state_dict()
    missing = [name for name, tensor in state.items() if tensor.is_meta]
    if hasattr(part, "base_model_prefix"):
        prefix = f"{part.base_model_prefix}."
        saved = {name for path in main_weights(folder) for name in tensors(path)}
        found = {n for n in state if {n, prefix + n, n.removeprefix(prefix)} & saved}
        shared = {state[name].data_ptr() for name in found}  # tied weights are saved once
        missing += [name for name in state if name not in found and state[name].data_ptr() not in shared]
    if missing:
        raise UserError(f"{folder}: lacks {len(missing)} of its weights, such as {missing[0]}; restore them")


def _checkpoint(folder: Path, name: str) -> Path:
    step, there = name.removeprefix("checkpoint-"), [path.name.removeprefix("checkpoint-") for path in complete(folder)]
    if step not in there:
        raise UserError(f"--checkpoint {name}: {folder} has {', '.join(there) or 'none'}")
    return folder / f"checkpoint-{step}"


def _weights(parent: Path, index: Index, checkpoint: str | None, ema: float | None) -> dict[str, Path]:
    """Folders of the components that were trained, where they aren't the pipeline's own: their EMA, if there is one."""
    if checkpoint is None and ema is None:
        return {}
    chosen = {}
    trained = CONTROLNET if CONTROLNET in index.components else index.backbone
    for name in index.components:
        emas = [path.name for path in sorted(parent.glob(f"{name}_ema*"))]
        wanted = emas if ema is None else [f"{name}_ema_{ema:.3f}"]
        if ema is None and len(emas) > 1:
            raise UserError(f"--ema: {parent} has several EMAs; choose one: {', '.join(emas)}")
        if ema is not None and name == trained and wanted[0] not in emas:
            widths = ", ".join(ema.removeprefix(f"{name}_ema_") for ema in emas if ema != f"{name}_ema")
            raise UserError(f"--ema: {parent} has none of sigma_rel {ema:.3f}; it has {widths or 'none'}")
        found = [parent / folder for folder in (*wanted, name) if (parent / folder).is_dir()]
        # Of a part that wasn't trained there is none in a checkpoint; beside a model its own serves.
        if found and found[0] != parent / name or checkpoint is not None and found:
            chosen[name] = found[0]
    if trained not in chosen:
        raise UserError(f"--checkpoint {checkpoint}: {parent} holds no {trained}; take another")
    return chosen
