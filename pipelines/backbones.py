"""Networks that pipelines can hold, by the names of their classes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Backbone:
    """A class of networks.

    Attributes:
        component: its name in pipelines, and so in model folders and checkpoints.
        size_multiple: its configuration -> what the sides of its data must be multiples of.
    """

    component: str
    size_multiple: Callable[[Any], int]


def _halvings(config: Any) -> int:
    """A UNet halves the sides from each level to the next."""
    return 2 ** (len(config["block_out_channels"]) - 1)


BACKBONES: dict[str, Backbone] = {
    "UNet2DModel": Backbone("unet", _halvings),
    "UNet2DConditionModel": Backbone("unet", _halvings),
}

COMPONENTS = tuple(dict.fromkeys(backbone.component for backbone in BACKBONES.values()))


def size_multiple(network: Any) -> int:
    """What the sides of a network's data must be multiples of; 1 for a class that isn't known here."""
    known = (BACKBONES[c.__name__] for c in type(network).__mro__ if c.__name__ in BACKBONES)
    backbone = next(known, None)
    return 1 if backbone is None else backbone.size_multiple(network.config)


def trained_size(network: Any) -> tuple[int | None, int | None]:
    """Height and width of the data that a network was trained for, where it says."""
    size = network.config.sample_size
    return (size, size) if isinstance(size, int | None) else tuple(size)
