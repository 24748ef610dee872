"""Importance sampling of timesteps by the losses that they had (Nichol & Dhariwal 2021, section 3.3)."""

import torch
from torch import Tensor

LENGTH = 10
"""Losses that are remembered of each timestep."""
UNIFORM = 0.001
"""Probability of a uniform draw, so that no timestep is forgotten."""


class LossHistory:
    """The last losses of each timestep, and draws in proportion to the root of their mean square (eq. 18).

    Until each timestep has had `LENGTH` losses, draws are uniform. It is a part of checkpoints, and the same in all
    processes, which update it by the losses of all. The draws of an optimizer step depend on those before it alone, so
    that it doesn't matter how its batch is divided.

    Args:
        num_train_timesteps: T.
    """

    def __init__(self, num_train_timesteps: int) -> None:
        self.losses = torch.zeros(num_train_timesteps, LENGTH)
        self.counts = torch.zeros(num_train_timesteps, dtype=torch.int64)
        self.step = -1
        self.pending: list[tuple[Tensor, Tensor]] = []

    def begin(self, step: int) -> None:
        """Begin an optimizer step, or go on with it; its draws follow from the losses of those before."""
        if step != self.step:
            self._remember()
            self.step = step

    def probabilities(self) -> Tensor:
        """Of each timestep, (T,) float64."""
        steps = len(self.counts)
        root = self.losses.double().square().mean(1).sqrt()
        full = (self.counts >= LENGTH).all()
        drawn = torch.where(full, root / root.sum().clamp(min=1e-300), 1 / steps)
        return drawn * (1 - UNIFORM) + UNIFORM / steps

    def quantile(self, u: Tensor) -> Tensor:
        """Timesteps, int64 (B,), of uniform draws (B,) in (0, 1), on whose device the history is from then on."""
        self.losses, self.counts = self.losses.to(u.device), self.counts.to(u.device)
        edges = self.probabilities().cumsum(0)
        return torch.searchsorted(edges, u.double()).clamp_(max=len(edges) - 1)

    def weights(self, t: Tensor) -> Tensor:
        """1 / (T p_t) of timesteps (B,), float32: they make the loss what uniform draws have on average."""
        return (1 / (len(self.counts) * self.probabilities()[t])).float()

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Take note of losses (B,) of timesteps (B,), which replace the oldest once the optimizer step is over."""
        self.pending.append((t, losses.float()))

    def _remember(self) -> None:
        for t, losses in self.pending:
            # A timestep may be there several times: each takes the next place.
            same = t[:, None] == t[None]
            earlier = (same & torch.ones_like(same).tril(-1)).sum(1)
            self.losses[t, (self.counts[t] + earlier) % LENGTH] = losses
            self.counts.index_add_(0, t, torch.ones_like(t))
        self.pending.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """The losses (T, N), and how many there have been of each timestep, (T,)."""
        self._remember()
        return {"losses": self.losses, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave."""
        self.losses, self.counts = state["losses"], state["counts"]
