"""From data back to noise: deterministic steps undone one by one."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pipelines.denoiser import Denoiser
from pipelines.prediction import NoiseLevel, Prediction
from pipelines.sampler import Sampler


@torch.no_grad()
def invert(
    denoiser: Denoiser,
    sampler: Sampler,
    x0: Tensor,
    *,
    num_fixed_point_iterations: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Tensor:
    """The noise from which deterministic first-order steps make these data (Song et al. 2021, DDIM, section 5.4).

    A step from x at a high noise level to x' at a low one is linear in x and in the network's output F there. To undo
    it takes F at x, which isn't known yet: it is evaluated at x' instead, and then again at what x came out as, for as
    many iterations as are asked for (Pan et al. 2023). Without them it is the step of diffusers'
    `DDIMInverseScheduler`.

    Args:
        denoiser: the network, with its conditions and guidance.
        sampler: of first order and deterministic, whose steps are laid out.
        x0: data, float32 (B, C, H, W).
        num_fixed_point_iterations: further evaluations per step.
        progress: wraps the numbers of the evaluations.

    Returns:
        Noise, of about unit variance, float32 (B, C, H, W): what `Sampler.start` takes.
    """
    x = x0
    one = torch.ones((), device=x0.device)
    low = NoiseLevel(one, torch.zeros_like(one), one)
    for i in progress(sampler.evaluations()[::-1]):
        high, after = sampler.level(i), x
        for _ in range(1 + num_fixed_point_iterations):
            x = _undo_step(denoiser(x, high), low, after)
        low = high
    return sampler.to_noise(x)


def _undo_step(prediction: Prediction, low: NoiseLevel, after: Tensor) -> Tensor:
    """x at the prediction's level, from which a step with its output leads to the x at a low level that came after."""
    (alpha, sigma), F = prediction.level[:2], prediction.output  # noqa: N806
    a, b = prediction.prediction_type.coefficients(alpha, sigma)
    # Two equations, F = a x0 + b eps and after = alpha x0 + sigma eps at the low level, hold x0 and eps.
    det = low.alpha * b - low.sigma * a
    if det == 0:  # a network that says x0 says nothing of the noise that data came from: they are taken for x
        return alpha * after + (after - alpha * F)
    x0 = (b * after - low.sigma * F) / det
    eps = (low.alpha * F - a * after) / det
    return alpha * x0 + sigma * eps


def slerp(first: Tensor, second: Tensor, fraction: float) -> Tensor:
    """Noise between two, on the great circle, where it keeps its length (Song et al. 2021, DDIM, section 5.3).

    Args:
        first: noise (C, H, W).
        second: noise of that shape.
        fraction: of the way, from 0 for the first to 1 for the second.
    """
    cosine = torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0)
    angle = cosine.clamp(-1, 1).acos()
    if angle < 1e-4:  # hardly any way to go, which sin(angle) would divide by
        return torch.lerp(first, second, fraction)
    return (((1 - fraction) * angle).sin() * first + (fraction * angle).sin() * second) / angle.sin()
