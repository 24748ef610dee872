"""Bits per dimension by the probability-flow ODE (Song et al. 2021, score-based SDEs, section 4.3).

All paths become one, u = x_t / sqrt(alpha^2 + sigma^2) over lambda = log(sigma / alpha) (see `flow_derivative`), and
from one noise level to another log p changes by the integral of the derivative's divergence (eq. 39).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines import image_generators
from pipelines.labels import ClassLabels
from pipelines.ode import Derivative, flow_derivative, integrate, rms
from pipelines.unconditional import UnconditionalPipeline
from snowmelt.errors import UserError
from snowmelt.evaluation.process import (
    ForwardProcess,
    check_images,
    forward_process,
    make_condition,
    make_denoiser,
)
from snowmelt.spaces import PixelSpace


def bits_per_dim(
    pipeline: UnconditionalPipeline,
    images: Tensor,
    *,
    labels: ClassLabels | None = None,
    indices: Sequence[int] | None = None,
    seed: int = 0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    batch_size: int = 64,
) -> Tensor:
    """Negative log-likelihood of images under the model that the probability-flow ODE samples, in bits per dimension.

    Whole numbers are dequantised by uniform noise, which makes it an upper bound on what coding them costs (Theis et
    al. 2016, eq. 8). For float data it is a differential entropy in the data's own units, and may be negative. The
    trace is estimated with one Rademacher probe per image (Hutchinson; Grathwohl et al. 2019): without bias, so
    that averages over images are as good as the images are many. An image's value depends on (seed, its index) alone.

    Args:
        pipeline: a float32 pixel-space model for any objective, in eval mode.
        images: raw values as the cache holds them, (N, C, H, W): uint8, uint16, or float for a model of float data.
        labels: classes of the images; None for an unconditional model, or for the null class.
        indices: N numbers of the images, which seed their noise; 0 .. N - 1 by default.
        seed: of dequantisation and probes.
        rtol: relative tolerance of the solver.
        atol: absolute tolerance of the solver.
        batch_size: images per pass of the network.

    Returns:
        (N,) float64.

    Raises:
        UserError: if the images or labels don't fit the model, or the ODE can't be solved.
    """
    space, indices = check_images(pipeline, images, indices)
    condition = make_condition(pipeline, labels, len(images))
    process = forward_process(pipeline)
    low, high = process.log_ratios
    signal = 1 / math.hypot(1, math.exp(low))  # cos(phi) at the end of data
    bits = [torch.empty(0, dtype=torch.float64)]
    for start in range(0, len(images), batch_size):
        rows = torch.arange(start, min(start + batch_size, len(images)))
        x0, probe, width = _draw(space, images[rows], seed, [indices[i] for i in rows.tolist()])
        flow = _flow(pipeline, process, condition, rows, probe)
        state = torch.cat([signal * x0.flatten(1), torch.zeros(len(rows), 1, dtype=torch.float64)], 1)
        try:
            state = integrate(flow, state, (low, high), rtol, atol, _norm)
        except ValueError as error:
            raise UserError(f"likelihood: {error}") from error
        noise, trace = state[:, :-1], state[:, -1]
        prior = -(noise.square().mean(1) + math.log(2 * math.pi)) / 2  # per dimension, as `trace` is
        bits.append(-(prior + trace + math.log(signal)) / math.log(2) - math.log2(width))
    return torch.cat(bits)


def _draw(space: PixelSpace, raw: Tensor, seed: int, indices: list[int]) -> tuple[Tensor, Tensor, float]:
    """Data x0 and probes of -1 and 1, each (B, C, H, W) float64; and how much of x0 one unit of raw values is.

    Noise is spread over half a unit to both sides, since networks are trained on the values themselves.
    """
    width = 2 / (space.value_range[1] - space.value_range[0])
    x0 = space.from_cache(raw).double()
    probe = torch.empty_like(x0)
    for i, generator in enumerate(image_generators(seed, indices)):
        if not raw.dtype.is_floating_point:
            x0[i] += width * (torch.rand(raw.shape[1:], generator=generator, dtype=torch.float64) - 0.5)
        probe[i] = torch.randint(2, raw.shape[1:], generator=generator) * 2 - 1
    return x0, probe, width


def _flow(
    pipeline: UnconditionalPipeline,
    process: ForwardProcess,
    condition: dict[str, Tensor],
    images: Tensor,
    probe: Tensor,
) -> Derivative:
    """d (u, trace / D) / d lambda for the images of these numbers (B,)."""

    def flow(log_ratio: Tensor, state: Tensor, rows: Tensor) -> Tensor:
        level = process.level(log_ratio)
        denoise = make_denoiser(pipeline, condition, images[rows])
        with torch.enable_grad():
            u = state[:, :-1].view(-1, *probe.shape[1:]).requires_grad_()
            prediction = denoise(torch.hypot(level.alpha, level.sigma).view(-1, 1, 1, 1) * u, level)
            velocity = flow_derivative(prediction, log_ratio)
            (product,) = torch.autograd.grad((velocity * probe[rows]).sum(), u)
        trace = (product * probe[rows]).flatten(1).mean(1, keepdim=True)
        return torch.cat([velocity.detach().flatten(1), trace], 1)

    return flow


def _norm(error: Tensor) -> Tensor:
    """A row's last entry, the trace, must be as exact as the rest are on average."""
    return torch.maximum(rms(error[:, :-1]), error[:, -1].abs())
