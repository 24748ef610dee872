"""Features that need no network: those of a small classifier trained on the labelled data set itself."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from tqdm import tqdm

from snowmelt.data.locks import locked
from snowmelt.errors import UserError
from snowmelt.evaluation.real import RealImages

VERSION = 3  # of the network and its training: raised when either changes
LARGEST, SMALLEST = 64, 4
FEATURES = 64
STEPS, BATCH = 2000, 128
FEWEST_STEPS, EPOCHS = 300, 200
"""Of few images: as many passes over them, or at least so many steps; more would take minutes for nothing."""
HELD_OUT = 0.1
"""Fraction of the images that isn't trained on, to tell how good the classifier is."""


class ConvNet(nn.Module):
    """Convolutions at 64 pixels or less, each at half the sides of the one before, down to 4; then 64 features.

    Args:
        channels: of the images.
        size: height and width of the images; those with a side of more than 64 pixels are reduced to that.
        classes: number of them.
    """

    def __init__(self, channels: int, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        scale = min(1.0, LARGEST / max(size))
        self.size = height, width = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        layers: list[nn.Module] = []
        features = 16
        while max(height, width) > SMALLEST:
            layers += [nn.Conv2d(channels, features, 3, padding=1, bias=False), nn.BatchNorm2d(features), nn.ReLU()]
            layers += [nn.MaxPool2d(2, ceil_mode=True)]
            channels, features, height, width = features, min(2 * features, 128), (height + 1) // 2, (width + 1) // 2
        self.hidden = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, classes)

    def reduced(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), as they are or, where they are larger, as the layers take them."""
        if max(images.shape[2:]) <= max(self.size):
            return images
        return F.interpolate(images, self.size, mode="bilinear", antialias=True)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to (B, 64)."""
        return self.hidden(2 * self.reduced(images) - 1)


class ClassifierFeatures:
    """The last hidden layer of a `ConvNet`, as a `FeatureExtractor`.

    Args:
        train: labelled images to train on.
        held_out: labelled images that say how good it is, rather than the tenth of `train` that is kept back.
        device: where it computes.

    Raises:
        UserError: if `train` has no labels, or a single class.
    """

    def __init__(self, train: RealImages, held_out: RealImages | None, device: torch.device) -> None:
        classes = len(train.cache.class_names or [])
        if train.labels is None or classes < 2:
            raise UserError(
                f"--features classifier: needs classes to tell apart, and split {train.split} has "
                f"{'no labels' if train.labels is None else 'one class'}; name their column with --label_column, or "
                "take --features inception or a vision model of transformers, as facebook/dinov2-small"
            )
        self.net = ConvNet(train.cache.channels, train.cache.size, classes)
        self._device = device
        self.fingerprint = hashlib.sha256(f"{VERSION} {train.fingerprint}".encode()).hexdigest()[:32]
        self.name = f"{FEATURES} features of a classifier trained on split {train.split}"
        path = train.cache.path.parent / f"classifier-{self.fingerprint}.safetensors"
        with locked(path, "training the classifier whose features are compared"):
            if not path.exists():
                self._train(train, path)
            try:
                self.accuracy = self._read(path)
            except (SafetensorError, RuntimeError, KeyError):  # of a file that isn't what was written
                print(f"{path} is damaged: the classifier is trained anew", flush=True)
                self._train(train, path)
                self.accuracy = self._read(path)
        self.net.to(device).eval()
        if held_out is not None and held_out.labels is not None:
            self.accuracy = self._recognised(held_out, np.arange(len(held_out)))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.net.features(images.to(self._device)).cpu()

    @torch.no_grad()
    def head(self, features: Tensor) -> Tensor:
        """Features (B, 64) to logits (B, K) of the data set's classes."""
        return self.net.head(features.to(self._device)).cpu()

    def _read(self, path: Path) -> float:
        """Take the weights of a file; returns the accuracy that is noted there."""
        load_model(self.net, path)
        with safe_open(path, "pt") as file:
            return float(file.metadata()["accuracy"])

    def _train(self, train: RealImages, path: Path) -> None:
        rng = np.random.default_rng(0)
        kept, rows = np.split(rng.permutation(len(train)), [int(len(train) * HELD_OUT)])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = ConvNet(train.cache.channels, train.cache.size, self.net.head.out_features)
        self.net.to(self._device).train()
        _fit(self.net, train, rows, rng, self._device)
        self.net.eval()
        _normalize(self.net, torch.cat([self(train.batch(part)) for part in np.array_split(rows[:5000], 20)]))
        partial = path.with_suffix(".partial")
        save_model(self.net, str(partial), {"accuracy": repr(self._recognised(train, kept))})
        os.replace(partial, path)

    def _recognised(self, images: RealImages, rows: np.ndarray) -> float:
        """Fraction of these images whose label it finds."""
        assert images.labels is not None  # __init__ refused
        parts = [rows[start : start + 1000] for start in range(0, len(rows), 1000)]
        right = [self.head(self(images.batch(part))).argmax(1) == images.labels[part] for part in parts]
        return torch.cat(right).double().mean().item()


@torch.no_grad()
def _normalize(net: ConvNet, features: Tensor) -> None:
    """Give the features a mean square of 1, so that distances compare between data sets; the logits stay the same."""
    scale = features.square().mean().sqrt()
    for parameter in net.hidden[-2].parameters():
        parameter.div_(scale)
    net.head.weight.mul_(scale)


def _fit(net: ConvNet, train: RealImages, rows: np.ndarray, rng: np.random.Generator, device: torch.device) -> None:
    """Train on these rows, shifted by up to a fourteenth of the shorter side."""
    steps = min(STEPS, max(FEWEST_STEPS, EPOCHS * len(rows) // BATCH))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    (height, width), shift = train.cache.size, min(train.cache.size) // 14
    labels = train.labels
    assert labels is not None
    for _ in tqdm(range(steps), "training the classifier of --features", unit="step", leave=False):
        batch = rng.choice(rows, BATCH)
        top, left = rng.integers(2 * shift + 1, size=2)
        images = F.pad(train.batch(batch), (shift,) * 4, mode="replicate")[..., top : top + height, left : left + width]
        logits = net.head(net.features(images.to(device)))
        loss = F.cross_entropy(logits, labels[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
