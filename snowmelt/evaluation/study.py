"""An evaluation from options to report, by one process or several."""

import inspect
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from pipelines import IMAGE_CHANNELS, GivenImagePipeline, image_grid
from pipelines.base import ImagePipeline
from pipelines.text2img import TextPipeline
from pipelines.unconditional import UnconditionalPipeline
from snowmelt.condition_options import PAIR_METRICS
from snowmelt.config import on_hub
from snowmelt.data.captions import load_captioned
from snowmelt.data.sources import load_images
from snowmelt.data.splits import Split
from snowmelt.errors import UserError
from snowmelt.evaluation import table
from snowmelt.evaluation.caveats import caveats
from snowmelt.evaluation.classifier import FEATURES
from snowmelt.evaluation.clip import ClipScore
from snowmelt.evaluation.extras import EXTRAS, Case
from snowmelt.evaluation.features import NoFeatures, make_features
from snowmelt.evaluation.generation import (
    Samples,
    captioned_rows,
    check_memory,
    draw,
    evaluations,
    prompts_of,
    real_scores,
    rounded,
)
from snowmelt.evaluation.options import EvaluateConfig, Setting, settings_of
from snowmelt.evaluation.pairs import blank, make_pairs
from snowmelt.evaluation.real import RealImages
from snowmelt.evaluation.reference import Reference, features_of
from snowmelt.evaluation.report import Report, SweepPoint, check_output
from snowmelt.evaluation.table import Images
from snowmelt.guidance_model import guidance_arguments
from snowmelt.input_images import image_size
from snowmelt.loading import GIVEN_OPTIONS, choose_pipeline, set_scheduler
from snowmelt.model_source import find_source
from snowmelt.options import DataOptions, ImageOptions
from snowmelt.text.options import CaptionColumnOptions
from snowmelt.values import to_resolution

