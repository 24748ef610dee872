"""Generate images from a trained model: numbered PNGs and a grid of the first of them.

The image of an index depends on --seed and that index alone, so more processes, larger batches or more images
change none of them. Under `accelerate launch` the processes share the work.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snowmelt.config import option, parse
from snowmelt.errors import UserError, run
from snowmelt.loading import (
    PipelineOptions,
    SamplerOptions,
    SizeOptions,
    choose_pipeline,
    sample,
    sampler_arguments,
    set_scheduler,
)
from snowmelt.output_folder import SETTINGS_FILE, check_folder

if TYPE_CHECKING:
    import numpy as np

    from pipelines import PixelDiffusionPipeline
    from snowmelt.input_images import InputImages

GRID_IMAGES = 64
TRAJECTORY_IMAGES = 8
LONGEST_ROW = 16
"""Images of an interpolation that stand in one row; more make a square."""
BEFORE_AFTER = "before-after.png"
ELSEWHERE = ("model", "revision", "image", "mask", "num_images", "batch_size", "trajectory")
ELSEWHERE += ("upsampler", "output_dir", "overwrite_output_dir", "textual_inversion")
"""Options that an image doesn't depend on, or not by their names."""


@dataclass(kw_only=True)
class GenerateConfig(SizeOptions, SamplerOptions, PipelineOptions):
    """Output."""

    num_images: int = option(64, "images to generate", minimum=1, maximum=10_000_000)
    class_label: str | None = option(None, "number or name of the class of all images; all in turn by default")
    prompt: list[str] = option([], "prompts, which images take in turn, for a model that makes them from texts")
    textual_inversion: list[str] = option([], "new words to load, each a file, its folder, or a Hub repository")
    output_dir: str = option("samples", "folder of the images")
    overwrite_output_dir: bool = option(False, "remove the images of another model, or other settings, in output_dir")
    bit_depth: int = option(8, "8, or 16 for gray images", minimum=8, maximum=16)
    interpolate: list[str] = option(
        [], "two images, by number or file: the num_images then go from one to the other (Song et al. 2021, DDIM)"
    )
    image: str | None = option(
        None,
        "file or folder to start from, each image from the next file; or what a model of --condition makes them of",
    )
    mask: str | None = option(None, "file or folder: what of --image to make anew, white; the rest is kept")
    strength: float | None = option(
        None, "fraction of the steps that are left to --image (0.8, and 1 with --mask)", minimum=0, maximum=1
    )
    noise_std: str | None = option(
        None, "of noise that --image has and is to lose, of values in [0, 1]; or auto, to estimate it"
    )
    jump_length: int | None = option(
        None, "steps that are undone together, with --mask (10; RePaint, Lugmayr et al. 2022)", minimum=1
    )
    jump_n_sample: int | None = option(
        None, "how often steps are made, with --mask (1; 10 fits the rest better)", minimum=1, maximum=1000
    )
    upsampler: str | None = option(
        None, "model of --condition lowres that enlarges the images, a folder or Hub repository (Ho et al. 2022)"
    )
    upsampler_noise_level: float | None = option(
        None, "of noise added to the images before that, as --noise_level (0)", minimum=0, below=1
    )
    trajectory: bool = option(False, f"also draw the denoising trajectories of the first {TRAJECTORY_IMAGES}")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bit_depth not in (8, 16):
            raise UserError(f"--bit_depth: {self.bit_depth} is not one of 8, 16")
        if len(self.interpolate) not in (0, 2):
            raise UserError(f"--interpolate: takes two images, got {len(self.interpolate)}")
        if self.interpolate and self.num_images < 2:
            raise UserError(f"--num_images: {self.num_images} is no way from one image to another; take 2 or more")
        for name in ("mask", "strength", "noise_std", "jump_length", "jump_n_sample"):
            if getattr(self, name) is not None and self.image is None:
                raise UserError(f"--{name}: is of an image to start from; give --image too")
        if self.size and (self.interpolate or self.image is not None):
            other = "interpolate" if self.interpolate else "image"
            raise UserError(f"--{next(iter(self.size))}: not with --{other}, which takes the model's own size")
        if self.interpolate and self.image is not None:
            raise UserError("--image: not with --interpolate, which says where images start; give one of the two")
        if self.upsampler_noise_level is not None and self.upsampler is None:
            raise UserError("--upsampler_noise_level: is of an --upsampler; give that too")
        if self.interpolate and self.trajectory:
            raise UserError("--trajectory: draws images of their own noise, without --interpolate; give one of the two")


