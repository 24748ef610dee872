"""What a network is conditioned on besides the noisy data and their noise level."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from snowmelt.data.cache import ImageCache
from snowmelt.errors import UserError
from snowmelt.options import ModelOptions


class Conditioning(Protocol):
    """Turns a batch into the network's keyword arguments, dropping conditions at random for guidance."""

    @property
    def num_class_embeds(self) -> int | None:
        """Rows of the network's label table, the null label's included; None for no table."""

    def embed(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Keyword arguments for the network, from a batch of the loader."""


class NoConditioning:
    """An unconditional network."""

    num_class_embeds = None

    def embed(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """No keyword arguments."""
        return {}


class NullLabelConditioning(NoConditioning):
    """An unconditional network of a class that always takes labels, as DiT does."""

    def embed(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """`class_labels`, int64 (B,): the null label of no classes, 0."""
        images = batch["image"]
        return {"class_labels": torch.zeros(len(images), dtype=torch.long, device=images.device)}


@dataclass(frozen=True)
class LabelConditioning:
    """Class labels 0 .. K - 1; a dropped one becomes K, the null label (Ho & Salimans 2022, algorithm 1).

    Args:
        num_classes: K.
        dropout: the fraction of labels dropped, in [0, 1).
    """

    num_classes: int
    dropout: float

    def embed(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """`class_labels`, int64 (B,): those of the batch's `label`, each K with probability `dropout`."""
        labels = batch["label"]
        dropped = torch.rand(labels.shape, generator=generator, device=labels.device) < self.dropout
        return {"class_labels": labels.masked_fill(dropped, self.num_classes)}

    @property
    def num_class_embeds(self) -> int:
        """K, and one for the null label if labels are ever dropped."""
        return self.num_classes + (self.dropout > 0)


def make_conditioning(options: ModelOptions, data: ImageCache) -> Conditioning:
    """Conditioning on the data's labels for `class_conditional`, else none.

    Raises:
        UserError: if the data has no labels.
    """
    if not options.class_conditional:
        return NullLabelConditioning() if options.backbone == "dit" else NoConditioning()
    if data.class_names is None:
        raise UserError("--class_conditional: no column has a class for every row; name one with --label_column")
    return LabelConditioning(len(data.class_names), options.label_dropout)
