"""Images to start from and to keep, with every pipeline and sampler: exactness, closed forms, bad input."""

from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, RePaintScheduler
from torch import Tensor

from pipelines import (
    LatentDiffusionPipeline,
    Prediction,
    PredictionType,
    ScoreSdePipeline,
    estimate_noise_std,
    make_sampler,
    make_scheduler,
    sample,
)
from pipelines.editing import masked, repaint, repaint_evaluations
from pipelines.prediction import NoiseLevel
from tests.autoencoders import tiny_vae
from tests.pipelines import test_text2img
from tests.pipelines.mixture import draw, mixture_pipeline, parts
from tests.pipelines.models import quiet, tiny_pipeline, tiny_unet
from tests.pipelines.oracle import MEAN, STD
from tests.pipelines.test_image_to_image import oracle_pipeline
from tests.pipelines.test_reverse_process import EVERY, TRAINED

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, to the schedulers

STEPS = {"num_inference_steps": 4, "output_type": "np"}


def pipeline_of(kind: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline of gray images, and what its call takes besides."""
    if kind == "text":
        return test_text2img.make(channels=1), {"prompt": ["a", "b"]}
    two = {"batch_size": 2}
    if kind == "latent":
        vae = tiny_vae("sd", 1)
        return quiet(LatentDiffusionPipeline(vae, tiny_unet(vae.config.latent_channels), DDPMScheduler())), two
    if kind in ("sde", "ode"):
        pipeline = quiet(ScoreSdePipeline(tiny_unet(), DDPMScheduler()))
        return pipeline, two | ({"predictor": "probability_flow", "tolerance": 0.1} if kind == "ode" else {})
    scheduler = {"flow": FlowMatchEulerDiscreteScheduler(), "edm": EDMEulerScheduler(), "ddpm": None}[kind]
    return tiny_pipeline(scheduler), two


KINDS = ("ddpm", "flow", "edm", "latent", "text", "sde", "ode")


def pictures(pipeline: Any) -> np.ndarray:
    """Two images (2, H, W, 1) of whole numbers over 255."""
    side = pipeline.network.config.sample_size * pipeline.vae_scale_factor
    return np.random.default_rng(0).integers(0, 256, (2, side, side, 1)).astype(np.float32) / 255


def halves(image: np.ndarray) -> np.ndarray:
    """A mask (H, W) whose right half is to be made."""
    mask = np.zeros(image.shape[1:3], np.float32)
    mask[:, mask.shape[1] // 2 :] = 1
    return mask


def pixels(images: np.ndarray) -> np.ndarray:
    return (images * 255).round().astype(int)


def run(pipeline: Any, **arguments: Any) -> np.ndarray:
    generator = [torch.Generator().manual_seed(i) for i in (5, 6)]
    images: np.ndarray = pipeline(**STEPS | arguments, generator=generator).images
    return images


@pytest.mark.parametrize("kind", KINDS)
def test_exact(kind: str) -> None:
    """Strength 0 and 1, all known and all unknown, and what is kept of a half."""
    pipeline, given = pipeline_of(kind)
    image = pictures(pipeline)
    plain = run(pipeline, **given)
    assert np.array_equal(run(pipeline, image=image, strength=1, **given), plain)
    everything, nothing = np.ones(image.shape[1:3], bool), np.zeros(image.shape[1:3], bool)
    assert np.array_equal(run(pipeline, image=image, mask_image=everything, **given), plain)
    assert np.array_equal(pixels(run(pipeline, image=image, mask_image=nothing, **given)), pixels(image))
    untouched = run(pipeline, image=image, strength=0, **given)
    coded = pipeline.decode(pipeline.encode(torch.from_numpy(image).movedim(-1, 1) * 2 - 1)) / 2 + 0.5
    assert np.allclose(untouched, coded.clamp(0, 1).movedim(1, -1).numpy(), atol=1e-5)

    mask = halves(image)
    mixed = run(pipeline, image=image, mask_image=mask, **given)
    kept = np.broadcast_to(mask[..., None] == 0, image.shape)
    assert np.array_equal(pixels(mixed)[kept], pixels(image)[kept])
    assert abs(mixed - image)[~kept].mean() > 0.05
    assert abs(mixed - plain)[~kept].max() > 1e-4  # what is known is felt beyond it


@pytest.mark.parametrize(("model", "name"), EVERY)
def test_every_sampler_keeps_what_is_known(model: str, name: str) -> None:
    """By itself, before anything is pasted: the known data are where its steps end."""
    pipeline = tiny_pipeline(make_scheduler(name, TRAINED[model]))
    image = pictures(pipeline)
    mask = halves(image)
    x0 = run(pipeline, image=image, mask_image=mask, batch_size=2, num_inference_steps=12)
    kept = np.broadcast_to(mask[..., None] == 0, image.shape)
    assert np.array_equal(pixels(x0)[kept], pixels(image)[kept])
    data, unknown = torch.from_numpy(image).movedim(-1, 1) * 2 - 1, torch.from_numpy(mask == 1)[None, None]
    sampler = make_sampler(pipeline.scheduler, generator=torch.Generator().manual_seed(0))
    sampler.set_timesteps(100, None, torch.device("cpu"))
    x = sampler.start(torch.randn(data.shape, generator=torch.Generator().manual_seed(1)))

    def nothing(x_t: Tensor, level: NoiseLevel) -> Prediction:
        return Prediction(torch.zeros_like(x_t), PredictionType("sample"), x_t, level)

    x = sample(masked(nothing, data, unknown), sampler, x)
    assert (x - data)[:, :, :, : data.shape[3] // 2].abs().mean() < 0.15  # the noise of the last level


def normal(x_t: Tensor, level: NoiseLevel) -> Prediction:
    """The best prediction for pairs of normal pixels of correlation RHO, (B, 1, 1, 2)."""
    alpha, sigma = level.alpha.double(), level.sigma.double()
    gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * torch.eye(2))
    x0 = ((x_t.double().flatten(1) - alpha * CENTRE) @ gain.T + CENTRE).view_as(x_t)
    return Prediction(x0.float(), PredictionType("sample"), x_t, level)


RHO, SPREAD = 0.9, 0.4
CENTRE = torch.tensor([0.1, -0.2]).double()
COVARIANCE = SPREAD**2 * torch.tensor([[1, RHO], [RHO, 1]]).double()


@pytest.mark.parametrize(("model", "name"), [("epsilon", "ddpm"), ("flow", "flow-euler"), ("edm", "edm-euler")])
def test_jumps_approach_the_conditional_distribution(model: str, name: str) -> None:
    """x2 given x1 of correlated normals: its mean and its standard deviation, in 4,000 draws."""
    n = 4000
    known = 0.5
    mean = CENTRE[1] + RHO * (known - CENTRE[0])
    std = SPREAD * (1 - RHO**2) ** 0.5
    data = torch.tensor([known, 0.0]).expand(n, 1, 1, 2)
    unknown = torch.tensor([False, True]).view(1, 1, 1, 2)
    errors = {}
    for times in (1, 10):
        scheduler = make_scheduler(name, TRAINED[model])
        if "clip_sample" in scheduler.config:
            scheduler.register_to_config(clip_sample=False)
        generator = torch.Generator().manual_seed(0)
        sampler = make_sampler(scheduler, generator=generator)
        sampler.set_timesteps(60, None, torch.device("cpu"))
        x = sampler.start(torch.randn(data.shape, generator=generator))
        order = repaint_evaluations(sampler.evaluations(), 3, times)
        x = repaint(masked(normal, data, unknown), sampler, x, order, generator=generator)[..., 1].flatten().double()
        errors[times] = abs(float(x.mean() - mean)) / std, abs(float(x.std()) / std - 1)
    assert errors[10][0] < 0.25 < 0.7 < errors[1][0]
    assert errors[10][1] < 0.1 < 0.25 < errors[1][1]


@pytest.mark.parametrize(("length", "times"), [(10, 10), (5, 2), (1, 3), (7, 1), (60, 4)])
def test_jumps_are_those_of_repaint(length: int, times: int) -> None:
    """Evaluations are where the timesteps of diffusers' scheduler fall."""
    scheduler = RePaintScheduler(num_train_timesteps=50)
    scheduler.set_timesteps(50, length, times)
    steps = [50, *scheduler.timesteps.tolist()]
    expected = [50 - before for before, after in zip(steps, steps[1:], strict=False) if after < before]
    assert repaint_evaluations(range(50), length, times) == expected
    assert repaint_evaluations(range(100, 150), length, times) == [100 + i for i in expected]


@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler", "euler-a"])
def test_a_step_back_keeps_the_distribution(name: str) -> None:
    """Noise takes x at one level to what it is at the level of an earlier evaluation."""
    sampler = make_sampler(make_scheduler(name, TRAINED["epsilon"]))
    sampler.set_timesteps(20, None, torch.device("cpu"))
    data, noise = torch.full((1, 1, 64, 64), 0.7), torch.randn(2, 1, 1, 64, 64)
    low, high = sampler.level(12), sampler.level(7)
    x = sampler._from_x_t(low.alpha * data + low.sigma * noise[0], low)
    sampler._begin(12)
    back = sampler.x_t(sampler.back(x, 12, 7, noise[1]), 7)
    assert float(back.mean()) == pytest.approx(float(high.alpha) * 0.7, abs=0.06)
    assert float(back.std()) == pytest.approx(float(high.sigma), rel=0.05)


@pytest.mark.parametrize("kind", ["ddpm", "latent", "text", "flow", "edm"])
def test_pipelines_take_jumps(kind: str) -> None:
    pipeline, given = pipeline_of(kind)
    image = pictures(pipeline)
    mask = halves(image)
    seen: list[int] = []

    def callback(pipe: Any, i: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(i)
        return {}

    arguments = {"image": image, "mask_image": mask, "jump_length": 1, "jump_n_sample": 2} | given
    made = run(pipeline, callback_on_step_end=callback, **arguments)
    assert seen == [0, 1, 1, 2, 2, 3, 3]
    kept = np.broadcast_to(mask[..., None] == 0, image.shape)
    assert np.array_equal(pixels(made)[kept], pixels(image)[kept])


def test_self_conditioning_is_given_what_is_known() -> None:
    network = tiny_unet(2)
    network.conv_out = torch.nn.Conv2d(32, 1, 3, padding=1)
    network.register_to_config(out_channels=1)
    pipeline = tiny_pipeline()
    pipeline.unet = network
    pipeline.register_to_config(self_condition=True)
    inputs: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, args, kwargs: inputs.append(args[0].clone()), with_kwargs=True)
    image = pictures(pipeline)
    run(pipeline, image=image, mask_image=halves(image), batch_size=2)
    own = inputs[1][:, 1:, :, : image.shape[2] // 2]
    expected = (torch.from_numpy(image).movedim(-1, 1) * 2 - 1)[..., : image.shape[2] // 2]
    torch.testing.assert_close(own, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("std", [0.02, 0.1, 0.3])
def test_noise_is_estimated(std: float) -> None:
    """Beside edges and a slope."""
    x = torch.linspace(-0.5, 0.5, 64).expand(2, 1, 64, 64).clone()
    x[1, :, 20:40, 10:30] += 0.4
    noisy = x + std * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimate_noise_std(noisy), torch.full((2,), std), rtol=0.06, atol=0)
    with pytest.raises(ValueError, match="2 x 2 pixels"):
        estimate_noise_std(torch.zeros(1, 1, 1, 5))


@pytest.mark.parametrize("std", [0.05, 0.4])
@pytest.mark.parametrize("name", ["flow-euler", "ddim", "edm-euler"])
def test_noise_is_taken_away(name: str, std: float) -> None:
    """Of normal pixels, of which the samplers know the best estimate: as far from the clean ones as it can be."""
    family = {"flow-euler": "flow", "ddim": "sample", "edm-euler": "edm"}
    clean = MEAN + STD * torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    noisy = (clean + 2 * std * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))) / 2 + 0.5
    pipeline = oracle_pipeline(family[name], name)
    arguments = {"image": noisy.clamp(0, 1), "noise_std": std, "num_inference_steps": 100, "output_type": "pt"}
    restored = pipeline(2, **arguments).images * 2 - 1
    # A sample of the posterior is twice as far as its mean; the ODE maps x to what has STD again, in between.
    expected = STD / (STD**2 + 4 * std**2) ** 0.5
    correlation = float(torch.corrcoef(torch.stack([restored.flatten(), clean.flatten()]))[0, 1])
    assert correlation == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("predictor", ["ancestral", "probability_flow"])
def test_sdes_start_from_images(predictor: str) -> None:
    """Data of one part stays that part's under little noise, and under much becomes any."""
    pipeline = mixture_pipeline("vp")
    image = draw(100).clamp(-1, 1) / 2 + 0.5
    usual = {"num_inference_steps": 60, "predictor": predictor, "tolerance": 1e-2, "output_type": "latent"}
    generator = torch.Generator().manual_seed(0)
    near = pipeline(100, image=image, strength=0.1, generator=generator, **usual).images
    far = pipeline(100, image=image, strength=0.9, generator=generator, **usual).images
    start = image * 2 - 1
    assert (near - start).square().mean() < 0.05 < 0.1 < (far - start).square().mean()
    assert parts(far)[0].min() > 0.05
    noisy = pipeline(100, image=image, noise_std=0.05, generator=generator, **usual).images
    assert (noisy - start).square().mean() < (near - start).square().mean()


IMAGE = torch.zeros(2, 1, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask_image": np.zeros((16, 16))}, ValueError, "mask_image: is of an image; give that too"),
        ({"noise_std": 0.1}, ValueError, "noise_std: is of an image; give that too"),
        ({"strength": 0.5}, ValueError, "strength: is of an image; give that too"),
        ({"jump_n_sample": 2}, ValueError, "jump_n_sample: is of inpainting; give mask_image too"),
        ({"image": IMAGE, "noise_std": 0.1, "strength": 0.5}, ValueError, "noise_std: .* not with strength"),
        ({"noise_std": 0.1, "mask_image": np.zeros((16, 16))}, ValueError, "noise_std: .* not with mask_image"),
        ({"image": torch.zeros(2, 3, 16, 16)}, ValueError, "image: has 3 channels, and the model takes 1"),
        ({"image": torch.zeros(3, 1, 16, 16)}, ValueError, "image: 3 given for 2 images; give one, or one per image"),
        ({"image": IMAGE, "strength": 1.1}, ValueError, "strength: must be a finite number from 0 to 1, got 1.1"),
        ({"image": IMAGE, "strength": 0.1}, ValueError, "strength: 0.1 of 4 steps is 0; it must be from 1 / 4 to 1"),
        ({"image": IMAGE, "noise_std": -1}, ValueError, "noise_std: must be a finite number from 0"),
        ({"image": IMAGE, "noise_std": "auto"}, TypeError, "noise_std: must be a number"),
        ({"image": IMAGE, "jump_n_sample": 2}, ValueError, "jump_n_sample: is of inpainting; give mask_image too"),
        ({"image": IMAGE, "jump_length": 0}, ValueError, "jump_length: must be"),
        ({"mask_image": "white"}, TypeError, "mask_image: must be PIL images, arrays or tensors, got 'white'"),
        ({"mask_image": np.zeros((8, 16))}, ValueError, "mask_image: of 8 x 16 pixels, and the image of 16 x 16"),
        ({"mask_image": np.zeros((16, 16, 3))}, ValueError, r"mask_image: of shape \(16, 16, 3\); a mask has one"),
        ({"mask_image": np.full((16, 16), 255)}, TypeError, "mask_image: must be bool or in .0, 1. .* holds torch.int"),
        ({"mask_image": np.full((16, 16), 1.5)}, ValueError, "mask_image: holds values outside"),
        ({"mask_image": np.full((16, 16), np.nan)}, ValueError, "mask_image: holds values outside"),
        ({"mask_image": [PIL.Image.new("L", (16, 16))] * 3}, ValueError, "mask_image: 3 given for 2 images"),
        ({"mask_image": []}, ValueError, "mask_image: 0 given for 2 images"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    pipeline = tiny_pipeline(FlowMatchEulerDiscreteScheduler())
    given = {"image": IMAGE} if "mask_image" in arguments and "is of an image" not in message else {}
    with pytest.raises(error, match=message):
        run(pipeline, batch_size=2, **given | arguments)


def test_what_a_pipeline_cannot_do() -> None:
    image = {"image": IMAGE, "mask_image": np.ones((16, 16), bool)}
    multistep = tiny_pipeline(make_scheduler("dpmsolver++", TRAINED["epsilon"]))
    with pytest.raises(ValueError, match="jump_n_sample: DPMSolverMultistepScheduler repeats no steps; DDPM, DDIM"):
        run(multistep, batch_size=2, jump_n_sample=2, **image)
    with pytest.raises(ValueError, match="noise_std: more than what the 4 steps begin with"):
        run(tiny_pipeline(), batch_size=2, image=IMAGE, noise_std=100)
    latent, given = pipeline_of("latent")
    with pytest.raises(ValueError, match="noise_std: is for models of pixels; an autoencoder makes something else"):
        run(latent, image=pictures(latent), noise_std=0.1, **given)


def test_masks_in_all_their_shapes() -> None:
    pipeline = tiny_pipeline(FlowMatchEulerDiscreteScheduler())
    image = pictures(pipeline)
    mask = halves(image)
    numbers = torch.from_numpy(mask)
    picture = PIL.Image.fromarray((mask * 255).astype(np.uint8))
    expected = run(pipeline, batch_size=2, image=image, mask_image=mask)
    others = [numbers, numbers[None], numbers[None, None].expand(2, -1, -1, -1), mask[..., None], numbers > 0.5]
    others += [
        mask.astype(bool),
        mask[None, ..., None],
        picture,
        picture.convert("RGB"),
        [picture, picture],
        [mask, mask],
    ]
    for other in others:
        assert np.array_equal(run(pipeline, batch_size=2, image=image, mask_image=other), expected)


def test_a_mask_is_resized_as_its_image() -> None:
    """To the size that is asked for, or that the network divides; what an unknown pixel reaches is unknown."""
    pipeline = tiny_pipeline(FlowMatchEulerDiscreteScheduler())
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (33, 33), np.uint8))
    mask = np.zeros((33, 33), np.float32)
    mask[:, 15:] = 1
    for size in ({}, {"height": 16, "width": 16}):
        made = run(pipeline, batch_size=2, image=image, mask_image=mask, **size)
        side = size.get("height", 32)
        kept = run(pipeline, batch_size=2, image=image, mask_image=np.zeros((33, 33)), **size)
        assert made.shape == (2, side, side, 1)
        assert np.array_equal(made[:, :, : side // 2 - 2], kept[:, :, : side // 2 - 2])
        assert not np.array_equal(made[:, :, side // 2 - 1], kept[:, :, side // 2 - 1])


def test_nothing_was_done_at_strength_0() -> None:
    pipeline = tiny_pipeline(FlowMatchEulerDiscreteScheduler())
    output = pipeline(2, image=IMAGE, strength=0, return_trajectory=True, num_inference_steps=2)
    assert output.trajectory is None


def test_an_image_has_its_own_size() -> None:
    made = run(tiny_pipeline(), batch_size=2, image=IMAGE[:, :, :8])
    assert made.shape == (2, 8, 16, 1)
