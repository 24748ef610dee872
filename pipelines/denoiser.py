"""Networks as denoisers: functions of (x_t, noise level) that the sampling loop calls, knowing no more of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.flow_map import target_planes
from pipelines.prediction import NoiseLevel, Prediction, PredictionType, expand

Conditions = dict[str, Tensor]
"""Keyword arguments of a network, each with a row per image."""

Denoiser = Callable[[Tensor, NoiseLevel], Prediction]
"""x_t, float32 (B, C, H, W), and its noise level -> what is predicted there."""

CONCATENATED = "concatenated"
"""The condition that joins x_t in the network's input channels instead of being an argument, (B, c, H, W)."""


X0_LIMIT = 3.0
"""Of estimates that a network is given back: an epsilon at high noise says an x0 that is many times too large."""


@dataclass(frozen=True)
class Predictor:
    """A network, read as what it predicts: the same in training and in sampling.

    Of a network with more outputs than x_t has channels, the rest says the variance.

    Args:
        network: called as `network(sample, timestep=timestep, **conditions, return_dict=False)`, timestep (B,).
        prediction_type: how its output is read.
        dtype: of its input.
        zero_channels: of its input, after those of x_t, that are 0 unless a concatenated condition is given: its
            condition on augmentation in training.
        target_channels: of its input, the last ones, that show a flow map where x_t is to be taken.
    """

    network: Callable[..., Any]
    prediction_type: PredictionType
    dtype: torch.dtype = torch.float32
    zero_channels: int = 0
    target_channels: int = 0

    def __call__(self, x_t: Tensor, level: NoiseLevel, conditions: Conditions) -> Prediction:
        """The prediction for x_t (B, C, H, W)."""
        scaled = x_t if level.input_scale is None else x_t * expand(level.input_scale, x_t)
        given = dict(conditions)
        if CONCATENATED in given:
            scaled = torch.cat([scaled, given.pop(CONCATENATED)], 1)
        elif self.zero_channels:
            scaled = torch.nn.functional.pad(scaled, (0, 0, 0, 0, 0, self.zero_channels))
        if self.target_channels:
            scaled = torch.cat([scaled, target_planes(x_t, level)], 1)
        # Classes of diffusers differ in the order of their arguments, and some take no timestep for all images alike.
        timestep = level.timestep.to(x_t.device).expand(len(x_t))
        output = self.network(scaled.to(self.dtype), timestep=timestep, **given, return_dict=False)[0].float()
        channels = x_t.shape[1]
        variance = output[:, channels:] if output.shape[1] > channels else None
        return Prediction(output[:, :channels], self.prediction_type, x_t, level, variance)


def conditioned(predict: Predictor, conditions: Conditions) -> Denoiser:
    """The network with its conditions as a denoiser."""

    def denoise(x_t: Tensor, level: NoiseLevel) -> Prediction:
        return predict(x_t, level, conditions)

    return denoise


