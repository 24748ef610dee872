"""The one model of a page: what it can do, and how it is sampled."""

import inspect
import threading
import time
from dataclasses import dataclass
from typing import Any

import PIL.Image
import PIL.ImageOps
import torch
from diffusers import CMStochasticIterativeScheduler

from pipelines import IMAGE_CHANNELS, GivenImagePipeline, ScoreSdePipeline, fitting_schedulers
from pipelines.backbones import num_class_embeds, trained_size
from pipelines.editing_pipeline import EditingPipeline
from pipelines.predictor_corrector import PREDICTORS
from pipelines.schedulers import INVERTIBLE, family
from snowmelt.app.watched import Report
from snowmelt.errors import UserError
from snowmelt.loading import SamplerOptions, load_pipeline, sample, set_scheduler

OWN = "own"
"""Stands for the scheduler that was saved with the model."""
BETWEEN_PREVIEWS = 0.3
"""Seconds, at least: drawing and sending each step would take longer than small networks do."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How images are made: what every action of the page is given.

    Attributes:
        prompt: for a model of texts.
        negative_prompt: what it is guided away from.
        class_label: name or number; empty for all classes in turn, and for models without classes.
        num_images: how many.
        seed: image i is the one that generate.py makes of this seed and number i.
        num_inference_steps: steps of the scheduler.
        scheduler: its name, the predictor's of a score-based SDE, or `OWN`.
        eta: noise of DDIM.
        guidance_scale: of the class or the prompt.
        height: of the images in pixels.
        width: of the images in pixels.
    """

    prompt: str = ""
    negative_prompt: str = ""
    class_label: str = ""
    num_images: int = 4
    seed: int = 0
    num_inference_steps: int = 50
    scheduler: str = OWN
    eta: float = 0.0
    guidance_scale: float = 1.0
    height: int = 64
    width: int = 64


@dataclass(frozen=True)
class Preview:
    """What is expected of images while they are made.

    Attributes:
        images: the predicted x0.
        step: the number of steps made.
        steps: the number of all.
    """

    images: list[PIL.Image.Image]
    step: int
    steps: int


@dataclass(frozen=True)
class Limits:
    """What one call may ask for."""

    images: int = 16
    steps: int = 250
    side: int = 1024
    """Of an image in pixels."""
    columns: int = 12
    """Samplers that are compared at once, each with its number of steps."""

    def check(self, settings: Settings) -> None:
        """Refuse settings beyond them.

        Raises:
            UserError: naming the setting and its range.
        """
        ranges: dict[str, tuple[int, int]] = {
            "num_images": (1, self.images),
            "num_inference_steps": (1, self.steps),
            "height": (1, self.side),
            "width": (1, self.side),
            "seed": (0, 2**32 - 1),
        }
        for name, (low, high) in ranges.items():
            value = getattr(settings, name)
            if not isinstance(value, int | float) or value != value // 1 or not low <= value <= high:
                raise UserError(f"{name}: must be a whole number from {low} to {high}, is {value}")


