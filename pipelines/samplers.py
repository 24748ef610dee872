"""Adapters of the stock schedulers. Only these depend on their insides, which the tests check."""

from typing import Any

import torch
from torch import Tensor

from pipelines.churn import Churn
from pipelines.edm import SOLVER_ORDER, ConsistencySampler, EDMEulerSampler, EDMHeunSampler, EDMSampler
from pipelines.prediction import NoiseLevel, Prediction, PredictionType
from pipelines.sampler import Sampler

LEARNED = ("learned", "learned_range")
"""Variance types of steps whose variance is an output of the network."""


class ChainSampler(Sampler):
    """DDPM and DDIM: the variance-preserving chain at whole timesteps."""

    MARKOV = True

    def level(self, i: int) -> NoiseLevel:
        """alpha^2 = alphas_cumprod[t], sigma^2 = 1 - alpha^2 (Ho et al. 2020, eq. 4)."""
        t = self.scheduler.timesteps[i]
        alpha2 = self.scheduler.alphas_cumprod[t]
        return NoiseLevel(alpha2.sqrt(), (1 - alpha2).sqrt(), t)

    def _begin(self, i: int) -> None:
        pass  # these find their step by its timestep, which is there once


class DDPMSampler(ChainSampler):
    """Ancestral steps, whose variance a network may have learned (Nichol & Dhariwal 2021, eq. 15)."""

    def step(self, prediction: Prediction, i: int, x: Tensor) -> Tensor:
        """As `Sampler.step`, with what the network says of the variance, and no noise after the last evaluation.

        diffusers adds that of a large or learned variance there unless the timestep is 0, before which trailing
        timesteps end.

        Args:
            prediction: of the network at x_t.
            i: number of the evaluation.
            x: the state at that evaluation, (B, C, H, W).
        """
        scheduler, t = self.scheduler, self.scheduler.timesteps[i]
        noisy = t > 0 and not scheduler.config.variance_type.startswith("fixed_small")
        if noisy and i == len(scheduler.timesteps) - 1:
            x0, limit = prediction.x0, scheduler.config.clip_sample_range
            if scheduler.config.thresholding:
                return scheduler._threshold_sample(x0)
            return x0.clamp(-limit, limit) if scheduler.config.clip_sample else x0
        output = prediction.convert(self.prediction_type)
        if prediction.variance is not None and scheduler.config.variance_type in LEARNED:
            output = torch.cat([output, prediction.variance], 1)
        return scheduler.step(output, t, x, **self._step_arguments, return_dict=False)[0]


class PNDMSampler(ChainSampler):  # PNDM counts the steps that it has taken, and repeats the second one
    MARKOV = False

    def _steps(self) -> int:
        return len(self.scheduler.timesteps) - 1

    def _skip(self, evaluations: int) -> None:
        if evaluations:
            rest = self.scheduler.timesteps[evaluations + 1 :]
            self.scheduler.timesteps = torch.cat([rest[:2], rest[1:]])


class SigmaSampler(Sampler):
    """Euler and its kin keep x0 + sigma eps, and show the network that times alpha = (1 + sigma^2)^-1/2."""

    MARKOV = True

    def level(self, i: int) -> NoiseLevel:
        """alpha = (1 + s^2)^-1/2 and sigma = s alpha, for the scheduler's own sigma s."""
        sigma = self._sigma(i)
        alpha = (1 + sigma**2) ** -0.5
        return NoiseLevel(alpha, sigma * alpha, self.scheduler.timesteps[i])

    def _sigma(self, i: int) -> Tensor:
        return self.scheduler.sigmas[i]

    def _from_x_t(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        return x_t / level.alpha


class EulerSampler(SigmaSampler):
    """Euler and Heun, which may begin their steps with more noise."""

    CHURNS = True

    def _time(self, sigma: Tensor) -> Any:
        trained = (1 / self.scheduler.alphas_cumprod - 1).log() / 2
        return float(self.scheduler._sigma_to_t(sigma.numpy(), trained.cpu().numpy()))


class KDPM2Sampler(SigmaSampler):
    """DPM-Solver-2, whose second evaluation of a step is at a level between."""

    EARLIER = 0  # by how many places the levels between are kept earlier

    def _sigma(self, i: int) -> Tensor:
        first = self.scheduler.state_in_first_order
        return self.scheduler.sigmas[i] if first else self.scheduler.sigmas_interpol[i - self.EARLIER]


class KDPM2AncestralSampler(KDPM2Sampler):  # DPM-Solver-2 with ancestral steps
    EARLIER = 1

    def set_timesteps(self, num_inference_steps: int, timesteps: list[float] | None, device: torch.device) -> None:
        """Lay out the steps; the first level between is s_2 of levels s_1 and s_2, as all are but for rounding.

        It is the geometric mean of s_1 and of s_2^2 / s_1. Where s_1 is thousands of times s_2, diffusers, which
        takes the latter as a difference, rounds it to 0, and then takes its logarithm.

        Args:
            num_inference_steps: as `Sampler.set_timesteps`.
            timesteps: None; this scheduler takes no list.
            device: of the scheduler's tensors.

        Raises:
            ValueError: as `Sampler.set_timesteps`.
        """
        super().set_timesteps(num_inference_steps, timesteps, device)
        scheduler = self.scheduler
        if len(scheduler.timesteps) > 1 and not scheduler.timesteps[1].isfinite():
            scheduler.sigmas_interpol[0] = scheduler.sigmas[1]
            scheduler.timesteps[1] = scheduler.timesteps[2]


class LMSSampler(SigmaSampler):  # LMS counts the steps that it has taken, by their derivatives
    MARKOV = False

    def _skip(self, evaluations: int) -> None:
        scheduler = self.scheduler
        scheduler.timesteps, scheduler.sigmas = scheduler.timesteps[evaluations:], scheduler.sigmas[evaluations:]


class MultistepSampler(Sampler):  # DPM-Solver, UniPC and DEIS on the variance-preserving chain
    def level(self, i: int) -> NoiseLevel:
        """alpha and sigma, with alpha^2 + sigma^2 = 1, as the scheduler converts its own sigma."""
        alpha, sigma = self.scheduler._sigma_to_alpha_sigma_t(self.scheduler.sigmas[i])
        return NoiseLevel(alpha, sigma, self.scheduler.timesteps[i])


class FlowMultistepSampler(Sampler):  # DPM-Solver and UniPC on the straight line
    CONTINUOUS = True

    def level(self, i: int) -> NoiseLevel:
        """alpha = 1 - sigma, timestep T sigma: the scheduler's own is rounded down, which would bias predictions."""
        sigma = self.scheduler.sigmas[i]
        device = self.scheduler.timesteps.device
        return NoiseLevel(1 - sigma, sigma, sigma.to(device) * self.scheduler.config.num_train_timesteps)

    @property
    def takes_list(self) -> bool:
        """Always: the sigmas are put in place of the scheduler's own."""
        return True

    def _set_list(self, timesteps: list[float], device: torch.device) -> None:
        self.scheduler.set_timesteps(len(timesteps), device=device)
        trained, shift = self.scheduler.config.num_train_timesteps, self.scheduler.config.flow_shift
        sigmas = torch.tensor([*timesteps, 0.0]) / trained
        self.scheduler.sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)  # as the scheduler does with its own
        self.scheduler.timesteps = (self.scheduler.sigmas[:-1] * trained).to(device)