def guided(
    predict: Predictor,
    conditions: Sequence[Conditions],
    scales: Sequence[float],
    interval: tuple[float, float] = (0.0, math.inf),
    rescale: float = 0.0,
) -> Denoiser:
    """The network, guided away from fewer conditions: null + scale * (conditional - null) (Ho & Salimans 2022, eq. 6).

    With three sets of conditions, as of nothing, an image, and an image and a text, the difference that each makes has
    a scale of its own (Brooks et al. 2023, InstructPix2Pix, eq. 3). All are evaluated in one pass, of as many times the
    batch. A learned variance is that of the output with all conditions.

    Args:
        predict: the network.
        conditions: its conditions, from none, or what is to be avoided, to all of them.
        scales: of the difference between each of them and the next, one less than there are; 1 for no guidance.
        interval: guide only where lo < sigma / alpha <= hi (Kynkäänniemi et al. 2024).
        rescale: from 0 to 1, how much of the way to take the standard deviation over each image back to that of the
            output without guidance (Lin et al. 2024, eqs. 15 and 16).
    """
    own = conditions[-1]
    while scales and scales[0] == 1:  # the first two sum up to the second
        conditions, scales = conditions[1:], scales[1:]
    n = len(conditions)
    together = {name: torch.cat([given[name] for given in conditions]) for name in own}

    def denoise(x_t: Tensor, level: NoiseLevel) -> Prediction:
        inside = _inside(level, interval)
        if not scales or not inside.any():
            return predict(x_t, level, own)
        repeated = NoiseLevel._make(torch.cat([c] * n) if c is not None and c.ndim else c for c in level)
        prediction = predict(torch.cat([x_t] * n), repeated, together)
        outputs = prediction.output.chunk(n)
        output = outputs[0]
        for scale, fewer, more in zip(scales, outputs, outputs[1:], strict=False):
            output = output + scale * (more - fewer)
        if rescale:
            change = outputs[-1].std((1, 2, 3), keepdim=True) / output.std((1, 2, 3), keepdim=True)
            output = output * (rescale * change + 1 - rescale)
        if inside.ndim:  # noise levels of their own, some of which may be outside
            output = torch.where(expand(inside, x_t), output, outputs[-1])
        variance = None if prediction.variance is None else prediction.variance.chunk(n)[-1]
        return Prediction(output, predict.prediction_type, x_t, level, variance)

    return denoise


def autoguided(
    predict: Predictor,
    guide: Predictor,
    conditions: Conditions,
    scale: float,
    interval: tuple[float, float] = (0.0, math.inf),
) -> Denoiser:
    """The network, guided away from a worse one: guide + scale * (network - guide) (Karras et al. 2024, eq. 3).

    Outputs are combined, of which the expected x0 is a linear function. Each network is evaluated by itself. A learned
    variance is the network's own.

    Args:
        predict: the network.
        guide: one for the same data that learned the same less well, smaller or trained more shortly, read as the same
            prediction type.
        conditions: of both.
        scale: 1 for no guidance.
        interval: guide only where lo < sigma / alpha <= hi (Kynkäänniemi et al. 2024).
    """

    def denoise(x_t: Tensor, level: NoiseLevel) -> Prediction:
        prediction, inside = predict(x_t, level, conditions), _inside(level, interval)
        if scale == 1 or not inside.any():
            return prediction
        worse = guide(x_t, level, conditions).output
        output = worse + scale * (prediction.output - worse)
        if inside.ndim:  # noise levels of their own, some of which may be outside
            output = torch.where(expand(inside, x_t), output, prediction.output)
        return prediction.with_output(output)

    return denoise


def _inside(level: NoiseLevel, interval: tuple[float, float]) -> Tensor:
    """Whether sigma / alpha lies in an interval, () or (B,)."""
    low, high = interval
    ratio = level.sigma / level.alpha
    return (low < ratio) & (ratio <= high)


def own_estimate(prediction: Prediction) -> Tensor:
    """The expected x0, clipped to [-3, 3], (B, C, H, W): what a self-conditioned network is given back."""
    return prediction.x0.clamp(-X0_LIMIT, X0_LIMIT)


def self_conditioned(denoiser_of: Callable[[Conditions], Denoiser]) -> Denoiser:
    """The denoiser of a network whose input is joined by its estimate of x0 (Chen et al. 2023, algorithm 2).

    That is the one that it made in the evaluation before, after guidance, and zeros in the first; so the denoiser is
    for the evaluations of one call of a pipeline, in their order.

    Args:
        denoiser_of: of a network with such a condition too, with which an unconditional one is also evaluated.
    """
    estimate: Tensor | None = None

    def denoise(x_t: Tensor, level: NoiseLevel) -> Prediction:
        nonlocal estimate
        given = torch.zeros_like(x_t) if estimate is None else estimate
        prediction = denoiser_of({CONCATENATED: given})(x_t, level)
        estimate = own_estimate(prediction)
        return prediction

    return denoise
