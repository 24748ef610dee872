"""Evaluation during training: losses of held-out images, metrics of samples, which step was best, when to stop."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object

from snowmelt.augmentation import Augmentation
from snowmelt.data.buckets import parts_of
from snowmelt.data.loader import Cache, batch_of
from snowmelt.data.order import VALIDATION
from snowmelt.errors import UserError
from snowmelt.evaluation import table
from snowmelt.evaluation.clip import FLAG, ClipScore
from snowmelt.evaluation.extras import check_scenes, draws_scenes
from snowmelt.evaluation.features import NoFeatures, make_features
from snowmelt.evaluation.generation import draw, prompts_of, rounded, turns
from snowmelt.evaluation.real import RealImages
from snowmelt.evaluation.reference import Reference, features_of
from snowmelt.files import read_mapping
from snowmelt.loading import SamplerOptions
from snowmelt.objectives import StepContext
from snowmelt.objectives.flow_maps import FlowMapObjective
from snowmelt.options import UnconditionalConfig, ValidationOptions
from snowmelt.sample_grids import few_steps
from snowmelt.tasks.diffusion import DiffusionTask
from snowmelt.tasks.task import Networks
from snowmelt.text.caption_conditioning import CaptionConditioning
from snowmelt.text.options import TextToImageConfig
from snowmelt.tracking import plot_evaluations, read_metrics

if TYPE_CHECKING:  # each is for one script
    from snowmelt.tasks.text_to_image import CaptionTask
    from snowmelt.tasks.unconditional import UnconditionalTask

Judged: TypeAlias = "UnconditionalTask | CaptionTask"
JudgedConfig = UnconditionalConfig | TextToImageConfig

BEST, NOTE = "best", "validation.json"
BATCH = 256
"""Real images whose features are computed together."""
LEAST, MOST = 1024, 8192
"""Losses that make up a validation loss: of fewer images each is noised several times, of more some are left out."""


class ValidationLoss:
    """The task's loss on held-out images: each time of the same noise and captions, at the same levels, spread evenly.

    Args:
        task: what is trained, with the conditioning of the held-out images.
        fields: these, or their latents, as `image`, and what else the task needs of a batch.
        config: batch size, seed and flips.
        accelerator: the processes, which share the batches.
    """

    def __init__(
        self, task: DiffusionTask, fields: dict[str, Cache], config: ValidationOptions, accelerator: Accelerator
    ) -> None:
        objective = replace(task.objective, low_discrepancy=True, history=None)
        if isinstance(objective, FlowMapObjective):
            objective = replace(objective, adaptive_power=0.0)  # weights hide how large errors are
        # Held-out images are not augmented, and the network's condition says so.
        self.task = replace(task, objective=objective, augmentation=task.augmentation and Augmentation(0.0))
        self.fields, data = fields, fields["image"]
        self.config = config
        self.accelerator = accelerator
        count = min(max(len(data), LEAST), MOST)
        rows = np.linspace(0, len(data) - 1, count).round().astype(int)
        ends = np.cumsum([len(part) for part in parts_of(data)])
        size, parts = config.train_batch_size, np.split(rows, np.searchsorted(rows, ends[:-1]))
        self.batches = [part[start : start + size] for part in parts for start in range(0, len(part), size)]
        self.generator = torch.Generator(accelerator.device)

    @torch.no_grad()
    def __call__(self, networks: Networks, step: int) -> dict[str, float]:
        """`eval_loss`, and by quartile of the noise level `eval_loss_q1` to `_q4`; in every process alike."""
        context = StepContext(self.task.module(networks), self.generator, step, 1)
        own = [(i, self._losses(context, i, self.batches[i])) for i in turns(len(self.batches), PartialState())]
        losses, quantiles = zip(*(part for _, part in sorted(dict(gather_object(own)).items())), strict=True)
        loss = torch.cat(losses).double()
        values = {"eval_loss": loss.mean().item()}
        if quantiles[0] is not None:
            quartile = (torch.cat(quantiles) * 4).long().clamp_(max=3)
            values |= {f"eval_loss_q{q + 1}": loss[quartile == q].mean().item() for q in range(4)}
        return values

    def _losses(self, context: StepContext, number: int, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Losses of a batch and quantiles of their noise levels, each (B,) on the CPU."""
        device = self.accelerator.device
        seeds = np.random.SeedSequence((VALIDATION, self.config.seed, number)).generate_state(1)
        self.generator.manual_seed(int(seeds[0]))
        flip = self.config.random_flip
        batch = batch_of(self.fields, rows, labels=self.task.labels, random_flip=flip, device=device)
        losses = self.task.loss(batch, context)
        return losses.loss.cpu(), None if losses.quantile is None else losses.quantile.cpu()


