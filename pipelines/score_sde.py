"""Images from score-based models in continuous time (Song & Ermon 2019; Song et al. 2021)."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.image_processor import PipelineImageInput
from torch import Tensor

from pipelines.arguments import MOST, MOST_STEPS, boolean, brief, check_generators, real, string, whole
from pipelines.base import SamplingOutput
from pipelines.denoiser import Predictor
from pipelines.labels import ClassLabels
from pipelines.prediction import PredictionType
from pipelines.predictor_corrector import (
    CORRECTORS,
    PREDICTORS,
    evaluation_times,
    predictor_corrector,
    probability_flow,
)
from pipelines.sde import Sde, make_sde
from pipelines.start import Start, noised
from pipelines.unet import UNetPipeline

ODE = "probability_flow"
"""Beside the predictors: the ODE, which takes neither their steps nor a corrector."""


class ScoreSdePipeline(UNetPipeline):
    """Unconditional or class-conditional generation by a reverse SDE, or by the ODE that has its distributions.

    Args:
        unet: the network; for the VE SDE one with `time_embedding_type="fourier"`, see `VarianceExplodingSde`.
        scheduler: what holds the SDE's parameters: `ScoreSdeVeScheduler`, or for the VP and the sub-VP SDE a chain of
            linear betas, such as `DDPMScheduler`'s. So models of such a chain are sampled in continuous time too.
        prediction_type: what the network predicts; None: what the scheduler says, or the score.
        id2label: names of the classes by number. A row of the network's label table beyond them is the null class.
        value_range: the values of float data that -1 and 1 stand for; in images of [0, 1] they are 0 and 1.
        sde: "ve", "vp" or "subvp"; None: "ve" or "vp", by the scheduler.
        vae: an autoencoder of diffusers, where the network works on its latents.
        augment_channels: as in `UnconditionalPipeline`.
        self_condition: as in `UnconditionalPipeline`.

    Raises:
        TypeError: for parts or settings of another type.
        ValueError: for a scheduler that holds no SDE's parameters, and for settings that don't fit.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["vae"]
    OUTPUT_TYPES = (*UNetPipeline.OUTPUT_TYPES, "latent")

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: Any,
        prediction_type: str | None = None,
        id2label: dict | None = None,
        value_range: tuple[float, float] | None = None,
        sde: str | None = None,
        vae: Any = None,
        augment_channels: int | None = None,
        self_condition: bool = False,
    ) -> None:
        super().__init__(unet, scheduler, prediction_type, id2label, value_range, augment_channels, self_condition)
        make_sde(scheduler, sde)
        if vae is not None and not isinstance(vae, torch.nn.Module):
            raise TypeError(f"vae: must be an autoencoder of diffusers, got {type(vae).__name__}")
        self.register_modules(vae=vae)
        if sde is not None:
            self.register_to_config(sde=sde)

    @property
    def sde(self) -> Sde:
        """The forward process."""
        return make_sde(self.scheduler, self.config.get("sde"))

    def predictor(self) -> Predictor:
        """The network, read as what it predicts.

        Raises:
            ValueError: for rounded Fourier features, by which the network doesn't know the noise level.
        """
        name = self.config.get("prediction_type") or self.scheduler.config.get("prediction_type", "score")
        features = getattr(getattr(self.network, "time_proj", None), "weight", None)
        if features is not None and features.dtype != torch.float32:
            raise ValueError(
                f"unet: its Fourier features of the noise level are rounded to {features.dtype}, which loses it; load "
                "the model in float32, and run it under torch.autocast for speed"
            )
        return self._read(PredictionType(name))

    @torch.no_grad()
    def __call__(  # type: ignore[override]  # what chooses a sampler here is none of a chain's arguments
        self,
        batch_size: int = 1,
        class_labels: ClassLabels | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_model: Any = None,
        num_inference_steps: int = 1000,
        predictor: str = "reverse_diffusion",
        corrector: str = "langevin",
        num_corrector_steps: int | None = None,
        snr: float | None = None,
        tolerance: float = 1e-5,
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
    ) -> SamplingOutput | tuple:
        """Generate images.

        The network is evaluated `num_inference_steps` (1 + `num_corrector_steps`) times; without a predictor
        `num_inference_steps` `num_corrector_steps` + 1 times; by the ODE as often as `tolerance` asks for. Afterwards
        `scheduler.timesteps` has the time of each evaluation of the first two.

        Args:
            batch_size: B, the number of images.
            class_labels: one label for all images or B of them, as numbers or names; None: the null class.
            guidance_scale: 1 for none; else null + scale * (conditional - null) (Ho & Salimans 2022, eq. 6).
            guidance_interval: guide only where lo < sigma / alpha <= hi (Kynkäänniemi et al. 2024).
            guidance_model: as `UnconditionalPipeline` takes it.
            num_inference_steps: times from 1 to the SDE's end; the ODE has its own.
            predictor: "reverse_diffusion", "euler_maruyama" or "ancestral", the step from a time to the next; "none"
                for Langevin dynamics alone; "probability_flow" for the ODE.
            corrector: size of the Langevin steps: "langevin", which reaches the same signal-to-noise ratio at each, or
                "annealed_langevin", in proportion to the noise's variance, as the NCSN has it.
            num_corrector_steps: Langevin steps at each time; None: `correct_steps` of a ScoreSdeVeScheduler, else 0.
            snr: signal-to-noise ratio of the corrector, more than 0; None: that of a ScoreSdeVeScheduler, else 0.16.
            tolerance: of the ODE's solver, relative and absolute, more than 0.
            generator: one, or B of them, which makes an image independent of its batch.
            latents: the initial noise, unit normal, (B, c, h, w): the network's channels, and for each side that of the
                images, divided by an autoencoder's factor where there is one.
            height: of the images in pixels; the trained size by default.
            width: of the images in pixels; the trained size by default.
            output_type: "pil", or "np" for an array (B, H, W, C) or "pt" for a tensor (B, C, H, W) in [0, 1]; "latent"
                for what the network made (B, c, h, w).
            return_dict: False for a tuple of the output's fields.
            callback_on_step_end: called as f(pipeline, evaluation, time, tensors); "latents" in the dict it returns
                replace x_t. Not for the ODE, in which each image has times of its own.
            callback_on_step_end_tensor_inputs: which it sees, of "latents" (the default) and "pred_original_sample".
            return_trajectory: also return x_t and the predicted x0 of every evaluation; not for the ODE.
            image: as `UnconditionalPipeline` takes it.
            mask_image: as there.
            strength: as there, but of the time in place of the steps.
            noise_std: as there.

        Raises:
            TypeError: for an argument of another type.
            ValueError: for arguments that don't fit the model or each other.
        """
        whole("batch_size", batch_size, 1, MOST)
        boolean("return_dict", return_dict)
        seen: list[Any] | None = [] if boolean("return_trajectory", return_trajectory) else None
        self._check_output_type(output_type, self.channels)
        steps = whole("num_inference_steps", num_inference_steps, 1, MOST_STEPS)
        settings = self.scheduler.config
        corrections = settings.get("correct_steps", 0) if num_corrector_steps is None else num_corrector_steps
        corrections = whole("num_corrector_steps", corrections, 0, MOST_STEPS)
        ratio = _positive("snr", settings.get("snr", 0.16) if snr is None else snr)
        tolerance = _positive("tolerance", tolerance)
        if string("predictor", predictor) not in (*PREDICTORS, ODE):
            raise ValueError(f"predictor: {brief(predictor)} is not one of {', '.join([*PREDICTORS, ODE])}")
        if string("corrector", corrector) not in CORRECTORS:
            raise ValueError(f"corrector: {brief(corrector)} is not one of {', '.join(CORRECTORS)}")
        if predictor == "none" and not corrections:
            raise ValueError("num_corrector_steps: must be at least 1 with predictor='none'; else nothing moves")
        if predictor == ODE and num_corrector_steps:
            raise ValueError(f"num_corrector_steps: must be 0 with predictor={ODE!r}, which takes no corrector")
        if predictor == ODE and (callback_on_step_end is not None or return_trajectory):
            name = "return_trajectory" if return_trajectory else "callback_on_step_end"
            raise ValueError(f"{name}: not with predictor={ODE!r}, in which each image has times of its own")
        if predictor == ODE and self.config.get("self_condition"):
            raise ValueError(f"predictor: not {ODE!r}, whose solver goes back and forth, with a self-conditioned model")
        start = self._start(image, mask_image, strength, noise_std, (1, 1), (height, width), batch_size)
        size = self._size(height, width) if start is None else start.data.shape[2:]
        shape = (batch_size, self.data_channels, *size)
        generator = check_generators(generator, batch_size)
        sde = self.sde
        chain = self._label_chain(batch_size, class_labels, guidance_scale, guidance_model)
        denoiser_of = self._guided(self.predictor(), *chain, guidance_interval, guidance_model)
        noise = self._noise(shape, generator, latents)
        if start is not None and start.is_unchanged:
            return self._finish(start.data, seen, output_type, return_dict, start.pasted if start else None)
        time, x = self._first(start, noise)
        if predictor == ODE:
            self.scheduler.timesteps = torch.tensor([time, sde.sampling_eps])
            of_rows = partial(self._known, denoiser_of, start, {})
            state = noise if x is None else x / torch.hypot(*sde.level(torch.tensor(time))[:2])
            x0 = probability_flow(of_rows, sde, state, tolerance, time)
            return self._finish(x0, None, output_type, return_dict, start.pasted if start else None)
        step = PREDICTORS[predictor]
        times, self.scheduler.timesteps = evaluation_times(sde, steps, step, corrections, time)
        # The times are the scheduler's, and no other part of a sampler is there.
        own: Any = SimpleNamespace(scheduler=self.scheduler, first=0)
        x0 = predictor_corrector(
            self._denoiser(denoiser_of, start),
            sde,
            noise * sde.level(times[0]).sigma if x is None else x,
            times,
            predictor=step,
            corrector=CORRECTORS[corrector],
            corrections=corrections,
            snr=ratio,
            generator=generator,
            on_step=self._on_step(own, callback_on_step_end, callback_on_step_end_tensor_inputs, seen),
            progress=self.progress_bar,
        )
        return self._finish(x0, seen, output_type, return_dict, start.pasted if start else None)

    def _first(self, start: Start | None, noise: Tensor) -> tuple[float, Tensor | None]:
        """The time to begin with, and x_t there, (B, c, h, w); None for noise alone."""
        if start is None or start.is_forgotten:
            return 1.0, None
        time = start.strength
        if start.noise_std:
            time = float(self.sde.time(torch.tensor(start.noise_std, dtype=torch.float64).log()))
        if not self.sde.sampling_eps < time <= 1:
            what = "strength" if not start.noise_std else "noise_std"
            raise ValueError(f"{what}: is that of time {time:.3g}; it must be from {self.sde.sampling_eps:g} to 1")
        level = self.sde.level(torch.tensor(time, dtype=torch.float64))
        return time, noised(start.data, level, noise, start.noise_std)

    def invert(self, *arguments: Any, **keywords: Any) -> Tensor:
        """Not for SDEs.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("invert: for deterministic samplers of a scheduler, which this pipeline doesn't have")


def _positive(name: str, value: Any) -> float:
    number = real(name, value, 0)
    if number == 0:
        raise ValueError(f"{name}: must be more than 0")
    return number
