"""Gradients kept small: to a norm, and to what is usual in this run."""

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from snowmelt.sharding import held, whole

WINDOW = 100
"""Steps whose norms say what is usual."""


class GradientClipper:
    """Clips the gradient of each of an optimizer's groups by itself, without waiting for the device.

    Args:
        optimizer: whose parameters have the gradients.
        max_norm: that none exceeds.
        max_ratio: how many times the median of its last `WINDOW` norms, as they were before clipping, none exceeds; a
            spike then moves the weights no further than other steps do. None for no such limit.
        device: of the gradients.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, max_norm: float, max_ratio: float | None, device: torch.device
    ) -> None:
        self.groups = optimizer.param_groups
        self.max_norm = max_norm
        self.max_ratio = max_ratio
        self._norms = torch.full((WINDOW, len(self.groups)), torch.nan, device=device)

    @torch.no_grad()
    def clip(self, step: int) -> Tensor:
        """Clip, and return the largest of the groups' norms before that.

        Args:
            step: optimizer steps taken.
        """
        if self.max_ratio is None:
            return torch.stack([whole(clip_grad_norm_(group["params"], self.max_norm)) for group in self.groups]).amax()
        gradients = [[p.grad for p in group["params"] if p.grad is not None] for group in self.groups]
        norms = torch.stack([whole(get_total_norm(of_group)) for of_group in gradients])  # (groups,)
        usual = self._norms.nanmedian(0).values
        limits = torch.fmin(usual * self.max_ratio, torch.full_like(usual, self.max_norm))  # in the first step this
        for of_group, factor in zip(gradients, (limits / (norms + 1e-6)).clamp(max=1), strict=True):
            torch._foreach_mul_([held(gradient) for gradient in of_group], factor)
        self._norms[step % WINDOW] = torch.where(norms.isfinite(), norms, torch.nan)
        return norms.amax()

    def state_dict(self) -> dict[str, Tensor]:
        """The norms that say what is usual, as `norms`, (WINDOW, groups)."""
        return {"norms": self._norms}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over the norms."""
        self._norms.copy_(state["norms"])
