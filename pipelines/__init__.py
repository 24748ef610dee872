"""Diffusion pipelines: what users import, and what ships with the weights."""

from pipelines.base import SamplingOutput, Trajectory
from pipelines.latent import LatentDiffusionPipeline
from pipelines.pixel import PixelDiffusionPipeline
from pipelines.schedulers import fitting_schedulers, make_scheduler
from pipelines.seeding import image_generators
from pipelines.text2img import TextToImagePipeline
from pipelines.trajectory import image_grid, save_gif, save_strip

__all__ = [
    "LatentDiffusionPipeline",
    "PixelDiffusionPipeline",
    "SamplingOutput",
    "TextToImagePipeline",
    "Trajectory",
    "fitting_schedulers",
    "image_generators",
    "image_grid",
    "make_scheduler",
    "save_gif",
    "save_strip",
]
