"""Networks that pipelines can hold, by the names of their classes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _class_embeds(config: Any) -> int | None:
    """Rows of a UNet's label table."""
    return config.get("num_class_embeds")


@dataclass(frozen=True)
class Backbone:
    """A class of networks.

    Attributes:
        component: its name in pipelines, and so in model folders and checkpoints.
        size_multiple: its configuration -> what the sides of its data must be multiples of.
        num_class_embeds: its configuration -> rows of its label table, the null label's included; None without one.
        square: whether height and width of its data must be the same.
    """

    component: str
    size_multiple: Callable[[Any], int]
    num_class_embeds: Callable[[Any], int | None] = _class_embeds
    square: bool = False


def _halvings(config: Any) -> int:
    """A UNet halves the sides from each level to the next."""
    return 2 ** (len(config["block_out_channels"]) - 1)


def _patch_size(config: Any) -> int:
    """A transformer's tokens are square patches, of 2 by default."""
    return config.get("patch_size", 2)


def _dit_embeds(config: Any) -> int:
    """DiT's label table always has a row beside those that its configuration counts; 1 row serves for no labels."""
    return config["num_embeds_ada_norm"] + 1


BACKBONES: dict[str, Backbone] = {
    "UNet2DModel": Backbone("unet", _halvings),
    "UNet2DConditionModel": Backbone("unet", _halvings),
    # It puts patches together again as a square of as many.
    "DiTTransformer2DModel": Backbone("transformer", _patch_size, _dit_embeds, square=True),
    "PixArtTransformer2DModel": Backbone("transformer", _patch_size),
}

COMPONENTS = tuple(dict.fromkeys(backbone.component for backbone in BACKBONES.values()))


def backbone_of(network: Any) -> Backbone | None:
    """What is known of a network's class, or of the class that it was made of."""
    return next((BACKBONES[c.__name__] for c in type(network).__mro__ if c.__name__ in BACKBONES), None)


def size_multiple(network: Any) -> int:
    """What the sides of a network's data must be multiples of; 1 for a class that isn't known here."""
    backbone = backbone_of(network)
    return 1 if backbone is None else backbone.size_multiple(network.config)


def num_class_embeds(network: Any) -> int | None:
    """Rows of a network's label table, the null label's included; None without one."""
    backbone = backbone_of(network)
    return (_class_embeds if backbone is None else backbone.num_class_embeds)(network.config)


def trained_size(network: Any) -> tuple[int | None, int | None]:
    """Height and width of the data that a network was trained for, where it says."""
    size = network.config.sample_size
    return (size, size) if isinstance(size, int | None) else tuple(size)