class SampleMetrics:
    """Metrics of `evaluate.py` on a few samples, which all processes draw together.

    Args:
        config: which metrics, samples and features.
        task: what is trained, whose images the samples are compared with; others say how good a classifier is, and
            have the captions that samples are drawn by.
        accelerator: the processes.

    Raises:
        UserError: for a metric that there isn't, or that can't be had.
    """

    def __init__(self, config: JudgedConfig, task: Judged, accelerator: Accelerator) -> None:
        train, held_out = task.images, task.held_out.images if task.held_out else None
        conditioning = (task.held_out and task.held_out.conditioning) or task.conditioning
        captions = conditioning.captions if isinstance(conditioning, CaptionConditioning) else None
        shown = captions and captions.first(len(held_out or train))  # and none of images of a class
        self.prompts = prompts_of(shown, config.eval_num_images) if shown else []
        self.config = config
        self.pipeline = task.pipeline
        real = RealImages(train, config.split, train.value_range)
        others = None
        if held_out is not None:
            others = RealImages(held_out, config.validation_split or "held out", held_out.value_range)
        try:
            classes = 0 if captions else task.pipeline(task.networks).num_classes
            table.check_features(config.eval_metrics, config.eval_features, classes)
            table.check_counts(config.eval_metrics, config.eval_num_images, len(train))
            table.check_classes(config.eval_metrics, classes, len(train.class_names or []))
            if "alignment" in config.eval_metrics:
                check_scenes(train.channels)
            scored, compared = "clip_score" in config.eval_metrics, table.compares_features(config.eval_metrics)
            name, device = getattr(config, "eval_clip_model_name_or_path", ""), accelerator.device
            self.clip = ClipScore(name, train.channels, device) if scored else None
            self.extractor = make_features(config.eval_features, real, others, device) if compared else NoFeatures()
        except UserError as error:  # whose flags are those of evaluate.py
            names = f"--(metrics|features|num_images|{FLAG.removeprefix('--')})"
            raise UserError(re.sub(names, r"--eval_\1", str(error))) from error
        self.reference = Reference(features_of(real, self.extractor, BATCH), config.split)
        self.prepare = rounded if train.dtype == "uint8" else torch.clone

    def __call__(self, networks: Networks) -> list[table.Result]:
        """The results, in every process; the networks must be in evaluation mode."""
        config, pipeline = self.config, few_steps(self.pipeline(networks))
        options = SamplerOptions(
            batch_size=config.train_batch_size,
            num_inference_steps=config.ddpm_num_inference_steps,
            seed=config.seed,
        )
        count, extractor, state = config.eval_num_images, self.extractor, PartialState()
        arguments: dict[str, Any] = {"prompts": self.prompts, "clip": self.clip, "prepare": self.prepare, "keep": 0}
        images, results = None, []
        for name in config.eval_metrics:
            if name == "alignment":
                results += draws_scenes(pipeline, options, count, state)
                continue
            images = images or draw(pipeline, options, count, extractor, state, **arguments).measured
            results += table.compare([name], images, self.reference, extractor, config.seed)
        return results


