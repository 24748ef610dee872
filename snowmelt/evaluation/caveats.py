"""What makes the figures of an evaluation less than they seem."""

from collections.abc import Sequence
from typing import Any

from pipelines.text import max_tokens
from snowmelt.evaluation.metrics import frechet_bias
from snowmelt.evaluation.options import EvaluateConfig
from snowmelt.evaluation.pairs import Pairs
from snowmelt.evaluation.real import RealImages
from snowmelt.evaluation.reference import Reference

ENOUGH = 10
"""Images per dimension of the features from which on a Frechet distance isn't called biased: what is left by
`frechet_bias` for isotropic features is then a fortieth of their variance."""


def caveats(
    config: EvaluateConfig,
    pipeline: Any,
    real: RealImages,
    reference: Reference,
    prompts: Sequence[str],
    pairs: Pairs | None,
) -> list[str]:
    """Sentences for the report: of too few images, uneven classes, and captions that are cut.

    Args:
        config: number of images, and metrics.
        pipeline: the model.
        real: images that samples are compared with.
        reference: their features.
        prompts: of the samples; none for a model that takes no texts.
        pairs: of a model of given images.
    """
    found = []
    classes = 0 if prompts or pairs else pipeline.num_classes
    count, dimensions = min(config.num_images, len(reference)), reference.features.shape[1]
    if "fd" in config.metrics and count < ENOUGH * dimensions:
        bias = frechet_bias(reference.features, count, len(reference))
        found.append(
            f"{count:,} images are few for {dimensions} features: some {bias:.2g} of the Frechet distance is bias. "
            f"Compare it with distances of as many images, or take {ENOUGH * dimensions:,} or more."
        )
    if classes and real.labels is not None:
        counts = real.labels.bincount(minlength=classes)
        if counts.max() > 2 * counts.min():
            found.append(
                f"The classes of split {real.split} are uneven ({counts.min():,} to {counts.max():,} images), "
                "and samples take them in turn: that alone moves the distances."
            )
    if pairs and config.held_out_split is None:
        found.append("Samples are made of the images that they are compared with; --held_out_split has others.")
    if prompts:
        most = max_tokens(pipeline.text_encoder, pipeline.tokenizer)
        tokens = pipeline.tokenizer(list(prompts), verbose=False)["input_ids"]
        if cut := sum(len(ids) > most for ids in tokens):
            found.append(f"{cut:,} of {len(tokens):,} captions are cut to the {most} tokens that the model reads.")
    return found
