import inspect

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from pipelines import fitting_schedulers, make_scheduler
from pipelines.schedulers import SAMPLERS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, to the schedulers

DISCRETE = DDPMScheduler(timestep_spacing="trailing", beta_schedule="scaled_linear", beta_end=0.015)


@pytest.mark.parametrize("name", SAMPLERS["discrete"])
def test_the_models_betas_survive(name: str) -> None:
    """`from_config` would take the new class's defaults for values that were the old class's defaults."""
    config = make_scheduler(name, DISCRETE).config
    for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type"):
        assert config[key] == DISCRETE.config[key]
    assert config.get("timestep_spacing", "trailing") == "trailing"


def test_a_sampler_can_be_changed_again() -> None:
    sde = make_scheduler("sde-dpmsolver++", DISCRETE)
    assert sde.config.algorithm_type == "sde-dpmsolver++"
    assert make_scheduler("dpmsolver++", sde).config.algorithm_type == "dpmsolver++"
    for name in SAMPLERS["discrete"]:
        again = make_scheduler("ddpm", make_scheduler(name, DISCRETE))
        assert again.alphas_cumprod.equal(DISCRETE.alphas_cumprod)
    solver = make_scheduler("unipc", FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert solver.config.flow_shift == make_scheduler("flow-euler", solver).config.shift == 3.0


def test_dpm_solver_begins_where_an_epsilon_still_tells_of_x0() -> None:
    cosine = {"timestep_spacing": "trailing", "beta_schedule": "squaredcos_cap_v2"}
    for prediction, highest in (("epsilon", 165), ("v_prediction", 30_000)):
        scheduler = make_scheduler("dpmsolver++", DDPMScheduler(prediction_type=prediction, **cosine))
        scheduler.set_timesteps(20)
        assert highest / 2 < scheduler.sigmas[0] < highest


def test_families_do_not_mix() -> None:
    with pytest.raises(
        ValueError, match="'ddim' doesn't fit this flow model; these do: flow-euler, flow-map, flow-heun"
    ):
        make_scheduler("ddim", FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="edm model; these do: edm-euler, edm-heun, edm-dpmsolver"):
        make_scheduler("flow-euler", EDMEulerScheduler())
    with pytest.raises(ValueError, match="discrete model; these do: ddpm, .*ddim"):
        make_scheduler("edm-euler", DISCRETE)


def test_what_a_sampler_cannot_do_is_refused() -> None:
    no_sample = {"pndm", "euler-a", "kdpm2", "kdpm2-a"}
    assert set(fitting_schedulers(DISCRETE)) == set(SAMPLERS["discrete"])
    assert set(fitting_schedulers(DDPMScheduler(prediction_type="sample"))) == set(SAMPLERS["discrete"]) - no_sample
    zero_snr = fitting_schedulers(DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True))
    assert {"ddpm", "ddim", "euler", "unipc"} < set(zero_snr)
    assert not {"heun", "pndm", "deis"} & set(zero_snr)
    unstable = set(SAMPLERS["discrete"]) - set(fitting_schedulers(DDPMScheduler(beta_schedule="squaredcos_cap_v2")))
    assert unstable == {"pndm", "heun", "kdpm2", "kdpm2-a"}


@pytest.mark.parametrize("name", SAMPLERS["discrete"] | SAMPLERS["flow"] | SAMPLERS["edm"])
def test_samplers_are_stock_classes_with_a_step(name: str) -> None:
    for samplers in SAMPLERS.values():
        if name in samplers:
            assert samplers[name].scheduler.__module__.startswith("diffusers.")
            assert "timestep" in inspect.signature(samplers[name].scheduler.step).parameters


@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("name", ["ddim", "dpmsolver++", "dpmsolver++-single", "sde-dpmsolver++", "unipc", "deis"])
def test_samplers_clip_what_the_models_own_clips(name: str, clip_sample: bool) -> None:
    """A network that predicts x0 = 3 everywhere: the last step lands on it, or on 1."""
    own = DDPMScheduler(timestep_spacing="trailing", prediction_type="sample", clip_sample=clip_sample)
    scheduler = make_scheduler(name, own)
    scheduler.set_timesteps(10)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(torch.full_like(x, 3.0), t, x).prev_sample
    assert x.mean().item() == pytest.approx(1.0 if clip_sample else 3.0, rel=0.05)
    again = make_scheduler("ddpm", scheduler).config
    assert (again.clip_sample or again.thresholding) == clip_sample
