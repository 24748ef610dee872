"""What the network predicts: F* = a x0 + b eps, one row (a, b) per kind.

Given x_t = alpha x0 + sigma eps as well, two equations hold two unknowns, so every prediction yields x0 and eps:

    x0 = (b x_t - sigma F) / det,   eps = (alpha F - a x_t) / det,   det = alpha b - sigma a.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Row = Callable[[Any, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(path, t, alpha, sigma) -> (a, b), all tensors of shape (B,)."""


def _epsilon(path: Any, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The noise (Ho et al. 2020, eq. 12)."""
    return torch.zeros_like(alpha), torch.ones_like(alpha)


def _sample(path: Any, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The picture."""
    return torch.ones_like(alpha), torch.zeros_like(alpha)


def _v(path: Any, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D)."""
    return -sigma, alpha


def _flow(path: Any, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The velocity d x_t / dt (Lipman et al. 2023, section 4.1)."""
    return path.derivative(t)


def _edm(path: Any, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(x0 - c_skip x_t) / c_out (Karras et al. 2022, eq. 8 and table 1)."""
    total = sigma**2 + path.sigma_data**2
    c_skip = path.sigma_data**2 / total
    c_out = sigma * path.sigma_data * total.rsqrt()
    return (1 - c_skip * alpha) / c_out, -c_skip * sigma / c_out


TARGETS: dict[str, Row] = {
    "epsilon": _epsilon,
    "sample": _sample,
    "v_prediction": _v,
    "flow": _flow,
    "edm": _edm,
}
