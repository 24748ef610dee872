"""The training loop. One for every model: what differs is in the criterion, the codec and the conditioning."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from torch import Tensor, nn
from tqdm import tqdm

from snowmelt.checkpoint import STATE_FILE, Checkpoints, full_disk, read_state, save_atomically
from snowmelt.codec import Codec
from snowmelt.conditioning import Conditioning
from snowmelt.config import differences
from snowmelt.data.loader import NOISE, Cache, batches
from snowmelt.ema import applied, make_emas
from snowmelt.environment import check_memory
from snowmelt.errors import UserError
from snowmelt.files import checked
from snowmelt.interrupts import Interrupts
from snowmelt.meter import Meter
from snowmelt.optimization import clip_gradients, make_optimizer, set_learning_rate
from snowmelt.options import TrainingConfig
from snowmelt.parts import network_part, training_parts
from snowmelt.tracking import Metrics, log_samples, plot_loss

if TYPE_CHECKING:  # it brings the libraries of metrics, which take seconds
    from snowmelt.evaluation.validation import Validation

STATE = {"config": dict, "total_steps": int, "data": str, "num_processes": int}  # of a checkpoint
MORE = "give a larger --max_train_steps or --num_epochs"


class Trainer:
    """Trains networks, and leaves what they make up in a folder with checkpoints, samples and metrics beside it.

    Every random number of a step follows from (seed, step, shard), where the shards of an optimizer step are its
    forward passes, counted over processes and accumulation alike. So a resumed run needs no stored random state,
    and two processes take the steps that one process takes with twice the accumulation.

    Args:
        net: what the criterion calls: a network, or a module of several that are trained together.
        parts: its networks, by their folders in checkpoints.
        criterion: its loss.
        codec: cached values to x0.
        conditioning: batch to the network's keyword arguments.
        data: the decoded images, or their latents.
        config: options; `output_dir` must be ready to be written to.
        accelerator: processes, device and precision.
        save: writes the model into a new folder; its networks then hold their first averages.
        draw: draws images of the progress to the path given, and returns them, uint8 (N, H, W, C), likewise.
        on_saved: called, in the main process, after each saved model but the last.
        validation: judges the first averages, and ends a training that gets no better.
        averaged: names of the parts of which averages are kept; all by default.
        groups: of `net`'s parameters, where their settings differ; each group's gradient is clipped by itself.
    """

    def __init__(
        self,
        net: nn.Module,
        parts: dict[str, ModelMixin],
        criterion: Any,
        codec: Codec,
        conditioning: Conditioning,
        data: Cache,
        config: TrainingConfig,
        accelerator: Accelerator,
        *,
        save: Callable[[Path], None],
        draw: Callable[[Path], np.ndarray],
        on_saved: Callable[[], None] = lambda: None,
        validation: "Validation | None" = None,
        averaged: tuple[str, ...] | None = None,
        groups: list[dict[str, Any]] | None = None,
    ) -> None:
        self.criterion = criterion
        self.codec = codec
        self.conditioning = conditioning
        self.data = data
        self.config = config
        self.accelerator = accelerator
        self.save = save
        self.draw = draw
        self.on_saved = on_saved
        self.validation = validation
        self.folder = Path(config.output_dir)
        check_memory(data, config, accelerator.device)
        self.generator = torch.Generator(accelerator.device)
        self.step = 0

        net.train().to(accelerator.device)
        names = parts if averaged is None else averaged
        self.averages = make_emas({name: parts[name] for name in names}, config)
        trained = groups or (p for p in net.parameters() if p.requires_grad)
        optimizer, self.lr_factor = make_optimizer(trained, config, self.total_steps, self.images_per_step)
        self.net, self.optimizer = accelerator.prepare(net, optimizer)
        self.forward = torch.compile(self.net) if config.compile else self.net
        kept = training_parts(parts, self.averages, optimizer, accelerator.scaler)
        kept |= {"validation": validation} if validation else {}
        self.checkpoints = Checkpoints(self.folder, kept, config.checkpoints_total_limit)

    @property
    def images_per_step(self) -> int:
        """Images in an optimizer step, over all processes."""
        return self.config.train_batch_size * self.config.gradient_accumulation_steps * self.accelerator.num_processes

    @property
    def total_steps(self) -> int:
        """Of the whole training."""
        epochs = math.ceil(self.config.num_epochs * len(self.data) / self.images_per_step)
        return self.config.max_train_steps or epochs

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint, as if the run had never stopped.

        Raises:
            UserError: if it is damaged or was made by a run that trains differently.
        """
        state = checked(checkpoint / STATE_FILE, read_state(checkpoint), STATE)
        changed = differences(state["config"], self.config)
        changed += [f"{k}={state[k]!r} (now {v!r})" for k, v in self._identity().items() if state[k] != v]
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
                self.accelerator.print(
                    f"stopped at step {self.step} ({stop}); resume with --resume_from_checkpoint latest"
                )
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
        meter = Meter(accelerator, config.gradient_accumulation_steps, self.data.rows)
        metrics = Metrics(self.folder, accelerator, self.step)
        stream = self._stream()
        deadline = time.monotonic() + 60 * (math.inf if config.max_train_minutes is None else config.max_train_minutes)
        stop: str | None = None
        bar = tqdm(
            total=self.total_steps,
            initial=self.step,
            disable=not accelerator.is_main_process,
            unit="step",
            mininterval=1,
        )
        with bar:
            while self.step < self.total_steps and not stop:
                for micro in range(config.gradient_accumulation_steps):
                    self.train_step(next(stream), micro, meter)
                self.step += 1
                bar.update()
                wish = interrupts.requested or ("time limit" if time.monotonic() > deadline else None)
                checkpointing = self.step % config.checkpointing_steps == 0 or self.step == self.total_steps
                due = self._due_by_epoch()
                evaluating = self.validation is not None and self.validation.due(self.step, self.total_steps)
                # Processes can agree to stop only where they meet, at a flush; and nothing is saved of a network
                # whose losses have not been looked at.
                logging = self.step % config.logging_steps == 0 or (wish and accelerator.num_processes == 1)
                if checkpointing or due or evaluating or logging:
                    values, stop = meter.flush(self.step, wish)
                    values["lr"] = self.optimizer.param_groups[0]["lr"]
                    if self.validation and evaluating:
                        with meter.paused():
                            values |= self.evaluate(self.validation)
                        stop = stop or self.validation.stop
                    metrics.log(self.step, values)
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
        """One forward and backward pass and, after the last of them, an optimizer step: no waiting for the device."""
        accelerator = self.accelerator
        shard = micro * accelerator.num_processes + accelerator.process_index
        seeds = np.random.SeedSequence((NOISE, self.config.seed, self.step, shard)).generate_state(2).tolist()
        self.generator.manual_seed(seeds[0])
        torch.manual_seed(seeds[1])  # for the network's dropout
        with accelerator.accumulate(self.net):
            x0 = self.codec.from_cache(batch["images"], self.generator)
            condition = self.conditioning.embed(batch, self.generator)
            losses = self.criterion.loss(self.forward, x0, condition, self.generator)
            accelerator.backward(losses.loss.mean())
            meter.add(losses, batch["indices"])
            if not accelerator.sync_gradients:
                return
            accelerator.unscale_gradients()
            meter.add_norm(clip_gradients(self.optimizer, self.config.max_grad_norm))
            set_learning_rate(self.optimizer, self.lr_factor(self.step))
            self.optimizer.step()
            self.optimizer.zero_grad()
            for ema in (ema for emas in self.averages for ema in emas.values()):
                ema.update(self.step + 1)

    def evaluate(self, validation: "Validation") -> dict[str, float]:
        """Judge the averages that are sampled and published; the best so far are kept in `best`."""
        with self._averaged():
            self.net.eval()
            values, best = validation.evaluate(self.accelerator.unwrap_model(self.net), self.step)
            self.net.train()
            if best and self.accelerator.is_main_process:
                save_atomically(lambda folder: validation.keep(folder, self.save, values), self.folder)
        self.accelerator.wait_for_everyone()
        return values

    def save_checkpoint(self) -> None:
        """Write `checkpoint-{step}`. Under data parallelism every process holds the same, so one writes."""
        if self.accelerator.is_main_process:
            meta = {"config": self.config.to_dict(), "total_steps": self.total_steps, **self._identity()}
            self.checkpoints.save(self.step, meta)
        self.accelerator.wait_for_everyone()

    def save_model(self) -> None:
        """Write the model; where there are averages of several decays, all are kept beside it."""
        if self.accelerator.is_main_process:
            save_atomically(self._save, self.folder)
        self.accelerator.wait_for_everyone()

    def _save(self, folder: Path) -> None:
        with self._averaged():
            self.save(folder)
        for emas in self.averages if len(self.averages) > 1 else []:
            for name, ema in emas.items():
                network_part(ema.net, ema).save(folder / name)

    def save_samples(self) -> None:
        """Draw pictures of the progress."""
        if self.accelerator.is_main_process:
            path = self.folder / "samples" / f"step-{self.step:06d}.png"
            path.parent.mkdir(exist_ok=True)
            with self._averaged():
                self.net.eval()
                images = self.draw(path)
                self.net.train()
            log_samples(self.accelerator, images, self.step)
        self.accelerator.wait_for_everyone()

    def _averaged(self) -> AbstractContextManager[None]:
        """Inside, the networks hold the averages that are sampled and published, where there are any."""
        return applied(self.averages[0].values() if self.averages else ())

    def _stream(self) -> Iterator[dict[str, Tensor]]:
        return batches(
            self.data,
            batch_size=self.config.train_batch_size,
            seed=self.config.seed,
            start_step=self.step,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            accumulation=self.config.gradient_accumulation_steps,
            device=self.accelerator.device,
            num_workers=self.config.dataloader_num_workers,
            random_flip=self.config.random_flip,
            labels=self.conditioning.num_class_embeds is not None,
        )

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must share with its checkpoint besides the configuration."""
        return {"data": self.data.fingerprint, "num_processes": self.accelerator.num_processes}

    def _due_by_epoch(self) -> list[Callable[[], None]]:
        """What is to be saved at this step because an epoch ended in it; the last step saves all by itself."""
        if self.step == self.total_steps:
            return []
        seen, rows = self.step * self.images_per_step, len(self.data)
        savers = {self.save_model: self.config.save_model_epochs, self.save_samples: self.config.save_images_epochs}
        return [s for s, every in savers.items() if every and seen % (every * rows) < self.images_per_step]
