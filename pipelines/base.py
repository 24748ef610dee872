"""The reverse process: from noise to data with any stock scheduler, shared by all pipelines."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pipelines.arguments import ArgumentsMixin
from pipelines.levels import NoiseLevelsMixin
from pipelines.self_contained import SelfContainedMixin
from pipelines.verified import VerifiedDownloadMixin


@dataclass
class Trajectory:
    """What a sampler saw and thought, network evaluation by network evaluation; float32 tensors on the CPU.

    Attributes:
        timesteps: the times that the network was shown, (N,).
        noisy: x_t scaled to alpha^2 + sigma^2 = 1, where all kinds of scheduler look alike, (N, B, C, H, W).
        denoised: the data x0 that the network expected at x_t, about [-1, 1], (N, B, C, H, W).
    """

    timesteps: Tensor
    noisy: Tensor
    denoised: Tensor


@dataclass
class SamplingOutput(BaseOutput):
    """Generated images, and how they came about where that was asked for.

    Attributes:
        images: B PIL images, or an array (B, H, W, C) or tensor (B, C, H, W) in [0, 1].
        trajectory: the evaluations, for `return_trajectory=True`.
    """

    images: list[PIL.Image.Image] | np.ndarray | Tensor
    trajectory: Trajectory | None = None


class ReverseProcessPipeline(
    ArgumentsMixin, NoiseLevelsMixin, SelfContainedMixin, VerifiedDownloadMixin, DiffusionPipeline
):
    """Base of pipelines: `denoise` runs the scheduler, `to_images` ends the way."""

    PICTURE_CHANNELS = (1, 3, 4)
    LIBRARIES = ("diffusers", "transformers")
    OUTPUT_TYPES: tuple[str, ...] = ("pil", "np", "pt")

    # Methods name nothing else of this module: diffusers runs the code of all published pipelines in one namespace.
    _output_class = SamplingOutput
    _trajectory_class = Trajectory

    _callback_tensor_inputs = ["latents", "pred_original_sample"]

    @torch.no_grad()
    def denoise(
        self,
        network: Any,
        shape: tuple[int, int, int, int],
        condition: dict[str, Tensor],
        null_condition: dict[str, Tensor] | None = None,
        *,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        num_inference_steps: int = 50,
        timesteps: list[float] | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        image: Tensor | None = None,
        strength: float = 1.0,
        callback_on_step_end: Callable[..., dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        return_trajectory: bool = False,
    ) -> tuple[Tensor, Trajectory | None]:
        """Run the scheduler from noise to data.

        Args:
            network: called as `network(x, t, **condition, return_dict=False)`; has a `dtype`.
            shape: (B, C, H, W) of the data.
            condition: keyword arguments of the network, tensors of B rows.
            null_condition: the same for no condition; needed unless `guidance_scale` is 1.
            image: data of that shape to start from instead of noise, with noise of the level at which `strength` of
                the steps are left.

        The other arguments are those of the pipelines' `__call__`.

        Returns:
            Data of that shape, float32, and the trajectory if asked for.

        Raises:
            TypeError: for an argument of another type.
            ValueError: for arguments that don't fit the scheduler or each other, or if the samples overflow.
        """
        scheduler = self.scheduler
        scale = self._real("guidance_scale", guidance_scale)
        rescale = self._real("guidance_rescale", guidance_rescale, 0, 1)
        lowest, highest = self._interval("guidance_interval", guidance_interval)
        generator = self._generators(generator, shape[0])
        step_arguments = self._step_arguments(self._real("eta", eta, 0, 1), generator)
        names = self._callback_names(callback_on_step_end_tensor_inputs)
        self._callback(callback_on_step_end)
        strength = self._real("strength", strength, 0, 1)
        self._set_timesteps(num_inference_steps, timesteps)
        noise = self._noise(shape, generator, latents)
        first, x = self._start(noise, image, strength)
        seen: list[tuple[Tensor, ...]] = []
        for i, t in enumerate(self.progress_bar(scheduler.timesteps[first:]), first):
            x_t, alpha, sigma = self._noise_level(x, i, t)
            guided = scale != 1 and lowest < sigma / alpha <= highest
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            time = self._network_time(i, t)
            null = null_condition if guided else None
            output = self._predict(network, scaled, time, condition, null, scale, rescale)
            x0, output = self._convert(output, x_t, alpha, sigma)
            x = scheduler.step(output, t, x, **step_arguments, return_dict=False)[0]
            if return_trajectory:
                seen.append((time.float().cpu(), (x_t / torch.hypot(alpha, sigma)).cpu(), x0.cpu()))
            if callback_on_step_end is not None:
                tensors = {"latents": x, "pred_original_sample": x0}
                x = self._callback_latents(callback_on_step_end(self, i - first, t, {k: tensors[k] for k in names}), x)
        self.maybe_free_model_hooks()
        if not x.isfinite().all():
            raise ValueError(
                f"samples: not finite after {len(scheduler.timesteps)} steps of {type(scheduler).__name__} with a "
                f"{network.dtype} network; take more steps, another scheduler or float32"
            )
        return x, self._trajectory_class(*map(torch.stack, zip(*seen, strict=True))) if return_trajectory else None

    def to_images(self, x0: Tensor, output_type: str) -> list[PIL.Image.Image] | np.ndarray | Tensor:
        """Data (B, C, H, W) in [-1, 1] as "pil" images, or as "np" (B, H, W, C) or "pt" tensor in [0, 1].

        Raises:
            ValueError: for another `output_type`, or for "pil" where PIL has no mode of that many channels.
        """
        self._real_tensor("x0", x0, "B, C, H, W")
        self._check_output_type(output_type, x0.shape[1])
        x0 = (x0 / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return x0
        array = x0.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "np":
            return array
        pixels = (array * 255).round().astype(np.uint8)
        return [PIL.Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]

    @classmethod
    def _dict_from_json_file(cls, json_file: str) -> dict[str, Any]:
        """A configuration; that of a published pipeline names its module too, whose place this class takes."""
        config = super()._dict_from_json_file(json_file)
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][-1]
        for name, value in config.items():
            # diffusers would import whatever module is named there, one of the current folder for instance.
            named = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and name[0] != "_"
            if named and value[0] not in cls.LIBRARIES:
                raise ValueError(f"{name}: must be a class of {', '.join(cls.LIBRARIES)}, is {value}")
        return config

    def _check_output_type(self, output_type: str, channels: int) -> None:
        if self._text("output_type", output_type) not in self.OUTPUT_TYPES:
            raise ValueError(f"output_type: {self._brief(output_type)} is not one of {', '.join(self.OUTPUT_TYPES)}")
        if output_type == "pil" and channels not in self.PICTURE_CHANNELS:
            raise ValueError(f"output_type: no PIL image has {channels} channels; use output_type='np' or 'pt'")

    def _check_prediction_type(self, prediction_type: str | None) -> None:
        if prediction_type is not None and self._text("prediction_type", prediction_type) not in self.ROWS:
            raise ValueError(f"prediction_type: {prediction_type!r} is not one of {', '.join(self.ROWS)}")

    def _step_arguments(self, eta: float, generator: Any) -> dict[str, Any]:
        accepted = inspect.signature(self.scheduler.step).parameters
        if eta and "eta" not in accepted:
            raise ValueError(f"eta: {type(self.scheduler).__name__} takes none; DDIMScheduler does")
        # Where DDIM clips the predicted x0, it must step with the noise that fits the clipped one, as its authors' code
        # does; diffusers does so only if it is asked to.
        arguments = {"eta": eta, "generator": generator, "use_clipped_model_output": True}
        return {name: value for name, value in arguments.items() if name in accepted}

    def _callback_names(self, names: list[str] | None) -> list[str]:
        names = self._sequence("callback_on_step_end_tensor_inputs", ["latents"] if names is None else names, "names")
        unknown = [name for name in names if name not in self._callback_tensor_inputs]
        if unknown:
            allowed = ", ".join(self._callback_tensor_inputs)
            raise ValueError(f"callback_on_step_end_tensor_inputs: {self._brief(unknown[0])} is not among {allowed}")
        return names

    def _set_timesteps(self, num_inference_steps: int, timesteps: list[float] | None) -> None:
        scheduler, device = self.scheduler, self._execution_device
        accepted = inspect.signature(scheduler.set_timesteps).parameters
        if self._expected not in self.ROWS:
            allowed = ", ".join(self.ROWS)
            raise ValueError(f"scheduler: its prediction_type {self._expected!r} is not one of {allowed}")
        continuous = self._expected in ("flow_prediction", "edm")
        trained = scheduler.config.num_train_timesteps
        if timesteps is None:
            most = self.MOST_STEPS if continuous else trained
            scheduler.set_timesteps(self._whole("num_inference_steps", num_inference_steps, 1, most), device=device)
        elif "timesteps" not in accepted:
            raise ValueError(
                f"timesteps: {type(scheduler).__name__} takes no list; DDPM, EulerDiscrete, HeunDiscrete, "
                "DPMSolverMultistep, DPMSolverSinglestep and FlowMatchEulerDiscrete do"
            )
        elif self._expected == "flow_prediction" and "sigmas" not in accepted:
            raise ValueError(
                f"timesteps: {type(scheduler).__name__} takes no list of a flow; FlowMatchEulerDiscrete does"
            )
        elif self._expected == "flow_prediction":
            # Given as times, the sigmas alone would go through the scheduler's shift, and the two disagree.
            sigmas = [t / trained for t in self._times(timesteps, trained, continuous)]
            scheduler.set_timesteps(sigmas=sigmas, device=device)
        else:
            scheduler.set_timesteps(timesteps=self._times(timesteps, trained, continuous), device=device)
        if hasattr(scheduler, "set_begin_index"):
            # Else the first step searches its index by value, and may find a later step of the same timestep.
            scheduler.set_begin_index(0)

    def _noise(self, shape: tuple[int, ...], generator: Any, latents: Tensor | None) -> Tensor:
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        elif tuple(self._real_tensor("latents", latents, "B, C, H, W").shape) != tuple(shape):
            raise ValueError(f"latents: of shape {tuple(latents.shape)}, but {tuple(shape)} is to be generated")
        return latents.to(self._execution_device, torch.float32)

    def _start(self, noise: Tensor, image: Tensor | None, strength: float) -> tuple[int, Tensor]:
        """The number of the first step and the scheduler's x there: noise, or a noised image (Meng et al. 2022)."""
        scheduler = self.scheduler
        if image is None:
            return 0, noise * getattr(scheduler, "init_noise_sigma", 1.0)
        # Of second-order schedulers each step but the last has two timesteps; PNDM repeats the second of its own.
        repeats = hasattr(scheduler, "plms_timesteps")
        steps = -((len(scheduler.timesteps) - repeats) // -scheduler.order)
        left = int(steps * strength)
        if not 1 <= left <= steps:
            raise ValueError(f"strength: {strength} of {steps} steps is {left}; it must be from 1 / {steps} to 1")
        first = (steps - left) * scheduler.order
        # Two count the steps that they have taken, and so must be told that their schedule begins here.
        if repeats and first:
            rest, first = scheduler.timesteps[first + 1 :], 0
            scheduler.timesteps = torch.cat([rest[:2], rest[1:]])
        if hasattr(scheduler, "derivatives"):
            scheduler.timesteps, scheduler.sigmas, first = scheduler.timesteps[first:], scheduler.sigmas[first:], 0
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        factor, alpha, sigma = self._noise_level(torch.ones_like(noise), first, scheduler.timesteps[first])
        return first, (alpha * image + sigma * noise) / factor

    def _predict(
        self,
        network: Any,
        x: Tensor,
        t: Tensor,
        condition: dict[str, Tensor],
        null_condition: dict[str, Tensor] | None,
        scale: float,
        rescale: float = 0.0,
    ) -> Tensor:
        """The network's output, guided away from the null condition if given (Ho & Salimans 2022, eq. 6).

        `rescale` of the way, its deviation over each image is that of the output without guidance (Lin et al. 2024,
        eqs. 15 and 16).
        """
        x = x.to(network.dtype)
        if null_condition is None:
            return network(x, t, **condition, return_dict=False)[0].float()
        both = {k: torch.cat([null_condition[k], v]) for k, v in condition.items()}
        null, conditional = network(torch.cat([x, x]), t, **both, return_dict=False)[0].float().chunk(2)
        guided = null + scale * (conditional - null)
        if not rescale:
            return guided
        ratio = conditional.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
        return guided * (rescale * ratio + 1 - rescale)
