"""Models that make images of given ones, judged by pairs of what is given and the image that it was made of."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines import GivenImagePipeline
from pipelines.backbones import trained_size
from pipelines.image_conditions import Column
from snowmelt.data.splits import Split
from snowmelt.errors import UserError
from snowmelt.evaluation.generation import captioned_rows
from snowmelt.evaluation.options import EvaluateConfig
from snowmelt.evaluation.real import RealImages
from snowmelt.image_conditions import ConditionImages, drawn_inputs, load_column
from snowmelt.options import DataOptions, ImageOptions
from snowmelt.spaces import PixelSpace
from snowmelt.values import to_resolution


@dataclass(frozen=True)
class Pairs:
    """What samples are made of.

    Attributes:
        images: the originals.
        given: how what is given is made of them.
        rows: the original of each sample, (N,).
        seed: of what is random in that.
        labelled: whether the model is conditioned on their classes.
    """

    images: RealImages
    given: ConditionImages
    rows: np.ndarray
    seed: int
    labelled: bool

    def arguments(self, indices: range) -> dict[str, Any]:
        """Of a pipeline's call for the samples of these numbers."""
        rows = self.rows[indices.start : indices.stop]
        arguments, _ = self.given.pairs(self.images.cache, rows, self.seed)
        return arguments | ({"class_labels": self.labels[torch.from_numpy(rows)].tolist()} if self.labelled else {})

    @property
    def labels(self) -> Tensor:
        """Classes of all originals."""
        labels = self.images.labels
        assert labels is not None  # make_pairs refused
        return labels

    def originals(self, indices: range) -> Tensor:
        """Images (B, C, H, W) in [0, 1] that belong to the samples of these numbers."""
        return self.images.batch(self.rows[indices.start : indices.stop])

    def beside(self, samples: Tensor) -> Tensor:
        """What is given, the sample and the original in turn, (3 N, C, H, W), of the first samples (N, C, H, W)."""
        indices = range(len(samples))
        originals = self.originals(indices)
        inputs = drawn_inputs(self.arguments(indices), tuple(originals.shape[1:]))
        return torch.stack([inputs, samples, originals], 1).flatten(0, 1)


def blank(pipeline: GivenImagePipeline) -> dict[str, Any]:
    """Arguments of a call that makes one image of a gray one."""
    sides = [
        int(side or 8) * pipeline.vae_scale_factor // pipeline.condition.scale
        for side in trained_size(pipeline.network)
    ]
    masked = {"mask_image": torch.ones(1, 1, *sides)} if pipeline.condition.mask_channels else {}
    return {"image": torch.full((1, pipeline.input_channels, *sides), 0.5), **masked}


def make_pairs(pipeline: GivenImagePipeline, images: RealImages, count: int, config: EvaluateConfig) -> Pairs:
    """Pairs for `count` samples, of the images in order, or of some of more.

    Args:
        pipeline: the model.
        images: the originals.
        count: samples.
        config: where the data are, and the seed.

    Raises:
        UserError: if there is no such column of the data set, or it doesn't fit the model.
    """
    condition, given = pipeline.condition, None
    if isinstance(condition, Column):
        options = {name: getattr(config, name) for name in ImageOptions.fields()}
        options |= {"resolution": to_resolution(*images.cache.size), "center_crop": True, "split": images.split}
        latent = pipeline.vae is not None
        given = load_column(DataOptions(**options), condition, images.cache, latent, Split(images.split))
        given = replace(given, value_range=pipeline.config.get("condition_range") or given.value_range)
        if given.channels != pipeline.input_channels:
            wanted = pipeline.input_channels
            raise UserError(
                f"--model: takes {wanted} channels of column {condition.column}, which has {given.channels}"
            )
    by_class = bool(getattr(pipeline, "num_classes", 0))  # of which models of texts have none
    if by_class and images.labels is None:
        raise UserError("--label_column: needed by this model of classes; name the column that has them")
    names, known = images.cache.class_names, getattr(pipeline, "id2label", None)
    if by_class and known and list(known.values()) != names:
        ours, theirs = ", ".join(names or []), ", ".join(known.values())
        raise UserError(
            f"{images.split}: its classes are {ours}, and the model's {theirs}; give the data of its training"
        )
    made_of = ConditionImages(condition, PixelSpace(images.value_range), pipeline.input_channels, given)
    rows = captioned_rows(len(images), count)
    return Pairs(images, made_of, rows, config.seed, by_class)
