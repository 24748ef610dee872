"""Measures a run without waiting for the device: per-step values stay where they are until they are flushed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from snowmelt.errors import UserError
from snowmelt.objectives.objective import Losses
from snowmelt.tracking import peak_memory_mb


class Meter:
    """Collects losses, gradient norms and time between two log lines, over all processes.

    Args:
        accelerator: gathers what the processes hold.
        micro_steps: forward passes per optimizer step.
    """

    def __init__(self, accelerator: Accelerator, micro_steps: int) -> None:
        self.accelerator = accelerator
        self.micro_steps = micro_steps
        self._restart()

    def _restart(self) -> None:
        self._losses: list[Tensor] = []
        self._levels: list[Tensor] = []
        self._indices: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._images = 0
        self._start = time.monotonic()

    def add(self, losses: Losses, indices: Tensor) -> None:
        """Take note of one forward pass: its losses, and the rows (B,) of the data set that it saw."""
        self._losses.append(losses.loss.detach())
        self._levels.append(losses.level)
        self._indices.append(indices)

    def add_norm(self, norm: Tensor) -> None:
        """Take note of an optimizer step's gradient norm, before clipping."""
        self._norms.append(norm.detach())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep what happens inside, saving or sampling, out of the speed."""
        start = time.monotonic()
        yield
        self._start += time.monotonic() - start

    def flush(self, step: int, stop: str | None) -> tuple[dict[str, Any], str | None]:
        """Averages since the last flush, and the reason to stop that any process has.

        Args:
            step: the optimizer step just taken.
            stop: this process's reason to stop, if it has one.

        Raises:
            UserError: in every process, if a loss of any process wasn't finite.
        """
        loss, level = self._gather(self._losses), self._gather(self._levels)  # (passes, processes * B)
        bad = ~loss.isfinite()
        if bad.any():
            index = self._gather([i.to(self.accelerator.device) for i in self._indices])
            first = int(bad.any(1).nonzero()[0])
            at = step - (len(loss) - 1 - first) // self.micro_steps
            where = ", ".join(
                f"row {i} at {u:.3f}"
                for i, u in zip(index[first][bad[first]][:8], level[first][bad[first]], strict=False)
            )
            raise UserError(
                f"the loss is not finite at step {at}: {where} (rows of the data set, noise level from 0 to 1). The last "
                "checkpoint is from before that; look at those rows, or lower --learning_rate or --max_grad_norm"
            )
        values: dict[str, Any] = {
            "loss": loss.mean().item(),
            "grad_norm": torch.stack(self._norms).mean().item(),
        }
        quartile = (level * 4).long().clamp_(max=3)
        for q in range(4):
            here = loss[quartile == q]
            values[f"loss_q{q + 1}"] = here.mean().item() if len(here) else None
        values["images_per_second"] = loss.numel() / (time.monotonic() - self._start)
        values["peak_memory_mb"] = peak_memory_mb(self.accelerator.device)
        if self.accelerator.num_processes > 1:
            reasons = torch.tensor([stop is not None], device=self.accelerator.device)
            stop = (stop or "as another process") if self.accelerator.gather(reasons).any() else None
        self._restart()
        return values, stop

    def _gather(self, passes: list[Tensor]) -> Tensor:
        own = torch.stack(passes)  # (passes, B)
        every = self.accelerator.gather(own[None])  # (processes, passes, B)
        return every.transpose(0, 1).flatten(1).cpu()
