"""Generate images from a trained model: numbered PNGs and a grid of the first of them.

The image of an index depends on --seed and that index alone, so more processes, larger batches or more images
change none of them. Under `accelerate launch` the processes share the work.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snowmelt.config import Config, option, parse
from snowmelt.errors import UserError, run

if TYPE_CHECKING:
    import numpy as np

    from pipelines import PixelDiffusionPipeline

GRID_IMAGES = 64
TRAJECTORY_IMAGES = 8


@dataclass(kw_only=True)
class ModelOptions(Config):
    """Model."""

    model: str | None = option(None, "folder or Hub repository of the pipeline; required")
    revision: str | None = option(None, "branch, tag or commit of the repository")
    ema: float | None = option(None, "relative width of the average to sample from, of those beside the model")
    torch_dtype: str = option(
        "float32", "precision of the network's passes", choices=("float32", "bfloat16", "float16")
    )


@dataclass(kw_only=True)
class SamplingOptions(Config):
    """Sampling."""

    num_images: int = option(64, "images to generate")
    batch_size: int = option(64, "images per process and forward pass")
    num_inference_steps: int = option(50, "steps of the scheduler")
    scheduler: str | None = option(None, "sampler, such as ddim, unipc or flow-heun; the model's own by default")
    eta: float = option(0.0, "noise of ddim, from 0 (none) to 1 (as ddpm)")
    class_label: str | None = option(None, "number or name of the class of all images; all in turn by default")
    guidance_scale: float = option(1.0, "weight of the class against no class; 1 for no guidance")
    guidance_interval: list[float] = option([], "guide only where LO < sigma / alpha <= HI")
    seed: int = option(0, "all randomness follows from it and an image's index")


@dataclass(kw_only=True)
class GenerateConfig(SamplingOptions, ModelOptions):
    """Output."""

    output_dir: str = option("samples", "folder of the images")
    overwrite_output_dir: bool = option(False, "remove the images that an earlier, other run left there")
    bit_depth: int = option(8, "8, or 16 for gray images")
    trajectory: bool = option(False, f"also draw how the first {TRAJECTORY_IMAGES} came about")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is None:
            raise UserError("--model: needed; give the folder or the Hub repository of a pipeline")
        if len(self.guidance_interval) not in (0, 2):
            raise UserError(f"--guidance_interval: takes LO and HI, got {len(self.guidance_interval)} numbers")
        if self.bit_depth not in (8, 16):
            raise UserError(f"--bit_depth: {self.bit_depth} is not one of 8, 16")
        for name in ("num_images", "batch_size", "num_inference_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}: must be at least 1, got {getattr(self, name)}")


def main() -> None:
    config = parse(GenerateConfig)

    # Here, not above, so that --help doesn't wait for torch and diffusers.
    import torch
    from accelerate import PartialState

    from snowmelt.environment import use_all_cores

    use_all_cores()
    state = PartialState(cpu=not torch.accelerator.is_available())
    pipeline = load_pipeline(config).to(state.device)
    pipeline.set_progress_bar_config(leave=False, disable=not state.is_main_process)
    folder = Path(config.output_dir)
    stale = stale_files(folder, expected_files(config, pipeline), config.overwrite_output_dir)
    folder.mkdir(parents=True, exist_ok=True)

    value_range = pipeline.config.get("value_range") or (0.0, 1.0)
    with state.split_between_processes(list(range(config.num_images))) as indices:
        for start in range(0, len(indices), config.batch_size):
            batch = indices[start : start + config.batch_size]
            for index, image in zip(batch, sample(pipeline, config, batch).images, strict=True):
                save_image(image, folder / file_name(pipeline, index), config.bit_depth, value_range)
    state.wait_for_everyone()
    if state.is_main_process:
        for path in stale:
            path.unlink()
        if has_pictures(pipeline):
            save_grid(config, pipeline, folder)
        if config.trajectory:
            save_trajectory(config, pipeline, folder)
        print(f"{config.num_images} images in {folder}")
    state.destroy_process_group()


def load_pipeline(config: GenerateConfig) -> "PixelDiffusionPipeline":
    """The pipeline, with the network and the scheduler that were asked for.

    Raises:
        UserError: if there is no such model, average or sampler, or they don't fit each other.
    """
    import torch
    from diffusers import UNet2DModel

    from pipelines import PixelDiffusionPipeline, make_scheduler

    path = Path(str(config.model))
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise UserError(f"--model: {path} holds no model_index.json, so it is not the folder of a pipeline")
    average = None if config.ema is None else average_folder(path, config.ema)
    source: dict[str, Any] = {"revision": config.revision, "use_safetensors": True}
    try:
        components = {}
        if average is not None:
            components["unet"] = UNet2DModel.from_pretrained(config.model, subfolder=average, **source)
        pipeline = PixelDiffusionPipeline.from_pretrained(config.model, **components, **source)
    except (OSError, ValueError) as error:
        raise UserError(f"--model: can't load {config.model}: {' '.join(str(error).split())}") from error
    # `to` would warn of modules to keep in float32, of which this network has none.
    pipeline.unet.type(getattr(torch, config.torch_dtype))
    try:
        if config.scheduler is not None:
            pipeline.scheduler = make_scheduler(config.scheduler, pipeline.scheduler)
    except ValueError as error:
        raise UserError(f"--{error}") from error
    if config.trajectory and not has_pictures(pipeline):
        raise UserError(f"--trajectory: can't draw images of {pipeline.unet.config.in_channels} channels")
    if config.bit_depth == 16 and pipeline.unet.config.in_channels != 1:
        raise UserError(
            f"--bit_depth: 16 is for gray images, this model's have {pipeline.unet.config.in_channels} channels"
        )
    return pipeline


def average_folder(path: Path, width: float) -> str:
    """Name of the sub-folder of an average, which in a local model must exist."""
    name = f"unet_ema_{width:.3f}"
    if path.is_dir() and not (path / name).is_dir():
        there = sorted(p.name.removeprefix("unet_ema_") for p in path.glob("unet_ema_*"))
        raise UserError(f"--ema: {path} has no average of width {width:.3f}; it has {', '.join(there) or 'none'}")
    return name


def has_pictures(pipeline: "PixelDiffusionPipeline") -> bool:
    return pipeline.unet.config.in_channels in pipeline.PICTURE_CHANNELS


def file_name(pipeline: "PixelDiffusionPipeline", index: int) -> str:
    return f"{index:06d}.{'png' if has_pictures(pipeline) else 'npy'}"


def expected_files(config: GenerateConfig, pipeline: "PixelDiffusionPipeline") -> set[str]:
    """Names of all files of this run."""
    names = {file_name(pipeline, index) for index in range(config.num_images)}
    names |= {"grid.png"} if has_pictures(pipeline) else set()
    return names | ({"strip.png", "trajectory.gif"} if config.trajectory else set())


def stale_files(folder: Path, expected: set[str], overwrite: bool) -> list[Path]:
    """Files of an earlier run that this one won't replace, and that would pass for its own.

    Raises:
        UserError: if there are any, unless `overwrite`.
    """
    ours = re.compile(r"\d{6,}\.(png|npy)|grid\.png|strip\.png|trajectory\.gif")
    stale = sorted(p for p in folder.glob("*") if ours.fullmatch(p.name) and p.name not in expected)
    if stale and not overwrite:
        raise UserError(
            f"--output_dir: {folder} holds {len(stale)} files of another run ({stale[0].name}, ...); "
            "give another folder, or --overwrite_output_dir to remove them"
        )
    return stale


def sample(pipeline: "PixelDiffusionPipeline", config: GenerateConfig, indices: list[int], **options: Any) -> Any:
    """The pipeline's output for the images of these indices."""
    from pipelines import image_generators

    labels: Any = config.class_label
    interval = (config.guidance_interval[0], config.guidance_interval[1]) if config.guidance_interval else None
    if labels is None and pipeline.num_classes:
        labels = [index % pipeline.num_classes for index in indices]
    elif labels is not None and labels.isdecimal() and labels not in (pipeline.id2label or {}).values():
        labels = int(labels)
    try:
        return pipeline(
            batch_size=len(indices),
            class_labels=labels,
            guidance_scale=config.guidance_scale,
            guidance_interval=interval,
            num_inference_steps=config.num_inference_steps,
            eta=config.eta,
            generator=image_generators(config.seed, indices),
            output_type="np",
            **options,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def save_image(image: "np.ndarray", path: Path, bit_depth: int, value_range: tuple[float, float]) -> None:
    """Save float32 (H, W, C) in [0, 1] as a picture, or as an array of the data's own values."""
    import numpy as np
    import PIL.Image

    if path.suffix == ".npy":
        low, high = value_range
        np.save(path, low + image * (high - low))
        return
    pixels = (image * (2**bit_depth - 1)).round().astype(np.uint8 if bit_depth == 8 else np.uint16)
    PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


def save_grid(config: GenerateConfig, pipeline: "PixelDiffusionPipeline", folder: Path) -> None:
    """Draw the first images of all processes, from their files."""
    import numpy as np
    import PIL.Image

    from pipelines import image_grid

    paths = [folder / file_name(pipeline, index) for index in range(min(config.num_images, GRID_IMAGES))]
    pixels = np.stack([np.asarray(PIL.Image.open(path)) for path in paths])
    pixels = (pixels >> config.bit_depth - 8).astype(np.uint8)
    image_grid(pixels.reshape(*pixels.shape[:3], -1)).save(folder / "grid.png")


def save_trajectory(config: GenerateConfig, pipeline: "PixelDiffusionPipeline", folder: Path) -> None:
    """Draw how the first images came about; they are sampled again, alike by their generators."""
    from pipelines import save_gif, save_strip

    indices = list(range(min(config.num_images, TRAJECTORY_IMAGES)))
    trajectory = sample(pipeline, config, indices, return_trajectory=True).trajectory
    save_strip(trajectory, folder / "strip.png")
    save_gif(trajectory, folder / "trajectory.gif")


if __name__ == "__main__":
    run(main)
