"""Flow maps: networks of two times, which take x_t along its path to another time in one step.

On the straight line x_t = (1 - t) x0 + t eps a network predicts the mean velocity u(x_t, t, r) of the path from t to
r, so that x_r = x_t - (t - r) u, and u(x_t, t, t) is the velocity itself (Geng et al. 2025, MeanFlow, eqs. 3 and 12).
The second time is shown to it by input channels, which are all 0 for r = t: so other samplers get velocities.
"""

import math
from typing import Any

import torch
from torch import Tensor

from pipelines.arguments import boolean
from pipelines.prediction import NoiseLevel

FREQUENCIES = (0.5, 1.0, 2.0, 4.0)
TARGET_CHANNELS = 2 * len(FREQUENCIES)


def target_planes(x_t: Tensor, level: NoiseLevel) -> Tensor:
    """sin(pi k d) and 1 - cos(pi k d) of the distance d = t - r for each frequency k, as constant planes.

    Args:
        x_t: the network's data, (B, C, H, W).
        level: its noise level, where sigma is t and `target_sigma` is r.

    Returns:
        (B, `TARGET_CHANNELS`, H, W).
    """
    shape = len(x_t), TARGET_CHANNELS, *x_t.shape[2:]
    if level.target_sigma is None:
        return x_t.new_zeros(shape)
    distance = (level.sigma - level.target_sigma).to(x_t).expand(len(x_t))
    angles = math.pi * distance[:, None] * x_t.new_tensor(FREQUENCIES)
    features = torch.cat([angles.sin(), 1 - angles.cos()], 1)
    return features[..., None, None].expand(shape)


def check_flow_map(network: Any, flow_map: Any) -> bool:
    """The setting `flow_map` of a pipeline, if the network can have it.

    Raises:
        TypeError: for another type than bool.
        ValueError: for a network without input channels for it.
    """
    if boolean("flow_map", flow_map) and network.config.in_channels <= TARGET_CHANNELS:
        raise ValueError(
            f"flow_map: needs a network with {TARGET_CHANNELS} input channels besides the data's; this one has "
            f"{network.config.in_channels}"
        )
    return bool(flow_map)
