"""Generate images from a trained model: numbered PNGs and a grid of the first of them.

The image of an index depends on --seed and that index alone, so more processes, larger batches or more images
change none of them. Under `accelerate launch` the processes share the work.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snowmelt.config import option, parse
from snowmelt.errors import UserError, run
from snowmelt.loading import PipelineOptions, SamplerOptions, choose_pipeline, sample, set_scheduler

if TYPE_CHECKING:
    import numpy as np

    from pipelines import PixelDiffusionPipeline

GRID_IMAGES = 64
TRAJECTORY_IMAGES = 8


@dataclass(kw_only=True)
class GenerateConfig(SamplerOptions, PipelineOptions):
    """Output."""

    num_images: int = option(64, "images to generate", minimum=1, maximum=10_000_000)
    class_label: str | None = option(None, "number or name of the class of all images; all in turn by default")
    prompt: list[str] = option([], "prompts, which images take in turn, for a model that makes them from texts")
    output_dir: str = option("samples", "folder of the images")
    overwrite_output_dir: bool = option(False, "remove the images that an earlier, other run left there")
    bit_depth: int = option(8, "8, or 16 for gray images", minimum=8, maximum=16)
    trajectory: bool = option(False, f"also draw how the first {TRAJECTORY_IMAGES} came about")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bit_depth not in (8, 16):
            raise UserError(f"--bit_depth: {self.bit_depth} is not one of 8, 16")


def main() -> None:
    config = parse(GenerateConfig)

    # Here, not above, so that --help doesn't wait for torch and diffusers.
    import torch
    from accelerate import PartialState

    from snowmelt.environment import find_launch, use_all_cores

    use_all_cores(find_launch())
    state = PartialState(cpu=not torch.accelerator.is_available())
    pipeline = load(config).to(state.device)
    pipeline.set_progress_bar_config(leave=False, disable=not state.is_main_process)
    folder = Path(config.output_dir)
    stale = stale_files(folder, expected_files(config, pipeline), config.overwrite_output_dir)
    folder.mkdir(parents=True, exist_ok=True)

    value_range = pipeline.config.get("value_range") or (0.0, 1.0)
    with state.split_between_processes(list(range(config.num_images))) as indices:
        for start in range(0, len(indices), config.batch_size):
            batch = indices[start : start + config.batch_size]
            images = draw(pipeline, config, batch).images
            for index, image in zip(batch, images, strict=True):
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


def load(config: GenerateConfig) -> "PixelDiffusionPipeline":
    """The pipeline, with the sampler that was asked for.

    Raises:
        UserError: if it can't be had, or can't make the files that were asked for.
    """
    pipeline = choose_pipeline(config)
    set_scheduler(pipeline, config.scheduler, pipeline.scheduler)
    if config.trajectory and not has_pictures(pipeline):
        raise UserError(f"--trajectory: can't draw images of {pipeline.channels} channels")
    if config.bit_depth == 16 and pipeline.channels != 1:
        raise UserError(f"--bit_depth: 16 is for gray images, this model's have {pipeline.channels} channels")
    return pipeline


def draw(pipeline: "PixelDiffusionPipeline", config: GenerateConfig, indices: list[int], **arguments: Any) -> Any:
    """The pipeline's output for these images, as arrays.

    Raises:
        UserError: for what the pipeline refuses.
    """
    return sample(
        pipeline,
        config,
        indices,
        class_label=config.class_label,
        prompts=config.prompt,
        output_type="np",
        **arguments,
    )


def has_pictures(pipeline: "PixelDiffusionPipeline") -> bool:
    return pipeline.channels in pipeline.PICTURE_CHANNELS


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
    trajectory = draw(pipeline, config, indices, return_trajectory=True).trajectory
    save_strip(trajectory, folder / "strip.png")
    save_gif(trajectory, folder / "trajectory.gif")


if __name__ == "__main__":
    run(main)
