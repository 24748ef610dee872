"""Autoencoders, the first stage of latent diffusion."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from torch import Tensor, nn
from tqdm import tqdm

from snowmelt.autoencoder.discriminator import make_discriminator
from snowmelt.autoencoder.latent_statistics import measure_latents, scaled, some_rows
from snowmelt.autoencoder.losses import AutoencoderLoss, AutoencoderModule
from snowmelt.autoencoder.models import make_autoencoder
from snowmelt.autoencoder.options import AutoencoderConfig
from snowmelt.autoencoder.perceptual import make_perceptual
from snowmelt.autoencoder.reconstructions import measure_reconstructions, reconstruction_grid
from snowmelt.data.cache import ImageCache
from snowmelt.data.held_out import load_splits
from snowmelt.data.loader import Cache
from snowmelt.errors import UserError
from snowmelt.evaluation.features import FeatureExtractor, make_features
from snowmelt.evaluation.real import RealImages
from snowmelt.objectives import Losses, StepContext
from snowmelt.spaces import PixelSpace
from snowmelt.stateful import Stateful
from snowmelt.tasks.task import Networks, Preview

PIXELS_PER_PASS = 2**20
"""64 images of 128 pixels; fewer of larger ones, whose activations are what takes memory."""
TITLES = {"psnr": "PSNR in dB", "ssim": "SSIM", "rfd": "rFD"}


@dataclass(frozen=True)
class AutoencoderTask:
    """An AutoencoderKL or VQModel in training, with a discriminator or without.

    Attributes:
        criterion: the loss, and the networks.
        images: that they are trained on, decoded.
        judged: those that reconstructions are measured on.
        extractor: of the features of rFD.
        config: the options.
    """

    criterion: AutoencoderLoss
    images: ImageCache
    judged: RealImages
    extractor: FeatureExtractor | None
    config: AutoencoderConfig

    labels = False
    prior = None
    with_ema = ("vae",)
    states: ClassVar[dict[str, Stateful]] = {}

    @classmethod
    def make(cls, config: AutoencoderConfig, accelerator: Accelerator) -> "AutoencoderTask":
        """The task that the options ask for.

        Raises:
            UserError: for options or data that can't be trained on.
        """
        images, held_out = load_splits(config)
        vae = make_autoencoder(config, images)
        discriminator = make_discriminator(config, images)
        real = RealImages(images, config.split, images.value_range)
        judged = RealImages(held_out, "held out", images.value_range) if held_out else real
        module = AutoencoderModule(vae, config.regularization, discriminator)
        perceptual = make_perceptual(config.perceptual, real, accelerator.device)
        extractor = _make_extractor(config, real, accelerator.device)
        return cls(AutoencoderLoss(module, config, perceptual), images, judged, extractor, config)

    @property
    def fields(self) -> dict[str, Cache]:
        """`image`: the decoded images."""
        return {"image": self.images}

    @property
    def networks(self) -> dict[str, ModelMixin]:
        """`vae`, and `discriminator` where there is one."""
        module = self.criterion.module
        return {"vae": module.vae} | ({} if module.discriminator is None else {"discriminator": module.discriminator})

    def module(self, networks: Networks) -> nn.Module:
        """An `AutoencoderModule` of these networks."""
        return AutoencoderModule(networks["vae"], self.config.regularization, networks.get("discriminator"))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """A group per network; the discriminator's beta1 and beta2 are those of the paper's code."""
        settings: dict[str, dict[str, Any]] = {"discriminator": {"betas": (0.5, 0.9)}}
        return [{"params": list(net.parameters())} | settings.get(name, {}) for name, net in self.networks.items()]

    def loss(self, batch: dict[str, Tensor], context: StepContext) -> Losses:
        """The sum of `AutoencoderLoss`."""
        x0 = PixelSpace(self.images.value_range).from_cache(batch["image"])
        return self.criterion(context.forward, x0, context.step, context.generator)

    def save(self, networks: Networks, folder: Path | None) -> dict[str, float]:
        """Write the autoencoder, its scaling measured on the training images; returns statistics of its latents."""
        vae = networks["vae"]
        latents = measure_latents(vae, self.images, seed=self.config.seed, batch_size=self._batch_size)
        if folder is not None:
            for line in (latents.describe(), *latents.warnings()):
                tqdm.write(line)
            with scaled(vae, latents):
                vae.save_pretrained(folder / "vae")
        return latents.values()

    def preview(self, networks: Networks, path: Path | None) -> Preview:
        """Originals beside reconstructions, and how close they are; see `reconstruction_grid`."""
        vae, rows = networks["vae"], some_rows(len(self.judged), self.config.seed)
        values = measure_reconstructions(vae, self.judged, rows, self.extractor, self._batch_size)
        if path is not None:
            said = ", ".join(f"{TITLES[name]} {value:.4g}" for name, value in values.items())
            tqdm.write(f"{path.stem}: {said} of {len(rows)} images of {self.judged.split}")
        images = reconstruction_grid(vae, self.judged, self.config.eval_batch_size, path)
        return Preview(images, {f"eval_{name}": value for name, value in values.items()})

    @property
    def _batch_size(self) -> int:
        return max(1, min(64, PIXELS_PER_PASS // math.prod(self.images.size)))

    def summary(self) -> str:
        """Where everything is, and how to use it."""
        folder = Path(self.config.output_dir)
        return (
            f"\nautoencoder     {folder / 'vae'}\nreconstructions {max((folder / 'samples').iterdir())}\n"
            f"loss            {folder / 'loss.png'}\n\npython train_unconditional.py --autoencoder {folder} ..."
        )


def _make_extractor(config: AutoencoderConfig, images: RealImages, device: torch.device) -> FeatureExtractor | None:
    """Of the features of rFD: those that are asked for, else a classifier's where the training images have labels.

    Raises:
        UserError: as `make_features`.
    """
    name = config.eval_features or ("classifier" if len(images.cache.class_names or []) > 1 else "none")
    try:
        return None if name == "none" else make_features(name, images, None, device)
    except UserError as error:  # whose flag is that of evaluate.py
        raise UserError(str(error).replace("--features", "--eval_features")) from error
