"""The model and the samples of a training, as they are written into its folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from snowmelt.checkpoint import save_atomically
from snowmelt.ema import Emas, published
from snowmelt.sharding import unsharded
from snowmelt.stateful import network_state
from snowmelt.tasks.task import Networks, Task
from snowmelt.tracking import log_samples


class ModelWriter:
    """Writes what a task makes of its networks. Every process enters its methods; the main one writes.

    Args:
        task: what is trained.
        emas: of its networks.
        folder: of the run.
        accelerator: tells which process is the main one.
    """

    def __init__(self, task: Task, emas: Emas, folder: Path, accelerator: Accelerator) -> None:
        self.task = task
        self.emas = emas
        self.folder = folder
        self.accelerator = accelerator

    def save_model(self) -> dict[str, float]:
        """Write the model; where there are EMAs of several decays, all are kept beside it. Returns values to log."""
        several = self.emas if len(self.emas) > 1 else {}
        written = {
            f"{name}_{suffix}": network_state(ema.network, self.task.networks[name]).collect()
            for suffix, emas in several.items()
            for name, ema in emas.items()
        }
        values: dict[str, float] = {}

        def save(folder: Path | None) -> None:
            values.update(self.task.save(whole, folder))
            if folder is not None:
                for name, write in written.items():
                    write(folder / name)

        with self.published() as networks:
            whole = unsharded(networks)
            self.exchange(save)
        return values

    def save_samples(self, step: int) -> dict[str, float]:
        """Save a preview of the progress. Returns values to log."""
        path, main = self.folder / "samples" / f"step-{step:06d}.png", self.accelerator.is_main_process
        if main:
            path.parent.mkdir(exist_ok=True)
        with self.published() as networks:
            preview = self.task.preview(networks, path if main else None)
        log_samples(self.accelerator, preview.images, step)
        self.accelerator.wait_for_everyone()
        return preview.values

    def exchange(self, save: Callable[[Path | None], None]) -> None:
        """Exchange the model in the run's folder. Every process enters `save`; the one that writes is given a path."""
        if self.accelerator.is_main_process:
            save_atomically(save, self.folder)
        else:
            save(None)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def published(self) -> Iterator[Networks]:
        """The networks that are sampled and published, averages where there are any, in evaluation mode."""
        networks = {**self.task.networks, **published(self.emas)}
        in_training = [net for net in networks.values() if net.training]
        for net in in_training:
            net.eval()
        yield networks
        for net in in_training:
            net.train()
