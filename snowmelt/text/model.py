"""What is trained to turn words into pictures: networks and text, made here or taken from a pretrained pipeline."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from snowmelt.objectives import Objective
from snowmelt.text.conditioning import CaptionConditioning
from snowmelt.text.networks import TextConditionedUNet
from snowmelt.text.options import TextToImageConfig

SHARE_OF_NEW_TEXT = 0.1
"""Of the network's learning rate."""


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

    def groups(self, config: TextToImageConfig) -> list[dict[str, Any]]:
        """What is trained, each network at its learning rate.

        A new text encoder learns slowly: at the network's rate its words become alike before the network has use for
        what they differ in.
        """
        share = SHARE_OF_NEW_TEXT if config.pretrained_model_name_or_path is None else 1.0
        slow = share * config.learning_rate if config.text_encoder_lr is None else config.text_encoder_lr
        rates = {"unet": config.learning_rate, "text_encoder": slow}
        return [
            {"params": [p for p in net.parameters() if p.requires_grad], "lr": rates[name]}
            for name, net in self.joined()[1].items()
        ]
