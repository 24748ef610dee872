"""Checkpoints: written beside their name, renamed when complete, verified before they are loaded."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline, ModelMixin
from safetensors.torch import load_file, save_file
from torch import Tensor

from snowmelt.ema import Ema
from snowmelt.errors import UserError

STATE_FILE = "trainer_state.json"
_PARTIAL = ".partial-"


class Part(Protocol):
    """Something a checkpoint holds. One registry of parts serves saving and loading, so that they can't drift."""

    def save(self, folder: Path) -> None:
        """Write everything needed to go on into `folder`, which doesn't exist yet."""

    def load(self, folder: Path) -> None:
        """Become what `save` wrote."""


class ModelPart:
    """A network, or one of its averages, as a folder that `from_pretrained` loads."""

    def __init__(self, net: ModelMixin, ema: Ema | None = None) -> None:
        self.net = net
        self.ema = ema

    def save(self, folder: Path) -> None:
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            self.net.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        state = type(self.net).from_pretrained(folder, use_safetensors=True).state_dict()
        if self.ema:
            self.ema.load(state)
        else:
            self.net.load_state_dict(state)


class OptimizerPart:
    """An optimizer's moments, as safetensors. Its hyperparameters come from the configuration, not from here."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def save(self, folder: Path) -> None:
        folder.mkdir()
        state = self.optimizer.state_dict()["state"]
        tensors = {f"{i}.{k}": v.contiguous() for i, moments in state.items() for k, v in moments.items()}
        save_file(tensors, folder / "optimizer.safetensors")

    def load(self, folder: Path) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(folder / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


class ScalerPart:
    """The loss scale of fp16 training."""

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self.scaler = scaler

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "scaler.json").write_text(json.dumps(self.scaler.state_dict()))

    def load(self, folder: Path) -> None:
        self.scaler.load_state_dict(json.loads((folder / "scaler.json").read_text()))


class Checkpoints:
    """The checkpoints of a run.

    Args:
        root: the run's folder; a checkpoint is its child `checkpoint-STEP`.
        parts: what a checkpoint holds, by the name of its sub-folder.
        limit: how many of the newest to keep; None keeps all.
    """

    def __init__(self, root: Path, parts: dict[str, Part], limit: int | None = None) -> None:
        self.root = root
        self.parts = parts
        self.limit = limit

    def save(self, step: int, meta: dict[str, Any]) -> Path:
        """Write `checkpoint-{step}`, and only then remove those beyond the limit.

        Raises:
            UserError: if the disk is full; earlier checkpoints are left as they were.
        """
        final = self.root / f"checkpoint-{step}"
        if final.exists():  # a run that was resumed without having gone further
            return final
        partial = self.root / f"{_PARTIAL}{final.name}"
        shutil.rmtree(partial, ignore_errors=True)
        with _full_disk(partial, self.root):
            partial.mkdir()
            for name, part in self.parts.items():
                part.save(partial / name)
            files = {str(p.relative_to(partial)): _digest(p) for p in sorted(partial.rglob("*")) if p.is_file()}
            state = {"step": step, **meta, "files": files}
            (partial / STATE_FILE).write_text(json.dumps(state, indent=1))
            _sync(partial)
            os.rename(partial, final)
        if self.limit is not None:
            for path in complete(self.root)[: -self.limit]:
                shutil.rmtree(path)
        return final

    def load(self, path: Path, state: dict[str, Any]) -> None:
        """Make the parts what they were when `path` was written; `state` is what `read_state` says of it."""
        for name, digest in state["files"].items():
            file = path / name
            if not file.is_file() or _digest(file) != digest:
                others = [p.name for p in complete(path.parent) if p != path]
                hint = f"resume from {others[-1]}" if others else "start a new run"
                raise UserError(f"{path} is damaged: {name} is missing or has changed; {hint}")
        for name, part in self.parts.items():
            part.load(path / name)


def complete(root: Path) -> list[Path]:
    """The complete checkpoints below `root`, oldest first."""
    found = [p for p in root.glob("checkpoint-*") if p.name[11:].isdigit() and (p / STATE_FILE).is_file()]
    return sorted(found, key=lambda p: int(p.name[11:]))


def find(root: Path, name: str) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint name` means: a child's name, a path, or 'latest'.

    Returns:
        Its folder; None for 'latest' where there is none yet, so that a job that restarts itself can always say it.

    Raises:
        UserError: if it doesn't exist.
    """
    existing = complete(root)
    if name == "latest":
        return existing[-1] if existing else None
    for candidate in (root / Path(name).name, Path(name)):
        if (candidate / STATE_FILE).is_file():
            return candidate
    known = ", ".join(p.name for p in existing) or "none"
    raise UserError(f"--resume_from_checkpoint {name}: no complete checkpoint of that name; there are: {known}")


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: `step`, `config`, `files`.

    Raises:
        UserError: if it can't be read.
    """
    try:
        return json.loads((path / STATE_FILE).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged: {STATE_FILE} can't be read; resume from another checkpoint") from error


def save_atomically(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Save a pipeline into a folder that may hold an earlier one, replacing whole files only.

    Raises:
        UserError: if the disk is full; what was there is left as it was.
    """
    partial = folder / f"{_PARTIAL}pipeline"
    shutil.rmtree(partial, ignore_errors=True)
    with _full_disk(partial, folder):
        pipeline.save_pretrained(partial)
        _sync(partial)
    for file in sorted(p for p in partial.rglob("*") if p.is_file()):
        target = folder / file.relative_to(partial)
        target.parent.mkdir(exist_ok=True)
        os.replace(file, target)
    shutil.rmtree(partial)


@contextlib.contextmanager
def _full_disk(partial: Path, root: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        size = sum(p.stat().st_size for p in partial.rglob("*") if p.is_file())
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(root).free
        if "No space left" not in str(error):
            raise
        kept = complete(root)
        raise UserError(
            f"disk full while saving {partial.name.removeprefix(_PARTIAL)} ({size / 1e6:.0f} MB written, "
            f"{free / 1e6:.0f} MB free now); {kept[-1].name if kept else 'no checkpoint'} is intact: "
            "free some space, then resume with --resume_from_checkpoint latest"
        ) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    """Reach the disk before the rename does, so that a power cut can't leave a complete name on empty files."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
