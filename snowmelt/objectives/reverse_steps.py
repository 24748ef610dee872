"""The chain's reverse steps as normal distributions, and the terms of the variational bound that they make up.

The bound is L_T + ... + L_1 + L_0 (Ho et al. 2020, eq. 5). Term L_t, for t from 1 to T - 1 as timesteps are counted
here, is the divergence of the step from x_t that the network makes from the posterior, which knows x0; L_0 is the code
length of x0 at the last step. Training descends them, evaluation sums them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.prediction import Prediction, expand


@dataclass(frozen=True)
class ReverseSteps:
    """The steps of a discrete process, from x_t to x_{t-1}; computed as the tensors that are given, on their device.

    Args:
        alphas_cumprod: alpha^2 at each timestep, (T,).
        variance_type: of `DDPMScheduler`, but for "learned".
    """

    alphas_cumprod: Tensor
    variance_type: str

    def prior(self, x0: Tensor) -> Tensor:
        """L_T in nats per dimension, (B,): what is still known of x0 (B, C, H, W) after T steps."""
        alpha2 = self.alphas_cumprod[-1]
        return (alpha2 * x0.square() - alpha2 - (1 - alpha2).log()).flatten(1).mean(1) / 2

    def terms(
        self, prediction: Prediction, x0: Tensor, t: Tensor, bin_width: float | None, clip: float = math.inf
    ) -> Tensor:
        """L_t in nats per dimension, (B,).

        The last step has the posterior's variance of the step before, as its own is 0 (as in the code of Ho et al. 2020
        and of Nichol & Dhariwal 2021).

        Args:
            prediction: of the network at x_t, (B, C, H, W).
            x0: the clean data, (B, C, H, W).
            t: timesteps, int64 (B,).
            bin_width: distance between two values of x0, which are coded at the last step (Ho et al. 2020, eq. 13);
                None: of data without such, whose density is taken instead, so that the sum may be negative.
            clip: the expected x0 is clipped to this range, as the sampler may do.
        """
        alpha2, before = self.alphas_cumprod[t], self.alphas_cumprod[(t - 1).clamp(min=0)]
        before = torch.where(t == 0, 1, before)
        beta = 1 - alpha2 / before
        slope = before.sqrt() * beta / (1 - alpha2)  # of the posterior's mean in x0 (Ho et al. 2020, eq. 7)
        log_beta, log_posterior, slope = (expand(c, x0) for c in (beta.log(), self._log_posterior(t), slope))
        log_variance = self._log_variance(prediction.variance, log_beta, log_posterior, t)
        expected = prediction.x0.clamp(-clip, clip)
        log_ratio = log_posterior - log_variance
        divergence = (log_ratio.expm1() - log_ratio + (slope * (x0 - expected)).square() * (-log_variance).exp()) / 2
        last = expand(t, x0) == 0
        # Elsewhere values that code well, as a gradient of infinity times 0 isn't 0.
        mean, std = torch.where(last, expected, x0), torch.where(last, (log_variance / 2).exp(), 1.0)
        code = -_log_density(x0, mean, std) if bin_width is None else -_log_mass(x0, mean, std, bin_width)
        return torch.where(last, code, divergence).flatten(1).mean(1)

    def _log_posterior(self, t: Tensor) -> Tensor:
        t = t.clamp(min=1)
        alpha2, before = self.alphas_cumprod[t], self.alphas_cumprod[t - 1]
        return ((1 - alpha2 / before) * (1 - before) / (1 - alpha2)).log()  # Ho et al. 2020, eq. 7

    def _log_variance(self, learned: Tensor | None, log_beta: Tensor, log_posterior: Tensor, t: Tensor) -> Tensor:
        if learned is not None and self.variance_type == "learned_range":
            fraction = (learned + 1) / 2
            return fraction * log_beta + (1 - fraction) * log_posterior  # Nichol & Dhariwal 2021, eq. 15
        if self.variance_type.startswith("fixed_large"):
            return torch.where(expand(t, log_beta) == 0, log_posterior, log_beta)
        return log_posterior


def _log_density(x0: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Of x0 under a normal distribution."""
    return -(((x0 - mean) / std).square() + math.log(2 * math.pi)) / 2 - std.log()


def _log_mass(x0: Tensor, mean: Tensor, std: Tensor, bin_width: float) -> Tensor:
    """Of the whole numbers behind x0, under a normal distribution cut into bins (Ho et al. 2020, eq. 13)."""
    half = bin_width / 2
    low, high = (x0 - half - mean) / std, (x0 + half - mean) / std
    # The mirror image, where that is further from 1, as differences of two numbers near 1 are lost.
    lower, upper = torch.where(low > 0, -high, low), torch.where(low > 0, -low, high)
    log_upper = torch.special.log_ndtr(upper)
    inner = log_upper + torch.log1p(-(torch.special.log_ndtr(lower) - log_upper).exp())
    # The outermost bins reach to infinity.
    outer = torch.special.log_ndtr(torch.where(x0 < 0, high, -low))
    return torch.where(x0.abs() > 1 - half, outer, inner)
