"""Forward processes x_t = alpha(t) x0 + sigma(t) eps.

Each path also names the stock diffusers scheduler that runs it backwards. Times, alphas and sigmas are float32
tensors of shape (B,), but for `DiscretePath`, whose times are integers.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from pipelines.prediction import NoiseLevel, Prediction, PredictionType
from pipelines.sde import TRAINED_FROM, Sde, VarianceExplodingSde
from snowmelt.objectives.reverse_steps import ReverseSteps


class Path(Protocol):
    """What an `Objective` needs of a forward process."""

    @property
    def domain(self) -> str:
        """Where timesteps are drawn: "unit", for (0, 1), or "positive", for (0, inf)."""

    @property
    def scheduler_prediction_type(self) -> str | None:
        """What the scheduler takes a network's output for; None where it can be configured."""

    def prediction_type(self, name: str) -> PredictionType:
        """A prediction type, with the path's own parameters.

        Raises:
            ValueError: for one that networks on this path can't be trained for.
        """

    def time(self, s: Tensor) -> Tensor:
        """The path's time at a draw s (B,) of a distribution on its domain."""

    def level(self, t: Tensor) -> NoiseLevel:
        """The noise level at times t (B,), and how the network is shown it."""

    def scheduler(self, prediction_type: str) -> SchedulerMixin:
        """The sampler that is saved with the weights."""

    def for_latents(self) -> "Path":
        """The path for data of unit variance and without bounds, where pixels have half of that and lie in [-1, 1]."""


def _known(name: str, path: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise ValueError(f"prediction_type: {name!r} is none of the {path}'s: {', '.join(names)}")
    return name


@dataclass(frozen=True)
class DiscretePath:
    """The chain of T steps (Ho et al. 2020, eq. 4): alpha^2 = alphas_cumprod, sigma^2 = 1 - alpha^2.

    Args:
        beta_schedule: linear (Ho et al. 2020), scaled_linear (Rombach et al. 2022), squaredcos_cap_v2, the cosine of
            Nichol & Dhariwal 2021, eq. 17, or sigmoid (Xu et al. 2022, GeoDiff).
        num_train_timesteps: T.
        zero_snr: rescale the betas so that x_T holds no signal (Lin et al. 2024, algorithm 1).
        clip_sample: let the sampler clip the predicted x0 to [-1, 1].
        beta_start: the first beta, where the schedule has one.
        beta_end: the last beta, where the schedule has one.
        variance_type: of the reverse steps, as `DDPMScheduler` has it: fixed_small, the posterior's, fixed_large,
            beta_t (Ho et al. 2020, section 3.2), or learned_range, which the network puts out (Nichol & Dhariwal 2021,
            eq. 15).
    """

    beta_schedule: str = "linear"
    num_train_timesteps: int = 1000
    zero_snr: bool = False
    clip_sample: bool = True
    beta_start: float = 0.0001
    beta_end: float = 0.02
    variance_type: str = "fixed_small"
    domain: str = "unit"
    scheduler_prediction_type: str | None = None
    _alphas_cumprod: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_alphas_cumprod", self.scheduler("epsilon").alphas_cumprod)

    def time(self, s: Tensor) -> Tensor:
        """The timestep floor(s T), int64 in [0, T - 1]."""
        return (s * self.num_train_timesteps).long().clamp_(max=self.num_train_timesteps - 1)

    def level(self, t: Tensor) -> NoiseLevel:
        """alpha^2 = alphas_cumprod[t], sigma^2 = 1 - alpha^2 (Ho et al. 2020, eq. 4); the network is shown t."""
        alpha2 = self._alphas_cumprod_on(t.device)[t]
        return NoiseLevel(alpha2.sqrt(), (1 - alpha2).sqrt(), t)

    def prediction_type(self, name: str) -> PredictionType:
        """One of "epsilon", "sample" and "v_prediction"."""
        return PredictionType(_known(name, "chain", ("epsilon", "sample", "v_prediction")))

    def scheduler(self, prediction_type: str) -> DDPMScheduler:
        """DDPM with the path's betas, which is configured for the prediction type."""
        # Trailing spacing starts sampling at the step where training ended, T (Lin et al. 2024, section 3.3).
        return DDPMScheduler(
            num_train_timesteps=self.num_train_timesteps,
            beta_schedule=self.beta_schedule,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            prediction_type=prediction_type,
            rescale_betas_zero_snr=self.zero_snr,
            timestep_spacing="trailing",
            clip_sample=self.clip_sample,
            variance_type=self.variance_type,
        )

    def bound(self, prediction: Prediction, x0: Tensor, t: Tensor, bin_width: float | None) -> Tensor:
        """T L_t (B,), in bits per dimension: of a uniform t, an estimate of the variational bound without L_T.

        Args:
            prediction: of the network at x_t, (B, C, H, W).
            x0: the clean data, (B, C, H, W).
            t: timesteps, int64 (B,).
            bin_width: of x0's values, as in `ReverseSteps.terms`.
        """
        reverse_steps = ReverseSteps(self._alphas_cumprod_on(x0.device), self.variance_type)
        return self.num_train_timesteps * reverse_steps.terms(prediction, x0, t, bin_width) / math.log(2)

    def for_latents(self) -> "DiscretePath":
        """The same betas without clipping."""
        return replace(self, clip_sample=False)

    def _alphas_cumprod_on(self, device: torch.device) -> Tensor:
        """The table on a device, where it stays: a copy at each step would make a GPU wait."""
        if self._alphas_cumprod.device != device:
            object.__setattr__(self, "_alphas_cumprod", self._alphas_cumprod.to(device))
        return self._alphas_cumprod


@dataclass(frozen=True)
class StraightPath:
    """The straight line x_t = (1 - t) x0 + t eps, t in (0, 1) (Liu et al. 2023, eq. 1).

    The network sees t scaled to (0, 1000), as flow-matching schedulers show it.
    """

    domain: str = "unit"
    scheduler_prediction_type: str | None = "flow_prediction"
    num_train_timesteps: int = 1000

    def time(self, s: Tensor) -> Tensor:
        """The draw itself, t = s."""
        return s

    def level(self, t: Tensor) -> NoiseLevel:
        """alpha = 1 - t, sigma = t (Liu et al. 2023, eq. 1); the network is shown T t, T = `num_train_timesteps`."""
        return NoiseLevel(1 - t, t, t * self.num_train_timesteps)

    def prediction_type(self, name: str) -> PredictionType:
        """One of "flow_prediction", "sample", "epsilon" and "v_prediction"."""
        known = ("flow_prediction", "sample", "epsilon", "v_prediction")
        return PredictionType(_known(name, "straight path", known))

    def scheduler(self, prediction_type: str) -> FlowMatchEulerDiscreteScheduler:
        """Euler steps along the line; they take a velocity, whatever the prediction type."""
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=self.num_train_timesteps)

    def for_latents(self) -> "StraightPath":
        """The same path, which has no parameter of the data."""
        return self


