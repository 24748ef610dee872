"""The training loop, one for every task: checkpoints, averages, logging, and when to stop."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from snowmelt.checkpoint import STATE_FILE, Checkpoints, full_disk, read_state, save_atomically
from snowmelt.config import differences
from snowmelt.data.loader import NOISE
from snowmelt.data.mixture import Mixture
from snowmelt.ema import make_emas
from snowmelt.environment import check_memory
from snowmelt.errors import UserError
from snowmelt.files import checked
from snowmelt.interrupts import Interrupts
from snowmelt.meter import Meter
from snowmelt.objectives import StepContext
from snowmelt.optimization import clip_gradients, make_optimizer, set_learning_rate
from snowmelt.options import TrainingConfig
from snowmelt.stateful import network_state, training_state
from snowmelt.tasks.task import Networks, Task
from snowmelt.tracking import Metrics, log_samples, plot_loss

if TYPE_CHECKING:  # it brings the libraries of metrics, which take seconds
    from snowmelt.evaluation.validation import Validation

STATE = {"config": dict, "total_steps": int, "num_processes": int}  # of a checkpoint
MORE = "give a larger --max_train_steps or --num_epochs"


class Trainer:
    """Trains networks, and leaves what they make up in a folder with checkpoints, samples and metrics beside it.

    A step's random numbers follow from (seed, step, shard) alone, as its batches do; see `snowmelt.data.loader`.

    Args:
        task: what is trained.
        config: options; `output_dir` must be ready to be written to.
        accelerator: processes, device and precision.
        validation: judges the first averages, and ends a training that gets no better.
        on_saved: called, in the main process, after each saved model but the last.
    """

    metrics: Metrics  # from the beginning of `fit` on

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        accelerator: Accelerator,
        *,
        validation: "Validation | None" = None,
        on_saved: Callable[[], None] = lambda: None,
    ) -> None:
        self.task = task
        self.config = config
        self.accelerator = accelerator
        self.validation = validation
        self.on_saved = on_saved
        self.folder = Path(config.output_dir)
        self.data = next(iter(task.fields.values()))
        self.mixture = Mixture(task.fields, task.prior)
        check_memory(self.data, config, accelerator.device)
        self.generator = torch.Generator(accelerator.device)
        self.step = 0

        module = task.module(task.networks).train().to(accelerator.device)
        self.emas = make_emas({name: task.networks[name] for name in task.with_ema}, config)
        for ema in (ema for emas in self.emas.values() for ema in emas.values()):
            accelerator.prepare_model(ema.network, device_placement=False, evaluation_mode=True)  # in its precision
        groups = task.parameter_groups()
        optimizer, self.lr_factor = make_optimizer(groups, config, self.total_steps, self.images_per_step, module)
        self.module, self.optimizer = accelerator.prepare(module, optimizer)
        forward, emas = torch.compile(self.module) if config.compile else self.module, self._ema_networks()
        self.context = StepContext(forward, self.generator, 0, self.total_steps, emas, accelerator.gather, module)
        states = training_state(task.networks, self.emas, optimizer, accelerator.scaler) | task.states
        states |= {"validation": validation} if validation else {}
        self.checkpoints = Checkpoints(self.folder, states, config.checkpoints_total_limit)

    @property
    def images_per_step(self) -> int:
        """Images in an optimizer step, over all processes."""
        return self.config.train_batch_size * self.config.gradient_accumulation_steps * self.accelerator.num_processes

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.config.max_train_steps or math.ceil(self.config.num_epochs * len(self.data) / self.images_per_step)

    def resume(self, checkpoint: Path) -> None:
        """Resume from a checkpoint, as if the run had never stopped.

        Raises:
            UserError: if it is damaged or was made by a run that trains differently.
        """
        state = checked(checkpoint / STATE_FILE, read_state(checkpoint), STATE)
        changed = differences(state["config"], self.config)
        changed += [f"{k}={state[k]!r} (now {v!r})" for k, v in self._identity().items() if state.get(k, v) != v]
        if changed:
            raise UserError(
                f"{checkpoint} was made with {', '.join(changed)}; resume with the same, or start a new run"
            )
        if state["total_steps"] != self.total_steps and not self.config.lr_scheduler.startswith("constant"):
            self.accelerator.print(
                f"the {self.config.lr_scheduler} learning rate ends at step {self.total_steps} now, not at "
                f"{state['total_steps']} as when {checkpoint.name} was made"
            )
        self.checkpoints.load(checkpoint, state)
        self.step = state["step"]
        if self.step >= self.total_steps:
            self.accelerator.print(f"nothing left to train: {checkpoint.name} is at step {self.step}; {MORE}")

    def fit(self) -> None:
        """Train to the last step, or until a signal or the time limit asks to stop; then save."""
        with Interrupts() as interrupts, full_disk(self.folder, "metrics or samples"):
            stop = self._train(interrupts)
            if stop:
                resume = "resume with --resume_from_checkpoint latest"
                self.accelerator.print(f"stopped at step {self.step} ({stop}); {resume}")
            self.save_model()
            self.save_samples()
            if self.accelerator.is_main_process:
                plot_loss(self.folder)
                if self.validation:
                    self.validation.plot()
            self.accelerator.end_training()

    def _train(self, interrupts: Interrupts) -> str | None:
        """The loop. Returns the reason why it ended early, if it did; a checkpoint was saved then, too."""
        config, accelerator = self.config, self.accelerator
        meter = Meter(accelerator, config.gradient_accumulation_steps, self.mixture.rows)
        self.metrics = Metrics(self.folder, accelerator, self.step)
        stream = self._stream()
        deadline = time.monotonic() + 60 * (math.inf if config.max_train_minutes is None else config.max_train_minutes)
        stop: str | None = None
        quiet = not accelerator.is_main_process
        bar = tqdm(total=self.total_steps, initial=self.step, disable=quiet, unit="step", mininterval=1)
        with bar:
            while self.step < self.total_steps and not stop:
                for micro in range(config.gradient_accumulation_steps):
                    self.train_step(meter.next(stream), micro, meter)
                self.step += 1
                bar.update()
                request = interrupts.requested or ("time limit" if time.monotonic() > deadline else None)
                checkpointing = self.step % config.checkpointing_steps == 0 or self.step == self.total_steps
                due = self._due_by_epoch()
                evaluating = self.validation is not None and self.validation.due(self.step, self.total_steps)
                # Processes can agree to stop only at a flush; nothing is saved of a network of unseen losses.
                logging = self.step % config.logging_steps == 0 or (request and accelerator.num_processes == 1)
                if checkpointing or due or evaluating or logging:
                    values, stop = meter.flush(self.step, request)
                    values["lr"] = self.optimizer.param_groups[0]["lr"]
                    if self.validation and evaluating:
                        with meter.paused():
                            values |= self.evaluate(self.validation)
                        stop = stop or self.validation.stop
                    self.metrics.log(self.step, values)
                    bar.set_postfix(loss=f"{values['loss']:.4f}", speed=f"{values['images_per_second']:.0f} images/s")
                with meter.paused():
                    if checkpointing or stop:
                        self.save_checkpoint()
                    for save in due:
                        save()
                    if self.save_model in due and accelerator.is_main_process:
                        self.on_saved()
        return stop

    def train_step(self, batch: dict[str, Tensor], micro: int, meter: Meter) -> None:
        """One forward and backward pass and, after the last of them, an optimizer step: no waiting for the device.

        Args:
            batch: of `batches`, on the device.
            micro: number of the pass within the optimizer step, from 0.
            meter: takes note of the losses and of the gradient's norm.
        """
        accelerator = self.accelerator
        shard = micro * accelerator.num_processes + accelerator.process_index
        seeds = np.random.SeedSequence((NOISE, self.config.seed, self.step, shard)).generate_state(2).tolist()
        self.generator.manual_seed(seeds[0])
        torch.manual_seed(seeds[1])  # for the network's dropout
        with accelerator.accumulate(self.module):
            losses = self.task.loss(batch, replace(self.context, step=self.step))
            accelerator.backward(losses.loss.mean())
            meter.add(losses, batch["indices"])
            if not accelerator.sync_gradients:
                return
            accelerator.unscale_gradients()
            meter.add_norm(clip_gradients(self.optimizer, self.config.max_grad_norm))
            set_learning_rate(self.optimizer, self.lr_factor(self.step))
            self.optimizer.step()
            self.optimizer.zero_grad()
            for emas in self.emas.values():
                for ema in emas.values():
                    ema.update(self.step + 1)

    def evaluate(self, validation: "Validation") -> dict[str, float]:
        """Judge the networks that are sampled and published; the best so far are kept in `best`."""
        with self._published() as networks:
            values, best = validation.evaluate(networks, self.step)
            if best:
                self._write(lambda folder: validation.keep(folder, partial(self.task.save, networks), values))
        return values

    def save_checkpoint(self) -> None:
        """Write `checkpoint-{step}`."""
        meta = {"config": self.config.to_dict(), "total_steps": self.total_steps, **self._identity()}
        self.checkpoints.save(self.step, meta, writes=self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()

    def save_model(self) -> None:
        """Write the model; where there are EMAs of several decays, all are kept beside it."""
        several = self.emas if len(self.emas) > 1 else {}
        written = {
            f"{name}_{suffix}": network_state(ema.network, self.task.networks[name]).collect()
            for suffix, emas in several.items()
            for name, ema in emas.items()
        }

        def save(folder: Path | None) -> None:
            self._log(self.task.save(networks, folder))
            if folder is not None:
                for name, write in written.items():
                    write(folder / name)

        with self._published() as networks:
            self._write(save)

    def save_samples(self) -> None:
        """Save a preview of the progress."""
        path, main = self.folder / "samples" / f"step-{self.step:06d}.png", self.accelerator.is_main_process
        if main:
            path.parent.mkdir(exist_ok=True)
        with self._published() as networks:
            preview = self.task.preview(networks, path if main else None)
        log_samples(self.accelerator, preview.images, self.step)
        self._log(preview.values)
        self.accelerator.wait_for_everyone()

    def _write(self, save: Callable[[Path | None], None]) -> None:
        """Exchange the model in the run's folder. Every process enters `save`; the one that writes is given a path."""
        if self.accelerator.is_main_process:
            save_atomically(save, self.folder)
        else:
            save(None)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _published(self) -> Iterator[Networks]:
        """The networks that are sampled and published, averages where there are any, in evaluation mode."""
        networks = {**self.task.networks, **self._ema_networks()}
        in_training = [net for net in networks.values() if net.training]
        for net in in_training:
            net.eval()
        yield networks
        for net in in_training:
            net.train()

    def _ema_networks(self) -> Networks:
        """The averages that are kept first, by their networks' names."""
        return {name: ema.network for name, ema in next(iter(self.emas.values()), {}).items()}

    def _log(self, values: dict[str, float]) -> None:
        if values:  # measured once for a step, and maybe logged already: a run that had ended may be resumed
            self.metrics.log_once(self.step, values)

    def _stream(self) -> Iterator[dict[str, Tensor]]:
        return self.mixture.batches(
            batch_size=self.config.train_batch_size,
            seed=self.config.seed,
            start_step=self.step,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            accumulation=self.config.gradient_accumulation_steps,
            device=self.accelerator.device,
            num_workers=self.config.dataloader_num_workers,
            random_flip=self.config.random_flip,
            labels=self.task.labels,
        )

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must share with its checkpoint; states of earlier versions, which lack content, do so."""
        return {"content": self.mixture.fingerprint, "num_processes": self.accelerator.num_processes}

    def _due_by_epoch(self) -> list[Callable[[], None]]:
        if self.step == self.total_steps:  # the last step saves all by itself
            return []
        seen, rows = self.step * self.images_per_step, len(self.data)
        savers = {self.save_model: self.config.save_model_epochs, self.save_samples: self.config.save_images_epochs}
        return [s for s, every in savers.items() if every and seen % (every * rows) < self.images_per_step]
