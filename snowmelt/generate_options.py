"""What `generate.py` takes. Nothing here imports torch, so that `--help` is immediate."""

from dataclasses import dataclass
from pathlib import Path

from snowmelt.config import option
from snowmelt.errors import UserError
from snowmelt.loading import PipelineOptions, SamplerOptions, SizeOptions

TRAJECTORY_IMAGES = 8


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
    search_timesteps: list[int] = option(
        [], "numbers of steps to find the best times for, which the model is then saved with", minimum=1, maximum=50
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
        if self.search_timesteps and not Path(str(self.model)).is_dir():
            raise UserError(
                f"--search_timesteps: times are saved with the model, and {self.model} is no folder; download it"
            )
        for name in ("checkpoint", "ema", "image", "interpolate"):
            if self.search_timesteps and getattr(self, name):
                raise UserError(f"--search_timesteps: is of the model itself, without --{name}; leave one of them out")
