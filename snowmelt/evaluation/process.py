"""The forward process of a trained pipeline at any noise level, and its network as a denoiser there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import CMStochasticIterativeScheduler
from torch import Tensor

from pipelines import ScoreSdePipeline
from pipelines.backbones import num_class_embeds, trained_size
from pipelines.denoiser import Denoiser
from pipelines.labels import ClassLabels, label_conditions
from pipelines.prediction import NoiseLevel, Prediction
from pipelines.samplers import make_sampler
from pipelines.schedulers import family
from pipelines.sde import TRAINED_FROM
from pipelines.unconditional import UnconditionalPipeline
from snowmelt.errors import UserError
from snowmelt.objectives.paths import EdmPath, StraightPath
from snowmelt.spaces import PixelSpace


@dataclass(frozen=True)
class ForwardProcess:
    """Noise levels by log(sigma / alpha).

    Attributes:
        level: log(sigma / alpha) (B,) float64 -> the noise level.
        log_ratios: the least and the largest log(sigma / alpha) that the network was trained for.
    """

    level: Callable[[Tensor], NoiseLevel]
    log_ratios: tuple[float, float]


def forward_process(pipeline: UnconditionalPipeline) -> ForwardProcess:
    """The forward process of a model, by whichever of the schedulers that fit it."""
    if isinstance(pipeline, ScoreSdePipeline):
        sde = pipeline.sde
        limits = sde.log_ratio(TRAINED_FROM), sde.log_ratio(1.0)
        return ForwardProcess(lambda log_ratio: sde.level(sde.time(log_ratio)), limits)
    scheduler: Any = pipeline.scheduler
    config, kind = scheduler.config, family(scheduler)
    if kind == "flow":
        straight = StraightPath(num_train_timesteps=config.num_train_timesteps)
        limit = float(np.log(config.num_train_timesteps - 1))  # the samplers' last time before 0 is one over T
        return ForwardProcess(lambda log_ratio: straight.level(log_ratio.sigmoid()), (-limit, limit))
    if isinstance(scheduler, CMStochasticIterativeScheduler):
        raise UserError("likelihood: a consistency model has none; take the model that it was tuned from")
    if kind == "edm":
        exploding = EdmPath(config.sigma_data)
        limits = float(np.log(config.sigma_min)), float(np.log(config.sigma_max))
        return ForwardProcess(lambda log_ratio: exploding.level(log_ratio.exp()), limits)
    alpha2 = scheduler.alphas_cumprod.double().cpu().numpy()
    with np.errstate(divide="ignore"):  # no signal is left at the end of a chain of zero terminal SNR
        log_ratios = np.log((1 - alpha2) / alpha2) / 2

    def chain(log_ratio: Tensor) -> NoiseLevel:
        """At real times in [0, T - 1], between which log(sigma / alpha) is a line, as diffusers' samplers take it."""
        t = torch.from_numpy(np.interp(log_ratio, log_ratios, np.arange(len(log_ratios))))
        ratio = log_ratio.exp()
        return NoiseLevel((1 + ratio**2).rsqrt(), (1 + ratio**-2).rsqrt(), t)

    finite = log_ratios[np.isfinite(log_ratios)]
    return ForwardProcess(chain, (float(finite[0]), float(finite[-1])))


def make_denoiser(pipeline: UnconditionalPipeline, conditions: dict[str, Tensor], rows: Tensor) -> Denoiser:
    """The pipeline's network as a denoiser: float64 on the CPU outside, float32 on its device inside.

    Args:
        pipeline: the pipeline.
        conditions: keyword arguments of the network, each with a row per image, (N, ...).
        rows: the images that it is called for, int64 (B,).
    """
    known = isinstance(pipeline, ScoreSdePipeline)
    predict = pipeline.predictor() if known else pipeline._predictor(make_sampler(pipeline.scheduler))
    own = {name: values[rows.to(values.device)] for name, values in conditions.items()}
    device = pipeline._execution_device

    def denoise(x_t: Tensor, level: NoiseLevel) -> Prediction:
        shown = level._replace(
            timestep=level.timestep.float().to(device),
            input_scale=None if level.input_scale is None else level.input_scale.float().to(device),
        )
        said = predict(x_t.float().to(device), shown, own)
        variance = None if said.variance is None else said.variance.cpu().double()
        return Prediction(said.output.cpu().double(), predict.prediction_type, x_t, level, variance)

    return denoise


def make_condition(pipeline: UnconditionalPipeline, labels: ClassLabels | None, n: int) -> dict[str, Tensor]:
    """Keyword arguments of the network, each with a row per image.

    Args:
        pipeline: the pipeline.
        labels: one for all images or one for each; None: the null class.
        n: number of images.

    Raises:
        UserError: for labels that the model doesn't know, or that it needs.
    """
    embeds = num_class_embeds(pipeline.network)
    if n == 0 and labels is not None:  # asked only whether it has a likelihood
        return {}
    try:
        return label_conditions(
            labels, num_embeds=embeds, id2label=pipeline.id2label, batch_size=n, device=pipeline._execution_device
        )[0]
    except ValueError as error:
        raise UserError(str(error)) from error


def check_images(pipeline: Any, images: Tensor, indices: Sequence[int] | None) -> tuple[PixelSpace, Sequence[int]]:
    """How raw values become the data that the network knows, and the indices of the images.

    Args:
        pipeline: that of the model.
        images: raw values (N, C, H, W): integers from 0 to the largest of their type, or floats in the model's range.
        indices: N of them; None: 0 .. N - 1.

    Raises:
        UserError: if the pipeline has no likelihood, its network isn't float32, or the images aren't of its kind.
    """
    if not isinstance(pipeline, UnconditionalPipeline) or pipeline.vae is not None:
        raise UserError(f"likelihood: {type(pipeline).__name__} makes no pixels by itself; take a pixel-space model")
    if pipeline.config.get("self_condition"):
        raise UserError("likelihood: a self-conditioned model has none, as its steps depend on those before")
    network = pipeline.network
    if network.dtype != torch.float32:
        raise UserError(
            f"likelihood: the network is {network.dtype}, too coarse to integrate; load it as torch.float32"
        )
    expected = (pipeline.data_channels, *trained_size(network))
    if tuple(images.shape[1:]) != expected:
        raise UserError(f"likelihood: images of shape {tuple(images.shape[1:])}, but the model's are {expected}")
    indices = range(len(images)) if indices is None else indices
    if len(indices) != len(images):
        raise UserError(f"likelihood: {len(indices)} indices for {len(images)} images; give one per image")
    value_range = pipeline.config.get("value_range")
    if images.dtype.is_floating_point != (value_range is not None):
        kinds = ("float values", "whole numbers") if value_range else ("whole numbers", "float values")
        raise UserError(
            f"likelihood: the model was trained on {kinds[0]}, and the images hold {kinds[1]}; convert them"
        )
    return PixelSpace(value_range or (0, torch.iinfo(images.dtype).max)), indices
