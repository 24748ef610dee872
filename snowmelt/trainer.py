"""The training loop, one for every task: checkpoints, averages, logging, and when to stop."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from snowmelt.checkpoint import Checkpoints, complete, full_disk
from snowmelt.data.mixture import Mixture
from snowmelt.data.order import NOISE
from snowmelt.ema import make_emas, published, update_emas
from snowmelt.environment import check_memory
from snowmelt.errors import UserError
from snowmelt.gradient_clipping import GradientClipper
from snowmelt.heartbeat import Heartbeat
from snowmelt.interrupts import Interrupts
from snowmelt.meter import Meter
from snowmelt.model_writer import ModelWriter
from snowmelt.nonfinite import NonFinite
from snowmelt.objectives import StepContext
from snowmelt.optimization import make_optimizer, set_learning_rate
from snowmelt.options import TrainingConfig
from snowmelt.progress import OUT_OF_TIME, Progress
from snowmelt.resuming import read_resumable
from snowmelt.sharding import describe_parts, shard, unsharded
from snowmelt.stateful import TensorState, training_state
from snowmelt.tasks.task import Task
from snowmelt.tracking import Metrics, plot_loss

if TYPE_CHECKING:  # it brings the libraries of metrics, which take seconds
    from snowmelt.evaluation.validation import Validation

MORE = "give a larger --max_train_steps, --num_epochs or --max_train_minutes"


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
        self.images_per_step = config.images_per_step(accelerator.num_processes)
        self.total_steps = config.max_train_steps or math.ceil(
            config.num_epochs * len(self.data) / self.images_per_step
        )
        self.nonfinite = NonFinite(config.on_nonfinite, scales=accelerator.scaler is not None)
        self.progress = Progress(self.total_steps, config.max_train_minutes)

        module = task.module(task.networks).train().to(accelerator.device)
        self.emas = make_emas({name: task.networks[name] for name in task.with_ema}, config)
        for ema in (ema for emas in self.emas.values() for ema in emas.values()):
            accelerator.prepare_model(ema.network, device_placement=False, evaluation_mode=True)  # in its precision
        plugin = getattr(accelerator.state, "fsdp_plugin", None)
        if plugin is not None:
            averages = [ema.network for emas in self.emas.values() for ema in emas.values()]
            for net in [*task.networks.values(), *averages]:
                shard(net, plugin, accelerator)
            accelerator.print(describe_parts(task.networks))
        # Sharding put other parameters in the networks.
        groups = task.parameter_groups()
        optimizer, self.lr_factor = make_optimizer(groups, config, self.total_steps, self.images_per_step, module)
        self.module = accelerator.prepare_model(module, device_placement=False, evaluation_mode=plugin is not None)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        forward, emas = torch.compile(self.module) if config.compile else self.module, published(self.emas)
        self.context = StepContext(forward, self.generator, 0, 0, emas, accelerator.gather, module)
        states = training_state(task.networks, self.emas, optimizer, accelerator.scaler) | task.states
        self.clipper = GradientClipper(optimizer, config.max_grad_norm, config.max_grad_norm_ratio, accelerator.device)
        states |= {"validation": validation} if validation else {}
        states |= {"gradient_norms": TensorState(self.clipper)} if config.max_grad_norm_ratio else {}
        self.checkpoints = Checkpoints(self.folder, states, config.checkpoints_total_limit)
        self.writer = ModelWriter(task, self.emas, self.folder, accelerator)

    def resume(self, checkpoint: Path) -> None:
        """Resume as if the run had never stopped; a UserError if the checkpoint is damaged, or of another training."""
        state = read_resumable(checkpoint, self.config, self.mixture.fingerprint, self.accelerator.num_processes)
        then = Progress(state["total_steps"], state["config"]["max_train_minutes"])
        if then.end != self.progress.end and not self.config.lr_scheduler.startswith("constant"):
            ends = f"the {self.config.lr_scheduler} learning rate ends at {self.progress.end} now"
            self.accelerator.print(f"{ends}, not at {then.end} as when {checkpoint.name} was made")
        self.checkpoints.load(checkpoint, state)
        self.step = state["step"]
        self.progress.start(self.step, state["seconds"])
        self.nonfinite.rewinds = max(self.nonfinite.rewinds, state["rewinds"])
        if self.progress.fraction(self.step) == 1:
            self.accelerator.print(f"nothing left to train: {checkpoint.name} is at step {self.step}; {MORE}")

    def fit(self) -> int:
        """Train to the last step, or until a signal or the time limit asks to stop; then save. The exit status."""
        heartbeat = Heartbeat(self.folder, writes=self.accelerator.is_main_process)
        with Interrupts() as interrupts, full_disk(self.folder, "metrics or samples"), heartbeat, self.checkpoints:
            heartbeat.stop = stop = self._train(interrupts, heartbeat)
            self.checkpoints.wait()
            if stop:
                more = " and a larger --max_train_minutes" if stop == OUT_OF_TIME else ""
                resume = f"resume with --resume_from_checkpoint latest{more}"
                self.accelerator.print(f"stopped at step {self.step} ({stop}); {resume}")
            self.save_model()
            self.save_samples()
            if self.accelerator.is_main_process and self.validation:
                self.validation.plot()
            self.accelerator.end_training()
        return heartbeat.exit_status

    def _train(self, interrupts: Interrupts, heartbeat: Heartbeat) -> str | None:
        """The loop. Returns the reason why it ended early, if it did; a checkpoint was saved then, too."""
        config, accelerator = self.config, self.accelerator
        skipping = self.nonfinite.mode != "stop"
        meter = Meter(accelerator, config.gradient_accumulation_steps, self.mixture.rows, skipping=skipping)
        self.metrics = Metrics(self.folder, accelerator, self.step)
        stream = self._stream()
        if self.progress.fraction(self.step) == 1:
            return None  # as `resume` said
        self.progress.start(self.step, self.progress.seconds)
        stop: str | None = None
        quiet = not accelerator.is_main_process
        bar = tqdm(total=self.total_steps, initial=self.step, disable=quiet, unit="step", mininterval=1)
        with bar:
            while self.step < self.total_steps and not stop:
                for micro in range(config.gradient_accumulation_steps):
                    self.train_step(meter.next(stream), micro, meter)
                self.step += 1
                heartbeat.beat(self.step)
                bar.update()
                if self.nonfinite.must_rewind(self.step):
                    stream = self._rewind(meter)
                    bar.n = self.step
                    continue
                request = interrupts.requested or (OUT_OF_TIME if self.progress.out_of_time else None)
                checkpointing = self.step % config.checkpointing_steps == 0 or self.step == self.total_steps
                due = self._due_by_epoch()
                evaluating = self.validation is not None and self.validation.due(self.step, self.total_steps)
                # Processes can agree to stop only at a flush; nothing is saved of a network of unseen losses.
                logging = self.step % config.logging_steps == 0 or (request and accelerator.num_processes == 1)
                if checkpointing or due or evaluating or logging:
                    values, stop = meter.flush(self.step, request)
                    self.progress.measure(self.step, accelerator)
                    bar.total = self.progress.expected_steps()
                    values["lr"] = self.optimizer.param_groups[0]["lr"]
                    if self.validation and evaluating:
                        with meter.paused():
                            values |= self.evaluate(self.validation)
                        stop = stop or self.validation.stop
                    self.metrics.log(self.step, values)
                    bar.set_postfix(
                        loss=f"{values['loss'] or math.nan:.4f}", speed=f"{values['images_per_second']:.0f} images/s"
                    )
                with meter.paused():
                    if checkpointing or stop:
                        self.save_checkpoint()
                    for save in due:
                        save()
                    if self.save_model in due and accelerator.is_main_process:
                        self.on_saved()
        return stop

    def _rewind(self, meter: Meter) -> Iterator[dict[str, Tensor]]:
        """Go back to the last checkpoint; the data from there on, in another order."""
        self.checkpoints.wait()
        self.accelerator.wait_for_everyone()
        last = complete(self.folder)
        if not last:
            raise UserError("--on_nonfinite rewind: there is no checkpoint yet to go back to; save more of them")
        self.accelerator.print(f"the gradient is not finite: from step {self.step} back to {last[-1].name}")
        self.resume(last[-1])
        meter.restart()
        self.metrics = Metrics(self.folder, self.accelerator, self.step)
        return self._stream()

    def train_step(self, batch: dict[str, Tensor], micro: int, meter: Meter) -> None:
        """One forward and backward pass and, after the last of them, an optimizer step: no waiting for the device.

        Args:
            batch: of `batches`, on the device.
            micro: number of the pass within the optimizer step, from 0.
            meter: takes note of the losses and of the gradient's norm.
        """
        accelerator = self.accelerator
        shard = micro * accelerator.num_processes + accelerator.process_index
        seeds = np.random.SeedSequence((NOISE, self._seed, self.step, shard)).generate_state(2).tolist()
        self.generator.manual_seed(seeds[0])
        torch.manual_seed(seeds[1])  # for the network's dropout
        with accelerator.accumulate(self.module):
            losses = self.task.loss(
                batch, replace(self.context, step=self.step, progress=self.progress.fraction(self.step))
            )
            accelerator.backward(losses.loss.mean())
            meter.add(losses, batch["indices"])
            if not accelerator.sync_gradients:
                return
            accelerator.unscale_gradients()
            norm = self.clipper.clip(self.step)
            meter.add_norm(norm)
            if self.nonfinite.skips(norm):
                self.optimizer.zero_grad()
                return
            position = self.progress.position(self.step, self.config.lr_warmup_steps)
            set_learning_rate(self.optimizer, self.lr_factor(position))
            self.optimizer.step()
            self.optimizer.zero_grad()
            update_emas(self.emas, self.step + 1)

    def evaluate(self, validation: "Validation") -> dict[str, float]:
        """Judge the networks that are sampled and published; the best so far are kept in `best`."""
        with self.writer.published() as networks:
            values, best = validation.evaluate(networks, self.step)
            if best:
                save = partial(self.task.save, unsharded(networks))
                self.writer.exchange(lambda folder: validation.keep(folder, save, values))
        return values

    def save_checkpoint(self) -> None:
        """Write `checkpoint-{step}`."""
        meta = {"config": self.config.to_dict(), "total_steps": self.total_steps, "seconds": self.progress.seconds}
        meta |= {"rewinds": self.nonfinite.rewinds, "content": self.mixture.fingerprint}
        meta["num_processes"] = self.accelerator.num_processes
        self.checkpoints.save(self.step, meta, writes=self.accelerator.is_main_process)

    def save_model(self) -> None:
        """Write the model into the run's folder."""
        self._log(self.writer.save_model())

    def save_samples(self) -> None:
        """Save a preview of the progress, and draw the loss so far."""
        self._log(self.writer.save_samples(self.step))
        if self.accelerator.is_main_process:
            plot_loss(self.folder)

    def _log(self, values: dict[str, float]) -> None:
        if values:  # measured once for a step, and maybe logged already: a run that had ended may be resumed
            self.metrics.log_once(self.step, values)

    def _stream(self) -> Iterator[dict[str, Tensor]]:
        return self.mixture.batches(
            batch_size=self.config.train_batch_size,
            seed=self._seed,
            start_step=self.step,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            accumulation=self.config.gradient_accumulation_steps,
            device=self.accelerator.device,
            num_workers=self.config.dataloader_num_workers,
            random_flip=self.config.random_flip,
            labels=self.task.labels,
        )

    @property
    def _seed(self) -> int:
        """Of noise and the order of data, another one after each rewind."""
        return self.config.seed + self.nonfinite.rewinds

    def _due_by_epoch(self) -> list[Callable[[], None]]:
        if self.step == self.total_steps:  # the last step saves all by itself
            return []
        seen, rows = self.step * self.images_per_step, len(self.data)
        savers = {self.save_model: self.config.save_model_epochs, self.save_samples: self.config.save_images_epochs}
        return [s for s, every in savers.items() if every and seen % (every * rows) < self.images_per_step]
