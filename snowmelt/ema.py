"""Exponential moving averages of a network's weights, in two forms, updated on the weights' device in one pass."""

import copy
from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn

from snowmelt.errors import UserError
from snowmelt.options import EmaOptions

Decay = Callable[[int], float]
"""Optimizer steps taken, from 1 on -> the fraction of the average that is kept."""


def warmup_decay(step: int, inv_gamma: float, power: float, max_decay: float) -> float:
    """1 - (1 + (step - 1) / inv_gamma)^-power, at most max_decay: diffusers' `EMAModel` with `use_ema_warmup`.

    Args:
        step: optimizer steps taken, from 1 on.
        inv_gamma: steps that the warm-up takes are proportional to it; more than 0.
        power: how fast the decay approaches 1.
        max_decay: in [0, 1].
    """
    return min(max_decay, 1 - (1 + (step - 1) / inv_gamma) ** -power)


def power_decay(step: int, gamma: float) -> float:
    """(1 - 1 / step)^(gamma + 1), which weighs step t's weights by t^gamma (Karras et al. 2024, section 3.1)."""
    return (1 - 1 / step) ** (gamma + 1)


def gamma_of_sigma_rel(sigma_rel: float) -> float:
    """The exponent of the power-function average whose standard deviation is `sigma_rel` of the training's length.

    It solves sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (Karras et al. 2024, appendix C).

    Args:
        sigma_rel: in (0, 0.28]: wider ones have no gamma >= 0.

    Raises:
        UserError: outside that range.
    """
    if not 0 < sigma_rel <= 12**-0.5:
        raise UserError(f"--ema_widths {sigma_rel}: must be more than 0 and at most {12**-0.5:.3f}")
    inverse = sigma_rel**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots[np.isreal(roots)].real.max())


class Ema:
    """A copy of a network whose parameters are the average of those that the network has had.

    Args:
        net: the network in training. What of it is frozen, the copy shares.
        decay: the fraction of the average that is kept at each step.
    """

    def __init__(self, net: nn.Module, decay: Decay) -> None:
        self.decay = decay
        self._net = net
        self._names = [name for name, p in net.named_parameters() if p.requires_grad]
        frozen = {id(p): p for p in net.parameters() if not p.requires_grad}
        self.network = copy.deepcopy(net, frozen).eval()
        self.network.requires_grad_(False)

    @cached_property
    def _tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """The averages and what they are of; found late, since sharding puts others in their place."""
        averages, trained = dict(self.network.named_parameters()), dict(self._net.named_parameters())
        return [averages[name] for name in self._names], [trained[name] for name in self._names]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the network's parameters, after optimizer step `step` (from 1 on)."""
        averages, trained = self._tensors
        torch._foreach_lerp_(averages, trained, 1 - self.decay(step))


Emas = dict[str, dict[str, Ema]]
"""EMAs of each decay, by the suffix of its folders, of each network, by its name."""


def update_emas(emas: Emas, step: int) -> None:
    """Update all of them after optimizer step `step` (from 1 on)."""
    for ema in (ema for of_decay in emas.values() for ema in of_decay.values()):
        ema.update(step)


def published(emas: Emas) -> dict[str, nn.Module]:
    """The averages that are sampled and published, those of the first decay, by their networks' names."""
    return {name: ema.network for name, ema in next(iter(emas.values()), {}).items()}


def make_emas(networks: dict[str, nn.Module], options: EmaOptions) -> Emas:
    """EMAs of networks.

    Args:
        networks: the networks by name.
        options: `use_ema`; `ema_widths`, for an average of the power-function form each; else one of the warm-up form.

    Returns:
        For each decay, by the suffix that its folders bear, an average of every network by its name; those of the
        first are sampled and published.

    Raises:
        UserError: for a width that no power-function average has.
    """
    decays: dict[str, Decay] = {}
    if options.use_ema and not options.ema_widths:
        decays["ema"] = partial(
            warmup_decay, inv_gamma=options.ema_inv_gamma, power=options.ema_power, max_decay=options.ema_max_decay
        )
    elif options.use_ema:
        for width in options.ema_widths:
            decays[f"ema_{width:.3f}"] = partial(power_decay, gamma=gamma_of_sigma_rel(width))
        if len(decays) < len(options.ema_widths):
            raise UserError(f"--ema_widths {options.ema_widths}: must differ in their first three decimals")
    return {suffix: {name: Ema(net, decay) for name, net in networks.items()} for suffix, decay in decays.items()}
