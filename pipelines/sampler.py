"""A stock scheduler as the loop sees it: what all adapters share."""

import inspect
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pipelines.arguments import MOST_STEPS, brief, check_timesteps, whole
from pipelines.churn import Churn
from pipelines.prediction import PREDICTION_TYPES, NoiseLevel, Prediction, PredictionType
from pipelines.start import noised

LISTS = (
    "DDPM, EulerDiscrete, HeunDiscrete, DPMSolverMultistep, DPMSolverSinglestep, FlowMatchEulerDiscrete, "
    "FlowMapEulerDiscrete and CMStochasticIterative, and UniPCMultistep of a flow"
)
SEARCHED = "searched_timesteps"
"""In a scheduler's configuration: the times to use for a number of steps, by that number as a text."""
CHURNING = "EDMEuler, EulerDiscrete and HeunDiscrete"


def searched_timesteps(scheduler: Any, num_inference_steps: int) -> list[float] | None:
    """The times of `SEARCHED` for so many steps, if there are any."""
    found = scheduler.config.get(SEARCHED)
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"scheduler: its {SEARCHED} must be lists by numbers of steps, got {brief(found)}")
    return (found or {}).get(str(num_inference_steps))


class Sampler:
    """Adapter of a stock scheduler; see `make_sampler`. Evaluations of the network are numbered from 0."""

    CONTINUOUS = False  # whether its times are real numbers
    CHURNS = False  # whether noise may be added before its steps
    MARKOV = False  # whether steps of one evaluation depend on the state alone

    def __init__(
        self,
        scheduler: Any,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        churn: Churn | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.order: int = scheduler.order  # evaluations per step
        self.prediction_type = self._prediction_type()  # what `scheduler.step` takes a network's output for
        self.first = 0
        self.generator = generator
        accepted = inspect.signature(scheduler.step).parameters
        if eta and "eta" not in accepted:
            raise ValueError(f"eta: {type(scheduler).__name__} takes none; DDIMScheduler does")
        self.churn = churn or Churn()
        if self.churn.s_churn and not self.CHURNS:
            raise ValueError(f"s_churn: {type(scheduler).__name__} takes none; {CHURNING} do")
        # Where DDIM clips the predicted x0, it must step with the noise that fits it; diffusers does so only if asked.
        arguments = {"eta": eta, "generator": generator, "use_clipped_model_output": True}
        self._step_arguments = {name: value for name, value in arguments.items() if name in accepted}

    def _prediction_type(self) -> PredictionType:
        name = self.scheduler.config.prediction_type
        if name not in PREDICTION_TYPES:
            allowed = ", ".join(PREDICTION_TYPES)
            raise ValueError(f"scheduler: its prediction_type {name!r} is not one of {allowed}")
        return PredictionType(name)

    def set_timesteps(self, num_inference_steps: int, timesteps: list[float] | None, device: torch.device) -> None:
        """Lay out the steps, from noise to data.

        Args:
            num_inference_steps: how many, spaced as the scheduler does it, or as `SEARCHED` says.
            timesteps: the model's times to use instead, where the scheduler takes a list.
            device: of the scheduler's tensors.

        Raises:
            TypeError: for values of another type.
            ValueError: for values out of range, or a list that the scheduler can't take.
        """
        scheduler, trained = self.scheduler, self.scheduler.config.num_train_timesteps
        if timesteps is None and self.takes_list:
            timesteps = searched_timesteps(scheduler, num_inference_steps)
        if timesteps is None:
            most = MOST_STEPS if self.CONTINUOUS else trained
            scheduler.set_timesteps(whole("num_inference_steps", num_inference_steps, 1, most), device=device)
        elif not self.takes_list:
            raise ValueError(f"timesteps: {type(scheduler).__name__} takes no list; {LISTS} do")
        else:
            self._set_list(check_timesteps(timesteps, trained, self.CONTINUOUS), device)
        self._begin(0)

    @property
    def takes_list(self) -> bool:
        """Whether the times can be given."""
        return "timesteps" in inspect.signature(self.scheduler.set_timesteps).parameters

    @property
    def repeats(self) -> bool:
        """Whether steps can be undone by noise and made again."""
        return self.MARKOV and self.order == 1

    def start(self, noise: Tensor) -> Tensor:
        """The state x to begin with, of unit normal noise, float32 (B, C, H, W)."""
        return self._churned(noise * self.scheduler.init_noise_sigma, self.first)

    def start_from(self, data: Tensor, noise: Tensor, strength: float, noise_std: float = 0.0) -> Tensor:
        """The state x to begin with, of data that are noised so far that some of the steps are left.

        Args:
            data: (B, C, H, W).
            noise: unit normal, float32 of that shape.
            strength: the fraction of the steps that are left, from 1 / steps to 1 (Meng et al. 2022).
            noise_std: of noise that the data have; then the steps that are left are those from the last level on that
                has at least as much.

        Raises:
            ValueError: for a strength that leaves no step, or more noise than the first step has.
        """
        steps = self._steps()
        left = int(steps * strength)
        if noise_std:
            levels = [self.level(i * self.order) for i in range(steps)]
            left = steps - sum(bool(level.sigma >= level.alpha * noise_std) for level in levels) + 1
            if left > steps:
                raise ValueError(f"noise_std: more than what the {steps} steps begin with")
        if not 1 <= left <= steps:
            raise ValueError(f"strength: {strength} of {steps} steps is {left}; it must be from 1 / {steps} to 1")
        self._skip((steps - left) * self.order)
        level = self.level(self.first)
        return self._churned(self._from_x_t(noised(data, level, noise, noise_std), level), self.first)

    def back(self, x: Tensor, i: int, j: int, noise: Tensor) -> Tensor:
        """The state before evaluation j of that before a later one i, by noise that is added.

        Args:
            x: the state, (B, C, H, W).
            i: number of the evaluation that it is the state of; one more than the last for data.
            j: of an earlier one.
            noise: unit normal, (B, C, H, W).
        """
        high = self.level(j)
        if i < len(self.scheduler.timesteps):
            low = self.level(i)
            x, ratio = self.x_t(x, i), high.alpha / low.alpha
            x = ratio * x + (high.sigma**2 - (ratio * low.sigma) ** 2).sqrt() * noise
        else:
            x = high.alpha * x + high.sigma * noise
        if hasattr(self.scheduler, "_step_index"):
            self.scheduler._step_index = None
        self._begin(j)
        return self._from_x_t(x, high)

    def to_noise(self, x: Tensor) -> Tensor:
        """The noise that `start` makes this state x of, (B, C, H, W)."""
        return x / self.scheduler.init_noise_sigma

    def evaluations(self) -> range:
        """Numbers of the network evaluations that are to be made."""
        return range(self.first, len(self.scheduler.timesteps))

    def level(self, i: int) -> NoiseLevel:
        """The noise level of evaluation i, tensors ()."""
        raise NotImplementedError

    def x_t(self, x: Tensor, i: int) -> Tensor:
        """x_t = alpha x0 + sigma eps of the scheduler's state x, (B, C, H, W), at evaluation i."""
        return self.scheduler.scale_model_input(x, self.scheduler.timesteps[i])

    def step(self, prediction: Prediction, i: int, x: Tensor) -> Tensor:
        """The scheduler's state after evaluation i, (B, C, H, W).

        Args:
            prediction: of the network at x_t; it is converted to the scheduler's own type.
            i: number of the evaluation.
            x: the state at that evaluation, (B, C, H, W).
        """
        output, t = prediction.convert(self.prediction_type), self.scheduler.timesteps[i]
        x = self.scheduler.step(output, t, x, **self._step_arguments, return_dict=False)[0]
        return self._churned(x, i + 1)

    def _churned(self, x: Tensor, i: int) -> Tensor:
        """The state x with the noise that is added before evaluation i, whose level rises by as much.

        The schedulers' own `s_churn` adds it after the evaluation, of which it knows nothing then.
        """
        scheduler = self.scheduler
        if not self.churn.s_churn or i % self.order or i == len(scheduler.timesteps):
            return x
        sigma = float(scheduler.sigmas[i])
        raised = self.churn.raised(sigma, self._steps())
        if raised == sigma:
            return x
        scheduler.sigmas[i] = raised
        scheduler.timesteps[i] = self._time(scheduler.sigmas[i])
        noise = randn_tensor(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
        return x + noise * (self.churn.s_noise * (raised**2 - sigma**2) ** 0.5)

    def _time(self, sigma: Tensor) -> Any:
        """What the network is shown of a sigma that isn't among the scheduler's."""
        raise NotImplementedError

    def _from_x_t(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        return x_t  # the inverse of the method of that name

    def _steps(self) -> int:
        """Steps laid out; those of second-order schedulers but the last have two evaluations each."""
        return -(len(self.scheduler.timesteps) // -self.order)

    def _skip(self, evaluations: int) -> None:
        self.first = evaluations
        self._begin(evaluations)

    def _begin(self, i: int) -> None:
        # Else the first step searches its index by value, and may find a later step of the same timestep.
        self.scheduler.set_begin_index(i)

    def _set_list(self, timesteps: list[float], device: torch.device) -> None:
        self.scheduler.set_timesteps(timesteps=timesteps, device=device)
