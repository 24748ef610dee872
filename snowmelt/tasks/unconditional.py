"""Unconditional and class-conditional diffusion models, of pixels or latents."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from diffusers import ModelMixin

from pipelines import (
    ImageToImagePipeline,
    LatentDiffusionPipeline,
    LatentTransformerPipeline,
    PixelDiffusionPipeline,
    PixelTransformerPipeline,
    ScoreSdePipeline,
    SuperResolutionPipeline,
)
from pipelines.image_conditions import LowResolution
from pipelines.sde import SubVpSde
from pipelines.unconditional import UnconditionalPipeline
from snowmelt.architectures import ARCHITECTURES, make_network
from snowmelt.augmentation import AUGMENT_CHANNELS, Augmentation
from snowmelt.conditioning import LabelConditioning, make_conditioning
from snowmelt.data.cache import ImageCache
from snowmelt.data.encoded import find_encoded
from snowmelt.data.held_out import load_splits
from snowmelt.data.loader import Cache, labels_of
from snowmelt.errors import UserError
from snowmelt.image_conditions import make_condition_images, read_condition
from snowmelt.model_source import Source
from snowmelt.objectives import Objective, describe, make_objective
from snowmelt.objectives.flow_maps import FlowMapObjective
from snowmelt.objectives.paths import SdePath, StraightPath
from snowmelt.options import UnconditionalConfig
from snowmelt.other_models import begin_with, check_same_data, find_other
from snowmelt.reflow import make_pairs
from snowmelt.resuming import network_config, resumed
from snowmelt.sample_grids import check_steps, paired_grid, sample_grid
from snowmelt.spaces import LatentSpace, PixelSpace, load_autoencoder
from snowmelt.tasks.diffusion import DiffusionTask, HeldOut, check_shapes, encode_images, hold_out
from snowmelt.tasks.task import Networks, Preview
from snowmelt.teacher import make_teacher

BACKBONES: dict[str, tuple[str, Any, Any]] = {
    # --backbone: (class of the network, its pipelines in pixels and in latents)
    "unet": ("UNet2DModel", PixelDiffusionPipeline, LatentDiffusionPipeline),
    "dit": ("DiTTransformer2DModel", PixelTransformerPipeline, LatentTransformerPipeline),
}


@dataclass(frozen=True)
class UnconditionalTask(DiffusionTask):
    """A network in training, on class labels or without.

    Attributes:
        network: the network.
        images: that it is trained on, decoded.
        held_out: others, where there are any.
        config: the options.
        noise: where `data` are samples of a flow model, the noise of each.
    """

    network: Any
    images: ImageCache
    held_out: HeldOut | None
    config: UnconditionalConfig
    noise: Cache | None = None

    @classmethod
    def make(cls, config: UnconditionalConfig, accelerator: Accelerator) -> "UnconditionalTask":
        """The task that the options ask for.

        Raises:
            UserError: for options or data that can't be trained on.
        """
        objective = make_objective(config, latent=config.autoencoder is not None)
        encoded = find_encoded(config, config.autoencoder)
        read_condition(config)  # before the data, which take long
        if isinstance(objective.path, SdePath) and config.condition:
            raise UserError(f"--objective {config.objective}: takes no --condition; take flow, edm or epsilon, say")
        if isinstance(objective.path, SdePath) and config.backbone != "unet":
            raise UserError(f"--backbone {config.backbone}: {config.objective} is for --backbone unet alone; take that")
        if config.augment_p and config.autoencoder:
            raise UserError("--augment_p: moves pixels, which --autoencoder's latents aren't; drop one of the two")
        if config.augment_p and (config.self_condition or config.reflow_from):
            other = "self_condition" if config.self_condition else "reflow_from"
            raise UserError(f"--augment_p: isn't for --{other}; drop one of the two")
        if config.reflow_from and not isinstance(objective.path, StraightPath):
            raise UserError(f"--objective {config.objective}: --reflow_from straightens flows; take flow or mixture")
        if objective.of_two_times and (config.self_condition or config.dropout):
            other = "self_condition" if config.self_condition else "dropout"
            raise UserError(f"--{other}: isn't for {config.objective}, which compares two outputs; leave it out")
        if objective.target_channels and config.condition:
            raise UserError(f"--condition: isn't for flow maps ({config.objective}); leave out one of the two")
        straightened = find_other(config.reflow_from, "--reflow_from") if config.reflow_from else None
        others = _find_others(config, objective)
        check_steps(objective.scheduler(), config)
        accelerator.print(describe(config, objective))
        vae = load_autoencoder(config.autoencoder).to(accelerator.device) if config.autoencoder else None
        images, held_out = load_splits(config, labels=config.class_conditional, encoded=encoded)
        conditioning = make_conditioning(config, images)
        pixels = PixelSpace(images.value_range)
        space = LatentSpace(vae, pixels) if vae else pixels
        if encoded is not None and isinstance(space, LatentSpace):
            encoded.check_autoencoder(space.fingerprint)
        given = make_condition_images(config, images, space)
        objective = replace(objective, bin_width=space.bin_width(images), self_condition=config.self_condition)
        channels = space.channels(images)
        joined = channels if config.self_condition else AUGMENT_CHANNELS if config.augment_p else 0
        architecture = BACKBONES[config.backbone][0]
        network = make_network(
            architecture,
            config.model_size,
            network_config(config, ARCHITECTURES[architecture].backbone.component),
            resolution=space.size(images),
            vae_scale_factor=space.vae_scale_factor,
            channels=channels,
            out_channels=2 * channels if objective.learns_variance else channels,
            num_class_embeds=conditioning.num_class_embeds,
            fourier=isinstance(objective.path, SdePath) and objective.path.fourier,
            dropout=config.dropout,
            condition_channels=(joined if given is None else given.channels) + objective.target_channels,
            seed=config.seed,
        )
        check_shapes(network, images, space)
        if config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        # Those of reflow are made by a model, below.
        data = images if straightened else encode_images(space, images, config, accelerator)
        judged = None
        if held_out:
            judged = hold_out(space, held_out, None, config, given and given.of_held_out(config, held_out))
        task = cls(
            objective=objective,
            space=space,
            conditioning=conditioning,
            data=data,
            augmentation=Augmentation(config.augment_p) if config.augment_p else None,
            given=given,
            network=network,
            images=images,
            held_out=judged,
            config=config,
        )
        task = _taught(task, others, config, accelerator)
        if straightened is None:
            return task
        noise, samples = make_pairs(straightened, task.pipeline(task.networks), images, config, accelerator)
        if isinstance(conditioning, LabelConditioning):
            conditioning = replace(conditioning, dropout=0.0)  # some pairs are of the null class
        return replace(task, data=samples, noise=noise, conditioning=conditioning)

    @property
    def component(self) -> str:
        """The name of the network, by its class."""
        return ARCHITECTURES[type(self.network).__name__].backbone.component

    @property
    def fields(self) -> dict[str, Cache]:
        """`image`, `noise` where that belongs to it, and what the images are made of."""
        noise = {} if self.noise is None else {"noise": self.noise}
        return super().fields | noise | ({} if self.given is None else self.given.fields(self.images))

    @property
    def networks(self) -> dict[str, ModelMixin]:
        """The network, by its `component`."""
        return {self.component: self.network}

    @property
    def with_ema(self) -> tuple[str, ...]:
        """The network's name."""
        return (self.component,)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters in one group."""
        return [{"params": list(self.network.parameters())}]

    def pipeline(self, networks: Networks) -> UnconditionalPipeline:
        """The pipeline that samples a network as it was trained, with a scheduler of its own."""
        settings: dict[str, Any] = {
            "prediction_type": self.objective.pipeline_prediction_type,
            "id2label": dict(enumerate(self.images.class_names or [])) if self.config.class_conditional else None,
            # That of integers is their type's.
            "value_range": self.images.value_range if self.images.dtype.kind == "f" else None,
            "self_condition": self.objective.self_condition,
        }
        if self.objective.target_channels:
            settings["flow_map"] = True
        if self.augmentation is not None:
            settings["augment_channels"] = AUGMENT_CHANNELS
        parts = networks[self.component], self.objective.scheduler()
        vae = self.space.vae if isinstance(self.space, LatentSpace) else None
        if isinstance(self.objective.path, SdePath):
            name = "subvp" if isinstance(self.objective.path.sde, SubVpSde) else None
            return ScoreSdePipeline(*parts, **settings, sde=name, vae=vae)
        if self.given is not None:
            lowres = isinstance(self.given.condition, LowResolution)
            kind: Any = SuperResolutionPipeline if lowres else ImageToImagePipeline
            del settings["self_condition"]
            return kind(*parts, **self.given.settings(), **settings, vae=vae)
        _, in_pixels, in_latents = BACKBONES[self.config.backbone]
        made: UnconditionalPipeline = (
            in_pixels(*parts, **settings) if vae is None else in_latents(vae, *parts, **settings)
        )
        return made

    def save(self, networks: Networks, folder: Path | None) -> dict[str, float]:
        """Write the pipeline."""
        if folder is not None:
            self.pipeline(networks).save_pretrained(folder)
        return {}

    def preview(self, networks: Networks, path: Path | None) -> Preview:
        """Samples of the first images of the seed, classes in turn; or between given images and the real ones."""
        if self.given is not None:
            images, given = self.images, self.given
            if self.held_out is not None and self.held_out.given is not None:
                images, given = self.held_out.images, self.held_out.given
            rows = np.arange(min(self.config.eval_batch_size, len(images)))
            arguments, originals = given.pairs(images, rows, self.config.seed)
            if self.labels:
                arguments["class_labels"] = labels_of(images, rows).tolist()
            return Preview(paired_grid(self.pipeline(networks), path, self.config, arguments, originals), {})
        return Preview(sample_grid(self.pipeline(networks), path, self.config), {})


def _find_others(config: UnconditionalConfig, objective: Objective) -> dict[str, Source]:
    """The models that training begins with and learns from, by their flags, found before the data are read."""
    names = {"teacher": config.teacher}
    if resumed(config) is None:  # whose weights are taken instead
        names["pretrained_model_name_or_path"] = config.pretrained_model_name_or_path
    given = {flag: name for flag, name in names.items() if name is not None}
    if "teacher" in given and not isinstance(objective, FlowMapObjective):
        raise UserError("--teacher: is for flow maps, which learn its velocity; add --objective soflow or meanflow")
    if len(given) and (config.reflow_from or config.condition or isinstance(objective.path, SdePath)):
        other = "--reflow_from" if config.reflow_from else "--condition" if config.condition else "an SDE"
        raise UserError(f"--{next(iter(given))}: isn't for {other}; leave out one of the two")
    return {flag: find_other(name, f"--{flag}") for flag, name in given.items()}


def _taught(
    task: UnconditionalTask, others: dict[str, Source], config: UnconditionalConfig, accelerator: Accelerator
) -> UnconditionalTask:
    """The task with the weights that it begins with, and the velocity that it learns."""
    own = task.pipeline(task.networks)
    for flag, source in others.items():
        pipeline, shown = source.load(), f"--{flag} {getattr(config, flag)}"
        check_same_data(pipeline, own, shown)
        if flag != "teacher":
            begin_with(pipeline, own, shown)
            continue
        teacher = make_teacher(pipeline, config.teacher_guidance_scale, config.label_dropout, shown)
        network = pipeline.network.to(accelerator.device)
        accelerator.prepare_model(network, device_placement=False, evaluation_mode=True)  # in the training's precision
        assert isinstance(task.objective, FlowMapObjective)  # `_find_others` refused
        task = replace(task, objective=replace(task.objective, velocity=teacher))
    return task