class FlowSampler(Sampler):
    """Euler and Heun on the straight line of flow matching."""

    CONTINUOUS = True
    MARKOV = True

    def _prediction_type(self) -> PredictionType:
        return PredictionType("flow_prediction")

    def start(self, noise: Tensor) -> Tensor:
        """The noise itself, which isn't scaled."""
        return noise

    def to_noise(self, x: Tensor) -> Tensor:
        """The state itself, which isn't scaled."""
        return x

    def level(self, i: int) -> NoiseLevel:
        """alpha = 1 - sigma."""
        sigma = self.scheduler.sigmas[i]
        return NoiseLevel(1 - sigma, sigma, self.scheduler.timesteps[i])

    def x_t(self, x: Tensor, i: int) -> Tensor:
        """The state x itself."""
        return x

    def _set_list(self, timesteps: list[float], device: torch.device) -> None:
        # Given as times, the sigmas alone would go through the scheduler's shift, and the two disagree.
        trained = self.scheduler.config.num_train_timesteps
        self.scheduler.set_timesteps(sigmas=[t / trained for t in timesteps], device=device)


class FlowMapSampler(FlowSampler):
    """Steps of a flow map from each noise level to the next; of a network of velocities they are Euler's."""

    def level(self, i: int) -> NoiseLevel:
        """alpha = 1 - sigma, and the next sigma as the target."""
        sigma, target = self.scheduler.sigmas[i : i + 2].float()
        return NoiseLevel(1 - sigma, sigma, self.scheduler.timesteps[i].float(), target_sigma=target)


ADAPTERS: dict[str, type[Sampler]] = {
    "DDPMScheduler": DDPMSampler,
    "DDIMScheduler": ChainSampler,
    "PNDMScheduler": PNDMSampler,
    "EulerDiscreteScheduler": EulerSampler,
    "EulerAncestralDiscreteScheduler": SigmaSampler,
    "HeunDiscreteScheduler": EulerSampler,
    "KDPM2DiscreteScheduler": KDPM2Sampler,
    "KDPM2AncestralDiscreteScheduler": KDPM2AncestralSampler,
    "LMSDiscreteScheduler": LMSSampler,
    "DPMSolverMultistepScheduler": MultistepSampler,
    "DPMSolverSinglestepScheduler": MultistepSampler,
    "UniPCMultistepScheduler": MultistepSampler,
    "DEISMultistepScheduler": MultistepSampler,
    "FlowMatchEulerDiscreteScheduler": FlowSampler,
    "FlowMatchHeunDiscreteScheduler": FlowSampler,
    "FlowMapEulerDiscreteScheduler": FlowMapSampler,
    "CMStochasticIterativeScheduler": ConsistencySampler,
    "EDMEulerScheduler": EDMEulerSampler,
    "EDMDPMSolverMultistepScheduler": EDMSampler,
}


def make_sampler(
    scheduler: Any,
    eta: float = 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    churn: Churn | None = None,
) -> Sampler:
    """The adapter of a stock scheduler.

    Args:
        scheduler: the scheduler, whose state changes as it steps.
        eta: noise of DDIM, from 0 to 1 (Song et al. 2021, eq. 16).
        generator: of the steps' noise, if they have any: one, or one per image.
        churn: noise that is added before the steps of Euler and Heun (Karras et al. 2022); None for none.

    Raises:
        ValueError: for a scheduler of another kind, an `eta` or `churn` that it doesn't know, or an unknown prediction
            type.
    """
    kinds = (ADAPTERS[c.__name__] for c in type(scheduler).__mro__ if c.__name__ in ADAPTERS)
    adapter = next(kinds, None)
    if adapter is None:
        raise ValueError(f"scheduler: {type(scheduler).__name__} is of no kind that is known here")
    if adapter is MultistepSampler and scheduler.config.get("use_flow_sigmas"):
        adapter = FlowMultistepSampler
    if adapter is EDMEulerSampler and scheduler.config.get("solver_order") == SOLVER_ORDER:
        adapter = EDMHeunSampler
    return adapter(scheduler, eta, generator, churn)
