"""Consistency models: the same x0 from everywhere on a path, in one step (Song et al. 2023)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.prediction import expand
from snowmelt.objectives.couplings import COUPLINGS
from snowmelt.objectives.objective import Losses, Objective, StepContext

STAGES = 8
"""In which r comes nearer to t, half as far from it at each."""
K, B = 8.0, 1.0
"""Of n(t) = 1 + K sigmoid(-B t), by which small t are compared with smaller r, in proportion."""


def earlier_time(t: Tensor, progress: float) -> Tensor:
    """r(t), (B,), from 0 to t (Geng et al. 2024, ECT, section 4): 0 for all but large t in the first stage.

    Args:
        t: noise levels, (B,).
        progress: of the training, from 0 to 1.
    """
    stage = min(int(progress * STAGES), STAGES - 1)
    return t * (1 - (1 + K * torch.sigmoid(-B * t)) / 2 ** (stage + 1)).clamp(min=0)


@dataclass(frozen=True)
class ConsistencyObjective(Objective):
    """Easy consistency tuning (Geng et al. 2024, ECT): x0 expected at t is to be that at r < t, of the same noise.

    In the first stage r is 0 for most t, where x0 is the image's own, and the loss that of a diffusion model; so a
    trained one is where it goes on from.
    """

    @property
    def of_two_times(self) -> bool:
        """True."""
        return True

    def loss(self, x0: Tensor, conditions: dict[str, Any], context: StepContext, noise: Tensor | None = None) -> Losses:
        """|D(x_t, t) - D(x_r, r)| / (t - r), without a gradient through the second.

        Args:
            x0: clean data, float32 (B, C, H, W), about [-1, 1].
            conditions: keyword arguments of the network.
            context: the network, and the source of times and noise.
            noise: that belongs to x0, unit normal, float32 (B, C, H, W); None: it is drawn by the `coupling`.

        Returns:
            Of each image its loss, and the quantile of its noise level.
        """
        generator, predict = context.generator, self.predictor(context.forward)
        t, quantile = self.draw_times(len(x0), generator)
        if noise is None:
            noise = COUPLINGS[self.coupling](x0, generator)
        r = earlier_time(t, context.progress)
        expected = predict(x0 + expand(t, x0) * noise, self.path.level(t), conditions).x0
        with torch.no_grad():
            near = self.path.level(r.clamp(min=1e-4))  # whose logarithm the network is shown; of 0 it isn't asked
            target = predict(x0 + expand(r, x0) * noise, near, conditions).x0
            target = torch.where(expand(r > 0, x0), target, x0)
        distance = (expected - target).square().flatten(1).sum(1).clamp(min=1e-12).sqrt()
        return Losses(distance / (t - r), quantile)
