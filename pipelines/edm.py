"""Adapters of the stock schedulers of EDM (Karras et al. 2022)."""

from typing import Any

import torch
from torch import Tensor

from pipelines.prediction import NoiseLevel, Prediction, PredictionType
from pipelines.sampler import Sampler

SOLVER_ORDER = 2
"""In the configuration of an EDMEulerScheduler, as its `solver_order`: take Heun's steps, in place of Euler's."""


class EDMSampler(Sampler):
    """The variance-exploding path x_t = x0 + sigma eps of Karras et al. 2022."""

    CONTINUOUS = True

    def _prediction_type(self) -> PredictionType:
        return PredictionType("edm", self.scheduler.config.sigma_data)

    def level(self, i: int) -> NoiseLevel:
        """alpha = 1, and c_in as the input scale (Karras et al. 2022, eq. 7)."""
        sigma = self.scheduler.sigmas[i]
        one = torch.ones_like(sigma)
        return NoiseLevel(one, sigma, self.scheduler.timesteps[i], self.scheduler.precondition_inputs(one, sigma))

    def x_t(self, x: Tensor, i: int) -> Tensor:
        """The state x itself: the input scale is in the level."""
        self.scheduler.scale_model_input(x, self.scheduler.timesteps[i])  # which it wants to have been asked
        return x


class EDMEulerSampler(EDMSampler):
    """Euler's method, that is DDIM, which may begin its steps with more noise."""

    CHURNS = True
    MARKOV = True

    def _time(self, sigma: Tensor) -> Any:
        return self.scheduler.precondition_noise(sigma)


class EDMHeunSampler(EDMEulerSampler):
    """Heun's method: Karras et al. 2022, algorithm 2, at the noise levels that diffusers' Euler scheduler lays out.

    diffusers has none for EDM. The scheduler's own step isn't taken: after each of Euler's steps but the last one, to
    sigma = 0, the network is evaluated where it led, and the step is taken again with the mean of both slopes.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.order = SOLVER_ORDER

    def set_timesteps(self, num_inference_steps: int, timesteps: list[float] | None, device: torch.device) -> None:
        """As `Sampler.set_timesteps`; all noise levels but the first and 0 are those of two evaluations.

        Args:
            num_inference_steps: how many.
            timesteps: must be None.
            device: of the scheduler's tensors.
        """
        super().set_timesteps(num_inference_steps, timesteps, device)
        scheduler, times = self.scheduler, self.scheduler.timesteps
        sigmas, last = scheduler.sigmas[:-1], scheduler.sigmas[-1:]
        scheduler.timesteps = torch.cat([times[:1], times[1:].repeat_interleave(2)])
        scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2), last])

    def x_t(self, x: Tensor, i: int) -> Tensor:
        """The state x itself."""
        return x

    def step(self, prediction: Prediction, i: int, x: Tensor) -> Tensor:
        """The state after evaluation i: where Euler's step leads, or after a second evaluation Heun's.

        Args:
            prediction: of the network at x_t.
            i: number of the evaluation.
            x: the state at that evaluation, (B, C, H, W).
        """
        sigmas, first = self.scheduler.sigmas, i % 2 == 0
        slope = (x - prediction.x0) / sigmas[i]
        if first:
            self._before, self._slope = x, slope
            return x + (sigmas[i + 1] - sigmas[i]) * slope
        x = self._before + (sigmas[i] - sigmas[i - 1]) * (self._slope + slope) / 2
        return self._churned(x, i + 1)


class ConsistencySampler(EDMSampler):
    """Consistency models: to x0, and back to the next noise level with new noise (Song et al. 2023, algorithm 1)."""

    CONTINUOUS = False
    MARKOV = True

    def level(self, i: int) -> NoiseLevel:
        """alpha = 1, with EDM's c_in and c_noise, which the scheduler scales otherwise."""
        sigma = self.scheduler.sigmas[i]
        c_in = (sigma**2 + self.scheduler.config.sigma_data**2) ** -0.5
        return NoiseLevel(torch.ones_like(sigma), sigma, sigma.log() / 4, c_in)

    def step(self, prediction: Prediction, i: int, x: Tensor) -> Tensor:
        """The state after evaluation i, by what makes the scheduler expect the same x0.

        Its own preconditioning makes x0 what x_t is at its least sigma, where no evaluation is.

        Args:
            prediction: of the network at x_t.
            i: number of the evaluation.
            x: the state at that evaluation, (B, C, H, W).
        """
        c_skip, c_out = self.scheduler.get_scalings_for_boundary_condition(self.scheduler.sigmas[i])
        output, t = (prediction.x0 - c_skip * x) / c_out, self.scheduler.timesteps[i]
        return self.scheduler.step(output, t, x, **self._step_arguments, return_dict=False)[0]
