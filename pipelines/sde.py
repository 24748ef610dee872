"""The SDEs of score-based models, dx = f(t) x dt + g(t) dw for t from 0 to 1 (Song et al. 2021, section 3).

All are linear, so that x_t = alpha(t) x0 + sigma(t) eps. Times and what is made of them are tensors of one shape, () or
(B,); in float64 differences of close times keep their digits.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, ScoreSdeVeScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from pipelines.arguments import string
from pipelines.prediction import NoiseLevel

TRAINED_FROM = 1e-5
"""The least time that networks are trained for (Song et al. 2021, appendix C)."""


@dataclass(frozen=True)
class Sde:
    """A linear SDE.

    Args:
        sampling_eps: the time at which sampling ends, where what is left of the noise is predicted and taken away.
    """

    sampling_eps: float

    def level(self, t: Tensor) -> NoiseLevel:
        """The noise level at times t, and how the network is shown it."""
        raise NotImplementedError

    def drift(self, t: Tensor) -> Tensor:
        """f(t), the factor of x in the drift."""
        raise NotImplementedError

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t)."""
        raise NotImplementedError

    def time(self, log_ratio: Tensor) -> Tensor:
        """The times at which log(sigma / alpha) has these values."""
        raise NotImplementedError

    def scheduler(self, prediction_type: str) -> SchedulerMixin:
        """The stock scheduler that holds the parameters in a saved pipeline; see `make_sde`."""
        raise NotImplementedError

    def log_ratio(self, t: float) -> float:
        """log(sigma / alpha) at a time."""
        alpha, sigma = self.level(torch.tensor(t, dtype=torch.float64))[:2]
        return float((sigma / alpha).log())

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of x_t = a x_s + b eps, for times s < t."""
        before, after = self.level(s), self.level(t)
        alpha = after.alpha / before.alpha
        return alpha, (after.sigma**2 - (alpha * before.sigma) ** 2).sqrt()


@dataclass(frozen=True)
class VarianceExplodingSde(Sde):
    """dx = sqrt(d sigma^2 / dt) dw with geometric sigma(t), of which the NCSN is the discretization (eq. 9).

    The network is shown sigma, of whose logarithm it has Fourier features, and x_t / sqrt(1 + sigma^2), which is
    bounded. `UNet2DModel(time_embedding_type="fourier")` divides its output by sigma, so that it predicts the score.

    Args:
        sigma_min: sigma(0), small beside the data.
        sigma_max: sigma(1), as large as the largest distance between two images (Song & Ermon 2020).
    """

    sampling_eps: float = 1e-5
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def level(self, t: Tensor) -> NoiseLevel:
        """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t (eq. 30)."""
        sigma = self.sigma_min * (t * self._growth).exp()
        return NoiseLevel(torch.ones_like(sigma), sigma, sigma.float(), (1 + sigma**2).rsqrt())

    def drift(self, t: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """sigma(t) sqrt(2 log(sigma_max / sigma_min)) (eq. 30)."""
        return self.level(t).sigma * math.sqrt(2 * self._growth)

    def time(self, log_ratio: Tensor) -> Tensor:
        """log(sigma / sigma_min) / log(sigma_max / sigma_min)."""
        return (log_ratio - math.log(self.sigma_min)) / self._growth

    def scheduler(self, prediction_type: str) -> ScoreSdeVeScheduler:
        """With the corrector's settings of the paper: one step at a signal-to-noise ratio of 0.16 (table 5)."""
        return ScoreSdeVeScheduler(
            num_train_timesteps=1000,
            snr=0.16,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            sampling_eps=self.sampling_eps,
        )

    @property
    def _growth(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class VariancePreservingSde(Sde):
    """dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw with linear beta(t), which the chain of DDPM discretizes (eq. 11).

    The network is shown (T - 1) t, in which it is the chain's.

    Args:
        beta_min: beta(0).
        beta_max: beta(1).
        num_train_timesteps: T.
    """

    sampling_eps: float = 1e-3
    beta_min: float = 0.1
    beta_max: float = 20.0
    num_train_timesteps: int = 1000

    def level(self, t: Tensor) -> NoiseLevel:
        """alpha^2 = exp(-int_0^t beta), sigma^2 = 1 - alpha^2 (eq. 29)."""
        integral = self._integral(t)
        return NoiseLevel((-integral / 2).exp(), (-(-integral).expm1()).sqrt(), self._shown(t))

    def drift(self, t: Tensor) -> Tensor:
        """-beta(t) / 2."""
        return -self._beta(t) / 2

    def diffusion(self, t: Tensor) -> Tensor:
        """sqrt(beta(t))."""
        return self._beta(t).sqrt()

    def time(self, log_ratio: Tensor) -> Tensor:
        """Where int_0^t beta = log(1 + (sigma / alpha)^2)."""
        return self._inverse_integral(torch.nn.functional.softplus(2 * log_ratio, threshold=40))

    def scheduler(self, prediction_type: str) -> DDPMScheduler:
        """The chain of T steps, beta_i = beta(i / T) / T, so that samplers of chains can run the network too."""
        trained = self.num_train_timesteps
        return DDPMScheduler(
            num_train_timesteps=trained,
            beta_schedule="linear",
            beta_start=self.beta_min / trained,
            beta_end=self.beta_max / trained,
            prediction_type=prediction_type,
            timestep_spacing="trailing",
            clip_sample=False,
        )

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def _inverse_integral(self, integral: Tensor) -> Tensor:
        return (
            2 * integral / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt())
        )

    def _shown(self, t: Tensor) -> Tensor:
        return ((self.num_train_timesteps - 1) * t).float()


