"""Batches of two data sets at once: of what is to be learned, and of what is not to be forgotten meanwhile."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from snowmelt.data.loader import Cache, batches, to_device


class Prior(NamedTuple):
    """A second data set, of which a batch has as many images as of the first."""

    fields: dict[str, Cache]
    """Of the names and shapes that those of the first have."""
    weight: float
    """Of its mean loss, beside that of the first."""


@dataclass(frozen=True)
class Mixture:
    """All that is trained on.

    Attributes:
        fields: the data set that epochs are of.
        prior: another, or None.
    """

    fields: dict[str, Cache]
    prior: Prior | None

    @property
    def _sets(self) -> list[dict[str, Cache]]:
        return [self.fields] if self.prior is None else [self.fields, self.prior.fields]

    @property
    def rows(self) -> np.ndarray:
        """The row of its data set that each image comes from, (N,) int64: those of the prior follow the others."""
        if self.prior is None:
            return next(iter(self.fields.values())).rows  # which may not be held
        return np.concatenate([next(iter(fields.values())).rows for fields in self._sets])

    @property
    def fingerprint(self) -> str:
        """A key of all that the values depend on."""
        return "+".join(field.fingerprint for fields in self._sets for field in fields.values())

    def batches(self, *, device: torch.device, seed: int, **how: Any) -> Iterator[dict[str, torch.Tensor]]:
        """Micro-steps without end; the arguments are those of `snowmelt.data.loader.batches`.

        Args:
            device: of the tensors.
            seed: of the order, the crops and the mirrors.
            how: the other arguments.

        Yields:
            What `batches` does. With a prior, a batch of B of the data set and B of the prior in turn, so that times
            that are stratified over it are so over each; `indices` of the prior's go on from those of the data set, and
            `loss_weight`, float32 (2B,), makes the mean loss that of the data set plus the prior's by its weight.
        """
        if self.prior is None:
            yield from batches(self.fields, device=device, seed=seed, **how)
            return
        own = batches(self.fields, device=device, seed=seed, **how)
        others = batches(self.prior.fields, device=device, seed=seed + 1, **how)
        first = len(next(iter(self.fields.values())))
        for batch, other in zip(own, others, strict=True):
            other["indices"] += first
            joined = {name: torch.stack([value, other[name]], 1).flatten(0, 1) for name, value in batch.items()}
            weights = torch.tensor([2.0, 2.0 * self.prior.weight]).repeat(len(batch["indices"]))
            yield joined | {"loss_weight": to_device(weights, device)}