class Validation:
    """Evaluates a network in training, and remembers which step was best: a part of checkpoints.

    Args:
        config: how often, and how much patience.
        loss: of held-out images.
        metrics: of samples; the first of them decides, or else the loss.
    """

    def __init__(self, config: JudgedConfig, loss: ValidationLoss | None, metrics: SampleMetrics | None) -> None:
        self.config = config
        self.loss = loss
        self.metrics = metrics
        self.folder = Path(config.output_dir)
        self.best: dict[str, Any] = {}  # step, metric, value
        self.since = 0  # evaluations since then

    def due(self, step: int, last: int) -> bool:
        """Whether to evaluate after optimizer step `step` of `last`."""
        return step == last or step % (self.config.eval_steps or last) == 0

    def evaluate(self, networks: Networks, step: int) -> tuple[dict[str, float], bool]:
        """All values, and whether they are the best so far: the same in every process.

        Args:
            networks: with the weights to be judged, in evaluation mode.
            step: optimizer steps that they have taken.
        """
        results = self.metrics(networks) if self.metrics else []
        values = {f"eval_{result.metric}": result.value for result in results} | (
            self.loss(networks, step) if self.loss else {}
        )
        values = broadcast_object_list([values])[0]  # or processes on unlike machines might not agree to stop
        metric, value = next(iter(values.items()))
        sign = -1 if results and not results[0].lower_is_better else 1
        known = self.best["value"] if self.best.get("metric") == metric else math.nan
        better = math.isfinite(value) and not sign * known <= sign * value
        if better:
            self.best = {"step": step, "metric": metric, "value": value}
        self.since = 0 if better else self.since + 1
        return values, better

    @property
    def stop(self) -> str | None:
        """The reason to end training, once patience is exhausted."""
        if self.config.patience is None or self.since < self.config.patience:
            return None
        return f"{self.best.get('metric', 'the first metric')} is no better than at step {self.best.get('step', 0)}"

    def keep(self, folder: Path | None, save: Callable[[Path | None], Any], values: dict[str, float]) -> None:
        """Write the model just found best into `folder`, below the name `best`, and beside it what it is.

        Every process enters.

        Args:
            folder: the run's, or where it is prepared; None in a process that doesn't write.
            save: writes the model into a new folder.
            values: of the evaluation.
        """
        save(None if folder is None else folder / BEST)
        if folder is not None:
            # The name comes after those of weights, which are replaced in this order: a kill leaves no false note.
            (folder / BEST / NOTE).write_text(json.dumps(self.best | values, indent=1) + "\n")

    def plot(self) -> None:
        """Draw evaluation.png in the run's folder, if there was an evaluation."""
        if any(name.startswith("eval_") for line in read_metrics(self.folder) for name in line):
            plot_evaluations(self.folder, self.best)

    def summary(self) -> str:
        """Which step was best, and where it is."""
        if not self.best:
            return f"best       none: no evaluation was made; --eval_steps is {self.config.eval_steps}"
        return "best       {folder} (step {step}: {metric} {value:.5g})".format(folder=self.folder / BEST, **self.best)

    def collect(self) -> Callable[[Path], None]:
        """The best step and the evaluations since, which are written to validation.json in a new folder."""
        text = json.dumps({"best": self.best, "since": self.since})

        def write(folder: Path) -> None:
            folder.mkdir()
            (folder / NOTE).write_text(text)

        return write

    def load(self, path: Path) -> None:
        """Nothing is remembered where the checkpoint's run had no evaluations, or its best model isn't here.

        That in `best` may be of a step after this checkpoint, by a run that went further; the next evaluation then
        replaces it.
        """
        if not (path / NOTE).is_file() or not (self.folder / BEST / NOTE).is_file():
            return
        state = read_mapping(path / NOTE, {"best": dict, "since": int})
        kept = read_mapping(self.folder / BEST / NOTE, {"step": int})["step"]
        if state["best"].get("step") == kept:
            self.best, self.since = state["best"], state["since"]
        else:
            print(f"{self.folder / BEST} is of step {kept}, after {path.parent.name}; the next evaluation replaces it")


def make_validation(config: JudgedConfig, task: Judged, accelerator: Accelerator) -> Validation:
    """The evaluation during training that the options ask for.

    Args:
        config: the options.
        task: what is trained; its held-out images, where there are any, are for the loss.
        accelerator: the processes.

    Raises:
        UserError: as `SampleMetrics`.
    """
    loss = None
    if task.held_out:
        images, data, conditioning, given = task.held_out
        judged = replace(task, conditioning=conditioning or task.conditioning, given=given)
        fields = {"image": data} | (given.fields(images) if given else {})
        loss = ValidationLoss(judged, fields, config, accelerator)
    return Validation(config, loss, SampleMetrics(config, task, accelerator) if config.eval_metrics else None)
