"""An objective: the loss of a network, and the sampler that fits what the loss teaches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from pipelines.denoiser import CONCATENATED, Predictor, own_estimate
from pipelines.prediction import NoiseLevel, Prediction, expand
from snowmelt.objectives.couplings import COUPLINGS
from snowmelt.objectives.importance import LossHistory
from snowmelt.objectives.paths import DiscretePath, Path
from snowmelt.objectives.timesteps import DISTRIBUTIONS, uniform
from snowmelt.objectives.weights import VLB, WEIGHTS


class Losses(NamedTuple):
    """What one forward pass gives: the loss, and what is only looked at."""

    loss: Tensor
    """(B,) float32: the loss of each sample, whose mean is descended."""
    quantile: Tensor | None = None
    """(B,) float32 in (0, 1): of each sample's noise level among those trained on, where there are noise levels."""
    values: Mapping[str, Tensor] = MappingProxyType({})
    """Numbers to log by their names, each () or (B,), without gradients."""


@dataclass(frozen=True)
class StepContext:
    """What a loss may depend on besides the batch.

    Attributes:
        forward: calls the networks, as processes share them and as they are compiled.
        generator: of all that is random, on the device, seeded for this forward pass.
        step: optimizer steps taken before this one.
        progress: how much of the training lies behind it, from 0 to 1.
        ema: EMAs of the networks, those that are published, by their names; empty where there are none.
        gather: joins a tensor of every process along the first axis, in the order of processes.
        bare: calls the networks by themselves, for what isn't descended; None where `forward` does.
    """

    forward: Callable[..., Any]
    generator: torch.Generator
    step: int
    progress: float
    ema: Mapping[str, Any] = field(default_factory=dict)
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor
    bare: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Objective:
    """(path, prediction type, weight, timestep distribution), each named in its table.

    Args:
        path: the forward process.
        prediction_type: a key of `PREDICTION_TYPES` that the path knows: what the network predicts.
        weight: a key of `WEIGHTS`.
        timestep_sampling: a key of `DISTRIBUTIONS`, whose domain is the path's.
        gamma: the parameter of the min-SNR weights, more than 0.
        sigma_data: standard deviation of the data, the parameter of the EDM weight: 0.5 for pixels, 1 for latents.
        low_discrepancy: stratify timesteps over the batch.
        noise_offset: standard deviation of noise that is constant over each channel, added to the unit normal noise,
            so that the network learns to change an image's brightness (Guttenberg 2023).
        input_perturbation: standard deviation of noise in what the network sees but not in what it is asked for, as
            its own errors are in sampling (Ning et al. 2023, algorithm 1).
        dream_detail_preservation: the power p of DREAM, which adds the network's own error to the noise, times sigma^p,
            at the cost of a second forward pass (Zhou et al. 2024, algorithm 1); None: without it.
        vlb_weight: lambda of the hybrid loss, for a path whose variance is learned: the variational bound in bits per
            dimension, times lambda, teaches the variance, and nothing else (Nichol & Dhariwal 2021, eq. 16).
        bin_width: distance between two values of the data, for the bound; None for data without such.
        coupling: a key of `COUPLINGS`: which noise an image is mixed with.
        contrastive_weight: lambda of contrastive flow matching, of a velocity: the squared distance of the output from
            the target of another sample of the batch is subtracted, times lambda (Stoica et al. 2025).
        self_condition: give the network its own estimate of x0 for half of the images, at the cost of a second forward
            pass, and zeros for the others (Chen et al. 2023, algorithm 1).
        history: of losses by timestep, for `timestep_sampling` loss_second_moment; None draws uniformly.
    """

    path: Path
    prediction_type: str
    weight: str = "unit"
    timestep_sampling: str = "uniform"
    gamma: float = 5.0
    sigma_data: float = 0.5
    low_discrepancy: bool = False
    noise_offset: float = 0.0
    input_perturbation: float = 0.0
    dream_detail_preservation: float | None = None
    vlb_weight: float = 0.001
    bin_width: float | None = None
    coupling: str = "independent"
    contrastive_weight: float = 0.0
    self_condition: bool = False
    history: LossHistory | None = None

    def __post_init__(self) -> None:
        self.path.prediction_type(self.prediction_type)  # or the path doesn't know it

    def predictor(self, net: Callable[..., Any]) -> Predictor:
        """A network, called as `net(x, timestep, **conditions, return_dict=False)`, read as the objective teaches."""
        return Predictor(net, self.path.prediction_type(self.prediction_type))

    def coefficients(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """(a, b) of the target a x0 + b eps at noise levels (B,), each (B,)."""
        return self.path.prediction_type(self.prediction_type).coefficients(level.alpha, level.sigma)

    @property
    def target_channels(self) -> int:
        """Of the network's input, the last ones, that show a flow map where x_t is to be taken."""
        return 0

    @property
    def of_two_times(self) -> bool:
        """Whether the network is compared with itself at another time, which it must say the same of but for that."""
        return False

    @property
    def learns_variance(self) -> bool:
        """Whether the network has twice the data's channels as outputs, of which the second half says the variance."""
        return isinstance(self.path, DiscretePath) and self.path.variance_type == "learned_range"

    def weights(self, level: NoiseLevel) -> Tensor:
        """Weights (B,) on the squared error of the network's output."""
        weight, (alpha, sigma) = WEIGHTS[self.weight], level[:2]
        if weight is None:
            return torch.ones_like(alpha)
        a, b = self.coefficients(level)
        return weight((sigma / alpha) ** 2, self.gamma, self.sigma_data) * (sigma / (alpha * b - sigma * a)) ** 2

    def draw_times(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n times of the path, and their quantiles in (0, 1), each (n,), on the generator's device."""
        u = uniform(n, generator, self.low_discrepancy)
        if self.history is not None:
            return self.history.quantile(u), u
        return self.path.time(DISTRIBUTIONS[self.timestep_sampling].quantile(u)), u

    def loss(self, x0: Tensor, conditions: dict[str, Any], context: StepContext, noise: Tensor | None = None) -> Losses:
        """The training loss (Ho et al. 2020, eq. 14, for any path, prediction type and weight).

        Only the network runs in reduced precision, where it autocasts: noising in bf16 gives the first timesteps no
        noise at all.

        Args:
            x0: clean data, float32 (B, C, H, W), about [-1, 1].
            conditions: keyword arguments of the network.
            context: the network, called as `forward(x, timestep, **conditions, return_dict=False)`, and the source of
                timesteps and noise, on x0's device.
            noise: that belongs to x0, unit normal, float32 (B, C, H, W); None: it is drawn by the `coupling`.

        Returns:
            Of each sample its weighted loss and the quantile of its noise level.
        """
        generator, predict = context.generator, self.predictor(context.forward)
        if self.history is not None:
            self.history.begin(context.step)
        t, u = self.draw_times(len(x0), generator)
        if noise is None:
            noise = COUPLINGS[self.coupling](x0, generator)
        if self.noise_offset:
            constant = torch.randn(*x0.shape[:2], 1, 1, generator=generator, device=x0.device)
            noise += self.noise_offset * constant
        seen = noise
        if self.input_perturbation:
            extra = torch.randn(x0.shape, generator=generator, device=x0.device)
            seen = noise + self.input_perturbation * extra
        level = self.path.level(t)
        alpha, sigma, a, b = (expand(c, x0) for c in (*level[:2], *self.coefficients(level)))
        if self.self_condition:
            conditions = self._self_conditioned(predict, alpha * x0 + sigma * seen, level, conditions, generator)
        if self.dream_detail_preservation is not None:
            with torch.no_grad():
                own = predict(alpha * x0 + sigma * seen, level, conditions)
            fraction = (sigma / torch.hypot(alpha, sigma)) ** self.dream_detail_preservation
            extra = fraction * (noise - own.eps)
            noise, seen = noise + extra, seen + extra
        prediction = predict(alpha * x0 + sigma * seen, level, conditions)
        if self.weight == VLB:
            loss = self._bound(prediction, x0, t)
        else:
            target = a * x0 + b * noise
            error = (prediction.output - target).square().flatten(1).mean(1)
            if self.contrastive_weight:
                other = (prediction.output - target.roll(1, 0)).square().flatten(1).mean(1)
                error = error - self.contrastive_weight * other
            loss = error * self.weights(level)
            if self.learns_variance:
                frozen = prediction.with_output(prediction.output.detach())
                loss = loss + self.vlb_weight * self._bound(frozen, x0, t)
        if self.history is not None:
            factor = self.history.weights(t)  # of the losses before these, by which t was drawn
            self.history.update(context.gather(t), context.gather(loss.detach()))
            loss = loss * factor
        return Losses(loss, u)

    def _self_conditioned(
        self,
        predict: Predictor,
        x_t: Tensor,
        level: NoiseLevel,
        conditions: dict[str, Any],
        generator: torch.Generator,
    ) -> dict[str, Any]:
        """The conditions and, for half of the images, what the network itself expects of them."""
        nothing = torch.zeros_like(x_t)
        with torch.no_grad():
            estimate = own_estimate(predict(x_t, level, conditions | {CONCATENATED: nothing}))
        # For each image by itself, so that all processes make as many passes and none waits for the draw.
        chosen = torch.rand(len(x_t), generator=generator, device=x_t.device) < 0.5
        return conditions | {CONCATENATED: torch.where(expand(chosen, x_t), estimate, nothing)}

    def _bound(self, prediction: Prediction, x0: Tensor, t: Tensor) -> Tensor:
        assert isinstance(self.path, DiscretePath)  # recipes.py refuses others
        return self.path.bound(prediction, x0, t, self.bin_width)

    def read(self, output: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """What a network's output says of x_t.

        Args:
            output: F, float32 (B, C, H, W).
            x_t: the noisy data, (B, C, H, W).
            t: the path's times, (B,).
        """
        return Prediction(output, self.path.prediction_type(self.prediction_type), x_t, self.path.level(t))

    def scheduler(self) -> SchedulerMixin:
        """The stock scheduler to save with the weights."""
        return self.path.scheduler(self.prediction_type)

    @property
    def pipeline_prediction_type(self) -> str | None:
        """What the pipeline must know of the output, where the scheduler takes it for something else."""
        known = self.path.scheduler_prediction_type
        return None if known in (None, self.prediction_type) else self.prediction_type
