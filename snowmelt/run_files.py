"""What a run leaves in its folder, by exact names: what may be removed, and who may write there."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pipelines.backbones import COMPONENTS
from snowmelt.checkpoint import MODEL_FILE, PENDING, STATE_FILE, finish_saving, read_state
from snowmelt.errors import UserError
from snowmelt.options import TrainingConfig

CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
LOCK_FILE = ".lock"

_NAMES = "|".join([*COMPONENTS, "vae|text_encoder|tokenizer|scheduler|feature_extractor|safety_checker|controlnet"])
_COMPONENT = rf"({_NAMES})(_ema(_\d\.\d{{3}})?)?"
OWN_FILES = re.compile(
    rf"config\.yaml|run\.json|metrics\.jsonl|heartbeat\.json|loss\.png|evaluation\.png|skipped\.txt|"
    rf"alignment\.md|alignment\.png|alignment-prompts\.png|"
    rf"(best/)?(model_index\.json|pipeline\.py|validation\.json|(pytorch_lora_weights|learned_embeds)\.safetensors|"
    rf"{_COMPONENT}/({MODEL_FILE}))|"
    r"samples/(step-\d{6,}\.(png|npy)|prompts\.(txt|png))|"
    r"logs/(.*/)?(events\.out\.tfevents\.[^/]*|hparams\.yml)|"
    r"\.(partial|pending|old|publication)[^/]*(/.*)?"
)
"""Paths below the folder. Those of checkpoints are the ones that their states list."""

BEGINNING = re.compile(
    r"config\.yaml|run\.json|metrics\.jsonl|heartbeat\.json|skipped\.txt|samples|logs|\.lock|\.(partial|pending|old)-.*"
)
"""Names that a run leaves when it is stopped before its first checkpoint."""


def occupied(folder: Path) -> bool:
    """Whether something is in a folder, but for the lock of a run."""
    return folder.is_dir() and any(path.name != LOCK_FILE for path in folder.iterdir())


def own_files(folder: Path) -> list[Path]:
    """All that runs left in a folder, links not followed."""
    found = []
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        if here.parent == folder and re.fullmatch(r"checkpoint-\d+", here.name):
            found += _checkpoint_files(here)
            folders.clear()
            continue
        found += [here / name for name in names if OWN_FILES.fullmatch((here / name).relative_to(folder).as_posix())]
    return found


def _checkpoint_files(folder: Path) -> list[Path]:
    """The files that a checkpoint's state lists; none of a folder that only has such a name."""
    if not (folder / STATE_FILE).is_file():
        return []
    try:
        listed = read_state(folder)["files"]
    except UserError:  # damaged: nothing says what is in it
        return []
    own = folder.resolve()
    paths = [path for name in listed if (path := folder / name).is_file() and path.resolve().is_relative_to(own)]
    return [folder / STATE_FILE, *paths]


def remove_own(folder: Path) -> None:
    """Remove what runs left in a folder, and the folders that this leaves empty; all else stays."""
    files = own_files(folder)
    for path in files:
        path.unlink()
    parents = {parent for path in files for parent in path.parents if folder in parent.parents}
    for parent in sorted(parents, key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):  # something of the user's is in it
            parent.rmdir()


def check_nothing_needed(config: TrainingConfig) -> None:
    """Refuse to overwrite a folder that holds what the run reads: data, configuration, cache or models.

    Raises:
        UserError: naming the option.
    """
    folder = Path(config.output_dir).resolve()
    given = {f"--{n}": getattr(config, n) for n, f in config.fields().items() if f.metadata["path"] or n == "cache_dir"}
    for flag, value in (given | {"--config": config.source}).items():
        if value is not None and os.path.lexists(value) and Path(value).resolve().is_relative_to(folder):
            raise UserError(
                f"--overwrite_output_dir: {flag} {value} is inside --output_dir {config.output_dir}; give another "
                "--output_dir, or move it"
            )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other run writes to the folder. The lock ends with the process, however that ends.

    Raises:
        UserError: if one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK_FILE, timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"--output_dir {folder}: another run is writing there; wait, or name another") from error


def settle(folder: Path) -> None:
    """Complete the save that a killed run left half done, if there is one, so that the model there can be loaded.

    Raises:
        UserError: if a run is writing there.
    """
    if (folder / PENDING).is_dir():
        with locked(folder):
            finish_saving(folder)
