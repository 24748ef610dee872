"""The loop against closed forms, bare loops and diffusers' own pipelines."""

import functools
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from pipelines import PixelDiffusionPipeline, fitting_schedulers, image_generators, make_scheduler
from tests.pipelines.models import quiet, run_loop, tiny_pipeline, tiny_unet
from tests.pipelines.oracle import MEAN, STD, Oracle

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, to the schedulers

TRAINED = {
    "epsilon": DDPMScheduler(timestep_spacing="trailing"),
    "v": DDPMScheduler(timestep_spacing="trailing", beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
    "sample": DDPMScheduler(
        timestep_spacing="trailing", beta_schedule="scaled_linear", prediction_type="sample", clip_sample=False
    ),
    "cosine epsilon": DDPMScheduler(timestep_spacing="trailing", beta_schedule="squaredcos_cap_v2"),
    "zero snr": DDPMScheduler(timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "flow": FlowMatchEulerDiscreteScheduler(),
    "shifted flow": FlowMatchEulerDiscreteScheduler(shift=2.0),
    "edm": EDMEulerScheduler(),
}
FAMILY = {"flow": "flow", "shifted flow": "flow", "edm": "edm"}
EVERY = [(model, name) for model, scheduler in TRAINED.items() for name in fitting_schedulers(scheduler)]
# The others keep what they make of an output to themselves, or convert it to a noise.
TELLING = [(m, n) for m, n in EVERY if not n.startswith("flow") and n not in ("pndm", "deis", "edm-heun")]

# Error of the standard deviation with 200 steps, relative. First-order samplers leave out what the last step
# spans: at t = 4 the noise still has a variance of 1% of the data's, and DDPM lags by a step's worth throughout.
NOISY_AT_THE_END = ("ddpm-fixed-large",)
"""Samplers whose last step has noise in diffusers, where it begins after timestep 0; here it has none."""
TOLERANCE = {
    "ddpm": 0.07,
    "ddpm-fixed-small": 0.07,
    "ddpm-fixed-large": 0.03,
    "euler-a": 0.07,
    "ddim": 0.03,
    "euler": 0.03,
    "edm-euler": 0.02,
    "flow-euler": 0.02,
    "flow-map": 0.02,
}


def oracle_samples(model: str, scheduler: Any, prediction_type: str | None = None) -> torch.Tensor:
    family = FAMILY.get(model, "discrete")
    native = {"flow": "flow_prediction", "edm": "edm"}.get(family, scheduler.config.get("prediction_type"))
    config = TRAINED[model].config
    schedule = {k: config[k] for k in ("beta_schedule", "rescale_betas_zero_snr") if k in config}
    pipeline = PixelDiffusionPipeline(Oracle(family, prediction_type or native, schedule), scheduler, prediction_type)
    generator = torch.Generator().manual_seed(0)
    return quiet(pipeline)(batch_size=4, num_inference_steps=200, generator=generator, output_type="pt").images


@pytest.mark.parametrize(("model", "name"), EVERY)
def test_every_sampler_reproduces_a_normal_distribution(model: str, name: str) -> None:
    x0 = oracle_samples(model, make_scheduler(name, TRAINED[model])) * 2 - 1
    # 16,384 draws: the mean's standard error is 0.002, the relative one of the standard deviation 0.006.
    assert float(x0.mean()) == pytest.approx(MEAN, abs=0.006)
    assert float(x0.std()) == pytest.approx(STD, rel=TOLERANCE.get(name, 0.015))


@pytest.mark.parametrize("target", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("model", ["flow", "edm"])
def test_other_predictions_on_the_path_of_a_scheduler(model: str, target: str) -> None:
    """Whatever the network predicts, the same x0 and so the same samples follow from it."""
    for name in fitting_schedulers(TRAINED[model]):
        scheduler = make_scheduler(name, TRAINED[model])
        expected = oracle_samples(model, scheduler)
        # At t = 1 an epsilon tells nothing of x0, which is taken for 0 in that step.
        tolerance = 2e-3 if (model, target) == ("flow", "epsilon") else 2e-4
        assert torch.allclose(oracle_samples(model, scheduler, target), expected, atol=tolerance), name


@pytest.mark.parametrize("name", ["flow-euler", "unipc"])
def test_epsilon_of_pure_noise_is_not_taken_for_a_image(name: str) -> None:
    """UniPC begins at alpha = 1e-6, by which an imperfect network's error would be divided."""
    pipeline = tiny_pipeline(make_scheduler(name, TRAINED["flow"]), prediction_type="epsilon")
    trajectory = pipeline(num_inference_steps=8, return_trajectory=True).trajectory
    assert not trajectory.denoised[0].any()
    assert trajectory.denoised[1].any()


def recorded(scheduler: Any, method: str, pick: Any) -> list[torch.Tensor]:
    """What a method of the scheduler returns from now on."""
    original, seen = getattr(scheduler, method), []

    @functools.wraps(original)
    def record(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        seen.append(pick(result))
        return result

    setattr(scheduler, method, record)
    return seen


@pytest.mark.parametrize(("model", "name"), TELLING)
def test_predicted_x0_is_the_schedulers(model: str, name: str) -> None:
    scheduler = make_scheduler(name, TRAINED[model])
    scheduler.register_to_config(clip_sample=False, thresholding=False)
    multistep = hasattr(scheduler, "convert_model_output")
    seen = recorded(scheduler, *("convert_model_output", lambda x0: x0) if multistep else ("step", lambda out: out[1]))
    pipeline = tiny_pipeline(scheduler)
    trajectory = pipeline(num_inference_steps=8, generator=image_generators(0, [0]), return_trajectory=True).trajectory
    # UniPC converts each output once for its predictor, and its corrector works on the same.
    assert len(seen) == len(trajectory.denoised) - (name in NOISY_AT_THE_END)
    for ours, theirs in zip(trajectory.denoised, seen, strict=False):
        assert torch.allclose(ours, theirs, rtol=2e-3, atol=2e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize(("model", "name"), [(m, n) for m, n in EVERY if n not in ("edm-heun", *NOISY_AT_THE_END)])
def test_bare_loop(model: str, name: str) -> None:
    """The loop as diffusers' documentation writes it gives the same data to the last bit."""
    steps = 20  # in 10 of cosine betas diffusers' kdpm2-a takes the logarithm of 0 on some CPUs
    scheduler = make_scheduler(name, TRAINED[model])
    unet = tiny_unet()
    pipeline = quiet(PixelDiffusionPipeline(unet, scheduler))
    generator = torch.Generator().manual_seed(3)
    ours = run_loop(pipeline, (2, 1, 16, 16), num_inference_steps=steps, generator=generator)

    scheduler = make_scheduler(name, TRAINED[model])
    generator = torch.Generator().manual_seed(3)
    scheduler.set_timesteps(steps)
    x = torch.randn(2, 1, 16, 16, generator=generator) * getattr(scheduler, "init_noise_sigma", 1)
    takes = scheduler.step.__code__.co_varnames
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            exact = scheduler.sigmas[i] * 1000 if scheduler.config.get("use_flow_sigmas") else t
            output = unet(scaled, exact).sample
            options = {"generator": generator, "use_clipped_model_output": True}
            x = scheduler.step(output, t, x, **{k: v for k, v in options.items() if k in takes}).prev_sample
    assert torch.equal(ours, x)


@pytest.mark.parametrize("steps", [2, 5, 10])
def test_few_ancestral_steps_from_noise_alone(steps: int) -> None:
    """Cosine betas begin so high that what diffusers subtracts there is equal in float32."""
    scheduler = make_scheduler("kdpm2-a", TRAINED["v"])
    made = run_loop(tiny_pipeline(scheduler), (2, 1, 16, 16), num_inference_steps=steps)
    assert made.isfinite().all()
    levels, between = scheduler.sigmas, scheduler.sigmas_interpol
    assert float(between[0]) == pytest.approx(float(levels[1]), rel=0.05)
    assert float(scheduler.timesteps[1]) == pytest.approx(float(scheduler.timesteps[2]), abs=1)


@pytest.mark.parametrize(
    ("stock", "scheduler", "options"),
    [
        (DDIMPipeline, DDIMScheduler, {"num_inference_steps": 8}),
        (DDIMPipeline, DDIMScheduler, {"num_inference_steps": 8, "eta": 0.7}),
        (DDPMPipeline, DDPMScheduler, {"num_inference_steps": 8}),
    ],
)
def test_stock_pipelines_sample_a_saved_folder_alike(tmp_path: Any, stock: Any, scheduler: Any, options: Any) -> None:
    """DDIM with the noise that fits the clipped x0, which diffusers' pipeline takes only when it is asked to."""
    ours = tiny_pipeline(scheduler(timestep_spacing="trailing"))
    ours.save_pretrained(tmp_path)
    ours.complete(tmp_path, stock=True)
    theirs = quiet(stock.from_pretrained(tmp_path))
    a = ours(2, generator=torch.Generator().manual_seed(5), output_type="np", **options).images
    if stock is DDIMPipeline:
        options = options | {"use_clipped_model_output": True}
    b = theirs(2, generator=torch.Generator().manual_seed(5), output_type="np", **options).images
    assert abs(a - b).max() < 1e-5
    assert a.std() > 0.1


@pytest.mark.parametrize(
    ("model", "name"),
    [("epsilon", n) for n in ("ddim", "ddpm", "euler-a", "sde-dpmsolver++", "kdpm2-a")] + [("edm", "edm-euler")],
)
def test_an_image_does_not_depend_on_its_batch(model: str, name: str) -> None:
    pipeline = tiny_pipeline(make_scheduler(name, TRAINED[model]))
    options = {"num_inference_steps": 5, "output_type": "pt", "eta": 1.0 if name == "ddim" else 0.0}
    together = pipeline(3, generator=image_generators(0, range(3)), **options).images
    alone = pipeline(1, generator=image_generators(0, [2]), **options).images
    assert torch.allclose(together[2], alone[0], atol=1e-4)
    assert not torch.allclose(together[1], together[2], atol=1e-2)


def test_ddim_steps_with_the_noise_of_the_clipped_x0() -> None:
    """x_s = alpha_s x0 + sigma_s (x_t - alpha_t x0) / sigma_t for the clipped x0 (Song et al. 2021, eq. 12)."""
    pipeline = tiny_pipeline(DDIMScheduler(timestep_spacing="trailing"))
    pipeline.unet.conv_out.weight.data.mul_(5)  # so that it often predicts values beyond [-1, 1]
    steps: list[torch.Tensor] = []
    output = pipeline(
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        return_trajectory=True,
        callback_on_step_end=lambda pipeline, i, t, tensors: steps.append(tensors["latents"]) or tensors,
    )
    times = pipeline.scheduler.timesteps
    x_t, x0 = output.trajectory.noisy, output.trajectory.denoised.clamp(-1, 1)
    assert (output.trajectory.denoised.abs() > 1).any()
    alpha2 = pipeline.scheduler.alphas_cumprod[times].view(-1, 1, 1, 1, 1)
    noise = (x_t - alpha2.sqrt() * x0) / (1 - alpha2).sqrt()
    expected = alpha2[1:].sqrt() * x0[:-1] + (1 - alpha2[1:]).sqrt() * noise[:-1]
    torch.testing.assert_close(torch.stack(steps)[:-1], expected, atol=1e-4, rtol=1e-4)


def test_half_precision_is_the_networks_alone() -> None:
    pipeline = tiny_pipeline(FlowMatchEulerDiscreteScheduler())
    full = run_loop(pipeline, (1, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    pipeline.unet.type(torch.bfloat16)
    half = run_loop(pipeline, (1, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().mean() < 0.05
    # Not a value that bfloat16 could hold: the state was never rounded to it.
    assert not torch.equal(half, half.bfloat16().float())


def test_the_first_step_is_the_first_although_its_timestep_is_repeated() -> None:
    """UniPC rounds a flow's times, and left to itself starts at the second step of the same time."""
    scheduler = make_scheduler("unipc", FlowMatchEulerDiscreteScheduler(num_train_timesteps=10))
    pipeline = tiny_pipeline(scheduler)
    shown = pipeline(num_inference_steps=30, return_trajectory=True).trajectory.timesteps
    assert scheduler.timesteps[0] == scheduler.timesteps[1]
    assert scheduler.step_index == len(shown.unique()) == 30


def test_samples_that_overflow_are_not_passed_off_as_black_images() -> None:
    pipeline = tiny_pipeline()
    pipeline.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="samples: not finite after 2 steps of DDPMScheduler with a torch.float32"):
        pipeline(num_inference_steps=2)
