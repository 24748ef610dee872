"""The folder a run writes to: whether it may, what it holds at the start, what is said of it at the end."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from pipelines import PIPELINES, PixelDiffusionPipeline
from snowmelt.checkpoint import find
from snowmelt.data.cache import ImageCache
from snowmelt.environment import hardware
from snowmelt.errors import UserError
from snowmelt.options import TrainingConfig
from snowmelt.tracking import METRICS_FILE

CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' name
OWN = (
    "checkpoint-*",
    ".partial-*",
    "unet*",
    "text_encoder*",
    "tokenizer",
    "vae",
    "vae_ema_*",
    "scheduler",
    "feature_extractor",
    "safety_checker",
    LORA_FILE,
    "samples",
    "best",
    "model_index.json",
    "pipeline.py",
    "loss.png",
    "evaluation.png",
    "alignment*",
    ".publication*",
    "skipped.txt",
    "logs",
    METRICS_FILE,
    CONFIG_FILE,
    RUN_FILE,
)
"""What a run leaves, and so what --overwrite_output_dir removes: nothing else in the folder is touched."""


def check(config: TrainingConfig, needed: str | None = None) -> Path | None:
    """The checkpoint to resume, if one was asked for, without writing anything.

    Args:
        config: options of the run.
        needed: a model that the run starts from, by its folder or otherwise.

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
        return find(folder, config.resume_from_checkpoint)
    if config.overwrite_output_dir and needed and Path(needed).resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"--overwrite_output_dir would delete {needed}, which this run needs; give another --output_dir"
        )
    if folder.exists() and any(folder.iterdir()) and not config.overwrite_output_dir:
        raise UserError(
            f"--output_dir {folder} is not empty; add --overwrite_output_dir, or --resume_from_checkpoint latest"
        )
    return None


def prepare(config: TrainingConfig, data: ImageCache, accelerator: Accelerator, *, fresh: bool) -> None:
    """Make the folder ready: clear what an earlier run left if a fresh one overwrites it, save the configuration."""
    accelerator.wait_for_everyone()  # every process has checked the folder before one changes it
    folder = Path(config.output_dir)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        if fresh and config.overwrite_output_dir:
            for path in (p for pattern in OWN for p in folder.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        config.save(folder / CONFIG_FILE)
        (folder / RUN_FILE).write_text(json.dumps(_facts(config, data, accelerator), indent=1) + "\n")
        if data.skipped:
            (folder / "skipped.txt").write_text("\n".join(data.skipped) + "\n")
    accelerator.wait_for_everyone()
    if config.logger:
        accelerator.init_trackers(
            "snowmelt", {k: v for k, v in config.to_dict().items() if isinstance(v, str | int | float)}
        )


def _facts(config: TrainingConfig, data: ImageCache, accelerator: Accelerator) -> dict[str, Any]:
    """What strangers may know of the run, for its model card."""
    return {
        "config": config.to_publish(),
        "num_images": len(data),
        "hardware": hardware(accelerator),
        "mixed_precision": accelerator.mixed_precision,
        "images_per_step": config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes,
        "software": {name: version(name) for name in ("snowmelt", "diffusers", "torch")},
    }


def summary(config: TrainingConfig, data: ImageCache, told: str, base: str | None = None) -> str:
    """Where everything is, and how to use it.

    Args:
        config: the run's options.
        data: what it was trained on.
        told: what the pipeline is called with besides its steps.
        base: the pipeline that LoRA matrices belong to, where they are all that was trained.
    """
    folder = Path(config.output_dir)
    grids = sorted((folder / "samples").iterdir())
    call = f"{told}num_inference_steps=50"
    picture = data.channels in PixelDiffusionPipeline.PICTURE_CHANNELS
    last = f'pipeline({call}).images[0].save("sample.png")' if picture else f'pipeline({call}, output_type="np").images'
    return (
        f"\npipeline   {folder}\nsamples    {grids[-1]}\nloss       {folder / 'loss.png'}\n\n"
        f"{_loading(folder, base)}\n{last}"
    )


def _loading(folder: Path, base: str | None) -> str:
    """Lines of Python that load what was trained."""
    source, lora = (base, f'\npipeline.load_lora_weights("{folder}")') if base else (folder, "")
    name = DiffusionPipeline.load_config(source)["_class_name"]
    name = name[-1] if isinstance(name, list) else name
    package = "pipelines" if name in PIPELINES else "diffusers"
    return f'from {package} import {name}\npipeline = {name}.from_pretrained("{source}"){lora}'
