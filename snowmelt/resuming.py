"""Going on from a checkpoint: which one, what of it must be as it was, and what may differ."""

from pathlib import Path
from typing import Any

from snowmelt.checkpoint import STATE_FILE, find, read_state, verify
from snowmelt.config import differences
from snowmelt.errors import UserError
from snowmelt.files import checked
from snowmelt.options import TrainingConfig, UnconditionalConfig
from snowmelt.text.options import TextToImageConfig

STATE = {"config": dict, "total_steps": int, "seconds": float, "num_processes": int}


def resumed(config: TrainingConfig) -> Path | None:
    """The checkpoint that a run resumes, if it does; see `find`."""
    return find(Path(config.output_dir), config.resume_from_checkpoint) if config.resume_from_checkpoint else None


def network_config(config: UnconditionalConfig | TextToImageConfig, component: str) -> str | None:
    """Where the configuration of a run's network stands: in the checkpoint that it resumes, or where an option says.

    What a named size means may have changed since the checkpoint was made.

    Args:
        config: the run's options, with `model_config_name_or_path`.
        component: the network's name in checkpoints.
    """
    found = resumed(config)
    if found is not None and (found / component / "config.json").is_file():
        verify(found, [found / component])
        return str(found / component)
    given: str | None = config.model_config_name_or_path
    return given


def read_resumable(checkpoint: Path, config: TrainingConfig, content: str, num_processes: int) -> dict[str, Any]:
    """What a checkpoint says of itself, if this run is the same training.

    Args:
        checkpoint: its folder.
        config: of the run.
        content: the fingerprint of the data.
        num_processes: of the run.

    Raises:
        UserError: if it can't be read, or other options, other data or another number of batches a step made it.
    """
    state = {"seconds": 0.0, "rewinds": 0} | read_state(checkpoint)  # version 0.1 had none
    state = checked(checkpoint / STATE_FILE, state, STATE)
    changed = differences(state["config"], config)
    if state.get("content", content) != content:  # earlier versions knew data by their paths
        changed.append(f"content={state['content']!r} (now {content!r})")
    if changed:
        raise UserError(f"{checkpoint} was made with {', '.join(changed)}; resume with the same, or start a new run")
    _check_processes(checkpoint.name, state, config.gradient_accumulation_steps, num_processes)
    return state


def _check_processes(name: str, state: dict[str, Any], accumulation: int, num_processes: int) -> None:
    """Batches and noise belong to the parts of a step, which another number of processes may share among them."""
    then = state["num_processes"], state["config"].get("gradient_accumulation_steps", 1)
    parts = then[0] * then[1]
    if num_processes * accumulation == parts:
        return
    fits = f"give --gradient_accumulation_steps {parts // num_processes}"
    if parts % num_processes:
        fits = "launch " + " or ".join(str(n) for n in range(1, parts + 1) if parts % n == 0)
    raise UserError(
        f"{name}: num_processes={then[0]} (now {num_processes}), --gradient_accumulation_steps {then[1]} (now "
        f"{accumulation}): a step of the run has {parts} batches; {fits}"
    )
