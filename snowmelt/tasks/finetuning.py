"""Fine-tuning of pretrained text-to-image pipelines, whole or by LoRA."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from snowmelt.data.captions import Captions
from snowmelt.data.encoded import find_encoded
from snowmelt.data.encoded_captions import AnyCaptions
from snowmelt.data.held_out import load_captioned_splits
from snowmelt.data.mixture import Prior
from snowmelt.errors import UserError
from snowmelt.objectives import describe
from snowmelt.sample_grids import check_steps
from snowmelt.spaces import LatentSpace, PixelSpace
from snowmelt.tasks.diffusion import check_shapes, encode_images, hold_out
from snowmelt.tasks.task import Networks
from snowmelt.tasks.text_to_image import CaptionTask
from snowmelt.text.class_images import load_class_images
from snowmelt.text.controlnet import make_control_images
from snowmelt.text.finetuning import channels, load_source, make_conditioning, make_trainable
from snowmelt.text.lora import save_lora
from snowmelt.text.options import TextToImageConfig
from snowmelt.text.prompt_grids import grid_prompts


@dataclass(frozen=True)
class FinetuningTask(CaptionTask):
    """A pretrained model.

    Attributes:
        source: its pipeline, a StableDiffusionPipeline or a TextToImagePipeline.
    """

    source: Any

    @classmethod
    def make(cls, config: TextToImageConfig, accelerator: Accelerator) -> "FinetuningTask":
        """The task that the options ask for.

        Raises:
            UserError: for options, data or a pipeline that can't be trained on.
        """
        source = load_source(config)
        encoded = find_encoded(config, config.pretrained_model_name_or_path)
        if encoded is not None and source.vae is None:
            raise UserError(
                f"--train_data_dir {config.train_data_dir}: holds latents, and the model at "
                f"--pretrained_model_name_or_path {config.pretrained_model_name_or_path} is of pixels; train on the "
                "images"
            )
        (images, captions), others = load_captioned_splits(
            replace(config, channels=channels(source)),
            config.caption_column,
            skip_empty=config.skip_empty_captions,
            most=config.max_train_samples,
            shared=cls._shared_captions(config, source, accelerator),
            encoded=encoded,
        )
        pixels, vae = PixelSpace(images.value_range), source.vae
        space = LatentSpace(vae.to(accelerator.device), pixels, "--pretrained_model_name_or_path") if vae else pixels
        space.channels(images)  # or they don't fit, which is known before anything is made
        if encoded is not None and isinstance(space, LatentSpace):
            encoded.check_autoencoder(space.fingerprint, "--pretrained_model_name_or_path")
        check_shapes(source.unet, images, space)
        given = make_control_images(config, images, space, source)
        control_channels = 0 if given is None else given.channels
        shown: AnyCaptions = captions
        class_images = None
        if config.with_prior_preservation:
            class_images = load_class_images(config, source, images, accelerator)
            assert isinstance(captions, Captions)  # others are refused
            shown = captions.followed_by(str(config.class_prompt), len(class_images))
        objective, conditioning, networks = make_trainable(config, source, shown, accelerator.device, control_channels)
        held_out = None
        if others:
            conditions = make_conditioning(config, source, others[1], dropout=0.0)
            judged = given and given.of_held_out(config, others[0])
            held_out = hold_out(space, others[0], conditions, config, judged)
        prior = None
        if class_images is not None:
            data = encode_images(space, class_images, config, accelerator)
            prior = Prior({"image": data}, config.prior_loss_weight)
        check_steps(source.scheduler, config)
        accelerator.print(describe(config, objective))
        return cls(
            objective=objective,
            space=space,
            conditioning=conditioning,
            given=given,
            data=encode_images(space, images, config, accelerator),
            prior=prior,
            networks=networks,
            images=images,
            held_out=held_out,
            prompts=grid_prompts(config, captions),
            config=config,
            source=source,
        )

    @classmethod
    def _shared_captions(cls, config: TextToImageConfig, source: Any, accelerator: Accelerator) -> list[str] | None:
        """Captions that all images have; None for those of a column."""
        return config.shared_captions

    def pipeline(self, networks: Networks) -> Any:
        """The source with these networks, without the filter that would blacken what a model in training draws."""
        made = copy.copy(self.source)
        made.register_modules(**{name: networks[name] for name in self.networks})
        if "safety_checker" in self.source.components:
            made.register_modules(safety_checker=None)
        return made

    def save(self, networks: Networks, folder: Path | None) -> dict[str, float]:
        """Write the pipeline, or the LoRA matrices if these are all that is trained."""
        if folder is not None and self.config.rank:
            save_lora(folder, {name: networks[name] for name in self.networks})
        elif folder is not None:
            made = self.pipeline(networks)
            if "safety_checker" in self.source.components:
                made.register_modules(safety_checker=self.source.safety_checker)
            made.save_pretrained(str(folder))
        return {}
