"""Generate images from a trained model: numbered PNGs and a grid of the first of them.

The image of an index depends on --seed and that index alone, so more processes, larger batches or more images
change none of them. Under `accelerate launch` the processes share the work.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snowmelt.config import parse
from snowmelt.errors import UserError, run
from snowmelt.generate_options import TRAJECTORY_IMAGES, GenerateConfig
from snowmelt.loading import choose_pipeline, sample, sampler_arguments, set_scheduler
from snowmelt.output_folder import SETTINGS_FILE, check_folder

if TYPE_CHECKING:
    import numpy as np

    from pipelines import PixelDiffusionPipeline
    from snowmelt.input_images import InputImages

GRID_IMAGES = 64
LONGEST_ROW = 16
"""Images of an interpolation that stand in one row; more make a square."""
BEFORE_AFTER = "before-after.png"
ELSEWHERE = ("model", "revision", "image", "mask", "num_images", "batch_size", "trajectory")
ELSEWHERE += ("upsampler", "output_dir", "overwrite_output_dir", "textual_inversion", "search_timesteps", "compile")
"""Options that an image doesn't depend on, or not by their names."""


def main() -> None:
    config = parse(GenerateConfig)

    # Here, not above, so that --help doesn't wait for torch and diffusers.
    import torch
    from accelerate import PartialState

    from pipelines import GivenImagePipeline
    from pipelines.sampler import searched_timesteps
    from snowmelt.cascade import Upsampler
    from snowmelt.environment import check_fits, find_launch, use_all_cores
    from snowmelt.guidance_model import guidance_arguments
    from snowmelt.input_images import InputImages
    from snowmelt.interpolation import Interpolation
    from snowmelt.sample_size import sampled_size
    from snowmelt.timestep_search import search_timesteps

    use_all_cores(find_launch())
    state = PartialState(cpu=not torch.accelerator.is_available())
    pipeline, own = load(config)
    pipeline.to(state.device)
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
    if config.search_timesteps:
        asked = {"class_label": config.class_label, "prompts": config.prompt}
        search_timesteps(pipeline, own, config, state.is_main_process, **asked, **guidance)
    folder = Path(config.output_dir)
    kept = settings(config) | ({} if inputs is None else {"input_images": inputs.digest()})
    if searched := searched_timesteps(pipeline.scheduler, config.num_inference_steps or pipeline.default_steps):
        kept |= {"timesteps": searched}
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


def load(config: GenerateConfig) -> tuple["PixelDiffusionPipeline", Any]:
    """The pipeline, with the sampler that was asked for, and the scheduler that it was saved with.

    Raises:
        UserError: if it can't be had, or can't make the files that were asked for.
    """
    from snowmelt.text.words import load_words

    pipeline = choose_pipeline(config)
    load_words(pipeline, config.textual_inversion)
    own = pipeline.scheduler
    set_scheduler(pipeline, config.scheduler, own)
    sampler_arguments(pipeline, config)  # refuses what doesn't fit, before anything is written
    if config.trajectory and not is_drawable(pipeline):
        raise UserError(f"--trajectory: can't draw images of {pipeline.channels} channels")
    if config.bit_depth == 16 and pipeline.channels != 1:
        raise UserError(f"--bit_depth: 16 is for gray images, this model's have {pipeline.channels} channels")
    return pipeline, own


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
