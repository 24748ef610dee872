"""Measures a run without waiting for the device: per-step values stay where they are until they are flushed."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from snowmelt.errors import UserError
from snowmelt.objectives import Losses
from snowmelt.tracking import peak_memory_mb

T = TypeVar("T")


class Meter:
    """Collects losses, gradient norms and time between two log lines, over all processes.

    Args:
        accelerator: gathers what the processes hold.
        micro_steps: forward passes per optimizer step.
        rows: (N,) the row of the data set that each image comes from.
        skipping: whether steps whose gradient isn't finite aren't taken, and only counted.
    """

    def __init__(self, accelerator: Accelerator, micro_steps: int, rows: np.ndarray, *, skipping: bool = False) -> None:
        self.skipping = skipping
        self.accelerator = accelerator
        self.micro_steps = micro_steps
        self.rows = rows
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # of making the data ready
        self.restart()

    def restart(self) -> None:
        """Forget what was collected since the last flush."""
        self._losses: list[Tensor] = []
        self._quantiles: list[Tensor] = []
        self._values: list[Mapping[str, Tensor]] = []
        self._indices: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._start = time.monotonic()
        self._waited = 0.0

    def next(self, stream: Iterator[T]) -> T:
        """The next of the data, the time for which counts as waiting."""
        start = time.monotonic()
        found = next(stream)
        self._waited += time.monotonic() - start
        return found

    def add(self, losses: Losses, indices: Tensor) -> None:
        """Take note of one forward pass: its losses, and the indices (B,) of the images that it saw."""
        self._losses.append(losses.loss.detach())
        if losses.quantile is not None:
            self._quantiles.append(losses.quantile)
        self._values.append(losses.values)
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
            UserError: in every process, if a loss of any process wasn't finite, or a gradient that was applied.
        """
        loss = self._gather(self._losses)  # (passes, processes * B)
        quantile = self._gather(self._quantiles) if self._quantiles else None
        norms = torch.stack(self._norms).cpu()  # (steps,)
        taken = norms.isfinite().repeat_interleave(self.micro_steps)  # (passes,)
        if not self.skipping:
            taken = torch.ones_like(taken)
        self._refuse("loss", ~loss.isfinite() & taken[:, None], quantile, step)
        if self.accelerator.scaler is None:  # which leaves out steps whose gradient overflows
            refused = ~norms.isfinite().repeat_interleave(self.micro_steps) & taken
            self._refuse("gradient", refused[:, None].expand_as(loss), quantile, step)
        applied = norms[norms.isfinite()]
        images, loss = loss.numel(), loss[taken]
        values: dict[str, Any] = {
            "loss": loss.mean().item() if len(loss) else None,
            "grad_norm": applied.mean().item() if len(applied) else None,
        }
        if self.skipping:
            values["skipped_steps"] = int((~taken).sum()) // self.micro_steps
        if quantile is not None:
            quartile = (quantile[taken] * 4).long().clamp_(max=3)
            here = [loss[quartile == q] for q in range(4)]
            values |= {f"loss_q{q}": h.mean().item() if len(h) else None for q, h in enumerate(here, start=1)}
        if names := list(self._values[-1]):
            means = self._gather([torch.stack([v[n].float().mean() for n in names]) for v in self._values])[taken]
            means = means.unflatten(1, (-1, len(names))).mean((0, 1))  # from (passes, processes * names)
            values |= dict(zip(names, means.tolist(), strict=True))
        seconds = time.monotonic() - self._start
        values["images_per_second"] = images / seconds
        values["data_wait_percent"] = 100 * self._waited / seconds
        values["peak_memory_mb"] = peak_memory_mb(self.accelerator.device)
        if self.accelerator.num_processes > 1:
            stop = next((reason for reason in gather_object([stop]) if reason), None)
        self.restart()
        return values, stop

    def _refuse(self, what: str, bad: Tensor, quantile: Tensor | None, step: int) -> None:
        """Stop with the first of the passes (passes, processes * B) that has a bad image, if there is one."""
        if not bad.any():
            return
        index = self._gather([i.to(self.accelerator.device) for i in self._indices])
        first = int(bad.any(1).nonzero()[0])
        at = step - (len(bad) - 1 - first) // self.micro_steps
        rows = self.rows[index[first][bad[first]].numpy()][:8]
        if quantile is None:
            where = ", ".join(f"row {i}" for i in rows) + " (rows of the data set)"
        else:
            pairs = zip(rows, quantile[first][bad[first]][:8], strict=True)
            where = ", ".join(f"row {i} at {u:.3f}" for i, u in pairs)
            where += " (rows of the data set, quantile of the noise level)"
        raise UserError(
            f"the {what} is not finite at step {at}: {where}. "
            "Checkpoints are from before that; look at those rows, or lower --learning_rate or --max_grad_norm"
        )

    def _gather(self, passes: list[Tensor]) -> Tensor:
        own = torch.stack(passes)  # (passes, B)
        every = self.accelerator.gather(own[None])  # (processes, passes, B)
        return every.transpose(0, 1).flatten(1).cpu()
