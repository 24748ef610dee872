"""Muon for matrices and convolution kernels, with AdamW for all else."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

Groups = Iterable[Tensor] | list[dict[str, Any]]
"""Parameters, or groups of them with settings that win over the optimizer's, as PyTorch's optimizers take them."""


def embedding_tables(module: nn.Module) -> set[Tensor]:
    """Parameters that are tables of embeddings."""
    return {m.weight for m in module.modules() if isinstance(m, nn.Embedding)}


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon (Jordan et al. 2024), and its AdamW for vectors and tables of embeddings, which are no maps.

    A kernel (C', C, k, k) is taken as the matrix (C', C k k), as Muon's author does: most of a UNet's weights are
    kernels. Updates of matrices are scaled to the size of AdamW's (Liu et al. 2025, "Muon is scalable", eq. 4), so that
    one learning rate and one weight decay do for all.

    Args:
        groups: the parameters.
        tables: those that are tables of embeddings.
        lr: learning rate.
        betas: of AdamW; the momentum of Muon is torch's, 0.95.
        weight_decay: decoupled, of both.
        eps: of AdamW.
    """

    def __init__(
        self,
        groups: Groups,
        tables: set[Tensor],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        eps: float,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps, "fused": True}
        super().__init__(groups, defaults)
        self._tables = tables
        some = [nn.Parameter(torch.zeros(1, 1))]
        # They step what they are given then; their states and settings are this optimizer's.
        self._muon = torch.optim.Muon(some, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW(some, **defaults)  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient."""
        self._adamw.state = self.state
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            matrices = [p for p in trained if p.ndim > 1 and p not in self._tables]
            views = [p.detach().view(len(p), -1) for p in matrices]
            self._muon.state = defaultdict(dict)
            for view, p in zip(views, matrices, strict=True):
                view.grad = p.grad.reshape(view.shape)
                self._muon.state[view] = self.state[p]
            settings = {name: group[name] for name in ("lr", "weight_decay")}
            self._muon.param_groups = [self._muon.defaults | settings | {"params": views}]
            self._muon.step()
            self._muon.zero_grad()  # views must not keep the gradients alive through the next forward pass
            others = [p for p in trained if p.ndim < 2 or p in self._tables]
            self._adamw.param_groups = [self._adamw.defaults | group | {"params": others}]
            self._adamw.step()