@dataclass(frozen=True)
class SubVpSde(VariancePreservingSde):
    """The VP's drift with less noise: dx = -beta(t) x / 2 dt + sqrt(beta(t) (1 - exp(-2 int_0^t beta))) dw (eq. 12)."""

    def level(self, t: Tensor) -> NoiseLevel:
        """alpha^2 = exp(-int_0^t beta), sigma = 1 - alpha^2 (eq. 29)."""
        integral = self._integral(t)
        return NoiseLevel((-integral / 2).exp(), -(-integral).expm1(), self._shown(t))

    def diffusion(self, t: Tensor) -> Tensor:
        """sqrt(beta(t) (1 - alpha^4))."""
        return (self._beta(t) * -(-2 * self._integral(t)).expm1()).sqrt()

    def time(self, log_ratio: Tensor) -> Tensor:
        """Where alpha is the positive root of alpha^2 + (sigma / alpha) alpha = 1."""
        half = log_ratio.exp() / 2
        return self._inverse_integral(2 * half.asinh())  # alpha = sqrt(half^2 + 1) - half = exp(-asinh(half))


SDES: dict[str, type[Sde]] = {"ve": VarianceExplodingSde, "vp": VariancePreservingSde, "subvp": SubVpSde}


def make_sde(scheduler: Any, name: str | None = None) -> Sde:
    """The SDE whose parameters a scheduler holds.

    Args:
        scheduler: a `ScoreSdeVeScheduler`, or a chain of linear betas (DDPM, DDIM, ...), which stands for the VP and
            the sub-VP SDE.
        name: a key of `SDES`; None: "ve" or "vp", by the scheduler.

    Raises:
        TypeError: for a name that is no text.
        ValueError: for an unknown name, or a scheduler that doesn't hold such an SDE's parameters.
    """
    config = scheduler.config
    linear = config.get("beta_schedule") == "linear" and not config.get("rescale_betas_zero_snr")
    exploding = isinstance(scheduler, ScoreSdeVeScheduler)
    fitting = ["ve"] if exploding else ["vp", "subvp"] if linear and config.get("trained_betas") is None else []
    if not fitting:
        raise ValueError(
            f"scheduler: {type(scheduler).__name__} holds no SDE's parameters; ScoreSdeVeScheduler does, and a chain "
            "of linear betas such as DDPMScheduler's; PixelDiffusionPipeline samples other models"
        )
    if name is not None and string("sde", name) not in fitting:
        raise ValueError(
            f"sde: {name!r} doesn't fit {type(scheduler).__name__}, which stands for {' or '.join(fitting)}"
        )
    if exploding:
        return VarianceExplodingSde(config.sampling_eps, config.sigma_min, config.sigma_max)
    trained = config.num_train_timesteps
    betas = {"beta_min": config.beta_start * trained, "beta_max": config.beta_end * trained}
    return (SubVpSde if name == "subvp" else VariancePreservingSde)(**betas, num_train_timesteps=trained)
