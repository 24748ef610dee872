"""What a scheduler's x, and a network's output at it, say of the data: the algebra that all samplers share."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import KDPM2AncestralDiscreteScheduler
from torch import Tensor

Row = Callable[[Any, Tensor, Tensor], tuple[Any, Any]]
"""(scheduler, alpha, sigma) -> (a, b) of a prediction F = a x0 + b eps."""


class NoiseLevelsMixin:
    """Noise levels of any stock scheduler, and the conversion of predictions.

    Every network's output F = a x0 + b eps at x_t = alpha x0 + sigma eps is one row (a, b), so
    x0 = (b x_t - sigma F) / (alpha b - sigma a), and any prediction converts to the one a scheduler expects.
    """

    scheduler: Any
    config: Any

    @staticmethod
    def _edm_row(scheduler: Any, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """F = (x0 - c_skip x_t) / c_out (Karras et al. 2022, eq. 8)."""
        c_skip = scheduler.precondition_outputs(1.0, 0.0, sigma)
        c_out = scheduler.precondition_outputs(0.0, 1.0, sigma)
        return (1 - c_skip) / c_out, -c_skip * sigma / c_out

    ROWS: dict[str, Row] = {
        "epsilon": lambda scheduler, alpha, sigma: (0.0, 1.0),
        "sample": lambda scheduler, alpha, sigma: (1.0, 0.0),
        "v_prediction": lambda scheduler, alpha, sigma: (-sigma, alpha),
        "flow_prediction": lambda scheduler, alpha, sigma: (-1.0, 1.0),
        "edm": _edm_row,
    }

    def _noise_level(self, x: Tensor, i: int, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t = alpha x0 + sigma eps on the path of training, alpha, sigma; from the scheduler's x at step i."""
        scheduler = self.scheduler
        if not hasattr(scheduler, "sigmas"):  # DDPM, DDIM, PNDM: the variance-preserving chain at whole timesteps
            alpha2 = scheduler.alphas_cumprod[t]
            return x, alpha2.sqrt(), (1 - alpha2).sqrt()
        sigma = scheduler.sigmas[i]
        if self._expected == "flow_prediction":
            return x, 1 - sigma, sigma
        if self._expected == "edm":
            return x, torch.ones_like(sigma), sigma
        if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):  # DPM-Solver, UniPC, DEIS
            return x, *scheduler._sigma_to_alpha_sigma_t(sigma)
        # Euler and its kin keep x0 + sigma eps, and show the network that times alpha = (1 + sigma^2)^-1/2.
        if not getattr(scheduler, "state_in_first_order", True) and hasattr(scheduler, "sigmas_interpol"):
            # The half step of DPM-Solver-2; the ancestral kind keeps its levels one place earlier.
            sigma = scheduler.sigmas_interpol[i - isinstance(scheduler, KDPM2AncestralDiscreteScheduler)]
        alpha = (1 + sigma**2) ** -0.5
        return x * alpha, alpha, sigma * alpha

    def _network_time(self, i: int, t: Tensor) -> Tensor:
        """The time that the network was trained to see at step i."""
        if not self.scheduler.config.get("use_flow_sigmas"):
            return t
        # DPM-Solver and UniPC round a flow's times down to integers, which biases what the network predicts.
        return self.scheduler.sigmas[i].to(t.device) * self.scheduler.config.num_train_timesteps

    @property
    def _expected(self) -> str:
        """The prediction that the scheduler takes a network's output for."""
        if hasattr(self.scheduler, "precondition_outputs"):
            return "edm"
        return self.scheduler.config.get("prediction_type", "flow_prediction")

    def _convert(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """x0, and the output as the scheduler expects it."""
        expected = self._expected
        predicted = self.config.get("prediction_type") or expected
        a, b = self.ROWS[predicted](self.scheduler, alpha, sigma)
        det = alpha * b - sigma * a
        # Where alpha vanishes, a predicted epsilon says nothing of x0: take the middle of its range.
        x0 = (b * x_t - sigma * output) / det if abs(det) > 1e-5 else torch.zeros_like(x_t)
        if predicted == expected:
            return x0, output
        a, b = self.ROWS[expected](self.scheduler, alpha, sigma)
        return x0, a * x0 + b * (x_t - alpha * x0) / sigma
