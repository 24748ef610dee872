"""Text-to-image models: new ones, and pretrained ones that are fine-tuned."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers import ModelMixin
from torch import nn

from snowmelt.data.cache import ImageCache
from snowmelt.data.captions import load_captioned
from snowmelt.objectives import describe
from snowmelt.sample_grids import check_steps
from snowmelt.spaces import LatentSpace, PixelSpace, load_autoencoder
from snowmelt.tasks.diffusion import DiffusionTask
from snowmelt.tasks.task import Networks, Preview
from snowmelt.text.assembly import from_scratch
from snowmelt.text.finetuning import channels, finetuned, load_source
from snowmelt.text.networks import TextConditionedUNet
from snowmelt.text.options import TextToImageConfig
from snowmelt.text.prompt_grids import grid_prompts, prompt_grid

NEW_TEXT_ENCODER_LR = 0.1
"""Learning rate of a new text encoder, as a fraction of the network's: at the network's own its words become alike
before the network has use for what they differ in."""


@dataclass(frozen=True)
class TextToImageTask(DiffusionTask):
    """A UNet2DConditionModel in training, and its text encoder or not.

    Attributes:
        networks: what is trained: `unet`, and perhaps `text_encoder`.
        images: that they are trained on, decoded.
        prompts: of the images of previews.
        pipeline: the pipeline of such networks, made anew at each call.
        write: saves what was trained of such a pipeline into a folder.
        config: the options.
    """

    networks: dict[str, ModelMixin]
    images: ImageCache
    prompts: list[str]
    pipeline: Callable[[Networks], Any]
    write: Callable[[Any, Path], None]
    config: TextToImageConfig

    @property
    def with_ema(self) -> tuple[str, ...]:
        """Names of all networks in training."""
        return tuple(self.networks)

    def module(self, networks: Networks) -> nn.Module:
        """The UNet, with the text encoder in front where that is trained too."""
        if "text_encoder" not in networks:
            return super().module(networks)
        return TextConditionedUNet(networks["unet"], networks["text_encoder"])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """A group per network, at its learning rate."""
        fraction = NEW_TEXT_ENCODER_LR if self.config.pretrained_model_name_or_path is None else 1.0
        slower = fraction * self.config.learning_rate
        rates = {
            "unet": self.config.learning_rate,
            "text_encoder": slower if self.config.text_encoder_lr is None else self.config.text_encoder_lr,
        }
        return [
            {"params": [p for p in net.parameters() if p.requires_grad], "lr": rates[name]}
            for name, net in self.networks.items()
        ]

    def save(self, networks: Networks, folder: Path | None) -> dict[str, float]:
        """Write the pipeline, or the LoRA matrices if these are all that is trained."""
        if folder is not None:
            self.write(self.pipeline(networks), folder)
        return {}

    def preview(self, networks: Networks, path: Path | None) -> Preview:
        """Samples of the prompts."""
        return Preview(prompt_grid(self.pipeline(networks), path, self.config, self.prompts), {})


def make_task(config: TextToImageConfig, accelerator: Accelerator) -> TextToImageTask:
    """The task that the options ask for.

    Raises:
        UserError: for options, data or a pretrained pipeline that can't be trained on.
    """
    source = load_source(config) if config.pretrained_model_name_or_path else None
    own = load_autoencoder(config.autoencoder) if config.autoencoder else None
    vae = source.vae if source else own
    images, captions = load_captioned(
        replace(config, channels=channels(source)) if source else config,
        config.caption_column,
        skip_empty=config.skip_empty_captions,
        most=config.max_train_samples,
    )
    pixels = PixelSpace(images.value_range)
    flag = "--pretrained_model_name_or_path" if source else "--autoencoder"
    space = LatentSpace(vae.to(accelerator.device), pixels, flag) if vae else pixels
    space.channels(images)  # or they don't fit, which is known before anything is made
    if source:
        model = finetuned(config, source, captions, accelerator.device)
    else:
        model = from_scratch(config, images, captions, space, accelerator.device)
    check_steps(model.pipeline(model.networks).scheduler, config)
    accelerator.print(describe(config, model.objective))
    data = space.encode(images, random_flip=config.random_flip, mixed_precision=config.mixed_precision)
    accelerator.print(space.describe(data))
    prompts = grid_prompts(config, captions)
    return TextToImageTask(
        model.objective,
        space,
        model.conditioning,
        data,
        model.networks,
        images,
        prompts,
        model.pipeline,
        model.write,
        config,
    )
