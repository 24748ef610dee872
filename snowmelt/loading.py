"""Trained pipelines, found and sampled as the options of `generate.py` and `evaluate.py` say.

torch and diffusers are imported inside the functions, so that `--help` doesn't wait for them.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snowmelt.config import Config, option
from snowmelt.errors import UserError

if TYPE_CHECKING:
    from pipelines import PixelDiffusionPipeline

CHURN_OPTIONS = ("s_tmin", "s_tmax", "s_noise")


@dataclass(kw_only=True)
class PipelineOptions(Config):
    """Model."""

    model: str | None = option(None, "folder or Hub repository of the pipeline; required")
    revision: str | None = option(None, "branch, tag or commit of the repository")
    checkpoint: str | None = option(None, "checkpoint of the run's folder to take the weights from, by name or step")
    ema: float | None = option(
        None, "sigma_rel of the EMA to sample from, of those beside the model", above=0, maximum=1
    )
    torch_dtype: str = option(
        "float32", "precision of the network's passes", choices=("float32", "bfloat16", "float16")
    )
    compile: bool = option(False, "torch.compile the network: pays for thousands of images, after a minute or more")
    guidance_model: str | None = option(
        None, "worse model to guide by in place of the null class (Karras et al. 2024), as --model names one"
    )
    guidance_checkpoint: str | None = option(
        None, "checkpoint of it, by name or step; without --guidance_model, an earlier one of the model itself"
    )
    guidance_ema: float | None = option(None, "sigma_rel of its EMA, as --ema", above=0, maximum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is None:
            raise UserError("--model: needed; give the folder or the Hub repository of a pipeline")

    @property
    def is_autoguided(self) -> bool:
        """Whether another model guides, or another state of the same."""
        return bool(self.guidance_model or self.guidance_checkpoint or self.guidance_ema)


@dataclass(kw_only=True)
class SamplerOptions(Config):
    """Sampling."""

    batch_size: int = option(64, "images per process and forward pass", minimum=1)
    num_inference_steps: int | None = option(
        None, "steps; 50 by default, 4 of flow maps, 2 of consistency models", minimum=1, maximum=100_000
    )
    scheduler: str | None = option(None, "sampler, such as ddim, unipc or flow-heun; the model's own by default")
    eta: float = option(0.0, "noise of ddim, from 0 (none) to 1 (as ddpm)", minimum=0, maximum=1)
    s_churn: float | None = option(
        None, "noise before the steps of euler and heun, all together (Karras et al. 2022)", minimum=0, maximum=100_000
    )
    s_tmin: float | None = option(None, "least sigma / alpha at which --s_churn adds noise (0)", minimum=0)
    s_tmax: float | None = option(None, "largest sigma / alpha at which it does (no limit)", minimum=0)
    s_noise: float | None = option(
        None, "standard deviation of that noise, over what keeps the noise level exact (1)", minimum=0, maximum=1000
    )
    predictor: str | None = option(
        None,
        "of a score-based SDE, in place of a scheduler: the step from one time to the next",
        choices=("reverse_diffusion", "euler_maruyama", "ancestral", "none", "probability_flow"),
    )
    corrector: str | None = option(
        None, "of a score-based SDE: the size of Langevin steps", choices=("langevin", "annealed_langevin")
    )
    num_corrector_steps: int | None = option(
        None, "of a score-based SDE: Langevin steps at each time; the model's own by default", minimum=0, maximum=1000
    )
    snr: float | None = option(
        None, "of a score-based SDE: signal-to-noise ratio of the corrector", above=0, maximum=1000
    )
    tolerance: float | None = option(
        None, "of probability_flow: relative and absolute, of its solver (1e-5)", above=0, maximum=1
    )
    guidance_scale: float | None = option(
        None,
        "weight of the class or the prompt against none; 1 for no guidance; the model's own by default",
        minimum=0,
        maximum=1000,
    )
    image_guidance_scale: float | None = option(
        None, "weight of the given image against none, for models of --condition (1)", minimum=0, maximum=1000
    )
    noise_level: float | None = option(
        None,
        "of noise that is added to the given image, for models trained with --max_noise_level (0)",
        minimum=0,
        below=1,
    )
    controlnet_conditioning_scale: float | None = option(
        None, "of what a ControlNet adds to the network's features (1)", minimum=0, maximum=1000
    )
    guidance_interval: list[float] = option([], "guide only where LO < sigma / alpha <= HI", minimum=0)
    seed: int = option(0, "all randomness follows from it and an image's index", minimum=0, maximum=2**63 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in CHURN_OPTIONS:
            if getattr(self, name) is not None and not self.s_churn:
                raise UserError(f"--{name}: is of the noise that --s_churn adds; give that too")
        if len(self.guidance_interval) not in (0, 2):
            raise UserError(f"--guidance_interval: takes LO and HI, got {len(self.guidance_interval)} numbers")
        if self.guidance_interval and not self.guidance_interval[0] < self.guidance_interval[1]:
            low, high = self.guidance_interval
            raise UserError(f"--guidance_interval: LO must be less than HI, got {low} and {high}")


@dataclass(kw_only=True)
class SizeOptions(Config):
    """Size of images."""

    height: int | None = option(None, "of images in pixels; the trained one by default", minimum=1, maximum=65_536)
    width: int | None = option(None, "of images in pixels; the trained one by default", minimum=1, maximum=65_536)

    @property
    def size(self) -> dict[str, int]:
        """Of `height` and `width` those that are given."""
        return {name: side for name in ("height", "width") if (side := getattr(self, name)) is not None}


def load_pipeline(model: str, revision: str | None = None) -> "PixelDiffusionPipeline":
    """A pipeline, of whichever class of ours, from a folder or a repository of the Hub.

    Raises:
        UserError: if there is no such model, or it isn't whole.
    """
    from snowmelt.model_source import find_source

    return find_source(model, revision).load()


def choose_pipeline(options: PipelineOptions) -> "PixelDiffusionPipeline":
    """The pipeline, with the weights that were asked for.

    Raises:
        UserError: if there is no such model, checkpoint or EMA, or it isn't whole.
    """
    import torch

    from pipelines.controlnet import CONTROLNET
    from snowmelt.model_source import find_source

    pipeline = find_source(str(options.model), options.revision, options.checkpoint, options.ema).load()
    for part in (pipeline.network, getattr(pipeline, CONTROLNET, None)):
        if part is not None:  # `to` would warn of modules to keep in float32, of which this network has none
            part.type(getattr(torch, options.torch_dtype))
    if options.compile:
        pipeline.network.compile()
    return pipeline


GIVEN_OPTIONS = {
    # option: the models that it is for
    "image_guidance_scale": "a --condition",
    "noise_level": "a --condition",
    "controlnet_conditioning_scale": "a --controlnet",
}
SDE_OPTIONS = ("predictor", "corrector", "num_corrector_steps", "snr", "tolerance")


def set_scheduler(pipeline: "PixelDiffusionPipeline", name: str | None, own: Any) -> None:
    """Give the pipeline a sampler.

    Args:
        pipeline: the pipeline, whose scheduler is replaced.
        name: of the sampler; None gives `own` back.
        own: the scheduler that was saved with the model, for which the sampler is set up.

    Raises:
        UserError: if there is no such sampler, or it doesn't fit the model.
    """
    from pipelines import ScoreSdePipeline, make_scheduler

    if name is not None and isinstance(pipeline, ScoreSdePipeline):
        raise UserError(f"--scheduler {name}: this model is a score-based SDE; choose its --predictor instead")
    try:
        pipeline.scheduler = own if name is None else make_scheduler(name, own)
    except ValueError as error:
        raise UserError(f"--{error}") from error


def sample(
    pipeline: "PixelDiffusionPipeline",
    options: SamplerOptions,
    indices: Sequence[int],
    *,
    class_label: str | None = None,
    prompts: Sequence[str] = (),
    **arguments: Any,
) -> Any:
    """The pipeline's output for the images of these indices, each of which depends on (seed, its index) alone.

    Args:
        pipeline: the pipeline.
        options: of the sampler.
        indices: numbers of the images.
        class_label: of all images, as a number or a name; None: all classes in turn.
        prompts: of the images in turn, for a model of text.
        arguments: further ones of the pipeline.

    Raises:
        UserError: for what the pipeline refuses, or more images than memory holds.
    """
    from pipelines import image_generators

    by_text = "tokenizer" in pipeline.components
    if by_text != bool(prompts):
        why = "needed by this model, which makes images from texts" if by_text else "this model takes no text"
        raise UserError(f"--prompt: {why}")
    given: dict[str, Any] = {"prompt": [prompts[index % len(prompts)] for index in indices]} if by_text else {}
    if not by_text:
        given = {"batch_size": len(indices), "class_labels": labels_of(pipeline, indices, class_label)}
    elif class_label is not None:
        raise UserError("--class_label: this model has no classes; give --prompt alone")
    if options.guidance_scale is not None:
        given["guidance_scale"] = options.guidance_scale
    given |= sampler_arguments(pipeline, options)
    interval = (options.guidance_interval[0], options.guidance_interval[1]) if options.guidance_interval else None
    try:
        return pipeline(
            guidance_interval=interval,
            num_inference_steps=options.num_inference_steps or pipeline.default_steps,
            generator=image_generators(options.seed, indices),
            **given | arguments,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise UserError(
            f"--batch_size: {len(indices)} images at a time take more memory than there is; take fewer"
        ) from error


def sampler_arguments(pipeline: "PixelDiffusionPipeline", options: SamplerOptions) -> dict[str, Any]:
    """Arguments that not every pipeline takes.

    Raises:
        UserError: for options that are another kind of model's.
    """
    from pipelines import ScoreSdePipeline

    given = {name: value for name in GIVEN_OPTIONS if (value := getattr(options, name)) is not None}
    for name in given:
        if name not in inspect.signature(pipeline.__call__).parameters:
            own = type(pipeline).__name__
            raise UserError(f"--{name}: is for models of {GIVEN_OPTIONS[name]}, and this is a {own}; leave it out")
    most = pipeline.config.get("max_noise_level") or 0.0
    if given.get("noise_level", 0) > most:
        raise UserError(f"--noise_level {given['noise_level']:g}: this model was trained with at most {most:g}")
    chosen = {name: value for name in SDE_OPTIONS if (value := getattr(options, name)) is not None}
    if isinstance(pipeline, ScoreSdePipeline):
        for name, fitting in (("eta", "ddim"), ("s_churn", "euler and heun")):
            if getattr(options, name):
                raise UserError(
                    f"--{name}: is for --scheduler {fitting}, and this model is a score-based SDE; choose its "
                    "--predictor"
                )
        return chosen
    if chosen:
        raise UserError(
            f"--{next(iter(chosen))}: is for score-based SDEs (--objective ve, vp or subvp), and this model is none; "
            "choose its --scheduler instead"
        )
    churn = {name: value for name in ("s_churn", *CHURN_OPTIONS) if (value := getattr(options, name)) is not None}
    return {"eta": options.eta} | churn | given


def labels_of(pipeline: "PixelDiffusionPipeline", indices: Sequence[int], class_label: str | None) -> Any:
    """Labels of images, as a pipeline takes them.

    Args:
        pipeline: the pipeline.
        indices: numbers of the images.
        class_label: as in `sample`.
    """
    if class_label is None:
        return [index % pipeline.num_classes for index in indices] if pipeline.num_classes else None
    by_number = class_label.isdecimal() and class_label not in (pipeline.id2label or {}).values()
    return int(class_label) if by_number else class_label