def main() -> None:
    config = parse(GenerateConfig)

    # Here, not above, so that --help doesn't wait for torch and diffusers.
    import torch
    from accelerate import PartialState

    from pipelines import GivenImagePipeline
    from snowmelt.cascade import Upsampler
    from snowmelt.environment import check_fits, find_launch, use_all_cores
    from snowmelt.guidance_model import guidance_arguments
    from snowmelt.input_images import InputImages
    from snowmelt.interpolation import Interpolation
    from snowmelt.sample_size import sampled_size

    use_all_cores(find_launch())
    state = PartialState(cpu=not torch.accelerator.is_available())
    pipeline = load(config).to(state.device)
    pipeline.set_progress_bar_config(leave=False, disable=not state.is_main_process)
    guidance = guidance_arguments(config, pipeline, config.guidance_scale, state.device)
    height, width = sampled_size(pipeline, config.size, str(config.model))
    numbers = pipeline.data_channels * (height or 1) * (width or 1)
    check_fits("batch_size", min(config.batch_size, config.num_images), numbers, state.device)
    between, inputs = None, None
    if isinstance(pipeline, GivenImagePipeline) and config.interpolate:
        raise UserError(f"--interpolate: not for a model that makes images of others ({pipeline.condition.spec})")
    if isinstance(pipeline, GivenImagePipeline) and config.image is None:
        raise UserError(f"--image: needed by this model, which makes images of others ({pipeline.condition.spec})")
    if config.interpolate:
        between = Interpolation(pipeline, config.interpolate, config, config.class_label, **guidance)
    if config.image is not None:
        more = {name: getattr(config, name) for name in ("strength", "jump_length", "jump_n_sample")}
        inputs = InputImages(pipeline, config.image, config.mask, config.num_images, config.noise_std, more)
    upsampler = None
    if config.upsampler:
        upsampler = Upsampler(config, config.upsampler, config.upsampler_noise_level, pipeline)
    folder = Path(config.output_dir)
    kept = settings(config) | ({} if inputs is None else {"input_images": inputs.digest()})
    stale = check_folder(folder, kept, expected_files(config, pipeline), config.overwrite_output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    state.wait_for_everyone()  # every process has looked at the folder before one changes it
    if state.is_main_process:
        (folder / SETTINGS_FILE).write_text(json.dumps(kept, indent=1) + "\n")

    value_range = pipeline.config.get("value_range") or (0.0, 1.0)
    with state.split_between_processes(list(range(config.num_images))) as indices:
        for start in range(0, len(indices), config.batch_size):
            batch = indices[start : start + config.batch_size]
            given = {} if inputs is None else inputs.arguments(batch)
            if between is not None:
                given = {"latents": between.frames(batch, config.num_images)}
            images = draw(pipeline, config, batch, **given, **guidance).images
            images = images if upsampler is None else upsampler(images, batch, config.class_label)
            for index, image in zip(batch, images, strict=True):
                save_image(image, folder / file_name(pipeline, index), config.bit_depth, value_range)
    state.wait_for_everyone()
    if state.is_main_process:
        for path in stale:
            path.unlink()
        if is_drawable(pipeline):
            save_grid(config, pipeline, folder)
            if inputs is not None:
                save_before_after(config, inputs, folder)
        if config.trajectory:
            save_trajectory(config, pipeline, folder, inputs, **guidance)
        print(f"{config.num_images} images in {folder}")
    state.destroy_process_group()


def load(config: GenerateConfig) -> "PixelDiffusionPipeline":
    """The pipeline, with the sampler that was asked for.

    Raises:
        UserError: if it can't be had, or can't make the files that were asked for.
    """
    from snowmelt.text.words import load_words

    pipeline = choose_pipeline(config)
    load_words(pipeline, config.textual_inversion)
    set_scheduler(pipeline, config.scheduler, pipeline.scheduler)
    sampler_arguments(pipeline, config)  # refuses what doesn't fit, before anything is written
    if config.trajectory and not is_drawable(pipeline):
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
        **config.size,
        **arguments,
    )