class Model:
    """A pipeline, as a page offers it.

    Args:
        name: folder or Hub repository.
        revision: of the repository.
        limits: of one call.

    Raises:
        UserError: if there is no such model, or its images can't be shown.
    """

    def __init__(self, name: str, revision: str | None = None, limits: Limits | None = None) -> None:
        pipeline: Any = load_pipeline(name, revision)
        if pipeline.channels not in IMAGE_CHANNELS:
            raise UserError(f"--model: can't show images of {pipeline.channels} channels; generate.py writes arrays")
        pipeline.to(torch.accelerator.current_accelerator() or "cpu")
        pipeline.set_progress_bar_config(disable=True)
        self.name = name
        self.pipeline = pipeline
        self.scheduler = pipeline.scheduler
        self.lock = threading.Lock()
        height, width = trained_size(pipeline.network)
        if height is None or width is None:
            raise UserError("--model: its network doesn't say which size it was trained for")
        self.height, self.width = (side * pipeline.vae_scale_factor for side in (height, width))
        self.limits = limits or Limits(steps=1000 if self.by_score else 250, side=max(1024, self.height, self.width))

    @property
    def by_text(self) -> bool:
        """Whether it takes prompts."""
        return "tokenizer" in self.pipeline.components

    @property
    def classes(self) -> list[str]:
        """Names or numbers of its classes, if it has any."""
        if self.by_text:
            return []
        names = self.pipeline.id2label or {}
        return [names.get(number, str(number)) for number in range(self.pipeline.num_classes)]

    @property
    def by_score(self) -> bool:
        """Whether it is a score-based SDE, with a predictor in place of a scheduler."""
        return isinstance(self.pipeline, ScoreSdePipeline)

    @property
    def samplers(self) -> list[str]:
        """Schedulers or predictors that fit it, its own first."""
        # The ODE shows no steps, at which it could be stopped, and "none" needs a corrector.
        return (
            [OWN, *(n for n in PREDICTORS if n != "none")]
            if self.by_score
            else [OWN, *fitting_schedulers(self.scheduler)]
        )

    def takes_eta(self, sampler: str) -> bool:
        """Whether DDIM's noise means something to a sampler of this model."""
        name = type(self.scheduler).__name__ if sampler == OWN else sampler
        return name in ("ddim", "DDIMScheduler")

    @property
    def is_guided(self) -> bool:
        """Whether guidance means something: by a text, or against the null class."""
        return self.by_text or len(self.classes) < (num_class_embeds(self.pipeline.network) or 0)

    @property
    def condition(self) -> Any:
        """What it makes images of, an `ImageCondition`; None for one that makes them of noise."""
        return self.pipeline.condition if isinstance(self.pipeline, GivenImagePipeline) else None

    @property
    def edits(self) -> bool:
        """Whether it varies images and paints parts of them anew."""
        return isinstance(self.pipeline, EditingPipeline) and self.condition is None

    @property
    def between(self) -> str | None:
        """The deterministic sampler by which it goes from one seed to another; None for a model that has none."""
        if self.condition is not None or self.by_score or isinstance(self.scheduler, CMStochasticIterativeScheduler):
            return None
        return INVERTIBLE[family(self.scheduler)]

    @property
    def usual_steps(self) -> int:
        """Steps of a call that says nothing of them."""
        default = inspect.signature(self.pipeline.__call__).parameters["num_inference_steps"].default
        return int(default or self.pipeline.default_steps)

    @property
    def usual_guidance(self) -> float:
        """Guidance of a call that says nothing of it: what was measured best for models of its kind."""
        return float(inspect.signature(self.pipeline.__call__).parameters["guidance_scale"].default)

    @property
    def takes_size(self) -> bool:
        """Whether images of another size can be asked for."""
        return self.condition is None

    def fitted(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """An image of any size as the model knows images: its middle, resized."""
        channels = self.pipeline.input_channels if self.condition else self.pipeline.channels
        scale = self.condition.scale if self.condition else 1
        size = (self.width // scale, self.height // scale)
        # Means of areas give back exactly what was enlarged to be painted on.
        method = PIL.Image.Resampling.BOX if image.width >= size[0] else PIL.Image.Resampling.BICUBIC
        return PIL.ImageOps.fit(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]), size, method)

    def sample(self, settings: Settings, report: Report, **arguments: Any) -> Any:
        """The pipeline's output for these settings, as `generate.py` has it.

        Args:
            settings: within the limits.
            report: called at each step, from time to time with a `Preview`.
            arguments: further ones of the pipeline.

        Raises:
            UserError: for what the model refuses.
        """
        self.limits.check(settings)
        last, made = 0.0, 0

        def on_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal last, made
            made += 1  # a step that is repeated has the number that it had before
            preview = None
            if time.monotonic() - last >= BETWEEN_PREVIEWS:
                images = pipeline.to_images(pipeline.decode(tensors["pred_original_sample"]), "pil")
                steps = round(len(pipeline.scheduler.timesteps) * arguments.get("strength", 1))
                preview = Preview(images, made, max(made, steps))
                last = time.monotonic()
            report(preview)
            return {}

        chosen = None if settings.scheduler == OWN else settings.scheduler
        if chosen is not None and chosen not in self.samplers:
            raise UserError(f"scheduler: {chosen!r} doesn't fit this model; these do: {', '.join(self.samplers)}")
        if not self.by_score:
            set_scheduler(self.pipeline, chosen, self.scheduler)
        options = SamplerOptions(
            num_inference_steps=int(settings.num_inference_steps),
            eta=settings.eta,
            guidance_scale=settings.guidance_scale if self.is_guided else None,
            seed=int(settings.seed),
            predictor=chosen if self.by_score else None,
        )
        if self.by_text:
            arguments["negative_prompt"] = settings.negative_prompt or None
        if self.takes_size and "image" not in arguments and "latents" not in arguments:
            arguments |= {"height": int(settings.height), "width": int(settings.width)}
        return sample(
            self.pipeline,
            options,
            range(int(settings.num_images)),
            class_label=settings.class_label or None,
            prompts=[settings.prompt] if self.by_text else (),
            callback_on_step_end=on_step,
            callback_on_step_end_tensor_inputs=["pred_original_sample"],
            **arguments,
        )
