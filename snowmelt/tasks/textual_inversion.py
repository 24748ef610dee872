"""Textual inversion of pretrained text-to-image pipelines."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from snowmelt.tasks.finetuning import FinetuningTask
from snowmelt.tasks.task import Networks
from snowmelt.text.networks import TextConditionedNetwork
from snowmelt.text.options import TextToImageConfig
from snowmelt.text.textual_inversion import add_word, save_word


class FrozenNetwork(TextConditionedNetwork):
    """A text encoder and a network that stay as they are sampled, without dropout, while embeddings are trained."""

    def train(self, mode: bool = True) -> "FrozenNetwork":
        """Nothing: both stay in evaluation mode."""
        super().train(False)
        return self


@dataclass(frozen=True)
class TextualInversionTask(FinetuningTask):
    """New embeddings in the text encoder of a pretrained model, whose network is frozen."""

    @classmethod
    def _shared_captions(cls, config: TextToImageConfig, source: Any, accelerator: Accelerator) -> list[str]:
        """Prompts of the new word, which the source is given."""
        word, known, prompts = (
            str(config.placeholder_token),
            str(config.initializer_token),
            config.shared_captions or [],
        )
        fitting = add_word(source, word, known, config.num_vectors, prompts)
        accelerator.print(f"{word} begins as {known!r}, and is shown in {len(fitting)} of {len(prompts)} prompts")
        return fitting

    @property
    def component(self) -> str:
        """The name of the network that denoises."""
        return "unet"

    def module(self, networks: Networks) -> nn.Module:
        """The text encoder before the frozen network."""
        return FrozenNetwork(self.source.unet, networks["text_encoder"])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The embeddings."""
        return [{"params": [self.networks["text_encoder"].get_input_embeddings().learned]}]

    def save(self, networks: Networks, folder: Path | None) -> dict[str, float]:
        """Write the embeddings."""
        if folder is not None:
            save_word(folder, {"text_encoder": networks["text_encoder"]})
        return {}
