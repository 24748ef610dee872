"""An objective: the loss of a network, and the sampler that fits what the loss teaches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from snowmelt.objectives.paths import Path, _expand
from snowmelt.objectives.targets import TARGETS
from snowmelt.objectives.times import LAWS, uniform
from snowmelt.objectives.weights import WEIGHTS


class Losses(NamedTuple):
    """What one forward pass gives: the loss, and what is only looked at."""

    loss: Tensor
    """(B,) float32: the loss of each sample, whose mean is descended."""
    level: Tensor | None = None
    """(B,) float32 in (0, 1): the rank of each sample's noise level under the law of times, where there is one."""
    values: Mapping[str, Tensor] = MappingProxyType({})
    """Numbers to log by their names, each () or (B,), without gradients."""


class Criterion(Protocol):
    """What is minimized: an `Objective`, or anything else that has a loss."""

    def loss(
        self, net: Callable[..., Any], x0: Tensor, condition: dict[str, Any], generator: torch.Generator
    ) -> Losses:
        """The losses of a batch x0 (B, ...), drawing what is random from the generator."""


@dataclass(frozen=True)
class Objective:
    """(path, target, weight, law), each named in its table.

    Args:
        path: the forward process.
        target: a key of `TARGETS`: what the network predicts.
        weight: a key of `WEIGHTS`.
        law: a key of `LAWS`, whose domain is the path's.
        gamma: the parameter of the min-SNR weights, more than 0.
        sigma_data: standard deviation of the data, the parameter of the EDM weight: 0.5 for pixels, 1 for latents.
        low_discrepancy: stratify times over the batch.
        noise_offset: deviation of noise that is constant over each channel, added to the unit normal noise, so that
            the network learns to change a picture's brightness (Guttenberg 2023).
        input_perturbation: deviation of noise in what the network sees but not in what it is asked for, as its own
            errors are in sampling (Ning et al. 2023, algorithm 1).
        dream_detail_preservation: the power p of DREAM, which adds the network's own error to the noise, times sigma^p,
            at the cost of a second forward pass (Zhou et al. 2024, algorithm 1); None: without it.
    """

    path: Path
    target: str
    weight: str = "unit"
    law: str = "uniform"
    gamma: float = 5.0
    sigma_data: float = 0.5
    low_discrepancy: bool = False
    noise_offset: float = 0.0
    input_perturbation: float = 0.0
    dream_detail_preservation: float | None = None

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma, a, b at times t: four tensors of shape (B,), float32."""
        alpha, sigma = self.path.alpha_sigma(t)
        a, b = TARGETS[self.target](self.path, t, alpha, sigma)
        return alpha, sigma, a, b

    def weights(self, t: Tensor) -> Tensor:
        """Weights (B,) on the squared error of the network's output."""
        weight = WEIGHTS[self.weight]
        alpha, sigma, a, b = self.coefficients(t)
        if weight is None:
            return torch.ones_like(alpha)
        return weight((sigma / alpha) ** 2, self.gamma, self.sigma_data) * (sigma / (alpha * b - sigma * a)) ** 2

    def draw_times(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n times of the path, and their ranks in (0, 1), each (n,), on the generator's device."""
        u = uniform(n, generator, self.low_discrepancy)
        return self.path.time(LAWS[self.law].quantile(u)), u

    def loss(
        self, net: Callable[..., Any], x0: Tensor, condition: dict[str, Any], generator: torch.Generator
    ) -> Losses:
        """The training loss (Ho et al. 2020, eq. 14, for any path, target and weight).

        Only the network runs in reduced precision, where it autocasts: noising in bf16 gives the first timesteps no
        noise at all.

        Args:
            net: called as `net(x, timestep, **condition)`; returns an object with `.sample` of x's shape.
            x0: clean data, float32 (B, C, H, W), about [-1, 1].
            condition: keyword arguments for the network.
            generator: source of times and noise, on x0's device.
        """
        t, u = self.draw_times(len(x0), generator)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        if self.noise_offset:
            shared = torch.randn(*x0.shape[:2], 1, 1, generator=generator, device=x0.device)
            noise += self.noise_offset * shared
        seen = noise
        if self.input_perturbation:
            extra = torch.randn(x0.shape, generator=generator, device=x0.device)
            seen = noise + self.input_perturbation * extra
        alpha, sigma, a, b = (_expand(c, x0) for c in self.coefficients(t))
        if self.dream_detail_preservation is not None:
            x_t = alpha * x0 + sigma * seen
            with torch.no_grad():
                output = net(*self.path.network_input(x_t, t), **condition).sample
            fraction = (sigma / torch.hypot(alpha, sigma)) ** self.dream_detail_preservation
            extra = fraction * (noise - self.denoise(x_t, output, t)[1])
            noise, seen = noise + extra, seen + extra
        # Half-precision outputs are promoted by the float32 target.
        prediction = net(*self.path.network_input(alpha * x0 + sigma * seen, t), **condition).sample
        error = (prediction - (a * x0 + b * noise)).square().flatten(1).mean(1)
        return Losses(error * self.weights(t), u)

    def denoise(self, x_t: Tensor, output: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and eps that a network's output (B, C, H, W) stands for at x_t and times t (B,)."""
        alpha, sigma, a, b = (_expand(c, x_t) for c in self.coefficients(t))
        det = alpha * b - sigma * a
        return (b * x_t - sigma * output) / det, (alpha * output - a * x_t) / det

    def scheduler(self) -> SchedulerMixin:
        """The stock scheduler to save with the weights."""
        return self.path.scheduler(self.target)

    @property
    def prediction_type(self) -> str | None:
        """What the pipeline must be told of the output, where the scheduler takes it for something else."""
        return None if self.path.stock_target in (None, self.target) else self.target
