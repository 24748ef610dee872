"""Objectives of flow maps, which go from one time to another in one step; see pipelines/flow_map.py.

The mean velocity u(x_t, t, r) of the path from t to r satisfies

    u = v - (t - r) du/dt,   dx_t/dt = v,

(Geng et al. 2025, MeanFlow, eq. 6). Its right side, without a gradient, is what u is trained for. MeanFlow takes du/dt
by forward-mode differentiation, SoFlow (Luo et al. 2025) by the difference to a time between t and r, which comes
nearer in the course of training. Written as there, x_r as the network reaches it from x_l, it is the same loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from pipelines.denoiser import Predictor
from pipelines.flow_map import TARGET_CHANNELS
from pipelines.prediction import expand
from snowmelt.objectives.couplings import COUPLINGS
from snowmelt.objectives.objective import Losses, Objective, StepContext
from snowmelt.objectives.timesteps import uniform

Velocity = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]
"""(x_t (B, C, H, W), t (B,), conditions of the network) -> dx_t/dt, (B, C, H, W)."""

MeanVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t (B, C, H, W), t (B,), r (B,)) -> u, (B, C, H, W)."""

FIRST_STEP, LAST_STEP = 0.5, 0.05
"""Of SoFlow: (t - l) / (t - r) when training begins, and when it ends; 0.1 and 0.002 in the paper's longer ones."""
LEAST_STEP = 1e-4
"""Of t - l, so that float32 tells the two times apart."""
START, STOP = (0.4, 1.2), (-2.5, 2.0)
"""Mean and standard deviation of logit t and logit r, the larger of two draws being t: wide enough for one step."""
OFFSET = 0.01
"""c of the adaptive weights."""


def finite_difference(
    mean_velocity: MeanVelocity, x_t: Tensor, v: Tensor, t: Tensor, r: Tensor, u: Tensor, step: float
) -> Tensor:
    """du/dt along the path, (B, C, H, W), by u at a time l between t and r.

    Args:
        mean_velocity: u.
        x_t: (B, C, H, W).
        v: the velocity there, of that shape.
        t: times, (B,).
        r: times that are smaller, (B,).
        u: u(x_t, t, r), (B, C, H, W).
        step: (t - l) / (t - r).
    """
    distance = ((t - r) * step).clamp(min=LEAST_STEP)
    expanded = expand(distance, x_t)
    return (u - mean_velocity(x_t - expanded * v, t - distance, r)) / expanded


class ContiguousGroupNorm(TorchFunctionMode):
    """Gives group normalization contiguous values, as its forward-mode differentiation needs them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.group_norm:
            args = args[0].contiguous(), *args[1:]
        return func(*args, **(kwargs or {}))


def jacobian_vector_product(
    mean_velocity: MeanVelocity, x_t: Tensor, v: Tensor, t: Tensor, r: Tensor, u: Tensor, step: float
) -> Tensor:
    """du/dt along the path, (B, C, H, W), by forward-mode differentiation.

    Args:
        mean_velocity: u.
        x_t: (B, C, H, W).
        v: the velocity there, of that shape.
        t: times, (B,).
        r: times that are smaller, (B,).
        u: isn't needed.
        step: neither.
    """

    def moving(x_t: Tensor, t: Tensor) -> Tensor:
        return mean_velocity(x_t, t, r)

    with sdpa_kernel(SDPBackend.MATH), ContiguousGroupNorm():  # the other kernels of attention have no forward mode
        derivative: Tensor = torch.func.jvp(moving, (x_t, t), (v, torch.ones_like(t)))[1]
    return derivative


DERIVATIVES = {"finite_difference": finite_difference, "jvp": jacobian_vector_product}


@dataclass(frozen=True)
class FlowMapObjective(Objective):
    """A flow map on the straight line.

    Args:
        derivative: a key of `DERIVATIVES`.
        flow_fraction: of the images, those whose r is t, at the times of `timestep_sampling`.
        adaptive_power: p of the weights 1 / (error + c)^p, which keep large errors from ruling (Geng et al. 2025, eq.
            22).
        velocity: v, that of another model, say; None: the velocity of each image, whose mean it is.
    """

    derivative: str = "finite_difference"
    flow_fraction: float = 0.5
    adaptive_power: float = 1.0
    velocity: Velocity | None = None

    @property
    def target_channels(self) -> int:
        """`TARGET_CHANNELS`."""
        return TARGET_CHANNELS

    def predictor(self, net: Callable[..., Any]) -> Predictor:
        """A network with `target_channels` more input channels than the data."""
        return Predictor(net, self.path.prediction_type(self.prediction_type), target_channels=TARGET_CHANNELS)

    @property
    def of_two_times(self) -> bool:
        """True."""
        return True

    def loss(self, x0: Tensor, conditions: dict[str, Any], context: StepContext, noise: Tensor | None = None) -> Losses:
        """The loss of mean velocities, the first images of the batch being those of flow matching.

        Args:
            x0: clean data, float32 (B, C, H, W), about [-1, 1].
            conditions: keyword arguments of the network.
            context: the network, and the source of times and noise.
            noise: that belongs to x0, unit normal, float32 (B, C, H, W); None: it is drawn by the `coupling`.

        Returns:
            Of each image its weighted loss, and as `error` that without weight.
        """
        generator, n = context.generator, len(x0)
        first = int(n * self.flow_fraction)
        if part := n * self.flow_fraction - first:  # of a batch that doesn't divide so, of 1 for one
            first += int(torch.rand(1, generator=generator, device=x0.device) < part)
        t, _ = self.draw_times(first, generator)
        if noise is None:
            noise = COUPLINGS[self.coupling](x0, generator)
        start, stop = self._draw_intervals(n - first, generator)
        t, r = torch.cat([t, start]), torch.cat([t, stop])
        expanded = expand(t, x0)
        x_t, v = (1 - expanded) * x0 + expanded * noise, noise - x0
        if self.velocity is not None:
            with torch.no_grad():
                v = self.velocity(x_t, t, conditions)
        u = self._mean_velocity(context.forward, conditions)(x_t, t, r)
        target = v
        if first < n:
            rest = {name: value[first:] for name, value in conditions.items()}
            step = FIRST_STEP * (LAST_STEP / FIRST_STEP) ** context.progress
            # What shares gradients between processes has no forward-mode differentiation.
            frozen = self._mean_velocity(context.bare or context.forward, rest)
            with torch.no_grad():
                change = DERIVATIVES[self.derivative](frozen, x_t[first:], v[first:], start, stop, u[first:], step)
            target = torch.cat([v[:first], v[first:] - expand(start - stop, x0) * change])
        error = (u - target).square().flatten(1).mean(1)
        # By weights alone, of about 1 / error, the loss wouldn't say how large errors are.
        return Losses(error * (error.detach() + OFFSET) ** -self.adaptive_power, values={"error": error.detach()})

    def _draw_intervals(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n times t and smaller ones r, each (n,)."""
        draws = [
            (torch.special.ndtri(uniform(n, generator, low_discrepancy=False)) * std + mean).sigmoid()
            for mean, std in (START, STOP)
        ]
        return torch.maximum(*draws), torch.minimum(*draws)

    def _mean_velocity(self, net: Callable[..., Any], conditions: dict[str, Any]) -> MeanVelocity:
        predict = self.predictor(net)

        def mean_velocity(x_t: Tensor, t: Tensor, r: Tensor) -> Tensor:
            return predict(x_t, self.path.level(t)._replace(target_sigma=r), conditions).output

        return mean_velocity
