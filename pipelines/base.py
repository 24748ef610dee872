"""What pipelines share around the sampling loop: sizes, noise, autoencoders, callbacks and what they return."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pipelines.arguments import (
    MOST,
    brief,
    check_callback,
    check_callback_latents,
    real_tensor,
    sequence,
    string,
    whole,
)
from pipelines.backbones import COMPONENTS, backbone_of, size_multiple, trained_size
from pipelines.denoiser import Predictor
from pipelines.flow_map import TARGET_CHANNELS
from pipelines.prediction import PREDICTION_TYPES, Prediction, PredictionType
from pipelines.sampler import Sampler
from pipelines.samplers import LEARNED
from pipelines.sampling import OnStep, Trajectory, join_steps, record_step
from pipelines.schedulers import FEW_STEPS
from pipelines.storage import StoredPipeline
from pipelines.vae import decode_latents, encode_images, vae_scale_factor

IMAGE_CHANNELS = (1, 3, 4)
"""Numbers of channels that PIL has images of."""


@dataclass
class SamplingOutput(BaseOutput):
    """Generated images, and how they were denoised where that was asked for.

    Attributes:
        images: B PIL images, or an array (B, H, W, C) or tensor (B, C, H, W) in [0, 1].
        trajectory: the evaluations, for `return_trajectory=True`.
    """

    images: list[PIL.Image.Image] | np.ndarray | Tensor
    trajectory: Trajectory | None = None


class ImagePipeline(StoredPipeline):
    """Base of pipelines whose network makes images, or what an autoencoder `vae` turns into images."""

    OUTPUT_TYPES: tuple[str, ...] = ("pil", "np", "pt")

    vae: Any = None
    _callback_tensor_inputs = ["latents", "pred_original_sample"]

    @property
    def network(self) -> Any:
        """The network that denoises, whatever it is called among the components."""
        return next(part for name in COMPONENTS if (part := getattr(self, name, None)) is not None)

    @property
    def data_channels(self) -> int:
        """Of what the network denoises: its input, without what is concatenated to it there.

        That is its own last estimate, as large as the data, its condition on augmentation, an image, or where a flow
        map takes it.
        """
        joined = (self.config.get(name) or 0 for name in ("augment_channels", "condition_channels"))
        channels = self.network.config.in_channels - sum(joined) - self._target_channels
        return channels // 2 if self.config.get("self_condition") else channels

    @property
    def default_steps(self) -> int:
        """Steps of a call that says nothing of them: 50, or those of `FEW_STEPS`."""
        return FEW_STEPS.get(type(self.scheduler).__name__, 50)

    def _steps(self, num_inference_steps: int | None) -> int:
        return self.default_steps if num_inference_steps is None else num_inference_steps

    @property
    def _target_channels(self) -> int:
        return TARGET_CHANNELS if self.config.get("flow_map") else 0

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        if self.vae is None:
            return self.data_channels
        return self.vae.config.get("out_channels") or self.vae.config["in_channels"]

    @property
    def vae_scale_factor(self) -> int:
        """Side of an image over that of the network's data."""
        return 1 if self.vae is None else vae_scale_factor(self.vae)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The network's data (B, c, h, w) of images (B, C, H, W) in [-1, 1]: the mean, where encoding is random.

        Raises:
            TypeError: for what is no tensor of real numbers.
            ValueError: for another shape, or if latents overflow in float32 too.
        """
        self._check_data("images", images, self.channels, self.vae_scale_factor)
        if self.vae is None:
            return images
        latents = encode_images(self.vae, images, self._execution_device)
        self.maybe_free_model_hooks()
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W), float32 in about [-1, 1], of the network's data (B, c, h, w).

        Raises:
            TypeError: for what is no tensor of real numbers.
            ValueError: for another shape, or if the images overflow in float32 too.
        """
        self._check_data("latents", latents, self.data_channels, 1)
        if self.vae is None:
            return latents
        images = decode_latents(self.vae, latents, self._execution_device)
        self.maybe_free_model_hooks()
        return images

    def to_images(self, x0: Tensor, output_type: str) -> list[PIL.Image.Image] | np.ndarray | Tensor:
        """Images (B, C, H, W) in [-1, 1] as "pil" images, or as "np" (B, H, W, C) or "pt" tensor in [0, 1].

        Raises:
            ValueError: for another `output_type`, or for "pil" where PIL has no mode of that many channels.
        """
        real_tensor("x0", x0, "B, C, H, W")
        self._check_output_type(output_type, x0.shape[1])
        x0 = (x0 / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return x0
        array = x0.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "np":
            return array
        pixels = (array * 255).round().astype(np.uint8)
        return [PIL.Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]

    def _predictor(self, sampler: Sampler) -> Predictor:
        """The network, read as the pipeline's configuration says, or else as the sampler's scheduler does.

        Raises:
            ValueError: if the scheduler's steps take a learned variance, and the network has none.
        """
        variance = sampler.scheduler.config.get("variance_type")
        if variance in LEARNED and self.network.config.out_channels != 2 * self.data_channels:
            raise ValueError(
                f"scheduler: its variance_type {variance!r} needs a network that learned a variance, with "
                f"{2 * self.data_channels} output channels; this one has {self.network.config.out_channels}"
            )
        name = self.config.get("prediction_type")
        return self._read(PredictionType(name) if name else sampler.prediction_type)

    def _read(self, prediction_type: PredictionType) -> Predictor:
        """The network, read as what it predicts, of images that aren't augmented."""
        targets = self._target_channels
        zeros = self.network.config.in_channels - self.data_channels - targets
        return Predictor(self.network, prediction_type, self.network.dtype, zeros, targets)

    def _noise(self, shape: tuple[int, ...], generator: Any, latents: Tensor | None) -> Tensor:
        """Unit normal noise, float32 of that shape, which may have been given."""
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        elif tuple(real_tensor("latents", latents, "B, C, H, W").shape) != tuple(shape):
            raise ValueError(f"latents: of shape {tuple(latents.shape)}, but {tuple(shape)} is to be generated")
        return latents.to(self._execution_device, torch.float32)

    def _on_step(
        self,
        sampler: Sampler,
        callback: Callable[..., dict[str, Tensor]] | None,
        tensor_inputs: list[str] | None,
        seen: list[Any] | None,
    ) -> OnStep:
        """What the loop calls after each step: `callback_on_step_end`, and a recorder into `seen`, if it is a list."""
        callback = check_callback(callback)
        given = ["latents"] if tensor_inputs is None else tensor_inputs
        names = sequence("callback_on_step_end_tensor_inputs", given, "names")
        unknown = [name for name in names if name not in self._callback_tensor_inputs]
        if unknown:
            allowed = ", ".join(self._callback_tensor_inputs)
            raise ValueError(f"callback_on_step_end_tensor_inputs: {brief(unknown[0])} is not among {allowed}")

        def on_step(i: int, x: Tensor, prediction: Prediction) -> Tensor:
            if seen is not None:
                record_step(seen, prediction)
            if callback is None:
                return x
            tensors = {"latents": x, "pred_original_sample": prediction.x0}
            t = sampler.scheduler.timesteps[i]
            returned = callback(self, i - sampler.first, t, {name: tensors[name] for name in names})
            return check_callback_latents(returned, x)

        return on_step

    def _finish(
        self,
        x0: Tensor,
        seen: list[Any] | None,
        output_type: str,
        return_dict: bool,
        pasted: Callable[[Tensor], Tensor] | None = None,
    ) -> SamplingOutput | tuple[Any, ...]:
        """What a call returns for the network's data (B, c, h, w).

        Args:
            x0: the data.
            seen: evaluations, where they are recorded.
            output_type: as the call takes it.
            return_dict: as the call takes it.
            pasted: puts the pixels that are kept into images (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: if the samples have overflown.
        """
        self.maybe_free_model_hooks()
        if not x0.isfinite().all():
            raise ValueError(
                f"samples: not finite after {len(self.scheduler.timesteps)} steps of {type(self.scheduler).__name__} "
                f"with a {self.network.dtype} network; take more steps, another scheduler or float32"
            )
        trajectory = join_steps(seen) if seen else None  # of no steps there is none
        if trajectory is not None and self.vae is not None and output_type != "latent":
            steps = (trajectory.noisy, trajectory.denoised)
            decoded = [torch.stack([self.decode(latents).cpu() for latents in step]) for step in steps]
            trajectory = Trajectory(trajectory.timesteps, *decoded)
        if output_type == "latent":
            images: Any = x0
        else:
            decoded_x0 = self.decode(x0)
            images = self.to_images(decoded_x0 if pasted is None else pasted(decoded_x0), output_type)
        output = SamplingOutput(images, trajectory)
        return output if return_dict else output.to_tuple()

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width of the network's data for those of images."""
        factor = self.vae_scale_factor
        multiple = factor * size_multiple(self.network)
        size = []
        for name, given, trained in zip(("height", "width"), (height, width), trained_size(self.network), strict=True):
            if given is None and trained is None:
                raise ValueError(f"{name}: needed, since the network doesn't say which size it was trained for")
            side = trained * factor if given is None else whole(name, given, 1, MOST)  # type: ignore[operator]
            if side % multiple:
                raise ValueError(f"{name}: {side} is not a multiple of {multiple}, by which the network divides it")
            size.append(side // factor)
        backbone = backbone_of(self.network)
        if backbone is not None and backbone.square and size[0] != size[1]:
            raise ValueError(f"height, width: a {type(self.network).__name__} makes square images only")
        return size[0], size[1]

    def _check_data(self, name: str, values: Any, channels: int, multiple: int) -> None:
        """Of images and latents: that many channels, and sides that an autoencoder divides."""
        shape = real_tensor(name, values, "B, C, H, W").shape
        if shape[1] != channels or shape[2] % multiple or shape[3] % multiple:
            sides = f" and sides that are multiples of {multiple}" if multiple > 1 else ""
            raise ValueError(f"{name}: of shape {tuple(shape)}; must have {channels} channels{sides}")

    def _check_output_type(self, output_type: str, channels: int) -> None:
        if string("output_type", output_type) not in self.OUTPUT_TYPES:
            raise ValueError(f"output_type: {brief(output_type)} is not one of {', '.join(self.OUTPUT_TYPES)}")
        if output_type == "pil" and channels not in IMAGE_CHANNELS:
            raise ValueError(f"output_type: no PIL image has {channels} channels; use output_type='np' or 'pt'")

    @staticmethod
    def _check_prediction_type(prediction_type: str | None) -> None:
        if prediction_type is not None and string("prediction_type", prediction_type) not in PREDICTION_TYPES:
            allowed = ", ".join(PREDICTION_TYPES)
            raise ValueError(f"prediction_type: {prediction_type!r} is not one of {allowed}")
