"""Sizes that samples are asked for in, and the one that the network was trained for."""

import re
from pathlib import Path
from typing import Any

from accelerate import PartialState

from pipelines.backbones import trained_size
from snowmelt.files import parse_yaml, read_text
from snowmelt.run_files import CONFIG_FILE
from snowmelt.values import Resolution, to_resolution


def sampled_size(pipeline: Any, size: dict[str, int], model: str) -> tuple[int | None, int | None]:
    """Height and width of the network's data; a line is printed where they aren't those of training.

    Args:
        pipeline: the pipeline.
        size: `height` and `width` of the images in pixels, as far as they are given.
        model: where it is from: the folder of a run says whether it was trained on several sizes.
    """
    factor, trained = pipeline.vae_scale_factor, trained_size(pipeline.network)
    height, width = (
        size[name] // factor if name in size else side for name, side in zip(("height", "width"), trained, strict=True)
    )
    if height and width and None not in trained and (height, width) != trained:
        ours, theirs = (to_resolution(*(side * factor for side in both)) for both in ((height, width), trained))
        if ours not in _buckets(Path(model) / CONFIG_FILE):
            PartialState().print(
                f"images of {ours} pixels; the network was trained on {theirs}, and may make worse ones"
            )
    return height, width


def _buckets(config: Path) -> list[Resolution]:
    """Sizes of --aspect_ratio_buckets in a run's configuration, which anybody may have written."""
    values = parse_yaml(read_text(config), config) if config.is_file() else None
    given = values.get("aspect_ratio_buckets") if isinstance(values, dict) else None
    return [to_resolution(int(h), int(w)) for h, w in re.findall(r"(\d{1,9})\s*,\s*(\d{1,9})", str(given), re.ASCII)]