GRID_IMAGES = 64
PAIRS_SHOWN = 36
"""Samples of given images in the grid, each between what was given and the original."""


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
        self.by_text, by_image = isinstance(pipeline, TextPipeline), isinstance(pipeline, GivenImagePipeline)
        classes = 0 if self.by_text else pipeline.num_classes
        self._check_text()
        table.check_kind(config.metrics, self.by_text, by_image)
        table.check_features(config.metrics, config.features, classes)
        shape = self._shape(pipeline)
        kept = math.prod(shape) if self._keeps() else 0
        compared, scored = self._keeps() or table.compares_features(config.metrics), "clip_score" in config.metrics
        measured = compared or scored or any(name in PAIR_METRICS for name in config.metrics)
        # What is of no samples needs no more than are shown.
        self.count = config.num_images if measured else min(config.num_images, GRID_IMAGES)
        check_memory(self.count, kept + FEATURES)
        self.nfe = [self._evaluations(setting.config) for setting in self.settings]
        held_out = config.held_out_split and Split(config.held_out_split, "held_out_split")
        self.real = self._load(pipeline, Split(config.split), captions=self.by_text and not held_out)
        self.held_out = self._load(pipeline, held_out, captions=self.by_text) if held_out else None
        self.prompted = (self.held_out or self.real) if self.by_text else None
        captions = self.prompted.captions if self.prompted else None
        self.prompts = prompts_of(captions, self.count) if captions else []
        self.pairs = make_pairs(pipeline, self.held_out or self.real, self.count, config) if by_image else None
        table.check_counts(config.metrics, config.num_images, len(self.real))
        table.check_classes(config.metrics, classes, len(self.real.cache.class_names or []))
        for name in config.metrics:
            if name in EXTRAS:
                EXTRAS[name].refuse(pipeline, self.held_out)
        self.clip = ClipScore(config.clip_model_name_or_path, shape[0], state.device) if scored else None
        self.extractor = (
            make_features(config.features, self.real, self.held_out, state.device) if compared else NoFeatures()
        )
        self.reference = Reference(features_of(self.real, self.extractor, config.batch_size), config.split)
        table.check_counts(config.metrics, config.num_images, len(self.real), self.reference.features.shape[1])
        check_memory(self.count, kept + self.reference.features.shape[1])
        self.report = self._begin(pipeline)

    def pipeline(self, config: EvaluateConfig) -> Any:
        """The model as a setting has it, on this process's device.

        Raises:
            UserError: for a model of another kind, or as `choose_pipeline` and `set_scheduler`.
        """
        pipeline = choose_pipeline(config)
        if not isinstance(pipeline, UnconditionalPipeline | TextPipeline):
            raise UserError(
                f"--model: {config.model} is a {type(pipeline).__name__}; evaluated are models without a condition, by "
                "class or by text"
            )
        set_scheduler(pipeline, config.scheduler, pipeline.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self.state.device)

    def run(self) -> Report:
        """Sample, measure and write the report, anew after each value of a sweep."""
        config, report = self.config, self.report
        pipeline = self.pipeline(config)
        keep = self.count if self._keeps() else GRID_IMAGES
        samples = self._draw(pipeline, self.settings[0], keep)
        if self.state.is_main_process:
            report.baseline = self._baseline()
            report.results = self._compare(samples)
            config.folder.mkdir(parents=True, exist_ok=True)
            if pipeline.channels in IMAGE_CHANNELS:
                self._grid(samples).save(config.folder / "samples.png")
        case = self._case(pipeline, config, samples)
        extras = {name: EXTRAS[name].compute(case) for name in config.metrics if name in EXTRAS}
        report.results += [result for results in extras.values() for result in results]
        self._save()
        for setting, nfe in zip(self.settings[1:], self.nfe[1:], strict=True):
            # A value that is the configuration's own needs no new samples.
            drawn, swept = samples, {name: found for name, found in extras.items() if EXTRAS[name].swept}
            if setting.config != config:
                pipeline = self.pipeline(setting.config)
                drawn = self._draw(pipeline, setting, 0)
                case = self._case(pipeline, setting.config, drawn)
                swept = {name: EXTRAS[name].compute(case) for name in swept}
            if self.state.is_main_process:
                results = self._compare(drawn) + [result for found in swept.values() for result in found]
                report.sweep.append(SweepPoint(setting.parameter, setting.shown, nfe, drawn.seconds, results))
                self._save()
        return report

    def _grid(self, samples: Samples) -> Any:
        """The first samples, of given images between these and the originals."""
        images, columns = samples.images[:GRID_IMAGES], None
        if self.pairs:
            images, columns = self.pairs.beside(images[:PAIRS_SHOWN]), 3 * round(PAIRS_SHOWN**0.5 / 2)
        return image_grid((images * 255).round().byte().permute(0, 2, 3, 1).numpy(), columns)

    def _save(self) -> None:
        if self.state.is_main_process:
            self.report.save(self.config.folder)

    def _keeps(self) -> bool:
        """Whether a metric needs all samples."""
        return any(EXTRAS[name].keeps for name in self.config.metrics if name in EXTRAS)

    def _check_text(self) -> None:
        """Refuse options and metrics of captions where the model takes none."""
        for name in CaptionColumnOptions.fields():
            if getattr(self.config, name) and not self.by_text:
                raise UserError(
                    f"--{name}: is for a model that makes images from texts, and this takes none; leave it out"
                )

    def _shape(self, pipeline: ImagePipeline) -> tuple[int, int, int]:
        """(C, H, W) of the model's images."""
        return pipeline.channels, *image_size(pipeline)

    def _load(self, pipeline: ImagePipeline, split: Split, *, captions: bool) -> RealImages:
        """A split in the model's size, channels and units, and perhaps its captions."""
        resolution = to_resolution(*image_size(pipeline))
        given = {name: getattr(self.config, name) for name in ImageOptions.fields()}
        options, texts = DataOptions(**given, split=split.spec, resolution=resolution, center_crop=True), None
        if captions:
            column, skip_empty = self.config.caption_column, self.config.skip_empty_captions
            cache, texts = load_captioned(options, column, skip_empty=skip_empty, split=split)
        else:
            cache = load_images(options, split)
        if cache.channels != pipeline.channels:
            raise UserError(
                f"{split}: images of {cache.channels} channels, but the model's have {pipeline.channels}; give "
                "the data that it was trained on, with the same --channels"
            )
        return RealImages(cache, split.spec, pipeline.config.get("value_range") or cache.value_range, texts)

    def _draw(self, pipeline: ImagePipeline, setting: Setting, keep: int) -> Samples:
        prepare = rounded if self.real.cache.dtype == "uint8" else torch.clone
        options = setting.config
        arguments: dict[str, Any] = {"prompts": self.prompts, "clip": self.clip, "pairs": self.pairs}
        arguments |= self._guidance(pipeline, options)
        return draw(pipeline, options, self.count, self.extractor, self.state, prepare=prepare, keep=keep, **arguments)

    def _guidance(self, pipeline: ImagePipeline, config: EvaluateConfig) -> dict[str, Any]:
        return guidance_arguments(config, pipeline, config.guidance_scale, self.state.device)

    def _evaluations(self, config: EvaluateConfig) -> int:
        pipeline = self.pipeline(config)
        given = blank(pipeline) if isinstance(pipeline, GivenImagePipeline) else {}
        return evaluations(pipeline, config, prompts=[""] * self.by_text, **given, **self._guidance(pipeline, config))

    def _compare(self, samples: Samples) -> list[table.Result]:
        return table.compare(self.config.metrics, samples.measured, self.reference, self.extractor, self.config.seed)

    def _baseline(self) -> dict[str, list[table.Result]]:
        """What real images get: those of the reference, and as many held-out ones."""
        config, extractor = self.config, self.extractor
        real = Images(self.reference.features, self.real.labels)
        own, results = table.baseline(config.metrics, config.num_images, real, self.reference, extractor, config.seed)
        found = {own: results}
        # Without a held-out split, images of the reference are beside the model's by their captions alone.
        others, metrics = (self.held_out, config.metrics) if self.held_out else (self.prompted, ["clip_score"])
        if others is not None:
            features = features_of(others, extractor, config.batch_size)
            rows = np.random.default_rng([config.seed, 2]).permutation(len(features))[: config.num_images]
            if self.prompted:
                rows = np.unique(captioned_rows(len(others), self.count))
            scores = real_scores(others, rows, self.clip, config.batch_size) if self.clip else None
            images = Images(features, others.labels).of(torch.from_numpy(rows))
            images = replace(images, clip_scores=scores)
            title = f"{len(rows):,} images of {others.split}"
            found[title] = table.compare(metrics, images, self.reference, extractor, config.seed)
        return {title: results for title, results in found.items() if results}

    def _begin(self, pipeline: Any) -> Report:
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
        own_scale = inspect.signature(pipeline.__call__).parameters["guidance_scale"].default
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
                **({"captions": self.prompted.split} if self.prompted else {}),
                **({"given_images": self.pairs.images.split} if self.pairs else {}),
            },
            num_images=self.count,
            features=features,
            sampler={
                "scheduler": ", ".join(filter(None, (scheduler, churn, guide))),
                "num_inference_steps": config.num_inference_steps or pipeline.default_steps,
                "nfe": self.nfe[0],
                "guidance_scale": own_scale if config.guidance_scale is None else config.guidance_scale,
                "eta": config.eta,
                "seed": config.seed,
                **{name: value for name in GIVEN_OPTIONS if (value := getattr(config, name)) is not None},
            },
            warnings=caveats(config, pipeline, self.real, self.reference, self.prompts, self.pairs),
        )

    def _case(self, pipeline: Any, options: EvaluateConfig, samples: Samples) -> Case:
        names = ("seed", "batch_size", "likelihood_images", "num_images", "folder")
        given = {name: getattr(self.config, name) for name in names}
        return Case(pipeline, options, samples.images, self.real, self.held_out, self.extractor, self.state, **given)
