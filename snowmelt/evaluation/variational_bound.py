"""The variational bound of discrete-time models, in bits per dimension (Ho et al. 2020, eq. 5)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines import ScoreSdePipeline, image_generators
from pipelines.labels import ClassLabels
from pipelines.prediction import NoiseLevel, expand
from pipelines.schedulers import family
from pipelines.unconditional import UnconditionalPipeline
from snowmelt.errors import UserError
from snowmelt.evaluation.process import check_images, make_condition, make_denoiser
from snowmelt.objectives.reverse_steps import ReverseSteps

VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range")


@torch.no_grad()
def variational_bound(
    pipeline: UnconditionalPipeline,
    images: Tensor,
    *,
    labels: ClassLabels | None = None,
    indices: Sequence[int] | None = None,
    seed: int = 0,
    num_timesteps: int | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Bits per dimension that coding each image by the ancestral sampler takes: L_T + ... + L_1 + L_0.

    The reverse process is the sampler's: its variance is that of the scheduler's `variance_type`, which may be learned,
    and the expected x0 is clipped where the scheduler clips it. An image's value depends on (seed, its index) alone.

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
    chain, config = _reverse_steps(pipeline, images.dtype), pipeline.scheduler.config
    clip = config.clip_sample_range if config.get("clip_sample") else math.inf
    bin_width = 2 / torch.iinfo(images.dtype).max
    alphas_cumprod = chain.alphas_cumprod
    length = len(alphas_cumprod)
    steps = length if num_timesteps is None else num_timesteps
    if not 2 <= steps <= length:
        raise UserError(f"likelihood: {steps} timesteps; take from 2 to the model's {length}")
    condition = make_condition(pipeline, labels, len(images))
    x0 = space.from_cache(images).double()
    generators = image_generators(seed, indices)
    weight = (length - 1) / (steps - 1)
    shift = torch.tensor([torch.rand(1, generator=g).item() for g in generators], dtype=torch.float64).view(-1, 1)
    others = 1 + ((torch.arange(steps - 1) + shift) * weight).long()
    times = torch.cat([torch.zeros(len(x0), 1, dtype=torch.long), others], 1)  # (N, steps)
    nats = chain.prior(x0)
    for pairs in torch.arange(times.numel()).split(batch_size):  # of an image and a time
        rows = pairs // steps
        t = times.flatten()[pairs]
        noise = torch.stack([torch.randn(x0.shape[1:], generator=generators[row]).double() for row in rows.tolist()])
        level = NoiseLevel(alphas_cumprod[t].sqrt(), (1 - alphas_cumprod[t]).sqrt(), t)
        x_t = expand(level.alpha, noise) * x0[rows] + expand(level.sigma, noise) * noise
        prediction = make_denoiser(pipeline, condition, rows)(x_t, level)
        terms = chain.terms(prediction, x0[rows], t, bin_width, clip)
        nats.index_add_(0, rows, torch.where(t == 0, 1, weight) * terms)
    return nats / math.log(2)


def _reverse_steps(pipeline: UnconditionalPipeline, dtype: torch.dtype) -> ReverseSteps:
    """The steps of the ancestral sampler, in float64.

    Raises:
        UserError: if the model isn't a discrete-time one, or the data aren't whole numbers.
    """
    scheduler = pipeline.scheduler
    kind = "score-based" if isinstance(pipeline, ScoreSdePipeline) else family(scheduler)
    variance_type = scheduler.config.get("variance_type") or "fixed_small"
    if kind != "discrete":
        raise UserError(f"likelihood: a {kind} model has no variational bound of T steps; take bits_per_dim")
    if variance_type not in VARIANCES:
        raise UserError(f"likelihood: variance_type {variance_type!r} is not one of {', '.join(VARIANCES)}")
    if dtype.is_floating_point:
        raise UserError("likelihood: the bound is for whole numbers, which can be coded; take bits_per_dim")
    return ReverseSteps(scheduler.alphas_cumprod.double().cpu(), variance_type)
