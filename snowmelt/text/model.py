"""What is trained to make images of texts, made here or taken from a pretrained pipeline."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from snowmelt.objectives import Objective
from snowmelt.text.caption_conditioning import CaptionConditioning


class TextToImageModel(NamedTuple):
    """A model to be trained."""

    networks: dict[str, Any]
    """What is trained: `unet`, and perhaps `text_encoder`."""
    objective: Objective
    """What the network learns."""
    conditioning: CaptionConditioning
    """Batches to tokens, or to the embeddings of an encoder that isn't trained."""
    pipeline: Callable[[Mapping[str, Any]], Any]
    """The pipeline of such networks, made anew at each call."""
    write: Callable[[Any, Path], None]
    """Saves what was trained of such a pipeline into a folder."""
