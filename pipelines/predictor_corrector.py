"""Sampling by the reverse SDE: predictors, correctors and the loop (Song et al. 2021, appendices E to G)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pipelines.denoiser import Denoiser
from pipelines.ode import flow_derivative, integrate
from pipelines.sampling import OnStep
from pipelines.sde import Sde

SdeStep = Callable[[Sde, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(SDE, time t, time s < t, x_t, its score) -> mean (B, C, H, W) and standard deviation () of x_s."""

StepSize = Callable[[float, Tensor, Tensor, Tensor], Tensor]
"""(snr, score, noise, sigma) -> the size of a Langevin step, () or (B, 1, 1, 1)."""


def euler_maruyama(sde: Sde, t: Tensor, s: Tensor, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """A step of the reverse SDE, dx = (f x - g^2 score) dt + g dw (eq. 6).

    Args:
        sde: the forward process.
        t: the time of x.
        s: that of the result, s < t.
        x: x_t, (B, C, H, W).
        score: there, (B, C, H, W).
    """
    drift, diffusion = sde.drift(t), sde.diffusion(t)
    return x - (t - s) * (drift * x - diffusion**2 * score), diffusion * (t - s).sqrt()


def reverse_diffusion(sde: Sde, t: Tensor, s: Tensor, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """The forward process's own step from s to t, x_t = x_s + (a - 1) x_s + b eps, reversed (eq. 46).

    Args:
        sde: the forward process, whose steps are taken exactly, not by their first order in t - s.
        t: the time of x.
        s: that of the result, s < t.
        x: x_t, (B, C, H, W).
        score: there, (B, C, H, W).
    """
    a, b = sde.transition(s, t)
    return (2 - a) * x + b**2 * score, b


def ancestral(sde: Sde, t: Tensor, s: Tensor, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """x_s given x_t and the expected x0 (Ho et al. 2020, eq. 7; eq. 47 for the VE), for any linear SDE.

    Args:
        sde: the forward process.
        t: the time of x.
        s: that of the result, s < t.
        x: x_t, (B, C, H, W).
        score: there, (B, C, H, W).
    """
    a, b = sde.transition(s, t)
    return (x + b**2 * score) / a, b * sde.level(s).sigma / sde.level(t).sigma


def langevin(snr: float, score: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """2 (snr |noise| / |score|)^2, by the norms of each image (algorithm 4).

    The factor 1 - beta_i that algorithm 5 has for the VP, from 0.98 to 1, is left out.

    Args:
        snr: the signal-to-noise ratio.
        score: (B, C, H, W).
        noise: of the step, (B, C, H, W).
        sigma: of x_t, ().
    """
    norms = [v.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for v in (noise, score)]
    return 2 * (snr * norms[0] / norms[1]) ** 2


def annealed_langevin(snr: float, score: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """2 (snr sigma)^2, in proportion to the noise's variance (Song & Ermon 2019, algorithm 1).

    Args:
        snr: the square root of half of the step's ratio to the variance.
        score: (B, C, H, W).
        noise: of the step, (B, C, H, W).
        sigma: of x_t, ().
    """
    return 2 * (snr * sigma) ** 2


PREDICTORS: dict[str, SdeStep | None] = {
    "reverse_diffusion": reverse_diffusion,
    "euler_maruyama": euler_maruyama,
    "ancestral": ancestral,
    "none": None,
}
CORRECTORS: dict[str, StepSize] = {"langevin": langevin, "annealed_langevin": annealed_langevin}


def evaluation_times(
    sde: Sde, steps: int, predictor: SdeStep | None, corrections: int, start: float = 1.0
) -> tuple[list[Tensor], Tensor]:
    """Times of the steps, down to the SDE's `sampling_eps`, and those of all evaluations, (N,); float64 on the CPU.

    Args:
        sde: the forward process.
        steps: how many from 1 on.
        predictor: None for Langevin steps alone, which are as many at each time; one last evaluation denoises.
        corrections: Langevin steps at each time.
        start: the time to begin with.
    """
    times = torch.linspace(start, sde.sampling_eps, max(1, round(steps * start)), dtype=torch.float64)
    each = times.repeat_interleave(corrections + (predictor is not None))
    return list(times), each if predictor is not None else torch.cat([each, times[-1:]])


@torch.no_grad()
def predictor_corrector(
    denoiser: Denoiser,
    sde: Sde,
    x: Tensor,
    times: list[Tensor],
    *,
    predictor: SdeStep | None,
    corrector: StepSize,
    corrections: int,
    snr: float,
    generator: torch.Generator | list[torch.Generator] | None = None,
    on_step: OnStep,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Tensor:
    """Predictor-corrector sampling (algorithm 1): at each time Langevin steps, then a step to the next time.

    At the last time the noise that is left is predicted and taken away. Without a predictor x stays as it is from one
    time to the next, which is annealed Langevin dynamics (Song & Ermon 2019, algorithm 1).

    Args:
        denoiser: the network, with its conditions and guidance.
        sde: the forward process.
        x: x_t at the first time, float32 (B, C, H, W).
        times: decreasing, () each.
        predictor: a step to the next time.
        corrector: the size of a Langevin step.
        corrections: Langevin steps at each time.
        snr: the signal-to-noise ratio of the corrector.
        generator: of the noise: one, or one per image.
        on_step: sees each evaluation, and may change x.
        progress: wraps the steps.

    Returns:
        Data, float32 (B, C, H, W).
    """

    def draw() -> Tensor:
        return randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)

    evaluation = 0
    for t, s in progress(list(zip(times, [*times[1:], None], strict=True))):
        level = sde.level(t)
        for _ in range(corrections):
            prediction = denoiser(x, level)
            score, noise = -prediction.eps / level.sigma, draw()
            size = corrector(snr, score, noise, level.sigma)
            x = on_step(evaluation, x + size * score + (2 * size).sqrt() * noise, prediction)
            evaluation += 1
        if s is None:
            prediction = denoiser(x, level)
            x = on_step(evaluation, prediction.x0, prediction)
        elif predictor is not None:
            prediction = denoiser(x, level)
            mean, std = predictor(sde, t, s, x, -prediction.eps / level.sigma)
            x = on_step(evaluation, mean + std * draw(), prediction)
            evaluation += 1
    return x


@torch.no_grad()
def probability_flow(
    denoiser_of: Callable[[Tensor], Denoiser], sde: Sde, state: Tensor, tolerance: float, start: float = 1.0
) -> Tensor:
    """Sample by the ODE whose solutions have the SDE's distributions (section 4.3), with steps of each image's own.

    Args:
        denoiser_of: images by their numbers (b,) -> the denoiser of these.
        sde: the forward process.
        state: x_t / sqrt(alpha^2 + sigma^2) at the start, unit normal at time 1, (B, C, H, W).
        tolerance: relative and absolute, of x_t / sqrt(alpha^2 + sigma^2) over log(sigma / alpha), where no step is
            longer than 1: else a loose one lets the solver leap from noise to data, since little changes near both.
        start: the time to begin with.

    Returns:
        Data, (B, C, H, W).

    Raises:
        ValueError: where the network's output isn't finite, or the tolerance is too fine.
    """

    def flow(time: Tensor, rows_state: Tensor, rows: Tensor) -> Tensor:
        log_ratio = -time  # which falls as time goes on
        level = sde.level(sde.time(log_ratio))
        x_t = torch.hypot(level.alpha, level.sigma).view(-1, 1, 1, 1) * rows_state.view(-1, *state.shape[1:])
        return -flow_derivative(denoiser_of(rows)(x_t, level), log_ratio).flatten(1)

    span = -sde.log_ratio(start), -sde.log_ratio(sde.sampling_eps)
    last = integrate(flow, state.flatten(1), span, tolerance, tolerance, max_step=1.0).view_as(state)
    level = sde.level(torch.tensor(sde.sampling_eps, dtype=torch.float64))
    x_t = torch.hypot(level.alpha, level.sigma) * last
    return denoiser_of(torch.arange(len(state), device=state.device))(x_t, level).x0
