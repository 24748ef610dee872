"""The model that another one is guided by (Karras et al. 2024, autoguidance): found, and compared with it."""

import re
from typing import Any

import torch

from pipelines import ScoreSdePipeline, make_sampler
from pipelines.guidance_model import check_guidance_model
from pipelines.schedulers import family
from pipelines.unconditional import UnconditionalPipeline
from snowmelt.errors import UserError
from snowmelt.loading import PipelineOptions
from snowmelt.model_source import Source, find_source


def guidance_source(options: PipelineOptions) -> Source:
    """Where the guiding model is: a model of its own, or a checkpoint or EMA of the guided one.

    Raises:
        UserError: if there is none.
    """
    own = options.guidance_model is None
    model, revision = (options.model, options.revision) if own else (options.guidance_model, None)
    try:
        return find_source(str(model), revision, options.guidance_checkpoint, options.guidance_ema)
    except UserError as error:  # whose flags are those of the guided model
        raise UserError(re.sub("--(model|checkpoint|ema)", r"--guidance_\1", str(error))) from error


def guidance_arguments(
    options: PipelineOptions, pipeline: Any, scale: float | None, device: torch.device
) -> dict[str, Any]:
    """Arguments of a pipeline's call: `guidance_model`, if the options name one.

    Args:
        options: which model guides, and its precision.
        pipeline: the one to be guided, with a scheduler that fits it.
        scale: `guidance_scale`.
        device: where the pipeline is to run.

    Raises:
        UserError: if there is no such model, or it can't guide this one.
    """
    if not options.is_autoguided:
        return {}
    if scale is None:
        raise UserError(
            "--guidance_scale: needed by --guidance_model; with 1, the model's own weight, it has no effect"
        )
    flag = "--guidance_model" if options.guidance_model else "--guidance_checkpoint"
    if not isinstance(pipeline, UnconditionalPipeline):
        raise UserError(
            f"{flag}: a {type(pipeline).__name__} takes none, but models without a condition or by class do"
        )
    guide = guidance_source(options).load()
    if not isinstance(guide, UnconditionalPipeline):
        raise UserError(f"{flag}: is a {type(guide).__name__}; take a model without a condition or by class")
    for what, own, other in (
        ("trained for", _process(guide), _process(pipeline)),
        ("one that predicts", _prediction_type(guide), _prediction_type(pipeline)),
        ("one of autoencoder", type(guide.vae).__name__, type(pipeline.vae).__name__),
        ("one of classes", guide.id2label, pipeline.id2label),
    ):
        if own != other:
            raise UserError(f"{flag}: is {what} {own}, and --model {other}; take one trained alike")
    if _process(guide) == "discrete" and not _same_betas(guide.scheduler, pipeline.scheduler):
        raise UserError(f"{flag}: was trained on other betas than --model; take one trained alike")
    network = guide.network.type(getattr(torch, options.torch_dtype)).to(device)
    try:
        check_guidance_model(network, pipeline.network, device)
    except ValueError as error:
        raise UserError(str(error).replace("guidance_model", flag, 1)) from error
    return {"guidance_model": network}


def _process(pipeline: UnconditionalPipeline) -> str:
    return str(pipeline.sde) if isinstance(pipeline, ScoreSdePipeline) else family(pipeline.scheduler)


def _prediction_type(pipeline: UnconditionalPipeline) -> str:
    sde = isinstance(pipeline, ScoreSdePipeline)
    kind = (pipeline.predictor() if sde else pipeline._predictor(make_sampler(pipeline.scheduler))).prediction_type
    return f"{kind.name} (sigma_data {kind.sigma_data})" if kind.name == "edm" else str(kind.name)


def _same_betas(one: Any, other: Any) -> bool:
    return len(one.betas) == len(other.betas) and torch.allclose(one.alphas_cumprod, other.alphas_cumprod, atol=1e-6)
