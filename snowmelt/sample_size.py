"""Sizes that samples are asked for in, and the one that the network was trained for."""

from typing import Any

from accelerate import PartialState

from pipelines.backbones import trained_size
from snowmelt.values import to_resolution


def sampled_size(pipeline: Any, size: dict[str, int]) -> tuple[int | None, int | None]:
    """Height and width of the network's data; a line is printed where they aren't those of training.

    Args:
        pipeline: the pipeline.
        size: `height` and `width` of the images in pixels, as far as they are given.
    """
    factor, trained = pipeline.vae_scale_factor, trained_size(pipeline.network)
    height, width = (
        size[name] // factor if name in size else side for name, side in zip(("height", "width"), trained, strict=True)
    )
    if height and width and None not in trained and (height, width) != trained:
        ours, theirs = (to_resolution(*(side * factor for side in both)) for both in ((height, width), trained))
        PartialState().print(f"images of {ours} pixels; the network was trained on {theirs}, and may make worse ones")
    return height, width
