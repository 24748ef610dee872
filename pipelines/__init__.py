"""Diffusion pipelines: what users import, and what ships with the weights."""

from pipelines.base import IMAGE_CHANNELS, SamplingOutput
from pipelines.controlnet import TextToImageControlNetPipeline
from pipelines.denoiser import Predictor, autoguided, conditioned, guided
from pipelines.editing import estimate_noise_std
from pipelines.given_image import GivenImagePipeline
from pipelines.image2image import ImageToImagePipeline, SuperResolutionPipeline
from pipelines.image_conditions import make_condition
from pipelines.inversion import slerp
from pipelines.latent import LatentDiffusionPipeline, LatentTransformerPipeline
from pipelines.pixel import PixelDiffusionPipeline, PixelTransformerPipeline
from pipelines.prediction import NoiseLevel, Prediction, PredictionType
from pipelines.samplers import make_sampler
from pipelines.sampling import Trajectory, sample
from pipelines.schedulers import fitting_schedulers, make_scheduler
from pipelines.score_sde import ScoreSdePipeline
from pipelines.seeding import image_generators
from pipelines.text2img import TextToImagePipeline
from pipelines.text2img_transformer import TextToImageTransformerPipeline
from pipelines.text_image2image import TextImageToImagePipeline
from pipelines.trajectory import image_grid, save_gif, save_strip

PIPELINES = {
    cls.__name__: cls
    for cls in (
        PixelDiffusionPipeline,
        LatentDiffusionPipeline,
        TextToImagePipeline,
        PixelTransformerPipeline,
        LatentTransformerPipeline,
        TextToImageTransformerPipeline,
        ScoreSdePipeline,
        ImageToImagePipeline,
        SuperResolutionPipeline,
        TextImageToImagePipeline,
        TextToImageControlNetPipeline,
    )
}
"""What a model_index.json may name: class names in files mean these, never whatever else bears the name."""

__all__ = [
    "IMAGE_CHANNELS",
    "PIPELINES",
    "GivenImagePipeline",
    "ImageToImagePipeline",
    "LatentDiffusionPipeline",
    "LatentTransformerPipeline",
    "NoiseLevel",
    "PixelDiffusionPipeline",
    "PixelTransformerPipeline",
    "Prediction",
    "PredictionType",
    "Predictor",
    "SamplingOutput",
    "ScoreSdePipeline",
    "SuperResolutionPipeline",
    "TextImageToImagePipeline",
    "TextToImageControlNetPipeline",
    "TextToImagePipeline",
    "TextToImageTransformerPipeline",
    "Trajectory",
    "autoguided",
    "conditioned",
    "estimate_noise_std",
    "fitting_schedulers",
    "guided",
    "image_generators",
    "image_grid",
    "make_condition",
    "make_sampler",
    "make_scheduler",
    "sample",
    "save_gif",
    "save_strip",
    "slerp",
]
