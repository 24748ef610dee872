"""Couplings: which noise each image of a batch is mixed with.

Paths of images that start from distant noise cross, and where they cross a network learns their mean direction. Noise
that is near its image crosses less, so that the flow is straighter and its loss smaller.

With a coupling, eps depends on x0. The flow that transports noise to data is learned all the same, as its velocity is
the mean of the paths' velocities whatever the coupling (Tong et al. 2023), and deterministic samplers follow it. But
the expected eps is no longer -sigma times the score, which samplers that add noise take it for.
"""

from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Coupling = Callable[[Tensor, torch.Generator], Tensor]
"""(x0 (B, C, H, W), source of randomness on its device) -> noise, float32 of that shape."""

CANDIDATES = 4
"""k of `nearest`."""


def independent(x0: Tensor, generator: torch.Generator) -> Tensor:
    """Unit normal noise, whatever the images are."""
    return torch.randn(x0.shape, generator=generator, device=x0.device)


def optimal_transport(x0: Tensor, generator: torch.Generator) -> Tensor:
    """Noise assigned so that squared distances to the images have the least sum (Tong et al. 2023, minibatch OT-CFM).

    The optimal plan between as many images as noises is a permutation, so that the noise of a batch is as normal as
    before. Immiscible diffusion's assignment is the same one (Li et al. 2024, algorithm 1). It is found on the CPU, in
    O(B^3), for which each step waits.
    """
    noise = independent(x0, generator)
    # Of |x0|^2 - 2 x0 eps + |eps|^2 only the product depends on the assignment.
    gain = x0.flatten(1) @ noise.flatten(1).T
    _, columns = linear_sum_assignment(gain.cpu().numpy(), maximize=True)
    return noise[torch.from_numpy(columns).to(x0.device)]


def nearest(x0: Tensor, generator: torch.Generator) -> Tensor:
    """Of `CANDIDATES` noises for each image the nearest one (Li et al. 2025, KNN noise selection).

    No image depends on its batch, and nothing waits for the CPU. But it leans towards the data, so that the noise of
    training isn't quite normal: the less so, the more dimensions there are.
    """
    noise = independent(x0, generator)
    for _ in range(CANDIDATES - 1):
        other = independent(x0, generator)
        nearer = _distance(x0, other) < _distance(x0, noise)
        noise = torch.where(nearer[:, None, None, None], other, noise)
    return noise


def _distance(x0: Tensor, noise: Tensor) -> Tensor:
    return (x0 - noise).square().flatten(1).sum(1)


COUPLINGS: dict[str, Coupling] = {"independent": independent, "ot": optimal_transport, "nearest": nearest}
