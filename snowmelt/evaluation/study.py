"""An evaluation from options to report, by one process or several."""

import math
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from pipelines import IMAGE_CHANNELS, image_grid
from pipelines.unconditional import UnconditionalPipeline
from snowmelt.config import on_hub
from snowmelt.data.sources import load_images
from snowmelt.data.splits import Split
from snowmelt.errors import UserError
from snowmelt.evaluation import table
from snowmelt.evaluation.classifier import FEATURES
from snowmelt.evaluation.extras import EXTRAS, Case
from snowmelt.evaluation.features import make_features
from snowmelt.evaluation.generation import Samples, check_memory, draw, evaluations, rounded
from snowmelt.evaluation.metrics import frechet_bias
from snowmelt.evaluation.options import EvaluateConfig, Setting, settings_of
from snowmelt.evaluation.real import RealImages
from snowmelt.evaluation.reference import Reference, features_of
from snowmelt.evaluation.report import Report, SweepPoint, check_output
from snowmelt.evaluation.table import Images
from snowmelt.guidance_model import guidance_arguments
from snowmelt.input_images import image_size
from snowmelt.loading import choose_pipeline, set_scheduler
from snowmelt.model_source import find_source
from snowmelt.options import DataOptions, ImageOptions
from snowmelt.values import to_resolution

GRID_IMAGES = 64
ENOUGH = 10
"""Images per dimension of the features from which on a Frechet distance isn't called biased: what is left by
`frechet_bias` for isotropic features is then a fortieth of their variance."""


