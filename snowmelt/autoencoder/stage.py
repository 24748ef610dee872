"""What a run of `train_autoencoder.py` leaves besides checkpoints: the autoencoder, scaled, and how good it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from snowmelt.autoencoder.latents import measure_latents, scaled, some_rows
from snowmelt.autoencoder.options import AutoencoderConfig
from snowmelt.autoencoder.report import measure_reconstructions, reconstruction_grid
from snowmelt.data.cache import ImageCache
from snowmelt.errors import UserError
from snowmelt.evaluation.features import FeatureExtractor, make_features
from snowmelt.evaluation.real import RealImages
from snowmelt.tracking import Metrics, read_metrics

PIXELS_PER_PASS = 2**20
"""64 images of 128 pixels; fewer of larger ones, whose activations are what takes memory."""
TITLES = {"psnr": "PSNR in dB", "ssim": "SSIM", "rfd": "rFD"}


def make_extractor(config: AutoencoderConfig, images: RealImages, device: torch.device) -> FeatureExtractor | None:
    """Of the features of rFD: those that are asked for, else a classifier's where the training images have labels.

    Raises:
        UserError: as `make_features`.
    """
    name = config.eval_features or ("classifier" if len(images.cache.class_names or []) > 1 else "none")
    try:
        return None if name == "none" else make_features(name, images, None, device)
    except UserError as error:  # whose flag is that of evaluate.py
        raise UserError(str(error).replace("--features", "--eval_features")) from error


class Stage:
    """Saves an autoencoder in training and reports on it, in the main process.

    Args:
        vae: the autoencoder, which holds the weights to be judged whenever it is called.
        data: the training images.
        images: those that reconstructions are measured on.
        extractor: of the features of rFD.
        config: the run's options.
        accelerator: holds the trackers.
        step: tells how many optimizer steps were taken.
    """

    def __init__(
        self,
        vae: Any,
        data: ImageCache,
        images: RealImages,
        extractor: FeatureExtractor | None,
        config: AutoencoderConfig,
        accelerator: Accelerator,
        step: Callable[[], int],
    ) -> None:
        self.vae = vae
        self.data = data
        self.images = images
        self.extractor = extractor
        self.config = config
        self.accelerator = accelerator
        self.step = step
        self.batch_size = max(1, min(64, PIXELS_PER_PASS // config.resolution**2))

    def save(self, folder: Path) -> None:
        """Write `vae`, its scaling measured on the training images, and log what the latents are like."""
        latents = measure_latents(self.vae, self.data, seed=self.config.seed, batch_size=self.batch_size)
        for line in (latents.describe(), *latents.warnings()):
            tqdm.write(line)
        self._log(latents.values())
        with scaled(self.vae, latents):
            self.vae.save_pretrained(folder / "vae")

    def draw(self, path: Path) -> np.ndarray:
        """Save originals beside reconstructions, and log how close they are; see `reconstruction_grid`."""
        rows = some_rows(len(self.images), self.config.seed)
        values = measure_reconstructions(self.vae, self.images, rows, self.extractor, self.batch_size)
        said = ", ".join(f"{TITLES[name]} {value:.4g}" for name, value in values.items())
        tqdm.write(f"step {self.step()}: {said} of {len(rows)} images of {self.images.split}")
        self._log({f"eval_{name}": value for name, value in values.items()})
        return reconstruction_grid(self.vae, self.images, self.config.eval_batch_size, path)

    def summary(self) -> str:
        """Where everything is, and how to use it."""
        folder = Path(self.config.output_dir)
        return (
            f"\nautoencoder     {folder / 'vae'}\nreconstructions {max((folder / 'samples').iterdir())}\n"
            f"loss            {folder / 'loss.png'}\n\npython train_unconditional.py --autoencoder {folder} ..."
        )

    def _log(self, values: dict[str, float]) -> None:
        folder, step = Path(self.config.output_dir), self.step()
        known = [line for line in read_metrics(folder) if line["step"] == step]
        if not any(values.keys() <= line.keys() for line in known):  # a run that had ended may be resumed
            Metrics(folder, self.accelerator, step).log(step, values)
