"""Weights on the squared error of x0, as functions of r = (sigma / alpha)^2 = 1 / SNR, of shape (B,).

Since x0 - x0* = (sigma / det)(F* - F), a weight w on the error of x0 is w (sigma / det)^2 on that of the network's
output: one table serves every target. "unit" is the exception: it weighs the output's error by 1, whatever it is.
"""

from collections.abc import Callable

from torch import Tensor

Weight = Callable[[Tensor, float, float], Tensor]
"""(r, gamma, sigma_data) -> weight on the squared error of x0."""


def _snr(r: Tensor, gamma: float, sigma_data: float) -> Tensor:
    """SNR, which weighs the error of x0 as eps is weighed (Salimans & Ho 2022, section 4)."""
    return r.reciprocal()


def _min_snr(r: Tensor, gamma: float, sigma_data: float) -> Tensor:
    """min(SNR, gamma) (Hang et al. 2023)."""
    return r.reciprocal().clamp(max=gamma)


def _soft_min_snr(r: Tensor, gamma: float, sigma_data: float) -> Tensor:
    """SNR gamma / (SNR + gamma), without the kink (Crowson et al. 2024)."""
    return (r + 1 / gamma).reciprocal()


def _p2(r: Tensor, gamma: float, sigma_data: float) -> Tensor:
    """1 / (1 + SNR) on the error of eps (Choi et al. 2022, with k = gamma = 1), that is SNR / (1 + SNR)."""
    return (1 + r).reciprocal()


def _edm(r: Tensor, gamma: float, sigma_data: float) -> Tensor:
    """SNR + 1 / sigma_data^2 (Karras et al. 2022, table 1)."""
    return r.reciprocal() + sigma_data**-2


VLB = "vlb"
"""The weight of no error: the terms of the variational bound themselves (Nichol & Dhariwal 2021, eq. 4)."""

WEIGHTS: dict[str, Weight | None] = {
    "unit": None,
    "snr": _snr,
    "min_snr": _min_snr,
    "soft_min_snr": _soft_min_snr,
    "p2": _p2,
    "edm": _edm,
}