class Study:
    """Everything that can be refused is refused when it is made; `run` then takes its time.

    Args:
        config: what to evaluate, and how.
        state: the processes.

    Raises:
        UserError: for anything in the options, the model or the data that the user can mend.
    """

    def __init__(self, config: EvaluateConfig, state: PartialState) -> None:
        self.config = config
        self.state = state
        self.settings = settings_of(config)
        check_output(config.folder)
        # Of what follows, each is quicker than the next: options, the model, the data, a classifier trained on them.
        self.source = find_source(str(config.model), config.revision, config.checkpoint, config.ema)
        pipeline = self.pipeline(config)
        table.check_features(config.metrics, config.features, pipeline.num_classes)
        shape = self._shape(pipeline)
        kept = math.prod(shape) if self._keeps() else 0
        check_memory(config.num_images, kept + FEATURES)
        self.nfe = [self._evaluations(setting.config) for setting in self.settings]
        self.real = self._load(pipeline, Split(config.split))
        held_out = config.held_out_split and Split(config.held_out_split, "held_out_split")
        self.held_out = self._load(pipeline, held_out) if held_out else None
        table.check_counts(config.metrics, config.num_images, len(self.real))
        table.check_classes(config.metrics, pipeline.num_classes, len(self.real.cache.class_names or []))
        for name in config.metrics:
            if name in EXTRAS:
                EXTRAS[name].refuse(pipeline, self.held_out)
        self.extractor = make_features(config.features, self.real, self.held_out, state.device)
        self.reference = Reference(features_of(self.real, self.extractor, config.batch_size), config.split)
        table.check_counts(config.metrics, config.num_images, len(self.real), self.reference.features.shape[1])
        check_memory(config.num_images, kept + self.reference.features.shape[1])
        self.report = self._begin(pipeline)

    def pipeline(self, config: EvaluateConfig) -> UnconditionalPipeline:
        """The model as a setting has it, on this process's device.

        Raises:
            UserError: for a model of text, or as `choose_pipeline` and `set_scheduler`.
        """
        pipeline = choose_pipeline(config)
        if not isinstance(pipeline, UnconditionalPipeline):
            raise UserError(
                f"--model: {config.model} is a {type(pipeline).__name__}; evaluated are models without a condition or "
                "by class"
            )
        set_scheduler(pipeline, config.scheduler, pipeline.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self.state.device)

    def run(self) -> Report:
        """Sample, measure and write the report, anew after each value of a sweep."""
        config, report = self.config, self.report
        extras = [EXTRAS[name] for name in config.metrics if name in EXTRAS]
        pipeline = self.pipeline(config)
        keep = config.num_images if self._keeps() else GRID_IMAGES
        samples = self._draw(pipeline, self.settings[0], keep)
        if self.state.is_main_process:
            report.baseline = self._baseline()
            report.results = self._compare(samples)
            config.folder.mkdir(parents=True, exist_ok=True)
            if pipeline.channels in IMAGE_CHANNELS:
                pixels = (samples.images[:GRID_IMAGES] * 255).round().byte().permute(0, 2, 3, 1).numpy()
                image_grid(pixels).save(config.folder / "samples.png")
        for extra in extras:
            report.results += extra.compute(self._case(pipeline, samples.images))
        self._save()
        for setting, nfe in zip(self.settings[1:], self.nfe[1:], strict=True):
            # A value that is the configuration's own needs no new samples.
            drawn = samples if setting.config == config else self._draw(self.pipeline(setting.config), setting, 0)
            if self.state.is_main_process:
                results = self._compare(drawn)
                report.sweep.append(SweepPoint(setting.parameter, setting.shown, nfe, drawn.seconds, results))
                self._save()
        return report

    def _save(self) -> None:
        if self.state.is_main_process:
            self.report.save(self.config.folder)

    def _keeps(self) -> bool:
        """Whether a metric needs all samples."""
        return any(EXTRAS[name].keeps for name in self.config.metrics if name in EXTRAS)

    def _shape(self, pipeline: UnconditionalPipeline) -> tuple[int, int, int]:
        """(C, H, W) of the model's images."""
        return pipeline.channels, *image_size(pipeline)

    def _load(self, pipeline: UnconditionalPipeline, split: Split) -> RealImages:
        """A split in the model's size, channels and units."""
        resolution = to_resolution(*image_size(pipeline))
        given = {name: getattr(self.config, name) for name in ImageOptions.fields()}
        cache = load_images(DataOptions(**given, split=split.spec, resolution=resolution, center_crop=True), split)
        if cache.channels != pipeline.channels:
            raise UserError(
                f"{split}: images of {cache.channels} channels, but the model's have {pipeline.channels}; give "
                "the data that it was trained on, with the same --channels"
            )
        return RealImages(cache, split.spec, pipeline.config.get("value_range") or cache.value_range)

    def _draw(self, pipeline: UnconditionalPipeline, setting: Setting, keep: int) -> Samples:
        prepare = rounded if self.real.cache.dtype == "uint8" else torch.clone
        count, options = self.config.num_images, setting.config
        guidance = self._guidance(pipeline, options)
        return draw(pipeline, options, count, self.extractor, self.state, prepare=prepare, keep=keep, **guidance)

    def _guidance(self, pipeline: UnconditionalPipeline, config: EvaluateConfig) -> dict[str, Any]:
        return guidance_arguments(config, pipeline, config.guidance_scale, self.state.device)

    def _evaluations(self, config: EvaluateConfig) -> int:
        pipeline = self.pipeline(config)
        return evaluations(pipeline, config, **self._guidance(pipeline, config))

    def _compare(self, samples: Samples) -> list[table.Result]:
        images = Images(samples.features, samples.labels)
        return table.compare(self.config.metrics, images, self.reference, self.extractor, self.config.seed)

    def _baseline(self) -> dict[str, list[table.Result]]:
        """What real images get: those of the reference, and as many held-out ones."""
        config, extractor = self.config, self.extractor
        real = Images(self.reference.features, self.real.labels)
        own, results = table.baseline(config.metrics, config.num_images, real, self.reference, extractor, config.seed)
        found = {own: results}
        if self.held_out is not None:
            features = features_of(self.held_out, extractor, config.batch_size)
            rows = np.random.default_rng([config.seed, 2]).permutation(len(features))[: config.num_images]
            held_out = Images(features, self.held_out.labels).of(torch.from_numpy(rows))
            title = f"{len(rows):,} images of {self.held_out.split}"
            found[title] = table.compare(config.metrics, held_out, self.reference, extractor, config.seed)
        return found

    def _warnings(self, classes: int) -> list[str]:
        """What makes the figures less than they seem, for a model of so many classes."""
        found = []
        count, dimensions = min(self.config.num_images, len(self.reference)), self.reference.features.shape[1]
        if "fd" in self.config.metrics and count < ENOUGH * dimensions:
            bias = frechet_bias(self.reference.features, count, len(self.reference))
            found.append(
                f"{count:,} images are few for {dimensions} features: some {bias:.2g} of the Frechet distance is bias. "
                f"Compare it with distances of as many images, or take {ENOUGH * dimensions:,} or more."
            )
        if classes and self.real.labels is not None:
            counts = self.real.labels.bincount(minlength=classes)
            if counts.max() > 2 * counts.min():
                found.append(
                    f"The classes of split {self.real.split} are uneven ({counts.min():,} to {counts.max():,} images), "
                    "and samples take them in turn: that alone moves the distances."
                )
        return found

    def _begin(self, pipeline: UnconditionalPipeline) -> Report:
        """A report of what is going to be measured."""
        config = self.config
        model = str(config.model) + (f" ({self.source.checkpoint})" if self.source.checkpoint else "")
        features: dict[str, Any] = {"name": self.extractor.name}
        if self.extractor.accuracy is not None:
            features["accuracy"] = self.extractor.accuracy
        scheduler = config.scheduler or config.predictor or type(pipeline.scheduler).__name__
        churn = f"s_churn {config.s_churn:g}" if config.s_churn else ""
        guide = f"guided by {config.guidance_model or 'its own'}" if config.is_autoguided else ""
        guide += f" checkpoint {config.guidance_checkpoint}" if config.guidance_checkpoint else ""
        guide += f" EMA {config.guidance_ema:g}" if config.guidance_ema else ""
        return Report(
            model=model,
            weights=self.source.digest(),
            checkpoint=self.source.checkpoint,
            dataset={
                "name": config.dataset_name or config.train_data_dir,
                # It is known now: seen from another folder, a path with one slash may look like a name.
                "on_hub": config.train_data_dir is None and on_hub(str(config.dataset_name)),
                "config": config.dataset_config_name,
                "split": config.split,
                "num_images": len(self.real),
            },
            num_images=config.num_images,
            features=features,
            sampler={
                "scheduler": ", ".join(filter(None, (scheduler, churn, guide))),
                "num_inference_steps": config.num_inference_steps,
                "nfe": self.nfe[0],
                "guidance_scale": 1.0 if config.guidance_scale is None else config.guidance_scale,
                "eta": config.eta,
                "seed": config.seed,
            },
            warnings=self._warnings(pipeline.num_classes),
        )

    def _case(self, pipeline: UnconditionalPipeline, samples: torch.Tensor) -> Case:
        names = ("seed", "batch_size", "likelihood_images", "folder")
        given = {name: getattr(self.config, name) for name in names}
        return Case(pipeline, samples, self.real, self.held_out, self.extractor, self.state, **given)