def is_drawable(pipeline: "PixelDiffusionPipeline") -> bool:
    from pipelines import IMAGE_CHANNELS

    return pipeline.channels in IMAGE_CHANNELS


def file_name(pipeline: "PixelDiffusionPipeline", index: int) -> str:
    return f"{index:06d}.{'png' if is_drawable(pipeline) else 'npy'}"


def expected_files(config: GenerateConfig, pipeline: "PixelDiffusionPipeline") -> set[str]:
    """Names of all files of this run."""
    names = {file_name(pipeline, index) for index in range(config.num_images)}
    if is_drawable(pipeline):
        names |= {"grid.png"} | ({BEFORE_AFTER} if config.image is not None else set())
    return names | ({"strip.png", "trajectory.gif"} if config.trajectory else set())


def settings(config: GenerateConfig) -> dict[str, Any]:
    """All that an image of a given index depends on: the options, and the weights by their digest."""
    from snowmelt.guidance_model import guidance_source
    from snowmelt.model_source import find_source
    from snowmelt.text.words import words_digest

    source = find_source(str(config.model), config.revision, config.checkpoint, config.ema)
    guide = {"guidance_weights": guidance_source(config).digest()} if config.is_autoguided else {}
    options = {name: value for name, value in config.to_dict().items() if name not in ELSEWHERE}
    larger = {"upsampler_weights": find_source(config.upsampler).digest()} if config.upsampler else {}
    words = words_digest(config.textual_inversion)
    return json.loads(json.dumps({"weights": source.digest(), **guide, **larger, **words, **options}))


def save_image(image: "np.ndarray", path: Path, bit_depth: int, value_range: tuple[float, float]) -> None:
    """Save float32 (H, W, C) in [0, 1] as an image, or as an array of the data's own values."""
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
    in_a_row = len(paths) if config.interpolate and len(paths) <= LONGEST_ROW else None
    image_grid(pixels.reshape(*pixels.shape[:3], -1), in_a_row).save(folder / "grid.png")


def save_before_after(config: GenerateConfig, inputs: "InputImages", folder: Path) -> None:
    """Draw what the first images started from, gray where it was made anew, above the images themselves."""
    import numpy as np
    import PIL.Image

    from pipelines import image_grid

    indices = list(range(min(config.num_images, LONGEST_ROW)))
    after = np.stack([np.asarray(PIL.Image.open(folder / f"{index:06d}.png")) for index in indices])
    after = (after >> config.bit_depth - 8).astype(np.uint8)
    after = after.reshape(*after.shape[:3], -1)
    before = (inputs.shown(indices, after.shape[1:]) * 255).round().astype(np.uint8)
    image_grid(np.concatenate([before, after]), len(indices)).save(folder / BEFORE_AFTER)


def save_trajectory(
    config: GenerateConfig,
    pipeline: "PixelDiffusionPipeline",
    folder: Path,
    inputs: "InputImages | None",
    **arguments: Any,
) -> None:
    """Draw the denoising trajectories of the first images, which are sampled again, alike by their generators."""
    from pipelines import save_gif, save_strip

    indices = list(range(min(config.num_images, TRAJECTORY_IMAGES)))
    arguments |= {} if inputs is None else inputs.arguments(indices)
    trajectory = draw(pipeline, config, indices, return_trajectory=True, **arguments).trajectory
    save_strip(trajectory, folder / "strip.png")
    save_gif(trajectory, folder / "trajectory.gif")


if __name__ == "__main__":
    run(main)
