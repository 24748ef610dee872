"""What an autoencoder makes of its data: measured, for the scaling of its latents and for signs of failure."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.vae import vae_scale_factor
from snowmelt.data.cache import ImageCache
from snowmelt.spaces import PixelSpace

IMAGES = 5_000
"""How many images are measured at most: more change the scaling by less than a percent."""

SILENT = 0.01
"""Nats per value below which a channel says nothing of the image."""


@dataclass(frozen=True)
class LatentStatistics:
    """Of latents z as a diffusion model sees them: samples of the posterior, or vectors before they are quantized.

    Attributes:
        mean: of each channel, (c,).
        std: of each channel, (c,), over images and places.
        kl: of each channel, (c,), its divergence from the unit normal in nats per value; None without a posterior.
        usage: counts of the codes, (K,); None without a codebook.
    """

    mean: Tensor
    std: Tensor
    kl: Tensor | None = None
    usage: Tensor | None = None

    @property
    def shift(self) -> float:
        """Mean of z over all channels."""
        return self.mean.mean().item()

    @property
    def scale(self) -> float:
        """One over the standard deviation over all channels, so that (z - shift) * scale has unit variance."""
        second = (self.std.square() + self.mean.square()).mean()
        return (second - self.mean.mean().square()).rsqrt().item()

    @property
    def perplexity(self) -> float | None:
        """exp of the entropy of the codes: as many equally frequent ones would be as diverse."""
        if self.usage is None:
            return None
        fractions = self.usage / self.usage.sum()
        return torch.special.entr(fractions).sum().exp().item()

    def values(self) -> dict[str, float]:
        """All statistics by name, for the log."""
        named = {"latent_mean": self.mean, "latent_std": self.std, "latent_kl": self.kl}
        values = {f"{k}_{i}": x for k, t in named.items() if t is not None for i, x in enumerate(t.tolist())}
        if self.usage is not None and self.perplexity is not None:
            values |= {"codes_used": int((self.usage > 0).sum()), "perplexity": self.perplexity}
        return values | {"latent_shift": self.shift, "latent_scale": self.scale}

    def describe(self) -> str:
        """All statistics in a line."""
        mean, std, kl = (None if t is None else " ".join(f"{x:.3g}" for x in t) for t in (self.mean, self.std, self.kl))
        line = f"latents by channel: mean {mean}, std {std}"
        if kl is not None:
            line += f", KL {kl} nats a value"
        if self.usage is not None:
            line += f"; {int((self.usage > 0).sum())} of {len(self.usage)} codes used, perplexity {self.perplexity:.1f}"
        return f"{line}; (z - {self.shift:.5g}) * {self.scale:.5g} has unit variance"

    def warnings(self) -> list[str]:
        """A line for each sign that the autoencoder has failed."""
        found = []
        if self.kl is not None and (silent := int((self.kl < SILENT).sum())):
            found.append(
                f"the posterior has collapsed: {silent} of {len(self.kl)} latent channels say nothing of the image "
                f"(less than {SILENT} nats a value); lower --kl_weight or --latent_channels, or train longer"
            )
        if self.usage is not None and (used := int((self.usage > 0).sum())) < len(self.usage) / 2:
            found.append(
                f"the codebook is dead in part: {used} of {len(self.usage)} codes are used (perplexity "
                f"{self.perplexity:.1f}); lower --num_vq_embeddings, or train longer with a lower --learning_rate"
            )
        return found


def _measure_kl(vae: Any, images: Tensor) -> dict[str, Tensor]:
    """Sums over images and places, each (c,) float64."""
    posterior = vae.encode(images).latent_dist
    mean, var = posterior.mean.double(), posterior.var.double()
    kl = (mean.square() + var - 1 - var.log()) / 2
    return {k: v.sum((0, 2, 3)) for k, v in {"first": mean, "second": mean.square() + var, "kl": kl}.items()}


def _measure_vq(vae: Any, images: Tensor) -> dict[str, Tensor]:
    latents = vae.encode(images).latents
    codes = vae.quantize(latents)[2][2].flatten()
    z = latents.double()
    usage = codes.bincount(minlength=vae.config.num_vq_embeddings)
    return {"first": z.sum((0, 2, 3)), "second": z.square().sum((0, 2, 3)), "usage": usage}


MEASURES: dict[str, Callable[[Any, Tensor], dict[str, Tensor]]] = {
    "AutoencoderKL": _measure_kl,
    "VQModel": _measure_vq,
}


def some_rows(count: int, seed: int) -> np.ndarray:
    """Numbers of all of so many rows, or of 5,000 that the seed chooses, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:IMAGES])


@torch.no_grad()
def measure_latents(vae: Any, data: ImageCache, *, seed: int, batch_size: int) -> LatentStatistics:
    """Statistics of the latents of all images, or of 5,000 that the seed chooses.

    Args:
        vae: an autoencoder of a class in `MEASURES`.
        data: the decoded images.
        seed: of the choice.
        batch_size: images in a pass.
    """
    rows = some_rows(len(data), seed)
    space, measure = PixelSpace(data.value_range), MEASURES[type(vae).__name__]
    sums: dict[str, Tensor] = {}
    for start in range(0, len(rows), batch_size):
        raw = torch.from_numpy(data.gather(rows[start : start + batch_size], None))
        for name, part in measure(vae, space.from_cache(raw.to(vae.device))).items():
            sums[name] = sums.get(name, 0) + part.cpu()
    count = len(rows) * math.prod(data.size) // vae_scale_factor(vae) ** 2
    mean = sums["first"] / count
    return LatentStatistics(
        mean=mean,
        std=(sums["second"] / count - mean.square()).sqrt(),
        kl=sums["kl"] / count if "kl" in sums else None,
        usage=sums.get("usage"),
    )


@contextmanager
def scaled(vae: Any, statistics: LatentStatistics) -> Iterator[None]:
    """Inside, the autoencoder's configuration has its measured scaling, and its shift where its class has one.

    Those of each channel, which a pretrained one may have, are not its own any more, and would win.
    """
    measured = {
        "scaling_factor": statistics.scale,
        "shift_factor": statistics.shift,
        "latents_mean": None,
        "latents_std": None,
    }
    before = {name: vae.config[name] for name in measured if name in vae.config}
    vae.register_to_config(**{name: measured[name] for name in before})
    try:
        yield
    finally:
        vae.register_to_config(**before)
