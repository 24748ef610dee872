"""What is trained to turn words into pictures: networks and text, made here or taken from a pretrained pipeline."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from snowmelt.objectives import Objective
from snowmelt.text.conditioning import CaptionConditioning
from snowmelt.text.networks import TextConditionedUNet


@dataclass(frozen=True)
class TextToImageModel:
    """A model in training.

    Args:
        unet: the network.
        text_encoder: tokens to states.
        objective: what the network learns.
        conditioning: batches to what the network is told: tokens, or the states of an encoder that isn't trained.
        trains_text: whether the text encoder is trained.
        pipeline: the pipeline that samples the networks as they are, made anew at each call.
        save: writes what was trained into a folder.
    """

    unet: Any
    text_encoder: Any
    objective: Objective
    conditioning: CaptionConditioning
    trains_text: bool
    pipeline: Callable[[], Any]
    save: Callable[[Path], None]

    def joined(self) -> tuple[nn.Module, dict[str, Any]]:
        """What the objective calls, and what is trained of it by name."""
        if not self.trains_text:
            return self.unet, {"unet": self.unet}
        net = TextConditionedUNet(self.unet, self.text_encoder)
        return net, {"unet": self.unet, "text_encoder": self.text_encoder}
