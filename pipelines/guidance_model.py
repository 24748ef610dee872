"""Networks to guide others by (Karras et al. 2024, autoguidance)."""

from typing import Any

import torch

from pipelines.backbones import num_class_embeds, trained_size


def check_guidance_model(guide: Any, network: Any, device: torch.device) -> None:
    """Refuse a network that doesn't take and make what another does, as far as configurations tell.

    Args:
        guide: the network to guide by.
        network: the network to be guided.
        device: where that runs.

    Raises:
        TypeError: for what is no such network.
        ValueError: for one of other data or labels, or on another device.
    """
    config: Any = getattr(guide, "config", {}) if isinstance(guide, torch.nn.Module) else {}
    if not {"in_channels", "out_channels"} <= set(config):
        raise TypeError(
            f"guidance_model: must be a network, as another pipeline's `network` is, got {type(guide).__name__}"
        )
    for what, own, other in (
        ("input channels", config["in_channels"], network.config.in_channels),
        ("output channels", config["out_channels"], network.config.out_channels),
        ("height and width", trained_size(guide), trained_size(network)),
        ("rows in its label table", num_class_embeds(guide) or 0, num_class_embeds(network) or 0),
        ("channels of text", config.get("cross_attention_dim"), network.config.get("cross_attention_dim")),
    ):
        if own != other:
            raise ValueError(f"guidance_model: has {own} {what}, and the model's own network {other}")
    place = next(guide.parameters()).device
    if place.type != device.type:
        raise ValueError(f"guidance_model: is on {place}, and the model runs on {device}; move it there")
