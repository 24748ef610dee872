"""A trained pipeline as the mathematics sees it: what it makes of noisy data at any noise level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pipelines import PixelDiffusionPipeline
from pipelines.labels import ClassLabels
from pipelines.schedulers import family
from snowmelt.codec import PixelCodec
from snowmelt.errors import UserError
from snowmelt.objectives.objective import Objective
from snowmelt.objectives.paths import EdmPath, Path, StraightPath
from snowmelt.pretrained import target_of

Network = Callable[[Tensor, Tensor], Tensor]
"""(scaled x_t (B, C, H, W), timestep (B,)) -> output (B, C, H, W), all float64 on the CPU."""


@dataclass(frozen=True)
class ChainPath:
    """The discrete chain at real times in [0, T - 1].

    Between whole times log(sigma / alpha) is a straight line, as diffusers' samplers take it.

    Args:
        log_ratios: log(sigma / alpha) at whole times, (T,) float64, increasing; the last may be infinite.
    """

    log_ratios: np.ndarray

    def time(self, log_ratio: Tensor) -> Tensor:
        return torch.from_numpy(np.interp(log_ratio, self.log_ratios, np.arange(len(self.log_ratios))))

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        ratio = torch.from_numpy(np.exp(np.interp(t, np.arange(len(self.log_ratios)), self.log_ratios)))
        return (1 + ratio**2).rsqrt(), (1 + ratio**-2).rsqrt()

    def network_input(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x_t, t


@dataclass(frozen=True)
class Process:
    """The forward process of a pipeline, and how its network's output is to be read.

    Args:
        objective: turns the network's output into x0 and eps; nothing else of it is used.
        time: log(sigma / alpha) -> the path's time, each (B,) float64.
        log_ratios: the least and the largest log(sigma / alpha) that the network is asked about.
    """

    objective: Objective
    time: Callable[[Tensor], Tensor]
    log_ratios: tuple[float, float]

    @classmethod
    def of(cls, pipeline: PixelDiffusionPipeline) -> "Process":
        """That of a pipeline, with whichever of the schedulers that fit it."""
        config = pipeline.scheduler.config
        kind = family(pipeline.scheduler)
        target = target_of(pipeline.scheduler, pipeline.config.get("prediction_type"))
        if kind == "flow":
            last = 1 / config.num_train_timesteps  # the samplers' last time before 0
            straight = StraightPath(num_train_timesteps=config.num_train_timesteps)
            limit = float(np.log(1 / last - 1))
            return cls(Objective(straight, target), torch.sigmoid, (-limit, limit))
        if kind == "edm":
            limits = float(np.log(config.sigma_min)), float(np.log(config.sigma_max))
            return cls(Objective(EdmPath(config.sigma_data), target), torch.exp, limits)
        alpha2 = pipeline.scheduler.alphas_cumprod.double().cpu().numpy()
        with np.errstate(divide="ignore"):  # no signal is left at the end of a chain of zero terminal SNR
            chain = ChainPath(np.log((1 - alpha2) / alpha2) / 2)
        finite = chain.log_ratios[np.isfinite(chain.log_ratios)]
        return cls(Objective(cast(Path, chain), target), chain.time, (float(finite[0]), float(finite[-1])))

    def denoise(self, network: Network, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The x0 and eps, each (B, C, H, W), that the network expects in x_t at the path's times t (B,)."""
        return self.objective.denoise(x_t, network(*self.objective.path.network_input(x_t, t)), t)


def make_network(pipeline: PixelDiffusionPipeline, condition: dict[str, Tensor], rows: Tensor) -> Network:
    """The pipeline's network, told the conditions of those rows; it computes on its device in float32."""
    told = {name: values[rows.to(values.device)] for name, values in condition.items()}
    unet, device = pipeline.unet, pipeline._execution_device

    def network(x: Tensor, t: Tensor) -> Tensor:
        output = pipeline._predict(unet, x.float().to(device), t.float().to(device), told, None, 1.0)
        return output.cpu().double()

    return network


def make_condition(pipeline: PixelDiffusionPipeline, labels: ClassLabels | None, n: int) -> dict[str, Tensor]:
    """Keyword arguments of the network for n images; the null class where no labels are given.

    Raises:
        UserError: for labels that the model doesn't know, or that it needs.
    """
    embeds = pipeline.unet.config.num_class_embeds
    if n == 0 and labels is not None:  # asked only whether it has a likelihood
        return {}
    try:
        return pipeline._label_conditions(labels, embeds, n, pipeline._execution_device)[0]
    except ValueError as error:
        raise UserError(str(error)) from error


def check_images(pipeline: Any, images: Tensor, indices: Sequence[int] | None) -> tuple[PixelCodec, Sequence[int]]:
    """How raw values become the data that the network knows, and the images' indices, 0 .. N - 1 if not given.

    Raises:
        UserError: if the pipeline has no likelihood, its network isn't float32, or the images aren't of its kind.
    """
    if not isinstance(pipeline, PixelDiffusionPipeline):
        raise UserError(f"likelihood: {type(pipeline).__name__} makes no pixels by itself; take a pixel-space model")
    unet = pipeline.unet
    if unet.dtype != torch.float32:
        raise UserError(f"likelihood: the network is {unet.dtype}, too coarse to integrate; load it as torch.float32")
    size = unet.config.sample_size
    side = (size, size) if isinstance(size, int) else tuple(size)
    expected = (unet.config.in_channels, *side)
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
    return PixelCodec(value_range or (0, torch.iinfo(images.dtype).max)), indices
