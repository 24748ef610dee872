"""The algebra of training, sampling and evaluation: noise levels, and what a network predicts there.

At a noise level x_t = alpha x0 + sigma eps, and a network predicts F = a x0 + b eps. Two equations hold two unknowns,

    x0 = (b x_t - sigma F) / det,   eps = (alpha F - a x_t) / det,   det = alpha b - sigma a,

so each prediction type is a row (a, b), and any prediction converts to any other.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

Row = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""(alpha, sigma, sigma_data) -> (a, b), all tensors of one shape."""


class NoiseLevel(NamedTuple):
    """How noisy x_t is, and how a network is shown it. Tensors are () for all images alike, or (B,).

    Attributes:
        alpha: the factor of x0.
        sigma: the factor of the unit normal noise.
        timestep: what the network is shown of it.
        input_scale: the factor of x_t in the network's input (c_in of Karras et al. 2022, eq. 7); None for 1.
        target_sigma: the sigma to which a flow map takes x_t in one step; None for the velocity at x_t.
    """

    alpha: Tensor
    sigma: Tensor
    timestep: Tensor
    input_scale: Tensor | None = None
    target_sigma: Tensor | None = None


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """A coefficient () or (B,), shaped to multiply values (B, ...)."""
    return coefficient.view(-1, *[1] * (like.ndim - 1)) if coefficient.ndim else coefficient


def _epsilon(alpha: Tensor, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """The noise (Ho et al. 2020, eq. 12)."""
    return torch.zeros_like(alpha), torch.ones_like(alpha)


def _sample(alpha: Tensor, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """The clean data."""
    return torch.ones_like(alpha), torch.zeros_like(alpha)


def _v_prediction(alpha: Tensor, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D)."""
    return -sigma, alpha


def _flow_prediction(alpha: Tensor, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """The velocity d x_t / dt of the straight line, alpha = 1 - t and sigma = t (Lipman et al. 2023, section 4.1)."""
    return -torch.ones_like(alpha), torch.ones_like(alpha)


def _edm(alpha: Tensor, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """(x0 - c_skip x_t) / c_out (Karras et al. 2022, eq. 8 and table 1)."""
    total = sigma**2 + sigma_data**2
    c_skip = sigma_data**2 / total
    c_out = sigma * sigma_data * total.rsqrt()
    return (1 - c_skip * alpha) / c_out, -c_skip * sigma / c_out


def _score(alpha: Tensor, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """The score, the gradient of log p(x_t), whose target is -eps / sigma (Song et al. 2021, eq. 7)."""
    return torch.zeros_like(alpha), -1 / sigma


PREDICTION_TYPES: dict[str, Row] = {
    "epsilon": _epsilon,
    "sample": _sample,
    "v_prediction": _v_prediction,
    "flow_prediction": _flow_prediction,
    "edm": _edm,
    "score": _score,
}


@dataclass(frozen=True)
class PredictionType:
    """What a network predicts.

    Args:
        name: a key of `PREDICTION_TYPES`.
        sigma_data: standard deviation that EDM's preconditioning expects of the data.
    """

    name: str
    sigma_data: float = 0.5

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) at noise levels: four tensors of one shape, () or (B,) or expanded."""
        return PREDICTION_TYPES[self.name](alpha, sigma, self.sigma_data)


@dataclass(frozen=True)
class Prediction:
    """What a network says of x_t.

    Args:
        output: F, (B, C, H, W).
        prediction_type: how F is to be read.
        x_t: the noisy data, (B, C, H, W).
        level: its noise level.
        variance: where the network says it, that of the reverse step: v, (B, C, H, W), which places its logarithm
            between those of the posterior's variance, -1, and of beta_t, 1 (Nichol & Dhariwal 2021, eq. 15).
    """

    output: Tensor
    prediction_type: PredictionType
    x_t: Tensor
    level: NoiseLevel
    variance: Tensor | None = None

    @property
    def x0(self) -> Tensor:
        """The expected clean data, (B, C, H, W); 0, the middle of its range, where the output says nothing of it.

        That is where alpha vanishes and the output is the noise.
        """
        alpha, sigma, a, b = self._coefficients()
        det = alpha * b - sigma * a
        x0 = (b * self.x_t - sigma * self.output) / det
        return torch.where(det.abs() > 1e-5, x0, torch.zeros_like(x0))

    @property
    def eps(self) -> Tensor:
        """The expected noise, (B, C, H, W)."""
        alpha, sigma, a, b = self._coefficients()
        return (alpha * self.output - a * self.x_t) / (alpha * b - sigma * a)

    def convert(self, prediction_type: PredictionType) -> Tensor:
        """What a network of another prediction type would have to put out to say the same, (B, C, H, W)."""
        return self.output if prediction_type == self.prediction_type else self.output_of(self.x0, prediction_type)

    def output_of(self, x0: Tensor, prediction_type: PredictionType) -> Tensor:
        """What a network of that prediction type would have to put out to expect this x0 of x_t, (B, C, H, W)."""
        alpha, sigma = (expand(c, self.x_t) for c in self.level[:2])
        a, b = prediction_type.coefficients(alpha, sigma)
        return a * x0 + b * (self.x_t - alpha * x0) / sigma

    def with_output(self, output: Tensor) -> "Prediction":
        """The prediction with another output of the same type."""
        return replace(self, output=output)

    def _coefficients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        alpha, sigma = (expand(c, self.x_t) for c in self.level[:2])
        return alpha, sigma, *self.prediction_type.coefficients(alpha, sigma)
