"""Pipelines of an unconditional network, or one on class labels: their parts and the call."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers.image_processor import PipelineImageInput
from torch import Tensor

from pipelines.arguments import (
    MOST,
    MOST_STEPS,
    boolean,
    check_generators,
    check_interval,
    check_parts,
    check_value_range,
    real,
    whole,
)
from pipelines.backbones import num_class_embeds
from pipelines.base import SamplingOutput
from pipelines.churn import check_churn
from pipelines.denoiser import Conditions, Denoiser, Predictor, autoguided, guided
from pipelines.editing_pipeline import EditingPipeline
from pipelines.flow_map import check_flow_map
from pipelines.guidance_model import check_guidance_model
from pipelines.inversion import invert
from pipelines.labels import ClassLabels, check_id2label, label_conditions, num_classes
from pipelines.samplers import make_sampler
from pipelines.schedulers import invertible, make_scheduler


class UnconditionalPipeline(EditingPipeline):
    """Unconditional or class-conditional generation; what the network makes is the images, or stands for them.

    Args:
        network: the network, which is the component `COMPONENT`.
        scheduler: any stock scheduler of the family that the network was trained for; see `make_scheduler`.
        prediction_type: what the network predicts, where the scheduler can't say: "epsilon", "sample" or
            "v_prediction" on the path of a flow-matching or EDM scheduler. None: what the scheduler expects.
        value_range: the values of float data that -1 and 1 stand for; in images of [0, 1] they are 0 and 1.
        id2label: names of the classes by number. A row of the network's label table beyond them is the null class.
        augment_channels: of the network's input, those that say how images were augmented (Karras et al. 2022).
        self_condition: whether the network's input is joined by its last estimate of x0 (Chen et al. 2023).
        flow_map: whether the network also learned where x_t is to be taken, so that few steps do.

    Raises:
        TypeError: for parts or settings of another type.
        ValueError: for an unknown `prediction_type`, or settings that don't fit the network.
    """

    COMPONENT: ClassVar[str]

    def __init__(
        self,
        network: Any,
        scheduler: Any,
        prediction_type: str | None = None,
        id2label: dict | None = None,
        value_range: tuple[float, float] | None = None,
        augment_channels: int | None = None,
        self_condition: bool = False,
        flow_map: bool = False,
    ) -> None:
        super().__init__()
        check_parts(network, scheduler, self.COMPONENT)
        self._check_prediction_type(prediction_type)
        names = check_id2label(id2label)
        embeds = num_class_embeds(network)
        if names and not len(names) <= (embeds or 0) <= len(names) + 1:
            raise ValueError(
                f"id2label: names {len(names)} classes, and the network has {embeds or 'no'} rows for them"
            )
        if augment_channels is not None:
            whole("augment_channels", augment_channels, 0, network.config.in_channels - 1)
        self.register_modules(**{self.COMPONENT: network}, scheduler=scheduler)
        optional = {
            "prediction_type": prediction_type,
            "id2label": names,
            "value_range": None if value_range is None else check_value_range(value_range),
            "augment_channels": augment_channels,
            "self_condition": self._checked_self_condition(network, self_condition),
            "flow_map": check_flow_map(network, flow_map) or None,
        }
        # Only what is set: diffusers' own pipelines then load a plain model without a word.
        self.register_to_config(**{k: v for k, v in optional.items() if v is not None})

    @property
    def num_classes(self) -> int:
        """Classes that can be asked for; 0 for an unconditional model."""
        return num_classes(self.id2label, num_class_embeds(self.network))

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of the classes, where they are known."""
        return self.config.get("id2label")

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: ClassLabels | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_model: Any = None,
        num_inference_steps: int | None = None,
        timesteps: list[float] | None = None,
        eta: float = 0.0,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        return_trajectory: bool = False,
        image: PipelineImageInput | None = None,
        mask_image: Any = None,
        strength: float | None = None,
        noise_std: float | None = None,
        jump_length: int = 10,
        jump_n_sample: int = 1,
    ) -> SamplingOutput | tuple:
        """Generate images.

        Args:
            batch_size: B, the number of images.
            class_labels: one label for all images or B of them, as numbers or names; None: the null class.
            guidance_scale: 1 for none; else null + scale * (conditional - null) (Ho & Salimans 2022, eq. 6).
            guidance_interval: guide only where lo < sigma / alpha <= hi (Kynkäänniemi et al. 2024).
            guidance_model: a network that learned the same less well, to guide by in place of the null class:
                guide + scale * (network - guide) (Karras et al. 2024, eq. 3).
            num_inference_steps: steps, of which some evaluate the network twice; None for `default_steps`.
            timesteps: a list of times to use instead, where the scheduler takes one.
            eta: noise of DDIM, from 0 (none) to 1 (as DDPM) (Song et al. 2021, eq. 16).
            s_churn: noise before the steps of Euler and Heun, all of them together (Karras et al. 2022, algorithm 2).
            s_tmin, s_tmax: the least and the largest sigma / alpha at which it is added.
            s_noise: its standard deviation over what would keep the noise level exact.
            generator: one, or B of them, which makes an image independent of its batch.
            latents: the initial noise, unit normal, (B, c, h, w): the network's channels, and for each side that of the
                images, divided by an autoencoder's factor where there is one.
            height: of the images in pixels; the trained size, or that of `image`, by default.
            width: of the images in pixels; the trained size, or that of `image`, by default.
            output_type: "pil", or "np" for an array (B, H, W, C) or "pt" for a tensor (B, C, H, W) in [0, 1]; with an
                autoencoder also "latent", for what the network made (B, c, h, w).
            return_dict: False for a tuple of the output's fields.
            callback_on_step_end: called as f(pipeline, step, timestep, tensors); "latents" in the dict it
                returns replace x_t.
            callback_on_step_end_tensor_inputs: which it sees, of "latents" (the default) and
                "pred_original_sample".
            return_trajectory: also return x_t and the predicted x0 of every evaluation, decoded as the images are.
            image: one, or B, to start from: PIL, or arrays or tensors in [0, 1] laid out as the outputs. Without
                `mask_image` it becomes a variation on it.
            mask_image: what of `image` to make anew, white or 1; the rest stays as it is. One for all or B of them, of
                the size of `image`.
            strength: the fraction of the steps that are left to `image`, from 0, which leaves it as it is, to 1, which
                forgets it (Meng et al. 2022). 0.8 by default, and 1 with a mask.
            noise_std: of the noise that `image` has, its values being in [0, 1]: it is taken away, by the steps that
                are left from there; in place of `strength`, for models of pixels. See `estimate_noise_std`.
            jump_length: with a mask, steps that are undone together (Lugmayr et al. 2022, RePaint).
            jump_n_sample: with a mask, how often steps are made: 10 fits the rest better, in ten times as many
                evaluations.

        Raises:
            TypeError: for an argument of another type.
            ValueError: for arguments that fit neither the model nor the scheduler.
        """
        whole("batch_size", batch_size, 1, MOST)
        boolean("return_dict", return_dict)
        seen: list[Any] | None = [] if boolean("return_trajectory", return_trajectory) else None
        self._check_output_type(output_type, self.channels)
        jumps = jump_length, jump_n_sample
        start = self._start(image, mask_image, strength, noise_std, jumps, (height, width), batch_size)
        size = self._size(height, width) if start is None else start.data.shape[2:]
        shape = (batch_size, self.data_channels, *size)
        generator = check_generators(generator, batch_size)
        churn = check_churn(s_churn, s_tmin, s_tmax, s_noise)
        sampler = make_sampler(self.scheduler, real("eta", eta, 0, 1), generator, churn)
        chain = self._label_chain(batch_size, class_labels, guidance_scale, guidance_model)
        denoiser_of = self._guided(self._predictor(sampler), *chain, guidance_interval, guidance_model)
        on_step = self._on_step(sampler, callback_on_step_end, callback_on_step_end_tensor_inputs, seen)
        sampler.set_timesteps(self._steps(num_inference_steps), timesteps, self._execution_device)
        x0 = self._sample(denoiser_of, sampler, self._noise(shape, generator, latents), start, on_step)
        return self._finish(x0, seen, output_type, return_dict, start.pasted if start else None)

    @torch.no_grad()
    def invert(
        self,
        images: Tensor,
        class_labels: ClassLabels | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_model: Any = None,
        num_inference_steps: int = 50,
        num_fixed_point_iterations: int = 0,
    ) -> Tensor:
        """The noise that makes these images: `latents` for a call with as many steps and a deterministic sampler.

        That is "ddim", "flow-euler" or "edm-euler"; see `make_scheduler`. Another label in that call makes of an image
        what it would be of that class.

        Args:
            images: (B, C, H, W) in [-1, 1].
            class_labels: as in a call.
            guidance_scale: as in a call.
            guidance_interval: as in a call.
            guidance_model: as in a call.
            num_inference_steps: steps to undo; the more, the closer the call comes to the images. For `DDIMScheduler`,
                which rounds its steps to whole timesteps, a divisor of `num_train_timesteps`.
            num_fixed_point_iterations: further network evaluations per step, which bring it closer too.

        Returns:
            Noise of about unit variance, float32 (B, c, h, w).

        Raises:
            TypeError: for an argument of another type.
            ValueError: for arguments that fit neither the model nor the scheduler.
        """
        if self.config.get("self_condition"):
            raise ValueError("self_condition: steps that depend on those before can't be undone; take another model")
        iterations = whole("num_fixed_point_iterations", num_fixed_point_iterations, 0, MOST_STEPS)
        x0 = self.encode(images).to(self._execution_device, torch.float32)
        predict = self._predictor(make_sampler(self.scheduler))
        chain = self._label_chain(len(x0), class_labels, guidance_scale, guidance_model)
        denoiser = self._guided(predict, *chain, guidance_interval, guidance_model)({})
        sampler = make_sampler(make_scheduler(invertible(self.scheduler), self.scheduler))
        sampler.set_timesteps(num_inference_steps, None, self._execution_device)
        noise = invert(denoiser, sampler, x0, num_fixed_point_iterations=iterations, progress=self.progress_bar)
        self.maybe_free_model_hooks()
        return noise

    def _label_chain(
        self, batch_size: int, class_labels: ClassLabels | None, guidance_scale: float, guidance_model: Any = None
    ) -> tuple[list[Conditions], list[float]]:
        """The network's labels, after those of no label where it knows such, and scales, as `guided` takes them.

        With a `guidance_model` they are the labels, and its scale.
        """
        scale = real("guidance_scale", guidance_scale)
        conditions, null_conditions = label_conditions(
            class_labels,
            num_embeds=num_class_embeds(self.network),
            id2label=self.id2label,
            batch_size=batch_size,
            device=self._execution_device,
        )
        if guidance_model is not None:
            return [conditions], [scale]
        if null_conditions is not None:
            return [null_conditions, conditions], [scale]
        if scale != 1:
            raise ValueError(
                "guidance_scale: must be 1, since this model was not trained with dropped labels, without a "
                "guidance_model"
            )
        return [conditions], []

    def _guided(
        self,
        predict: Predictor,
        chain: list[Conditions],
        scales: list[float],
        guidance_interval: tuple[float, float] | None,
        guidance_model: Any = None,
    ) -> Callable[..., Denoiser]:
        """A function of further conditions, and of which rows are denoised, all by default, to the guided network."""
        interval = check_interval("guidance_interval", guidance_interval)
        guide = None
        if guidance_model is not None:
            check_guidance_model(guidance_model, self.network, self._execution_device)
            guide = replace(predict, network=guidance_model, dtype=guidance_model.dtype)

        def denoiser_of(more: Conditions, rows: Any = slice(None)) -> Denoiser:
            given = [{name: value[rows] for name, value in conditions.items()} | more for conditions in chain]
            if guide is not None:
                return autoguided(predict, guide, given[0], scales[0], interval)
            return guided(predict, given, scales, interval)

        return denoiser_of

    @staticmethod
    def _checked_self_condition(network: Any, self_condition: bool) -> bool | None:
        """True, or None where it is off."""
        if not boolean("self_condition", self_condition):
            return None
        inputs, outputs = network.config.in_channels, network.config.out_channels
        if inputs not in (outputs, 2 * outputs) or inputs % 2:  # a learned variance doubles the outputs
            raise ValueError(
                f"self_condition: needs a network whose input has twice the data's channels; this one has {inputs} and "
                f"puts out {outputs}"
            )
        return True
