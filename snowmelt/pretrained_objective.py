"""The objective that a pretrained model was trained with, read off the scheduler it was saved with."""

from dataclasses import replace
from typing import Any

import torch
from diffusers import CMStochasticIterativeScheduler, FlowMapEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from pipelines import make_scheduler
from pipelines.samplers import make_sampler
from pipelines.schedulers import family
from snowmelt.errors import UserError
from snowmelt.objective_options import ObjectiveOptions
from snowmelt.objectives.objective import Objective
from snowmelt.objectives.paths import ConsistencyPath, DiscretePath, EdmPath, FlowMapPath, Path, StraightPath
from snowmelt.objectives.recipes import RECIPES, adjusted


def pretrained_objective(
    scheduler: SchedulerMixin, prediction_type: str | None, options: ObjectiveOptions, *, latent: bool
) -> Objective:
    """The objective to fine-tune with: the model's own, but for what the options change.

    Args:
        scheduler: that the model was saved with.
        prediction_type: what its pipeline says of the network's output, where the scheduler can't.
        options: `--prediction_type` and `--rescale_betas_zero_snr` teach the network another output or process.
        latent: whether it works on latents.

    Raises:
        UserError: for a process that can't be trained here, or options that don't fit it.
    """
    path = _path(scheduler)
    target = prediction_type or make_sampler(scheduler).prediction_type.name
    if isinstance(path, DiscretePath):
        path = replace(path, zero_snr=path.zero_snr or options.rescale_betas_zero_snr)
        target = options.prediction_type or target
    elif options.prediction_type or options.rescale_betas_zero_snr:
        flag = "prediction_type" if options.prediction_type else "rescale_betas_zero_snr"
        raise UserError(f"--{flag}: is for models of discrete time, and this one is a {family(scheduler)} model")
    alike = (o for o in RECIPES.values() if type(o.path) is type(path) and o.prediction_type == target)
    objective = next(alike, Objective(path, target))
    return adjusted(replace(objective, path=path), "this model", options, latent=latent)


def pretrained_scheduler(scheduler: SchedulerMixin, objective: Objective) -> SchedulerMixin:
    """The scheduler to save with what the objective teaches: the model's own, with what has changed.

    One that can't start from pure noise is replaced by DDIM where training has left no signal there (Lin et al. 2024).
    """
    path = objective.path
    if not isinstance(path, DiscretePath):
        return scheduler
    changes: dict[str, Any] = {"prediction_type": objective.prediction_type}
    if path.zero_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if "rescale_betas_zero_snr" not in scheduler.config:
            scheduler = make_scheduler("ddim", scheduler)
            changes |= {"clip_sample": path.clip_sample}
    return type(scheduler).from_config(scheduler.config, **changes)


def _path(scheduler: SchedulerMixin) -> Path:
    config, kind = scheduler.config, family(scheduler)
    if isinstance(scheduler, FlowMapEulerDiscreteScheduler):
        return FlowMapPath(num_train_timesteps=config.num_train_timesteps)
    if kind == "flow":
        return StraightPath(num_train_timesteps=config.num_train_timesteps)
    if isinstance(scheduler, CMStochasticIterativeScheduler):
        return ConsistencyPath(config.sigma_data, clip_denoised=config.clip_denoised)
    if kind == "edm":
        return EdmPath(config.sigma_data)
    path = DiscretePath(
        beta_schedule=config.beta_schedule,
        num_train_timesteps=config.num_train_timesteps,
        zero_snr=config.get("rescale_betas_zero_snr", False),
        clip_sample=config.get("clip_sample", False),
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        variance_type=config.get("variance_type") or "fixed_small",
    )
    # Samplers that divide by alpha have 2^-24 where zero terminal SNR leaves nothing.
    if not torch.allclose(path.scheduler("epsilon").alphas_cumprod, scheduler.alphas_cumprod, atol=2**-23):
        raise UserError(
            f"--pretrained_model_name_or_path: the betas of its {type(scheduler).__name__} don't follow from "
            "beta_schedule, beta_start and beta_end, which is all that can be trained here"
        )
    return path
