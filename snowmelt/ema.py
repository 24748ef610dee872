"""Exponential moving averages of a network's weights, in two forms, updated on the weights' device in one pass."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from snowmelt.errors import UserError
from snowmelt.options import EmaOptions

Decay = Callable[[int], float]
"""Optimizer steps taken, from 1 on -> the share of the average that is kept."""


def warmup_decay(step: int, inv_gamma: float, power: float, max_decay: float) -> float:
    """1 - (1 + (step - 1) / inv_gamma)^-power, at most max_decay: diffusers' `EMAModel` with `use_ema_warmup`."""
    return min(max_decay, 1 - (1 + (step - 1) / inv_gamma) ** -power)


def power_decay(step: int, gamma: float) -> float:
    """(1 - 1 / step)^(gamma + 1), which weighs step t's weights by t^gamma (Karras et al. 2024, section 3.1)."""
    return (1 - 1 / step) ** (gamma + 1)


def gamma_of_width(width: float) -> float:
    """The exponent of the power-function average whose standard deviation is `width` of the training's length.

    It solves width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (Karras et al. 2024, appendix C).

    Args:
        width: sigma_rel, in (0, 0.28]: wider ones have no gamma >= 0.

    Raises:
        UserError: outside that range.
    """
    if not 0 < width <= 12**-0.5:
        raise UserError(f"--ema_widths {width}: must be more than 0 and at most {12**-0.5:.3f}")
    inverse = width**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots[np.isreal(roots)].real.max())


class Ema:
    """One average of those of a network's parameters that are trained.

    Args:
        net: the network; the average starts as a copy of its parameters.
        decay: the share kept at each step.
    """

    def __init__(self, net: nn.Module, decay: Decay) -> None:
        self.net = net
        self.decay = decay
        self.average = [p.detach().clone() for _, p in self._trained()]

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.net.named_parameters() if p.requires_grad)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the parameters, after optimizer step `step` (from 1 on)."""
        parameters = [p.detach() for _, p in self._trained()]
        torch._foreach_lerp_(self.average, parameters, 1 - self.decay(step))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the network's parameters are the average; outside, they are back to the last bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for (_, parameter), average in zip(self._trained(), self.average, strict=True):
            parameter.data, average.data = average.data, parameter.data

    def load(self, state: dict[str, Tensor]) -> None:
        """Take the average from a state dict with the network's names."""
        for (name, _), average in zip(self._trained(), self.average, strict=True):
            average.copy_(state[name])


@contextmanager
def applied(emas: Iterable[Ema]) -> Iterator[None]:
    """Inside, each of these networks' parameters are its average; outside, they are back to the last bit."""
    with ExitStack() as stack:
        for ema in emas:
            stack.enter_context(ema.applied())
        yield


def make_emas(parts: dict[str, nn.Module], options: EmaOptions) -> list[dict[str, Ema]]:
    """Averages of networks, by the name of the folder they are saved in.

    Args:
        parts: the networks by name.
        options: `use_ema`; `ema_widths`, for an average of the power-function form each; else one of the warm-up form.

    Returns:
        A dict per decay, with an average of every part; those of the first are sampled and published.

    Raises:
        UserError: for a width that no power-function average has.
    """
    if not options.use_ema:
        return []
    if not options.ema_widths:
        decay = partial(
            warmup_decay,
            inv_gamma=options.ema_inv_gamma,
            power=options.ema_power,
            max_decay=options.ema_max_decay,
        )
        return [{f"{name}_ema": Ema(net, decay) for name, net in parts.items()}]
    if len({f"{w:.3f}" for w in options.ema_widths}) < len(options.ema_widths):
        raise UserError(f"--ema_widths {options.ema_widths}: must differ in their first three decimals")
    decays = {w: partial(power_decay, gamma=gamma_of_width(w)) for w in options.ema_widths}
    return [{f"{name}_ema_{w:.3f}": Ema(net, d) for name, net in parts.items()} for w, d in decays.items()]
