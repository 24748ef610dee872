"""The variational bound of discrete-time models, in bits per dimension (Ho et al. 2020, eq. 5)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines import ScoreSdePipeline, image_generators
from pipelines.denoiser import Denoiser
from pipelines.labels import ClassLabels
from pipelines.prediction import NoiseLevel
from pipelines.schedulers import family
from pipelines.unet import UNetPipeline
from snowmelt.errors import UserError
from snowmelt.evaluation.process import check_images, make_condition, make_denoiser

VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")


@torch.no_grad()
def variational_bound(
    pipeline: UNetPipeline,
    images: Tensor,
    *,
    labels: ClassLabels | None = None,
    indices: Sequence[int] | None = None,
    seed: int = 0,
    num_timesteps: int | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Bits per dimension that coding each image by the ancestral sampler takes: L_T + ... + L_1 + L_0.

    The reverse process is the sampler's: its variance is that of the scheduler's `variance_type`, but for the last
    step, which has the posterior's of the step before (as in the code of Ho et al. 2020 and its successors), and the
    expected x0 is clipped where the scheduler clips it. An image's value depends on (seed, its index) alone.

    Args:
        pipeline: a float32 pixel-space model of a discrete-time objective, in eval mode.
        images: raw values as the cache holds them, uint8 or uint16 (N, C, H, W).
        labels: classes of the images; None for an unconditional model, or for the null class.
        indices: N numbers of the images, which seed their noise; 0 .. N - 1 by default.
        seed: of the noise, and of the choice of timesteps.
        num_timesteps: how many of the T terms to evaluate; all by default. The last step, L_0, is always among
            them, and the others are spread evenly at random, which leaves the sum without bias.
        batch_size: timesteps of an image per pass of the network.

    Returns:
        (N,) float64.

    Raises:
        UserError: if the images, labels or the number of timesteps don't fit the model.
    """
    space, indices = check_images(pipeline, images, indices)
    chain = _Chain(pipeline, images.dtype)
    steps = chain.length if num_timesteps is None else num_timesteps
    if not 2 <= steps <= chain.length:
        raise UserError(f"likelihood: {steps} timesteps; take from 2 to the model's {chain.length}")
    condition = make_condition(pipeline, labels, len(images))
    x0 = space.from_cache(images).double()
    generators = image_generators(seed, indices)
    weight = (chain.length - 1) / (steps - 1)
    shift = torch.tensor([torch.rand(1, generator=g).item() for g in generators], dtype=torch.float64).view(-1, 1)
    others = 1 + ((torch.arange(steps - 1) + shift) * weight).long()
    times = torch.cat([torch.zeros(len(x0), 1, dtype=torch.long), others], 1)  # (N, steps)
    nats = chain.prior(x0)
    for pairs in torch.arange(times.numel()).split(batch_size):  # of an image and a time
        rows = pairs // steps
        t = times.flatten()[pairs]
        noise = torch.stack([torch.randn(x0.shape[1:], generator=generators[row]).double() for row in rows.tolist()])
        terms = chain.terms(make_denoiser(pipeline, condition, rows), x0[rows], noise, t)
        nats.index_add_(0, rows, torch.where(t == 0, 1, weight) * terms)
    return nats / math.log(2)


class _Chain:
    """The terms of the bound, in nats per dimension.

    Raises:
        UserError: if the model isn't a discrete-time one whose variance is fixed, or the data aren't whole numbers.
    """

    def __init__(self, pipeline: UNetPipeline, dtype: torch.dtype) -> None:
        scheduler = pipeline.scheduler
        kind = "score-based" if isinstance(pipeline, ScoreSdePipeline) else family(scheduler)
        variance_type = scheduler.config.get("variance_type", "fixed_small")
        if kind != "discrete":
            raise UserError(f"likelihood: a {kind} model has no variational bound of T steps; take bits_per_dim")
        if variance_type not in VARIANCES:
            raise UserError(f"likelihood: variance_type {variance_type!r} is not one of {', '.join(VARIANCES)}")
        if dtype.is_floating_point:
            raise UserError("likelihood: the bound is for whole numbers, which can be coded; take bits_per_dim")
        self.clip = scheduler.config.clip_sample_range if scheduler.config.get("clip_sample") else math.inf
        self.half = 1 / torch.iinfo(dtype).max  # of the distance between two values of x0
        self.alpha2 = scheduler.alphas_cumprod.double().cpu()
        before = torch.cat([torch.ones(1), self.alpha2[:-1]])
        beta = 1 - self.alpha2 / before
        self.posterior = beta * (1 - before) / (1 - self.alpha2)  # Ho et al. 2020, eq. 7
        self.posterior[0] = self.posterior[1]
        self.variance = self.posterior
        if variance_type.startswith("fixed_large"):
            self.variance = torch.cat([self.posterior[:1], beta[1:]])
        self.slope = before.sqrt() * beta / (1 - self.alpha2)  # of the posterior's mean in x0
        self.length = len(self.alpha2)

    def prior(self, x0: Tensor) -> Tensor:
        """L_T, (B,): what is still known of x0 after T steps."""
        alpha2 = self.alpha2[-1]
        return (alpha2 * x0.square() - alpha2 - (1 - alpha2).log()).flatten(1).mean(1) / 2

    def terms(self, denoise: Denoiser, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """L_t for times t from 1 on, the code length of x0 for time 0, (B,), at one draw of x_{t+1} each."""
        alpha2, posterior, variance, slope = (
            c[t].view(-1, 1, 1, 1) for c in (self.alpha2, self.posterior, self.variance, self.slope)
        )
        level = NoiseLevel(self.alpha2[t].sqrt(), (1 - self.alpha2[t]).sqrt(), t)
        x_t = alpha2.sqrt() * x0 + (1 - alpha2).sqrt() * noise
        expected = denoise(x_t, level).x0.clamp(-self.clip, self.clip)
        ratio = posterior / variance
        divergence = (ratio - 1 - ratio.log() + (slope * (x0 - expected)).square() / variance) / 2
        code = -self._log_probability(x0, expected, variance.sqrt())
        return torch.where(t.view(-1, 1, 1, 1) == 0, code, divergence).flatten(1).mean(1)

    def _log_probability(self, x0: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Of the whole numbers behind x0, under a normal distribution cut into bins (Ho et al. 2020, eq. 13)."""
        lower = torch.where(x0 < -1 + self.half, -math.inf, x0 - self.half)
        upper = torch.where(x0 > 1 - self.half, math.inf, x0 + self.half)
        lower, upper = (lower - mean) / std, (upper - mean) / std
        # The mirror image, where that is further from 1, as differences of two numbers near 1 are lost.
        lower, upper = torch.where(lower > 0, -upper, lower), torch.where(lower > 0, -lower, upper)
        log_upper = torch.special.log_ndtr(upper)
        return log_upper + torch.log1p(-(torch.special.log_ndtr(lower) - log_upper).exp())
