"""Objectives by name, and from the options of the command line."""

from dataclasses import replace
from typing import Any

from pipelines.sde import SubVpSde, VarianceExplodingSde, VariancePreservingSde
from snowmelt.errors import UserError
from snowmelt.objective_options import ObjectiveOptions
from snowmelt.objectives.consistency import ConsistencyObjective
from snowmelt.objectives.flow_maps import FlowMapObjective
from snowmelt.objectives.importance import LossHistory
from snowmelt.objectives.objective import Objective
from snowmelt.objectives.paths import ConsistencyPath, DiscretePath, EdmPath, FlowMapPath, SdePath, StraightPath
from snowmelt.objectives.timesteps import DISTRIBUTIONS, LOSS_SECOND_MOMENT
from snowmelt.objectives.weights import VLB, WEIGHTS

FLOW_MAP = FlowMapObjective(FlowMapPath(), "flow_prediction", timestep_sampling="logit_normal")

RECIPES: dict[str, Objective] = {
    "epsilon": Objective(DiscretePath("linear"), "epsilon"),
    "epsilon_cosine": Objective(DiscretePath("squaredcos_cap_v2"), "epsilon"),
    "improved_ddpm": Objective(DiscretePath("squaredcos_cap_v2", variance_type="learned_range"), "epsilon"),
    "sample": Objective(DiscretePath("squaredcos_cap_v2"), "sample"),
    "v": Objective(DiscretePath("squaredcos_cap_v2"), "v_prediction"),
    "flow": Objective(StraightPath(), "flow_prediction", timestep_sampling="logit_normal"),
    "soflow": FLOW_MAP,
    "meanflow": replace(FLOW_MAP, derivative="jvp"),
    "ect": ConsistencyObjective(ConsistencyPath(), "edm", timestep_sampling="log_normal_wide"),
    "edm": Objective(EdmPath(), "edm", timestep_sampling="log_normal"),
    "mixture": Objective(StraightPath(), "sample"),
    # The weight that an error of the score has is sigma^2 (Song et al. 2021, section 3.3), which is 1 on that of eps.
    "ve": Objective(SdePath(VarianceExplodingSde()), "score", weight="snr"),
    "vp": Objective(SdePath(VariancePreservingSde()), "epsilon"),
    "subvp": Objective(SdePath(SubVpSde()), "epsilon"),
}

DEFAULT = "flow"
"""The objective of a run that names none: the one that is best at equal time in docs/systems.md."""


def make_objective(options: ObjectiveOptions, *, latent: bool = False) -> Objective:
    """The objective that the options describe, for pixels or for latents.

    Flags of the discrete process without `--objective` mean what they mean in diffusers' script: epsilon on linear
    betas, but for what the flags change.

    Raises:
        UserError: for an unknown name or a combination that can't be trained.
    """
    given = {
        "prediction_type": options.prediction_type,
        "ddpm_num_steps": options.ddpm_num_steps,
        "ddpm_beta_schedule": options.ddpm_beta_schedule,
        "ddpm_beta_start": options.ddpm_beta_start,
        "ddpm_beta_end": options.ddpm_beta_end,
        "variance_type": options.variance_type,
        "rescale_betas_zero_snr": options.rescale_betas_zero_snr or None,
    }
    given = {flag: value for flag, value in given.items() if value is not None}
    name = options.objective or ("epsilon" if given else DEFAULT)
    if name not in RECIPES:
        raise UserError(f"--objective {name}: unknown; known: {', '.join(RECIPES)}")
    objective = RECIPES[name]
    if isinstance(objective.path, DiscretePath):
        path = _chain(objective.path, options)
        objective = replace(objective, path=path, prediction_type=options.prediction_type or objective.prediction_type)
    elif given:
        raise UserError(f"--{next(iter(given))} is for discrete-time objectives ({_discrete()}), not {name}; drop one")
    if options.prediction_type == "sample" and options.objective is None:
        objective = replace(objective, weight="snr")  # as diffusers' script weighs it
    if latent:
        objective = replace(objective, path=objective.path.for_latents())
    return adjusted(objective, name, options, latent=latent)


def _chain(path: DiscretePath, options: ObjectiveOptions) -> DiscretePath:
    """The discrete process with what the options say of it.

    Raises:
        UserError: for betas that the schedule doesn't have, or that don't ascend.
    """
    path = replace(
        path,
        beta_schedule=options.ddpm_beta_schedule or path.beta_schedule,
        num_train_timesteps=options.ddpm_num_steps or path.num_train_timesteps,
        zero_snr=options.rescale_betas_zero_snr,
        beta_start=options.ddpm_beta_start or path.beta_start,
        beta_end=options.ddpm_beta_end or path.beta_end,
        variance_type=options.variance_type or path.variance_type,
    )
    given = "beta_start" if options.ddpm_beta_start else "beta_end" if options.ddpm_beta_end else None
    if given and path.beta_schedule == "squaredcos_cap_v2":
        raise UserError(
            f"--ddpm_{given}: cosine betas have none; add --ddpm_beta_schedule linear, scaled_linear or sigmoid"
        )
    if not path.beta_start < path.beta_end:
        raise UserError(f"--ddpm_beta_start {path.beta_start}: must be less than --ddpm_beta_end, {path.beta_end}")
    return path


