"""The adapters, and what they rely on inside diffusers' schedulers: an upgrade that moves it fails here first."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler

from pipelines import make_scheduler
from pipelines.samplers import ADAPTERS, make_sampler
from pipelines.schedulers import SAMPLERS
from tests.pipelines.test_reverse_process import EVERY, TRAINED

INSIDES = {
    "PNDMScheduler": ("plms_timesteps", "prk_timesteps", "counter"),
    "KDPM2DiscreteScheduler": ("sigmas_interpol", "state_in_first_order"),
    "KDPM2AncestralDiscreteScheduler": ("sigmas_interpol", "state_in_first_order"),
    "LMSDiscreteScheduler": ("derivatives", "sigmas"),
    "DPMSolverMultistepScheduler": ("_sigma_to_alpha_sigma_t",),
    "DPMSolverSinglestepScheduler": ("_sigma_to_alpha_sigma_t",),
    "UniPCMultistepScheduler": ("_sigma_to_alpha_sigma_t",),
    "DEISMultistepScheduler": ("_sigma_to_alpha_sigma_t",),
    "EDMEulerScheduler": ("precondition_inputs",),
    "EDMDPMSolverMultistepScheduler": ("precondition_inputs",),
}


def test_every_named_sampler_has_an_adapter() -> None:
    named = {sampler.scheduler.__name__ for samplers in SAMPLERS.values() for sampler in samplers.values()}
    assert named <= ADAPTERS.keys()
    assert INSIDES.keys() <= named


@pytest.mark.parametrize(("model", "name"), EVERY)
def test_what_adapters_rely_on_is_there(model: str, name: str) -> None:
    scheduler = make_scheduler(name, TRAINED[model])
    scheduler.set_timesteps(8)
    for attribute in ("order", "timesteps", "scale_model_input"):
        assert hasattr(scheduler, attribute) or "Flow" in type(scheduler).__name__
    for attribute in INSIDES.get(type(scheduler).__name__, ()):
        assert hasattr(scheduler, attribute), attribute


@pytest.mark.parametrize(("model", "name"), EVERY)
def test_the_state_to_begin_with_is_noise_of_the_first_level(model: str, name: str) -> None:
    """x_t = alpha x0 + sigma eps with x0 = 0, nearly: at the first level hardly anything of x0 is left."""
    sampler = make_sampler(make_scheduler(name, TRAINED[model]))
    sampler.set_timesteps(12, None, torch.device("cpu"))
    x = sampler.start(torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(1)))
    level = sampler.level(0)
    assert level.sigma > 5 * level.alpha
    assert sampler.x_t(x, 0).std().item() == pytest.approx(float(level.sigma), rel=0.05)


def test_other_schedulers_are_refused() -> None:
    with pytest.raises(ValueError, match="scheduler: LCMScheduler is of no kind that is known here"):
        make_sampler(LCMScheduler())


def test_a_subclass_is_taken_for_its_base() -> None:
    class Own(DDPMScheduler):
        pass

    assert type(make_sampler(Own())) is ADAPTERS["DDPMScheduler"]


@pytest.mark.parametrize("name", ["unipc", "dpmsolver++"])
def test_solvers_of_a_flow_show_its_real_times(name: str) -> None:
    scheduler: Any = make_scheduler(name, FlowMatchEulerDiscreteScheduler())
    sampler = make_sampler(scheduler)
    sampler.set_timesteps(7, None, torch.device("cpu"))
    level = sampler.level(3)
    assert float(level.timestep) == pytest.approx(1000 * float(level.sigma))
    assert float(level.timestep) != int(level.timestep)
