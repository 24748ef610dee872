"""Checkpoints: written beside their name, renamed when complete, verified before they are loaded."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from snowmelt.errors import UserError
from snowmelt.files import read_mapping
from snowmelt.stateful import Stateful, Write

STATE_FILE = "trainer_state.json"
STATE: dict[str, type] = {"step": int, "files": dict, "sha256": str}
_PARTIAL, PENDING, _OLD = ".partial-", ".pending-model", ".old-model"
INDEX_FILE = "model_index.json"
MODEL_FILE = (
    r"config\.json|\w+_config\.json|[\w.-]+\.safetensors(\.index\.json)?|tokenizer\.json|special_tokens_map\.json|"
    r"added_tokens\.json|vocab\.json|merges\.txt|spiece\.model"
)
"""Names in the folder of a model's component."""
_UMASK = os.umask(0o077)
"""Of the process. It can be read only by changing it for a moment, which no thread may see."""
os.umask(_UMASK)


class Checkpoints:
    """The checkpoints of a run.

    Args:
        root: the run's folder; a checkpoint is its child `checkpoint-STEP`.
        states: what a checkpoint holds, by the name of its sub-folder.
        limit: how many of the newest to keep; None keeps all.
    """

    def __init__(self, root: Path, states: dict[str, Stateful], limit: int | None = None) -> None:
        self.root = root
        self.states = states
        self.limit = limit
        self._writing: Future[None] | None = None

    def save(self, step: int, meta: dict[str, Any], *, writes: bool = True) -> None:
        """Take note of all states, and begin to write them as `checkpoint-{step}`, while training goes on.

        Every process enters.

        Args:
            step: optimizer steps taken.
            meta: what else a checkpoint says of itself.
            writes: whether this process is the one that writes.

        Raises:
            UserError: as `wait`, of the checkpoint before.
        """
        self.wait()
        written = {name: state.collect() for name, state in self.states.items()}
        if writes:
            writer = ThreadPoolExecutor(1)
            self._writing = writer.submit(self._write, step, meta, written)
            writer.shutdown(wait=False)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        """Complete what `save` began, however training ended."""
        self.wait()

    def wait(self) -> None:
        """Return when what `save` began is complete.

        Raises:
            UserError: if the disk is full; earlier checkpoints are left as they were.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, meta: dict[str, Any], written: dict[str, Write]) -> None:
        """Write a checkpoint, and only then remove those beyond the limit."""
        final = self.root / f"checkpoint-{step}"
        partial = self.root / f"{_PARTIAL}{final.name}"
        for leftover in self.root.glob(f"{_PARTIAL}*checkpoint-*"):  # of a run that was killed
            shutil.rmtree(leftover)
        with full_disk(self.root, final.name), _removed_on_failure(partial):
            partial.mkdir()
            for name, write in written.items():
                write(partial / name)
            files = {str(p.relative_to(partial)): _digest(p) for p in sorted(partial.rglob("*")) if p.is_file()}
            state = {"step": step, **meta, "files": files}
            (partial / STATE_FILE).write_text(json.dumps(state | {"sha256": _state_digest(state)}, indent=1))
            _settle(partial)
            if final.exists():  # left by a run that went further than the checkpoint that this one resumed from
                _remove(final)
            os.rename(partial, final)
        if self.limit is not None:
            for path in [p for p in complete(self.root) if _step(p) <= step][: -self.limit]:
                _remove(path)

    def load(self, path: Path, state: dict[str, Any]) -> None:
        """Make the states what they were when `path` was written; `state` is what `read_state` says of it."""
        self.wait()
        _verify(path, state["files"])
        for name, stateful in self.states.items():
            stateful.load(path / name)


def complete(root: Path) -> list[Path]:
    """The complete checkpoints below `root`, oldest first."""
    found = [p for p in root.glob("checkpoint-*") if p.name[11:].isdigit() and (p / STATE_FILE).is_file()]
    return sorted(found, key=_step)


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
    for candidate in (root / name, Path(name), root / Path(name).name):
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
        state = read_mapping(path / STATE_FILE, STATE)
    except UserError as error:
        raise _damaged(path, STATE_FILE) from error
    if state.pop("sha256", None) != _state_digest(state):
        raise _damaged(path, STATE_FILE)
    return state


def verify(path: Path, folders: Iterable[Path]) -> None:
    """Check that these folders of a checkpoint are what was written.

    Raises:
        UserError: if a file is missing or has changed.
    """
    names = {folder.name for folder in folders}
    _verify(path, {file: digest for file, digest in read_state(path)["files"].items() if Path(file).parts[0] in names})


def _verify(path: Path, files: dict[str, str]) -> None:
    for name, digest in files.items():
        file = path / name
        if not file.is_file() or _digest(file) != digest:
            raise _damaged(path, name)


def save_atomically(save: Callable[[Path], None], folder: Path) -> None:
    """Save a model into a folder that may hold an earlier one, whose parts are exchanged as whole folders.

    Once it is written and renamed, a kill loses nothing: `finish_saving` completes the exchange. While that is under
    way, the folder has no model_index.json, so that nobody loads a mixture of two models.

    Args:
        save: writes it into the folder that it is given, which doesn't exist yet.
        folder: the run's.

    Raises:
        UserError: if the disk is full; what was there is left as it was.
    """
    partial = folder / f"{_PARTIAL}model"
    shutil.rmtree(partial, ignore_errors=True)
    with full_disk(folder, "the model"), _removed_on_failure(partial):
        save(partial)
        _settle(partial)
    finish_saving(folder)  # of a save that was killed
    os.rename(partial, folder / PENDING)
    finish_saving(folder)


def finish_saving(folder: Path) -> None:
    """Complete a save that was killed between writing a model and putting it in the place of the earlier one.

    The caller is the only one who writes to the folder.
    """
    pending, old = folder / PENDING, folder / _OLD
    if not pending.is_dir():
        return
    old.mkdir(exist_ok=True)
    if (pending / INDEX_FILE).exists():
        (folder / INDEX_FILE).unlink(missing_ok=True)
    for entry in sorted(pending.iterdir(), key=lambda path: path.name == INDEX_FILE):
        target = folder / entry.name
        if target.is_dir():
            shutil.rmtree(old / entry.name, ignore_errors=True)
            os.rename(target, old / entry.name)
        os.replace(entry, target)
    for path in [p for p in old.rglob("*") if p.is_file() and not re.fullmatch(MODEL_FILE, p.name)]:
        kept = folder / path.relative_to(old)  # the user's own
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, kept)
    shutil.rmtree(old)
    pending.rmdir()


@contextlib.contextmanager
def full_disk(root: Path, what: str) -> Iterator[None]:
    """A full disk inside becomes a `UserError`, whoever notices it: Python, or safetensors with an error of its own."""
    try:
        yield
    except Exception as error:
        if "No space left" not in str(error) and "quota exceeded" not in str(error):
            raise
        kept = complete(root)
        raise UserError(
            f"disk full while saving {what} ({shutil.disk_usage(root).free / 1e6:.0f} MB free now); "
            f"{kept[-1].name if kept else 'no checkpoint'} is intact: "
            "free some space, then resume with --resume_from_checkpoint latest"
        ) from error


@contextlib.contextmanager
def _removed_on_failure(partial: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _damaged(path: Path, file: str) -> UserError:
    others = [p.name for p in complete(path.parent) if p != path]
    hint = f"resume from {others[-1]}" if others else "start a new run"
    return UserError(f"{path} is damaged: {file} is missing or has changed; {hint}")


def _step(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _remove(path: Path) -> None:
    """Delete a checkpoint so that, if this is interrupted, what is left of it isn't taken for a complete one."""
    doomed = path.with_name(f"{_PARTIAL}old-{path.name}")
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def _state_digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _settle(folder: Path) -> None:
    """Reach the disk before the rename does, so that a power cut can't leave a complete name on empty files.

    Files get the permissions that the umask grants; safetensors keeps its own to their owner.
    """
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            path.chmod(0o666 & ~_UMASK)
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
