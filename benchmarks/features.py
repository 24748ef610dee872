"""A small classifier's features, and the Frechet distance between two sets of them: how benchmarks compare samples."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from scipy.linalg import sqrtm
from torch import Tensor, nn

from snowmelt.data.cache import ImageCache


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with ReLU, for gray images of 28 pixels; `features` are its 84 last hidden units."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            *(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(800, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
        )
        self.head = nn.Linear(84, classes)

    @torch.no_grad()
    def features(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, 84) float64 and predicted labels (N,) of images (N, 1, 28, 28) in [0, 1]."""
        hidden = torch.cat([self.hidden(part) for part in images.split(1000)])
        return hidden.double().numpy(), self.head(hidden).argmax(1).numpy()


def images_of(cache: ImageCache, rows: np.ndarray) -> Tensor:
    """Cached uint8 images as float32 (N, C, H, W) in [0, 1]."""
    return torch.from_numpy(cache.gather(rows, None)).float() / 255


def classifier(cache: ImageCache, path: Path, epochs: int = 3) -> LeNet:
    """A LeNet trained on a labelled data set, or the one that an earlier call left at `path`."""
    torch.manual_seed(0)
    net = LeNet(len(cache.class_names))
    if path.exists():
        load_model(net, path)
        return net.eval()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    steps = epochs * len(cache) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(0, len(cache), 128)
        loss = nn.functional.cross_entropy(
            net.head(net.hidden(images_of(cache, rows))), torch.tensor(cache.labels[rows])
        )
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    save_model(net, path)
    return net.eval()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), in float64 (Heusel et al. 2017, eq. 6)."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = np.real(sqrtm(cov_a @ cov_b))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * cross))
