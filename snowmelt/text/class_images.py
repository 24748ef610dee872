"""Images of a class, made by a pretrained pipeline before it is fine-tuned (Ruiz et al. 2023, section 3.3)."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from pipelines import IMAGE_CHANNELS, image_generators
from snowmelt.data.agreement import Like
from snowmelt.data.cache import ImageCache
from snowmelt.data.folders import find
from snowmelt.data.sources import images_of, open_dataset
from snowmelt.errors import UserError, explained
from snowmelt.files import read_mapping
from snowmelt.options import DataOptions
from snowmelt.text.options import TextToImageConfig

SETTINGS_FILE = "class_images.json"
"""In the folder: what the images that were made there depend on."""
DEPENDS_ON = (
    "class_prompt",
    "pretrained_model_name_or_path",
    "revision",
    "variant",
    "non_ema_revision",
    "resolution",
    "seed",
)
OWN = re.compile(r"class-(\d{6})\.png")


def load_class_images(
    config: TextToImageConfig, pipeline: Any, images: ImageCache, accelerator: Accelerator
) -> ImageCache:
    """The class images of prior preservation, decoded as the others are; those that are missing are made first.

    Image n depends on the seed and n, so that neither the processes nor an interruption change it. Other images in the
    folder count too.

    Args:
        config: the folder, the prompt and how many.
        pipeline: as it is before training.
        images: those that are fine-tuned on.
        accelerator: the processes, which all make some.

    Raises:
        UserError: if the folder has images made for something else, or some that can't be read.
    """
    folder = Path(str(config.class_data_dir))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _make_missing(config, pipeline, folder, accelerator)
    except OSError as error:
        raise UserError(f"--class_data_dir {folder}: {explained(error)}") from error
    elsewhere = {"dataset_name", "dataset_config_name", "split", "image_column", "label_column"}
    given = DataOptions(
        **{name: getattr(config, name) for name in DataOptions.fields().keys() - elsewhere}
        | {"train_data_dir": str(folder)}
    )
    try:
        source = open_dataset(given)
        first = range(min(config.num_class_images, len(source.dataset)))
        like = Like(images.channels, images.dtype, images.value_range, "the data set")
        return images_of(replace(source, dataset=source.dataset.select(first)), given, like=like)
    except UserError as error:
        raise UserError(f"--class_data_dir {folder}: {error}") from error


def _make_missing(config: TextToImageConfig, pipeline: Any, folder: Path, accelerator: Accelerator) -> None:
    there = [file.where.name for file in find(folder.resolve()) if file.is_image]
    made = {int(match[1]) for name in there if (match := OWN.fullmatch(name))}
    missing = [n for n in range(config.num_class_images - (len(there) - len(made))) if n not in made]
    settings = {name: getattr(config, name) for name in DEPENDS_ON}
    if made:
        _check_settings(folder, settings)
    accelerator.wait_for_everyone()  # every process has looked at the folder before one changes it
    if not missing:
        return
    if pipeline.vae is None and pipeline.unet.config.in_channels not in IMAGE_CHANNELS:
        raise UserError(
            f"--with_prior_preservation: images of {pipeline.unet.config.in_channels} channels can't be kept as files"
        )
    accelerator.print(f"making {len(missing)} images of {config.class_prompt!r} in {folder}")
    if accelerator.is_main_process:
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n")
    own = missing[accelerator.process_index :: accelerator.num_processes]
    batches = [own[i : i + config.sample_batch_size] for i in range(0, len(own), config.sample_batch_size)]
    checker = pipeline.components.get("safety_checker")  # would blacken what is to be learned from
    if checker is not None:
        pipeline.register_modules(safety_checker=None)
    pipeline.to(accelerator.device).set_progress_bar_config(disable=True)
    for batch in tqdm(batches, "class images", unit="batch", disable=not accelerator.is_main_process):
        for n, image in zip(batch, _draw(pipeline, config, batch), strict=True):
            partial = folder / f".class-{n:06d}.png"
            image.save(partial)
            os.replace(partial, folder / f"class-{n:06d}.png")
    if checker is not None:
        pipeline.register_modules(safety_checker=checker)
    accelerator.wait_for_everyone()


def _draw(pipeline: Any, config: TextToImageConfig, numbers: list[int]) -> Any:
    height, width = config.size
    try:
        return pipeline(
            [config.class_prompt] * len(numbers),
            height=height,
            width=width,
            generator=image_generators(config.seed, numbers),
        ).images
    except ValueError as error:
        raise UserError(f"--with_prior_preservation: images of the class can't be made: {error}") from error


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse images that were made for something else."""
    path = folder / SETTINGS_FILE
    saved = read_mapping(path) if path.is_file() else {}
    for name, value in settings.items():
        if saved.get(name) != value:
            was = f"with --{name} {saved[name]!r} (now {value!r})" if name in saved else "by nobody knows what"
            raise UserError(f"--class_data_dir {folder}: its images were made {was}; give another folder, or empty it")
