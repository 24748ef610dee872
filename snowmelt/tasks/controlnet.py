"""ControlNets of pretrained text-to-image pipelines."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline
from torch import nn

from pipelines import TextToImageControlNetPipeline
from pipelines.controlnet import CONTROLNET, ControlledUNet
from snowmelt.image_conditions import read_condition
from snowmelt.tasks.finetuning import FinetuningTask
from snowmelt.tasks.task import Networks
from snowmelt.text.options import TextToImageConfig


class ControlNetTask(FinetuningTask):
    """A ControlNet, all that is trained; what it is shown is `given`, and `source` stays as it is."""

    @classmethod
    def make(cls, config: TextToImageConfig, accelerator: Accelerator) -> "FinetuningTask":
        """The task that the options ask for.

        Raises:
            UserError: for options, data, or networks that can't be trained on.
        """
        read_condition(config)  # before the pipeline and the data, which take long
        return super().make(config, accelerator)

    @property
    def component(self) -> str:
        """The name of the network that is trained."""
        return CONTROLNET

    def module(self, networks: Networks) -> nn.Module:
        """The pretrained network with the ControlNet."""
        return ControlledUNet(self.source.unet, networks[CONTROLNET])

    def pipeline(self, networks: Networks) -> Any:
        """The source with this ControlNet, and without a filter of images; made anew at each call."""
        parts = self.source.components | {CONTROLNET: networks[CONTROLNET]}
        if isinstance(self.source, StableDiffusionPipeline):
            return StableDiffusionControlNetPipeline(**parts | {"safety_checker": None}, requires_safety_checker=False)
        settings = {} if self.given is None else self.given.settings()
        prediction_type = self.source.config.get("prediction_type")
        return TextToImageControlNetPipeline(**parts, prediction_type=prediction_type, **settings)

    def save(self, networks: Networks, folder: Path | None) -> dict[str, float]:
        """Write the pipeline; of one of diffusers, which loads a ControlNet beside it, that alone."""
        if folder is not None and isinstance(self.source, StableDiffusionPipeline):
            networks[CONTROLNET].save_pretrained(folder / CONTROLNET)
        elif folder is not None:
            self.pipeline(networks).save_pretrained(str(folder))
        return {}