@dataclass(frozen=True)
class FlowMapPath(StraightPath):
    """The straight line, for networks that go along it in few steps."""

    def scheduler(self, prediction_type: str) -> FlowMapEulerDiscreteScheduler:
        """Steps from each time to the next."""
        return FlowMapEulerDiscreteScheduler(num_train_timesteps=self.num_train_timesteps)


@dataclass(frozen=True)
class EdmPath:
    """The variance-exploding path x_t = x0 + sigma eps with t = sigma (Karras et al. 2022, table 1).

    Args:
        sigma_data: standard deviation that the preconditioning expects of the data. Timesteps are distributed as in
            table 1, which is for 0.5, in proportion.
    """

    sigma_data: float = 0.5
    domain: str = "positive"
    scheduler_prediction_type: str | None = "edm"

    def time(self, s: Tensor) -> Tensor:
        """The noise level sigma = s sigma_data / 0.5."""
        return s * (self.sigma_data / 0.5)

    def level(self, t: Tensor) -> NoiseLevel:
        """alpha = 1, sigma = t, with c_noise = ln(sigma) / 4 and c_in of Karras et al. 2022, table 1."""
        c_in = (t**2 + self.sigma_data**2).rsqrt()  # Karras et al. 2022, eq. 7 and table 1
        return NoiseLevel(torch.ones_like(t), t, 0.25 * t.log(), c_in)

    def prediction_type(self, name: str) -> PredictionType:
        """One of "edm", "sample", "epsilon" and "v_prediction", with the path's `sigma_data`."""
        known = ("edm", "sample", "epsilon", "v_prediction")
        return PredictionType(_known(name, "variance-exploding path", known), self.sigma_data)

    def scheduler(self, prediction_type: str) -> EDMEulerScheduler:
        """EDM's Euler steps with the path's `sigma_data`; they take EDM's output, whatever the prediction type."""
        return EDMEulerScheduler(sigma_data=self.sigma_data)

    def for_latents(self) -> "EdmPath":
        """The path with sigma_data = 1."""
        return replace(self, sigma_data=1.0)


@dataclass(frozen=True)
class ConsistencyPath(EdmPath):
    """The variance-exploding path, for networks that go to its end in one step.

    Args:
        clip_denoised: let the sampler clip the predicted x0 to [-1, 1].
    """

    clip_denoised: bool = True

    def scheduler(self, prediction_type: str) -> CMStochasticIterativeScheduler:
        """Steps to x0, and back to less noise (Song et al. 2023, algorithm 1)."""
        return CMStochasticIterativeScheduler(sigma_data=self.sigma_data, clip_denoised=self.clip_denoised)

    def for_latents(self) -> "ConsistencyPath":
        """The path with sigma_data = 1 and without clipping."""
        return replace(self, sigma_data=1.0, clip_denoised=False)


@dataclass(frozen=True)
class SdePath:
    """A linear SDE in continuous time, from `TRAINED_FROM` to 1 (Song et al. 2021, section 3).

    Args:
        sde: the SDE, which pipelines sample by too.
    """

    sde: Sde
    domain: str = "unit"

    @property
    def fourier(self) -> bool:
        """Whether the network needs `time_embedding_type="fourier"`, by which it predicts the score."""
        return isinstance(self.sde, VarianceExplodingSde)

    @property
    def scheduler_prediction_type(self) -> str | None:
        """The score for the VE SDE; that of the others' chains can be configured."""
        return "score" if self.fourier else None

    def time(self, s: Tensor) -> Tensor:
        """The draw, scaled to (TRAINED_FROM, 1)."""
        return TRAINED_FROM + (1 - TRAINED_FROM) * s

    def level(self, t: Tensor) -> NoiseLevel:
        """The SDE's."""
        return self.sde.level(t)

    def prediction_type(self, name: str) -> PredictionType:
        """The score for the VE SDE, and for the others one of "epsilon", "sample" and "v_prediction"."""
        known = ("score",) if self.fourier else ("epsilon", "sample", "v_prediction")
        return PredictionType(_known(name, "SDE", known))

    def scheduler(self, prediction_type: str) -> SchedulerMixin:
        """What holds the SDE's parameters."""
        return self.sde.scheduler(prediction_type)

    def for_latents(self) -> "SdePath":
        """The same path, which neither clips nor scales by the data."""
        return self
