"""The optimizer: what it holds, and how fast it goes."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from snowmelt.errors import UserError, one_line
from snowmelt.muon import Groups, MuonWithAdamW, embedding_tables
from snowmelt.optimization_options import OptimizationOptions


def make_optimizer(
    groups: Groups,
    options: OptimizationOptions,
    total_steps: int,
    images_per_step: int = 1,
    module: nn.Module | None = None,
) -> tuple[torch.optim.Optimizer, Callable[[float], float]]:
    """The optimizer, and its learning rate's factor as a function of the optimizer steps taken, whole or not.

    Args:
        groups: what it trains.
        options: its settings.
        total_steps: optimizer steps of the whole training.
        images_per_step: what `scale_lr` multiplies learning rates by.
        module: that the parameters are of, where muon must tell embeddings from other matrices.

    Raises:
        UserError: for an 8-bit optimizer that isn't installed, or step rules that don't fit the schedule.
    """
    optimizer = _make(groups, options, module)
    if options.scale_lr:
        for group in optimizer.param_groups:
            group["lr"] *= images_per_step
    if (options.lr_scheduler == "piecewise_constant") != (options.lr_step_rules is not None):
        raise UserError("--lr_scheduler piecewise_constant and --lr_step_rules: give both, as 1:500,0.1:900,0.01")
    try:
        schedule = get_scheduler(
            options.lr_scheduler,
            optimizer,
            step_rules=options.lr_step_rules,
            num_warmup_steps=options.lr_warmup_steps,
            num_training_steps=total_steps,
        )
    except (ValueError, IndexError) as error:
        raise UserError(
            f"--lr_step_rules {options.lr_step_rules}: must be as 1:500,0.1:900,0.01: factors, each up to a step, and "
            f"the last factor ({one_line(error)})"
        ) from error
    return optimizer, schedule.lr_lambdas[0]


def _make(groups: Groups, options: OptimizationOptions, module: nn.Module | None) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.adam_weight_decay}
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, **common, momentum=options.sgd_momentum, fused=True)
    common |= {"betas": (options.adam_beta1, options.adam_beta2), "eps": options.adam_epsilon}
    if options.optimizer == "muon":
        return MuonWithAdamW(groups, set() if module is None else embedding_tables(module), **common)
    if options.use_8bit_adam:
        return _adam_8bit()(groups, **common)
    return (torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW)(groups, **common, fused=True)


def _adam_8bit() -> Callable[..., torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(f"--use_8bit_adam: {error}; pip install 'snowmelt[8bit]', or leave it out") from error
    return AdamW8bit


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give each group its peak learning rate times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
