"""The folder a run writes to: whether it may, what it holds at the start, what is said of it at the end."""

import contextlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from pipelines import IMAGE_CHANNELS, PIPELINES
from pipelines.controlnet import CONTROLNET
from pipelines.schedulers import FEW_STEPS
from snowmelt.checkpoint import INDEX_FILE, find, finish_saving
from snowmelt.data.cache import ImageCache
from snowmelt.environment import hardware
from snowmelt.errors import UserError, explained, printable
from snowmelt.options import TrainingConfig
from snowmelt.run_files import BEGINNING, CONFIG_FILE, RUN_FILE, check_nothing_needed, locked, occupied, remove_own
from snowmelt.text.adapters import adapter_in


def check(config: TrainingConfig) -> Path | None:
    """The checkpoint to resume, if one was asked for, without writing anything.

    Raises:
        UserError: if the folder isn't empty and neither overwriting nor resuming was asked for, if overwriting would
            delete what is needed, or if there is no such checkpoint.
    """
    folder = Path(config.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file; name a folder")
    if config.resume_from_checkpoint:
        if config.overwrite_output_dir:
            raise UserError("--overwrite_output_dir would delete what --resume_from_checkpoint reads; drop one of them")
        return _resumed(folder, config.resume_from_checkpoint)
    if config.overwrite_output_dir:
        check_nothing_needed(config)
    elif occupied(folder):
        raise UserError(
            f"--output_dir {folder} is not empty; add --overwrite_output_dir, or --resume_from_checkpoint latest"
        )
    return None


def _resumed(folder: Path, name: str) -> Path | None:
    """The checkpoint of that name; None for "latest" where no run has got that far, so that it can always be said."""
    found = find(folder, name)
    if found is None and folder.is_dir():
        foreign = sorted(path.name for path in folder.iterdir() if not BEGINNING.fullmatch(path.name))
        if foreign:
            raise UserError(
                f"--resume_from_checkpoint latest: {folder} holds {foreign[0]}, but no checkpoint of Snowmelt; name "
                "another --output_dir, or an empty one"
            )
    return found


@contextlib.contextmanager
def opened(config: TrainingConfig, data: ImageCache, accelerator: Accelerator, *, fresh: bool) -> Iterator[None]:
    """The folder, made ready for this run alone: what an earlier one left is cleared, the configuration saved.

    Args:
        config: the run's options.
        data: what it is trained on.
        accelerator: the processes, which all enter.
        fresh: whether it starts anew, rather than from a checkpoint.

    Raises:
        UserError: if another run is writing there, or has since `check`.
    """
    folder = Path(config.output_dir)
    accelerator.wait_for_everyone()  # every process has checked the folder before one changes it
    with contextlib.ExitStack() as stack:
        refused: list[str | None] = [None]
        if accelerator.is_main_process:
            try:
                stack.enter_context(locked(folder))
                _prepare(config, data, accelerator, fresh)
            except (UserError, OSError) as error:
                refused = [explained(error) if isinstance(error, OSError) else str(error)]
        if reason := broadcast_object_list(refused)[0]:
            raise UserError(reason)
        if config.logger:
            values = {k: v for k, v in config.to_dict().items() if isinstance(v, str | int | float)}
            accelerator.init_trackers(config.tracker_project_name, values)
        yield


def _prepare(config: TrainingConfig, data: ImageCache, accelerator: Accelerator, fresh: bool) -> None:
    folder = Path(config.output_dir)
    if fresh and config.overwrite_output_dir:
        remove_own(folder)
    elif fresh and not config.resume_from_checkpoint:
        check(config)  # again: another run may have come and gone
    finish_saving(folder)
    config.save(folder / CONFIG_FILE)
    (folder / RUN_FILE).write_text(json.dumps(_facts(config, data, accelerator), indent=1) + "\n")
    if data.skipped:
        (folder / "skipped.txt").write_text("\n".join(map(printable, data.skipped)) + "\n")


def _facts(config: TrainingConfig, data: ImageCache, accelerator: Accelerator) -> dict[str, Any]:
    """What strangers may know of the run, for its model card."""
    with_class_images = getattr(config, "with_prior_preservation", False)
    return {
        "config": config.to_publish(),
        "num_images": len(data),
        "hardware": hardware(accelerator),
        "mixed_precision": accelerator.mixed_precision,
        "images_per_step": config.images_per_step(accelerator.num_processes) * (2 if with_class_images else 1),
        "software": {name: version(name) for name in ("snowmelt", "diffusers", "torch")},
    }


def summary(config: TrainingConfig, data: ImageCache, arguments: str, base: str | None = None) -> str:
    """Where everything is, and how to use it.

    Args:
        config: the run's options.
        data: what it was trained on.
        arguments: what the pipeline is called with besides its steps.
        base: the pipeline that training began from, if it did.
    """
    folder = Path(config.output_dir)
    grids = sorted((folder / "samples").glob("step-*"))
    index = DiffusionPipeline.load_config(folder if (folder / INDEX_FILE).is_file() else base)
    call = f"{arguments}num_inference_steps={FEW_STEPS.get(index['scheduler'][1], 50)}"
    last = f'pipeline({call}, output_type="np").images'
    if data.channels in IMAGE_CHANNELS:
        last = f'pipeline({call}).images[0].save("sample.png")'
    imports = "from PIL import Image\n" if "Image.open" in call else ""
    return (
        f"\npipeline   {folder}\nsamples    {grids[-1]}\nloss       {folder / 'loss.png'}\n\n"
        f"{imports}{_loading(folder, base)}\n{last}"
    )


def _loading(folder: Path, base: str | None) -> str:
    """Lines of Python that load what was trained."""
    if base and not (folder / INDEX_FILE).is_file() and (folder / CONTROLNET).is_dir():
        return (
            "from diffusers import ControlNetModel, StableDiffusionControlNetPipeline\n"
            f'controlnet = ControlNetModel.from_pretrained("{folder}", subfolder="{CONTROLNET}")\n'
            f'pipeline = StableDiffusionControlNetPipeline.from_pretrained("{base}", controlnet=controlnet)'
        )
    adapter = adapter_in(folder)
    source, more = (base, f'\npipeline.{adapter.method}("{folder}")') if adapter else (str(folder), "")
    name = DiffusionPipeline.load_config(source)["_class_name"]
    name = name[-1] if isinstance(name, list) else name
    package = "pipelines" if name in PIPELINES else "diffusers"
    return f'from {package} import {name}\npipeline = {name}.from_pretrained("{source}"){more}'
