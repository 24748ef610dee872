"""Models that others begin with or learn from: whether the two are of the same data, and of the same network."""

import json
from typing import Any

import torch
from torch import nn

from pipelines import ScoreSdePipeline, make_sampler
from pipelines.backbones import trained_size
from pipelines.schedulers import family
from pipelines.unconditional import UnconditionalPipeline
from snowmelt.errors import UserError
from snowmelt.model_source import Source, find_source
from snowmelt.spaces import LatentSpace, PixelSpace

FIRST_LAYERS = ("conv_in.weight", "pos_embed.proj.weight")
"""Of a UNet and of a transformer: (outputs, input channels, height, width)."""
FREE = ("in_channels", "sample_size", "dropout")
"""Settings of a network that another one's weights don't depend on."""


def find_other(name: str, flag: str) -> Source:
    """The model that a flag names, found and, as far as that is quick, checked.

    Raises:
        UserError: if there is none.
    """
    try:
        return find_source(name)
    except UserError as error:  # whose flag is that of generate.py
        raise UserError(str(error).replace("--model", flag)) from error


def check_same_data(other: Any, own: UnconditionalPipeline, flag: str) -> None:
    """Refuse a model of other images than those that another one makes.

    Args:
        other: what was loaded.
        own: the one that is to be trained.
        flag: that named the other, with its value.

    Raises:
        UserError: naming what differs.
    """
    if not isinstance(other, UnconditionalPipeline) or isinstance(other, ScoreSdePipeline):
        raise UserError(f"{flag}: is a {type(other).__name__}; take a model without a condition or by class")
    theirs, ours = (
        {"shape": _shape(p), "number of classes": p.num_classes, "classes": p.id2label, "value_range": _range(p)}
        for p in (other, own)
    )
    _check_equal(theirs, ours, flag, "take one of the same data")
    vaes = [p.vae and LatentSpace(p.vae, PixelSpace()).fingerprint for p in (other, own)]
    if vaes[0] != vaes[1]:
        raise UserError(f"{flag}: its autoencoder is another than --autoencoder; take one of the same latents")


def begin_with(other: Any, own: UnconditionalPipeline, flag: str) -> None:
    """Give a network the weights of another model's, which must be read alike.

    A first layer may have more input channels than the other's: what these bring in counts for nothing at first.

    Args:
        other: a pipeline that `check_same_data` accepts.
        own: whose network is changed.
        flag: that named the other, with its value.

    Raises:
        UserError: for a network of another shape, or one that predicts another thing.
    """
    _check_equal(
        _reading(other), _reading(own), flag, "give the options that it was trained with, or soflow for a flow"
    )
    if other.config.get("flow_map") and not own.config.get("flow_map"):
        raise UserError(f"{flag}: is a flow map; add --objective soflow or meanflow")
    weights, needed_weights = other.network.state_dict(), own.network.state_dict()
    for name in FIRST_LAYERS:
        if name in weights and name in needed_weights:
            more = needed_weights[name].shape[1] - weights[name].shape[1]
            weights[name] = nn.functional.pad(weights[name], (0, 0, 0, 0, 0, max(more, 0)))
    shapes, needed_shapes = (
        {name: tuple(value.shape) for name, value in part.items()} for part in (weights, needed_weights)
    )
    if shapes != needed_shapes:
        raise UserError(f"{flag}: its network is of another shape; give the options that it was trained with")
    with torch.no_grad():
        own.network.load_state_dict(weights)


def _shape(pipeline: UnconditionalPipeline) -> tuple[Any, ...]:
    return pipeline.data_channels, *trained_size(pipeline.network)


def _range(pipeline: UnconditionalPipeline) -> Any:
    found = pipeline.config.get("value_range")
    return None if found is None else tuple(found)


def _reading(pipeline: UnconditionalPipeline) -> dict[str, Any]:
    """What a network's weights mean: of what process, what it predicts, what its inputs are, how it is built."""
    predicts = pipeline._predictor(make_sampler(pipeline.scheduler)).prediction_type
    betas = getattr(pipeline.scheduler, "betas", None)
    saved = json.loads(pipeline.network.to_json_string())  # in memory tuples stand where a file has lists
    config = {k: v for k, v in saved.items() if k not in FREE and not k.startswith("_")}
    return {
        "network": type(pipeline.network).__name__,
        "process": family(pipeline.scheduler),
        "prediction": f"{predicts.name} (sigma_data {predicts.sigma_data})"
        if predicts.name == "edm"
        else predicts.name,
        "betas": None if betas is None else f"{len(betas)} from {betas[0]:.3g} to {betas[-1]:.3g}",
        "self_condition": pipeline.config.get("self_condition"),
        "augment_channels": pipeline.config.get("augment_channels"),
        **config,
    }


def _check_equal(theirs: dict[str, Any], ours: dict[str, Any], flag: str, remedy: str) -> None:
    for what, value in theirs.items():
        if value != ours.get(what):
            raise UserError(f"{flag}: its {what} is {value}, and this model's {ours.get(what)}; {remedy}")
