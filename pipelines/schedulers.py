"""Samplers by name, and which of them fit a model."""

import inspect
from dataclasses import dataclass, field
from typing import Any

from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from pipelines.arguments import brief
from pipelines.edm import SOLVER_ORDER
from pipelines.sampler import SEARCHED


@dataclass(frozen=True)
class NamedSampler:
    """A stock scheduler, the settings that make it the named one, and what it can't do.

    Attributes:
        scheduler: its class.
        settings: arguments that differ from the model's own; those that its class doesn't take are left in its
            configuration, for our adapter.
        refuses: predictions that it doesn't implement.
        needs_its_own: runs only models that were saved with its class.
        needs_signal: goes astray where an epsilon is predicted from (almost) pure noise, as cosine betas have it.
    """

    scheduler: type
    settings: dict[str, Any] = field(default_factory=dict)
    refuses: tuple[str, ...] = ()
    needs_its_own: bool = False
    needs_signal: bool = False

    @property
    def accepts(self) -> set[str]:
        """Names of the class's arguments."""
        return set(inspect.signature(self.scheduler).parameters)

    def fits(self, model: SchedulerMixin) -> bool:
        """Whether it can run a model that was saved with this scheduler."""
        prediction = model.config.get("prediction_type")
        if self.needs_its_own and not isinstance(model, self.scheduler):
            return False
        if self.needs_signal and prediction == "epsilon" and model.alphas_cumprod[-1] < 1e-6:
            return False
        zero_snr = model.config.get("rescale_betas_zero_snr")
        return prediction not in self.refuses and (not zero_snr or "rescale_betas_zero_snr" in self.accepts)


FLOW_SCHEDULERS = FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMapEulerDiscreteScheduler

ODE, SDE = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}
SINGLE = ODE | {"lower_order_final": True}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

SAMPLERS: dict[str, dict[str, NamedSampler]] = {
    "discrete": {
        "ddpm": NamedSampler(DDPMScheduler),
        "ddpm-fixed-small": NamedSampler(DDPMScheduler, {"variance_type": "fixed_small"}),
        "ddpm-fixed-large": NamedSampler(DDPMScheduler, {"variance_type": "fixed_large"}),
        "ddim": NamedSampler(DDIMScheduler),
        "dpmsolver++": NamedSampler(DPMSolverMultistepScheduler, ODE),
        "dpmsolver++-single": NamedSampler(DPMSolverSinglestepScheduler, SINGLE),
        "sde-dpmsolver++": NamedSampler(DPMSolverMultistepScheduler, SDE),
        "unipc": NamedSampler(UniPCMultistepScheduler),
        "deis": NamedSampler(DEISMultistepScheduler),
        "pndm": NamedSampler(PNDMScheduler, {"skip_prk_steps": True}, ("sample",), needs_signal=True),
        "euler": NamedSampler(EulerDiscreteScheduler),
        "euler-a": NamedSampler(EulerAncestralDiscreteScheduler, refuses=("sample",)),
        "heun": NamedSampler(HeunDiscreteScheduler, needs_signal=True),
        "kdpm2": NamedSampler(KDPM2DiscreteScheduler, refuses=("sample",), needs_signal=True),
        "kdpm2-a": NamedSampler(KDPM2AncestralDiscreteScheduler, refuses=("sample",), needs_signal=True),
        "lms": NamedSampler(LMSDiscreteScheduler),
    },
    "flow": {
        "flow-euler": NamedSampler(FlowMatchEulerDiscreteScheduler),
        "flow-map": NamedSampler(FlowMapEulerDiscreteScheduler),
        "flow-heun": NamedSampler(FlowMatchHeunDiscreteScheduler),
        "dpmsolver++": NamedSampler(DPMSolverMultistepScheduler, ODE | FLOW),
        "dpmsolver++-single": NamedSampler(DPMSolverSinglestepScheduler, SINGLE | FLOW),
        "sde-dpmsolver++": NamedSampler(DPMSolverMultistepScheduler, SDE | FLOW),
        "unipc": NamedSampler(UniPCMultistepScheduler, FLOW),
    },
    "edm": {
        "edm-euler": NamedSampler(EDMEulerScheduler),
        "edm-heun": NamedSampler(EDMEulerScheduler, {"solver_order": SOLVER_ORDER}),
        "edm-dpmsolver++": NamedSampler(EDMDPMSolverMultistepScheduler),
        "consistency": NamedSampler(CMStochasticIterativeScheduler, needs_its_own=True),
    },
}
"""Family of the training: name: sampler."""

