"""The reverse process: from noise to data, by a denoiser and a sampler."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.denoiser import Denoiser
from pipelines.prediction import Prediction
from pipelines.sampler import Sampler

OnStep = Callable[[int, Tensor, Prediction], Tensor]
"""(evaluation, x, prediction) -> the x to continue with; x is the sampler's state after the step."""


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    x: Tensor,
    *,
    on_step: OnStep | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Tensor:
    """Run the reverse process (Ho et al. 2020, algorithm 2, for any sampler).

    Args:
        denoiser: the network, with its conditions and guidance.
        sampler: whose steps are laid out.
        x: what it starts with, float32 (B, C, H, W); see `Sampler.start`.
        on_step: sees each step, and may change x.
        progress: wraps the numbers of the evaluations.

    Returns:
        Data, float32 (B, C, H, W).
    """
    for i in progress(sampler.evaluations()):
        level = sampler.level(i)
        prediction = denoiser(sampler.x_t(x, i), level)
        x = sampler.step(prediction, i, x)
        if on_step is not None:
            x = on_step(i, x, prediction)
    return x


@dataclass
class Trajectory:
    """What a sampler saw and expected, network evaluation by network evaluation; float32 tensors on the CPU.

    Attributes:
        timesteps: the times that the network was shown, (N,).
        noisy: x_t scaled to alpha^2 + sigma^2 = 1, where all kinds of scheduler look alike, (N, B, C, H, W).
        denoised: the data x0 that the network expected at x_t, about [-1, 1], (N, B, C, H, W).
    """

    timesteps: Tensor
    noisy: Tensor
    denoised: Tensor


def record_step(seen: list[tuple[Tensor, Tensor, Tensor]], prediction: Prediction) -> None:
    """Add an evaluation to those that `join_steps` joins."""
    level = prediction.level
    noisy = prediction.x_t / torch.hypot(level.alpha, level.sigma)
    seen.append((level.timestep.float().cpu(), noisy.cpu(), prediction.x0.cpu()))


def join_steps(seen: list[tuple[Any, ...]]) -> Trajectory:
    """The trajectory of recorded evaluations."""
    return Trajectory(*map(torch.stack, zip(*seen, strict=True)))
