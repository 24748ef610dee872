"""What the trainer asks of whatever it trains."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from diffusers import ModelMixin
from torch import Tensor, nn

from snowmelt.data.loader import Cache
from snowmelt.data.mixture import Prior
from snowmelt.objectives import Losses, StepContext
from snowmelt.stateful import Stateful

Networks = Mapping[str, Any]
"""Networks by the names of their folders."""


class Preview(NamedTuple):
    """A look at what networks have learned."""

    images: np.ndarray
    """uint8 (N, H, W, C)."""
    values: dict[str, float]
    """To be logged, by name."""


class Task(Protocol):
    """Networks in training, their loss, and what is made of them.

    Every process enters `save` and `preview`, since networks may be spread over them; one of them is given a path.
    """

    @property
    def fields(self) -> dict[str, Cache]:
        """What a batch consists of, by name; see `batches`."""

    @property
    def prior(self) -> Prior | None:
        """Another data set that a batch is of; see `Mixture`."""

    @property
    def labels(self) -> bool:
        """Whether a batch has `label`."""

    @property
    def networks(self) -> dict[str, ModelMixin]:
        """What is trained, by the names of their folders in checkpoints."""

    @property
    def states(self) -> dict[str, Stateful]:
        """What the loss remembers from step to step, by the names of its folders in checkpoints."""

    @property
    def with_ema(self) -> tuple[str, ...]:
        """Names of the networks of which averages are kept."""

    def module(self, networks: Networks) -> nn.Module:
        """What `loss` calls forward, made of these networks: one module, so that processes share its gradients."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trained parameters as the optimizer takes them; each group's gradient is clipped by itself."""

    def loss(self, batch: dict[str, Tensor], context: StepContext) -> Losses:
        """The losses of a batch."""

    def save(self, networks: Networks, folder: Path | None) -> dict[str, float]:
        """Write the model of these networks into a new folder, in the process that is given one; values to log."""

    def preview(self, networks: Networks, path: Path | None) -> Preview:
        """Images of these networks; the process that is given a path saves them there, or beside it."""