FEW_STEPS = {"FlowMapEulerDiscreteScheduler": 4, "CMStochasticIterativeScheduler": 2}
"""Schedulers of models that learned to take few steps: how many."""

INVERTIBLE = {"discrete": "ddim", "flow": "flow-euler", "edm": "edm-euler"}
"""Family of the training: the deterministic sampler of first order, whose steps `invert` undoes."""


def family(scheduler: SchedulerMixin) -> str:
    """What a model of this scheduler was trained for: "discrete", "flow" or "edm".

    Raises:
        TypeError: for what is no scheduler.
        ValueError: for one of another kind.
    """
    if not isinstance(scheduler, SchedulerMixin):
        raise TypeError(f"scheduler: must be a scheduler of diffusers, got {type(scheduler).__name__}")
    if isinstance(scheduler, FLOW_SCHEDULERS) or scheduler.config.get("use_flow_sigmas"):
        return "flow"
    if hasattr(scheduler, "precondition_outputs") or isinstance(scheduler, CMStochasticIterativeScheduler):
        return "edm"
    if not hasattr(scheduler, "alphas_cumprod") or "prediction_type" not in scheduler.config:
        raise ValueError(f"scheduler: {type(scheduler).__name__} is of no kind that is known here")
    return "discrete"


def invertible(scheduler: SchedulerMixin) -> str:
    """The name of the deterministic sampler of first order, whose steps can be undone, of a model of this scheduler.

    Raises:
        ValueError: for a consistency model, whose network knows where a path ends and not which way it goes.
    """
    if isinstance(scheduler, CMStochasticIterativeScheduler):
        raise ValueError("scheduler: a consistency model has no steps to undo; take the model that it was tuned from")
    return INVERTIBLE[family(scheduler)]


def fitting_schedulers(scheduler: SchedulerMixin) -> list[str]:
    """Names of the samplers that can run a model saved with this scheduler."""
    return [name for name, sampler in SAMPLERS[family(scheduler)].items() if sampler.fits(scheduler)]


def make_scheduler(name: str, scheduler: SchedulerMixin) -> SchedulerMixin:
    """The named sampler, set up for the model that `scheduler` was saved with.

    Raises:
        TypeError: for what is no name, or no scheduler.
        ValueError: if there is no such sampler, or it doesn't fit the model.
    """
    if not isinstance(name, str):
        raise TypeError(f"scheduler: must be named by a text, got {brief(name)}")
    kind = family(scheduler)
    fitting = fitting_schedulers(scheduler)
    if name not in fitting:
        raise ValueError(f"scheduler: {name!r} doesn't fit this {kind} model; these do: {', '.join(fitting)}")
    sampler = SAMPLERS[kind][name]
    # `from_config` by itself forgets every value that was a default of the old class, and would take the new
    # class's: linear betas from 0.0001 to 0.02 would silently become 0.00085 to 0.012 in Heun and KDPM2.
    config = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    if kind == "flow":
        config["shift"] = config["flow_shift"] = config.get("flow_shift", config.get("shift"))
    elif config.get("prediction_type") == "epsilon":
        # DPM-Solver divides an epsilon's error by alpha, which all but vanishes at the end of cosine betas.
        config["lambda_min_clipped"] = -5.1
    if kind == "discrete":
        if config.get("variance_type") is None:  # as it stands in what has none
            config.pop("variance_type", None)
        if sampler.scheduler is not DDPMScheduler:
            config.pop("variance_type", None)  # the others sample the mean, or have a variance of their own
            if config["beta_schedule"] == "sigmoid":  # which only DDPM knows by name
                config |= {"beta_schedule": "linear", "trained_betas": scheduler.betas.tolist()}
        # What the model's own scheduler clips, every sampler clips that can, and no other does.
        config.setdefault("clip_sample", config.get("thresholding", False))
        if config["clip_sample"] and "clip_sample" not in sampler.accepts and config.get("clip_sample_range", 1) == 1:
            # Dynamic thresholding with these values clips to [-1, 1].
            config |= {"thresholding": True, "dynamic_thresholding_ratio": 1.0, "sample_max_value": 1.0}
    made = sampler.scheduler(**{k: v for k, v in (config | sampler.settings).items() if k in sampler.accepts})
    unknown = {k: v for k, v in sampler.settings.items() if k not in sampler.accepts}
    made.register_to_config(**unknown | {k: v for k, v in config.items() if k == SEARCHED})
    return made
