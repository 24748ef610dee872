"""Noise that a sampler adds before its steps (Karras et al. 2022, section 4)."""

import math
from typing import Any, NamedTuple

from pipelines.arguments import real


class Churn(NamedTuple):
    """How much noise is added before each step (Karras et al. 2022, algorithm 2).

    Attributes:
        s_churn: of all steps together; 0 for none, sqrt(2) - 1 times the number of steps for the most there can be.
        s_tmin: the least sigma at which it is added.
        s_tmax: the largest.
        s_noise: standard deviation of that noise over what would keep the noise level exact.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def raised(self, sigma: float, steps: int) -> float:
        """The noise level that a step begins at instead of sigma, one of so many steps."""
        inside = self.s_tmin <= sigma <= self.s_tmax
        return sigma * (1 + min(self.s_churn / steps, math.sqrt(2) - 1)) if inside else sigma


def check_churn(s_churn: Any, s_tmin: Any, s_tmax: Any, s_noise: Any) -> Churn:
    """The arguments of a pipeline, each a number of at least 0, in their order.

    Args:
        s_churn: finite.
        s_tmin: finite.
        s_tmax: may be infinite.
        s_noise: finite.

    Raises:
        TypeError: for what is no number.
        ValueError: for one out of its range.
    """
    low = real("s_tmin", s_tmin, 0)
    high = math.inf if isinstance(s_tmax, float) and s_tmax == math.inf else real("s_tmax", s_tmax, 0)
    if low > high:
        raise ValueError(f"s_tmin: must be at most s_tmax, got {low:g} and {high:g}")
    return Churn(real("s_churn", s_churn, 0), low, high, real("s_noise", s_noise, 0))