def adjusted(objective: Objective, name: str, options: ObjectiveOptions, *, latent: bool) -> Objective:
    """The objective of this name with what the options say of any: weight, distribution of timesteps, noise.

    Args:
        objective: the one to begin with.
        name: that messages call it by.
        options: the options.
        latent: whether the data are latents, of unit variance.

    Raises:
        UserError: for a combination that can't be trained.
    """
    gamma = options.snr_gamma
    objective = replace(
        objective,
        weight=options.loss_weight or (objective.weight if gamma is None else "min_snr"),
        timestep_sampling=options.timestep_sampling or objective.timestep_sampling,
        gamma=objective.gamma if gamma is None else gamma,
        sigma_data=1.0 if latent else 0.5,
        low_discrepancy=options.low_discrepancy,
        noise_offset=options.noise_offset,
        input_perturbation=options.input_perturbation,
        dream_detail_preservation=options.dream_detail_preservation if options.dream_training else None,
        coupling=options.coupling,
        contrastive_weight=options.contrastive_weight,
        vlb_weight=objective.vlb_weight if options.vlb_weight is None else options.vlb_weight,
    )
    of_maps = {"flow_fraction": options.flow_fraction, "adaptive_power": options.adaptive_power}
    maps: dict[str, Any] = {flag: value for flag, value in of_maps.items() if value is not None}
    if maps and not isinstance(objective, FlowMapObjective):
        raise UserError(f"--{next(iter(maps))}: is for flow maps, and {name} is none; take --objective soflow")
    objective = replace(objective, **maps)
    _check(name, objective)
    if options.vlb_weight is not None and not objective.learns_variance:
        raise UserError("--vlb_weight: weighs what teaches a variance; add --variance_type learned_range")
    if objective.timestep_sampling == LOSS_SECOND_MOMENT:
        assert isinstance(objective.path, DiscretePath)  # `_check` refused
        objective = replace(objective, history=LossHistory(objective.path.num_train_timesteps))
    return objective


def describe(options: ObjectiveOptions, objective: Objective) -> str:
    """A line on what is trained, and on how to train what diffusers' script does where nothing was chosen."""
    default = options.objective is None and objective.path == RECIPES[DEFAULT].path
    hint = "; --prediction_type epsilon trains DDPM, as diffusers' script does" if default else ""
    name = type(objective.path).__name__.removesuffix("Path").lower()
    recipe = options.objective or objective.prediction_type
    return f"objective: {recipe} on the {name} path, weight {objective.weight}{hint}"


def _discrete() -> str:
    return ", ".join(name for name, objective in RECIPES.items() if isinstance(objective.path, DiscretePath))


def _check(name: str, objective: Objective) -> None:
    if objective.weight not in (*WEIGHTS, VLB):
        raise UserError(f"--loss_weight {objective.weight}: unknown; known: {', '.join((*WEIGHTS, VLB))}")
    if not isinstance(objective.path, DiscretePath):
        if objective.weight == VLB:
            raise UserError(f"--loss_weight vlb: {name} has no variational bound of T steps; take {_discrete()}")
        if objective.timestep_sampling == LOSS_SECOND_MOMENT:
            raise UserError(f"--timestep_sampling loss_second_moment: is for T timesteps; take {_discrete()}")
    if objective.coupling == "ot" and not isinstance(objective.path, StraightPath):
        raise UserError(f"--coupling ot: makes straight paths, and {name} has others; take flow or mixture, or nearest")
    if objective.contrastive_weight and objective.prediction_type != "flow_prediction":
        raise UserError(f"--contrastive_weight: is for a velocity, and {name} predicts another thing; take flow")
    if DISTRIBUTIONS[objective.timestep_sampling].domain != objective.path.domain:
        fitting = ", ".join(n for n, d in DISTRIBUTIONS.items() if d.domain == objective.path.domain)
        raise UserError(f"--timestep_sampling {objective.timestep_sampling} doesn't fit {name}, which takes {fitting}")
    if isinstance(objective, FlowMapObjective | ConsistencyObjective):
        _check_few_steps(name, objective)
    if getattr(objective.path, "zero_snr", False) and objective.prediction_type == "epsilon":
        raise UserError(
            "--rescale_betas_zero_snr leaves no signal at the last step, where epsilon doesn't determine the image; "
            "add --prediction_type v_prediction or sample"
        )


def _check_few_steps(name: str, objective: Objective) -> None:
    changes = {
        "loss_weight or --snr_gamma": objective.weight != "unit",
        "noise_offset": objective.noise_offset,
        "input_perturbation": objective.input_perturbation,
        "dream_training": objective.dream_detail_preservation is not None,
        "contrastive_weight": objective.contrastive_weight,
    }
    for flag, given in changes.items():
        if given:
            raise UserError(f"--{flag}: changes the loss of one time, and {name} learns of two; leave it out")
