"""The optimal network for a mixture of normal distributions, whose score is known exactly, on each of the SDEs."""

import math
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from pipelines import ScoreSdePipeline
from pipelines.sde import SDES
from tests.pipelines.models import quiet

SIDE = 8
D = SIDE**2
WEIGHTS = torch.tensor([0.2, 0.3, 0.5]).double()
STDS = torch.tensor([0.15, 0.1, 0.2]).double()
MEANS = torch.stack([torch.linspace(-0.8, 0.2, D), torch.linspace(0.9, 0, D), 0.3 * torch.ones(D)]).double()


def draw(n: int, seed: int = 0) -> Tensor:
    """Data of the mixture, float32 (n, 1, SIDE, SIDE)."""
    g = torch.Generator().manual_seed(seed)
    part = torch.multinomial(WEIGHTS, n, replacement=True, generator=g)
    x0 = MEANS[part] + STDS[part, None] * torch.randn(n, D, generator=g)
    return x0.float().view(n, 1, SIDE, SIDE)


class Mixture(ModelMixin, ConfigMixin):
    """What a network would predict at best; a class label is the number of a part, and the last one is all of them.

    Args:
        sde: its name; the score is predicted for "ve", else the noise.
        classes: whether it knows labels.
    """

    @register_to_config
    def __init__(self, sde: str, classes: bool = False) -> None:
        super().__init__()
        self.register_to_config(
            in_channels=1, out_channels=1, num_class_embeds=4 if classes else None, sample_size=SIDE
        )
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.sde = SDES[sde]()  # type: ignore[call-arg]
        self.calls = 0

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> tuple[Tensor]:
        self.calls += 1
        t = timestep.double().view(-1)
        t = self.sde.time(t.log()) if self.config.sde == "ve" else t / 999
        level = self.sde.level(t)
        alpha, sigma = (c.view(-1, 1) for c in level[:2])
        x = sample.double().flatten(1) / (1 if level.input_scale is None else level.input_scale.view(-1, 1))
        labels = torch.full((len(x), 1), 3) if class_labels is None else class_labels.view(-1, 1)
        weights = torch.where((labels == 3) | (labels == torch.arange(3)), WEIGHTS.log(), -math.inf)
        score = self.score(x, alpha, sigma, weights)
        output = score if self.config.sde == "ve" else -sigma * score
        return (output.view_as(sample).to(sample.dtype),)

    def score(self, x: Tensor, alpha: Tensor, sigma: Tensor, weights: Tensor) -> Tensor:
        """Of x_t (B, D), by the logarithms of the parts' weights (B, 3)."""
        variance = alpha**2 * STDS**2 + sigma**2
        squares = x.square().sum(1, keepdim=True) - 2 * alpha * (x @ MEANS.T) + alpha**2 * MEANS.square().sum(1)
        part = (weights - squares / variance / 2 - D / 2 * variance.log()).softmax(1) / variance
        return alpha * (part @ MEANS) - part.sum(1, keepdim=True) * x


class Pixels(Mixture):
    """Pixels that are independent, each of a mixture of its own."""

    def score(self, x: Tensor, alpha: Tensor, sigma: Tensor, weights: Tensor) -> Tensor:
        variance = (alpha**2 * STDS**2 + sigma**2)[:, :, None]
        offset = alpha[:, :, None] * MEANS - x[:, None]  # (B, 3, D)
        part = (weights[:, :, None] - offset.square() / variance / 2 - variance.log() / 2).softmax(1)
        return (part * offset / variance).sum(1)

    @staticmethod
    def bits(x: Tensor, low: float, high: float) -> Tensor:
        """Bits per dimension of data (B, 1, SIDE, SIDE) where the ODE carries N(0, I) from sigma / alpha = high to low.

        In one dimension it keeps the probability of what is smaller; so it carries x to where the mixture with more
        noise has as much below.
        """
        x = x.double().flatten(1)
        below, above = torch.full_like(x, -20 * high), torch.full_like(x, 20 * high)
        for _ in range(100):
            middle = (below + above) / 2
            smaller = Pixels.of_pixels(middle, high)[0] < Pixels.of_pixels(x, low)[0]
            below, above = torch.where(smaller, middle, below), torch.where(smaller, above, middle)
        prior = torch.distributions.Normal(0, math.hypot(1, high)).log_prob(middle)
        nats = prior + Pixels.of_pixels(x, low)[1] - Pixels.of_pixels(middle, high)[1]
        return -nats.mean(1) / math.log(2)

    @staticmethod
    def of_pixels(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """The distribution function of pixels (B, D) with noise of that deviation, and the density's logarithm."""
        normal = torch.distributions.Normal(MEANS, (STDS**2 + sigma**2).sqrt()[:, None])
        weights, each = WEIGHTS[:, None], x[:, None]
        return (weights * normal.cdf(each)).sum(1), torch.logsumexp(weights.log() + normal.log_prob(each), 1)


def mixture_pipeline(
    name: str, classes: bool = False, kind: type[Mixture] = Mixture, **options: Any
) -> ScoreSdePipeline:
    """The pipeline of the optimal network on an SDE."""
    names = {0: "a", 1: "b", 2: "c"} if classes else None
    scheduler = SDES[name]().scheduler("epsilon")  # type: ignore[call-arg]
    sde = name if name == "subvp" else None
    return quiet(ScoreSdePipeline(kind(name, classes).eval(), scheduler, id2label=names, sde=sde, **options))


def distance(a: Tensor, b: Tensor) -> float:
    """The largest Kolmogorov-Smirnov distance along lines: those between the means, and 29 at random."""
    g = torch.Generator().manual_seed(0)
    lines = torch.cat([MEANS - MEANS.roll(1, 0), torch.randn(29, D, generator=g).double()])
    worst = 0.0
    for line in lines:
        p, q = ((v.double().flatten(1) @ line).sort().values for v in (a, b))
        both = torch.cat([p, q])
        gap = torch.searchsorted(p, both, right=True) / len(p) - torch.searchsorted(q, both, right=True) / len(q)
        worst = max(worst, gap.abs().max().item())
    return worst


def parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of samples (N, 1, SIDE, SIDE), by nearest part: fractions, and standard deviations over the true ones, (3,)."""
    squares = (x.double().flatten(1)[:, None] - MEANS).square().mean(2) / STDS**2
    nearest = squares.argmin(1)
    own = squares.gather(1, nearest[:, None])[:, 0]
    counts = nearest.bincount(minlength=3)
    return counts / len(x), (torch.zeros(3).double().index_add_(0, nearest, own) / counts).sqrt()
