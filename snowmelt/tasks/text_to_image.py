"""Text-to-image models from scratch, with a text encoder that is trained with them or a pretrained one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from diffusers import ModelMixin
from torch import nn

from pipelines import TextImageToImagePipeline, TextToImagePipeline, TextToImageTransformerPipeline
from pipelines.backbones import COMPONENTS
from pipelines.text2img import TextPipeline
from snowmelt.architectures import ARCHITECTURES, make_network
from snowmelt.data.cache import ImageCache
from snowmelt.data.captions import Captions
from snowmelt.data.encoded import find_encoded
from snowmelt.data.encoded_captions import AnyCaptions
from snowmelt.data.held_out import load_captioned_splits
from snowmelt.data.loader import Cache
from snowmelt.errors import UserError
from snowmelt.image_conditions import make_condition_images, read_condition
from snowmelt.objectives import describe, make_objective
from snowmelt.objectives.paths import SdePath
from snowmelt.resuming import network_config
from snowmelt.sample_grids import check_steps, paired_grid
from snowmelt.spaces import LatentSpace, PixelSpace, load_autoencoder
from snowmelt.tasks.diffusion import DiffusionTask, HeldOut, check_shapes, encode_images, hold_out
from snowmelt.tasks.task import Networks, Preview
from snowmelt.text.caption_conditioning import CaptionConditioning
from snowmelt.text.embeddings import cache_root
from snowmelt.text.encoded_conditioning import TextConditioning, conditioning_of
from snowmelt.text.networks import TextConditionedNetwork, make_text_encoder
from snowmelt.text.options import TextToImageConfig
from snowmelt.text.pretrained_encoder import load_text_encoder
from snowmelt.text.prompt_grids import grid_prompts, prompt_grid
from snowmelt.text.tokens import fit_length, train_tokenizer

NEW_TEXT_ENCODER_LR = 0.1
"""Learning rate of a new text encoder, as a fraction of the network's: at the network's own its words become alike
before the network has use for what they differ in."""


BACKBONES: dict[str, tuple[str, Any]] = {
    # --backbone: (class of the network, its pipeline)
    "unet": ("UNet2DConditionModel", TextToImagePipeline),
    "pixart": ("PixArtTransformer2DModel", TextToImageTransformerPipeline),
}


@dataclass(frozen=True)
class CaptionTask(DiffusionTask):
    """A network in training, and its text encoder or not: what new and pretrained ones share.

    Attributes:
        networks: what is trained: the network by its `component`, and perhaps `text_encoder`.
        images: that they are trained on, decoded.
        held_out: others, where there are any, with their captions as conditions.
        prompts: of the images of previews.
        config: the options.
    """

    networks: dict[str, ModelMixin]
    images: ImageCache
    held_out: HeldOut | None
    prompts: list[str]
    config: TextToImageConfig

    def pipeline(self, networks: Networks) -> Any:
        """The pipeline that samples such networks, made anew at each call."""
        raise NotImplementedError

    @property
    def component(self) -> str:
        """The name of the network that denoises."""
        return next(name for name in COMPONENTS if name in self.networks)

    @property
    def with_ema(self) -> tuple[str, ...]:
        """Names of all networks in training."""
        return tuple(self.networks)

    @property
    def fields(self) -> dict[str, Cache]:
        """`image`, and what the images are made of."""
        return super().fields | ({} if self.given is None else self.given.fields(self.images))

    def module(self, networks: Networks) -> nn.Module:
        """The network, with the text encoder in front where that is trained too."""
        if "text_encoder" not in networks:
            return super().module(networks)
        return TextConditionedNetwork(networks[self.component], networks["text_encoder"])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """A group per network, at its learning rate."""
        fraction = NEW_TEXT_ENCODER_LR if self.config.pretrained_model_name_or_path is None else 1.0
        slower = fraction * self.config.learning_rate
        rates = {
            self.component: self.config.learning_rate,
            "text_encoder": slower if self.config.text_encoder_lr is None else self.config.text_encoder_lr,
        }
        return [
            {"params": [p for p in net.parameters() if p.requires_grad], "lr": rates[name]}
            for name, net in self.networks.items()
        ]

    def preview(self, networks: Networks, path: Path | None) -> Preview:
        """Samples of the prompts; of given images, those of the first training images, between these and themselves."""
        if self.given is not None:
            rows = np.arange(len(self.prompts)) % len(self.images)
            given, originals = self.given.pairs(self.images, rows, self.config.seed)
            given["prompt"] = self.prompts
            return Preview(paired_grid(self.pipeline(networks), path, self.config, given, originals), {})
        return Preview(prompt_grid(self.pipeline(networks), path, self.config, self.prompts), {})


@dataclass(frozen=True)
class TextToImageTask(CaptionTask):
    """A new model.

    Attributes:
        text_encoder: its text encoder, whether it is in training or not.
        tokenizer: the encoder's tokenizer.
    """

    text_encoder: Any
    tokenizer: Any

    @classmethod
    def make(cls, config: TextToImageConfig, accelerator: Accelerator) -> "TextToImageTask":
        """The task that the options ask for.

        Raises:
            UserError: for options or data that can't be trained on.
        """
        objective = make_objective(config, latent=config.autoencoder is not None)
        if isinstance(objective.path, SdePath):
            raise UserError(f"--objective {config.objective}: is for train_unconditional.py; take another")
        if objective.target_channels and config.condition:
            raise UserError(f"--condition: isn't for flow maps ({config.objective}); leave out one of the two")
        encoded = find_encoded(config, config.autoencoder)
        if encoded is not None and config.text_encoder is None:
            raise UserError(
                f"--train_data_dir {config.train_data_dir}: holds captions as a text encoder has encoded them; give it "
                "as --text_encoder, or train on the images"
            )
        read_condition(config)  # before the data, which take long
        vae = load_autoencoder(config.autoencoder) if config.autoencoder else None
        (images, captions), others = load_captioned_splits(
            config,
            config.caption_column,
            skip_empty=config.skip_empty_captions,
            most=config.max_train_samples,
            shared=config.shared_captions,
            encoded=encoded,
        )
        pixels = PixelSpace(images.value_range)
        space = LatentSpace(vae.to(accelerator.device), pixels) if vae else pixels
        channels = space.channels(images)  # or they don't fit, which is known before anything is made
        if encoded is not None and isinstance(space, LatentSpace):
            encoded.check_autoencoder(space.fingerprint)
        given = make_condition_images(config, images, space)
        objective = replace(objective, bin_width=space.bin_width(images))
        check_steps(objective.scheduler(), config)
        conditioning = conditioning_of(captions, config.caption_dropout)
        tokenizer, text_encoder = _text_parts(config, captions, conditioning)
        architecture, _ = BACKBONES[config.backbone]
        component = ARCHITECTURES[architecture].backbone.component
        network = make_network(
            architecture,
            config.model_size,
            network_config(config, component),
            resolution=space.size(images),
            vae_scale_factor=space.vae_scale_factor,
            channels=channels,
            out_channels=2 * channels if objective.learns_variance else channels,
            text_channels=text_encoder.config.hidden_size,
            condition_channels=objective.target_channels + (0 if given is None else given.channels),
            seed=config.seed,
        )
        check_shapes(network, images, space)
        if config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        networks = {component: network}
        if config.text_encoder is None:
            networks["text_encoder"] = text_encoder
        frozen = None if config.text_encoder is None else text_encoder.to(accelerator.device)
        conditioning.tabulate(tokenizer, network, frozen, cache_root(config))
        held_out = None
        if others:
            conditions = conditioning_of(others[1], 0.0).tabulate(tokenizer, network, frozen, cache_root(config))
            judged = given and given.of_held_out(config, others[0])
            held_out = hold_out(space, others[0], conditions, config, judged)
        accelerator.print(describe(config, objective))
        return cls(
            objective=objective,
            space=space,
            conditioning=conditioning,
            given=given,
            data=encode_images(space, images, config, accelerator),
            networks=networks,
            images=images,
            held_out=held_out,
            prompts=grid_prompts(config, captions),
            config=config,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )

    def pipeline(self, networks: Networks) -> TextPipeline:
        """The pipeline that samples such networks, made anew at each call."""
        kind = BACKBONES[self.config.backbone][1] if self.given is None else TextImageToImagePipeline
        settings: dict[str, Any] = {"flow_map": True} if self.objective.target_channels else {}
        if self.given is not None:
            settings |= self.given.settings()
        made: TextPipeline = kind(
            networks[self.component],
            self.objective.scheduler(),
            networks.get("text_encoder", self.text_encoder),
            self.tokenizer,
            self.space.vae if isinstance(self.space, LatentSpace) else None,
            self.objective.pipeline_prediction_type,
            **settings,
        )
        return made

    def save(self, networks: Networks, folder: Path | None) -> dict[str, float]:
        """Write the pipeline."""
        if folder is not None:
            self.pipeline(networks).save_pretrained(folder)
        return {}


def _text_parts(
    config: TextToImageConfig,
    captions: AnyCaptions,
    conditioning: TextConditioning,
) -> tuple[Any, Any]:
    """A tokenizer and a text encoder, made for the captions or pretrained.

    Args:
        config: which, and how large.
        captions: that a new tokenizer is trained on.
        conditioning: on these, which says what the tokenizer pads to.

    Raises:
        UserError: if the encoder that was asked for can't be had.
    """
    if config.text_encoder is not None:
        encoder, tokenizer = load_text_encoder(config.text_encoder)
        conditioning.fit(tokenizer, encoder)
        return tokenizer, encoder
    assert isinstance(captions, Captions)
    assert isinstance(conditioning, CaptionConditioning)  # others are refused
    tokenizer = train_tokenizer(captions.texts, config.vocab_size)
    fit_length(tokenizer, conditioning.texts)
    encoder = make_text_encoder(
        tokenizer, hidden_size=config.text_hidden_size, layers=config.text_layers, seed=config.seed
    )
    return tokenizer, encoder
