"""Distributions of training timesteps, by their quantile functions, which map a uniform draw u in (0, 1) to a timestep.

Written so, stratification is the same for all, and u itself is the quantile of a noise level among those trained on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOSS_SECOND_MOMENT = "loss_second_moment"

_TINY = 2.0**-24  # ndtri is infinite at 0 and 1, which float32 draws can reach


@dataclass(frozen=True)
class TimestepDistribution:
    """A distribution on "unit", the interval (0, 1), or on "positive", the half-line (0, inf).

    Attributes:
        domain: "unit" or "positive".
        quantile: the quantile function, from (B,) in (0, 1) to (B,).
    """

    domain: str
    quantile: Callable[[Tensor], Tensor]


DISTRIBUTIONS: dict[str, TimestepDistribution] = {
    "uniform": TimestepDistribution("unit", lambda u: u),
    # Esser et al. 2024, eq. 19 with m = 0, s = 1. On the straight path it makes t / (1 - t) log-normal.
    "logit_normal": TimestepDistribution("unit", lambda u: torch.special.ndtri(u).sigmoid()),
    # Beta(3, 1), of density 3 t^2: 27% of the draws lie above t = 0.9, where a prompt decides what is where.
    "beta": TimestepDistribution("unit", lambda u: u ** (1 / 3)),
    # Karras et al. 2022, table 1: ln sigma ~ N(-1.2, 1.2^2).
    "log_normal": TimestepDistribution("positive", lambda u: (1.2 * torch.special.ndtri(u) - 1.2).exp()),
    # Geng et al. 2024, ECT, appendix: ln sigma ~ N(-1.1, 2^2).
    "log_normal_wide": TimestepDistribution("positive", lambda u: (2.0 * torch.special.ndtri(u) - 1.1).exp()),
    # Uniform until losses are known; see importance.py.
    LOSS_SECOND_MOMENT: TimestepDistribution("unit", lambda u: u),
}


def uniform(n: int, generator: torch.Generator, low_discrepancy: bool) -> Tensor:
    """n uniform draws in (0, 1), float32 (n,), on the generator's device.

    Args:
        n: number of draws.
        generator: of the draws.
        low_discrepancy: shift the grid i / n by a single draw, modulo 1: each draw is uniform, and together they cover
            the interval evenly (Kingma et al. 2021, appendix I.1). Else draws are independent.
    """
    if low_discrepancy:
        shift = torch.rand(1, generator=generator, device=generator.device)
        u = (shift + torch.arange(n, device=generator.device) / n) % 1
    else:
        u = torch.rand(n, generator=generator, device=generator.device)
    return u.clamp_(_TINY, 1 - _TINY)
