"""Pipelines of models that make images of others: what the network is given, and what comes of it."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from torch import Tensor

from pipelines import (
    ImageToImagePipeline,
    SuperResolutionPipeline,
    fitting_schedulers,
    image_generators,
    make_condition,
    make_scheduler,
)
from pipelines.image_conditions import network_condition, random_masks
from tests.autoencoders import tiny_vae
from tests.pipelines.models import quiet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, to the schedulers

STEPS = {"num_inference_steps": 3, "output_type": "np"}


class Echo(UNet2DModel):
    """A network that says of x_t that it was made of its condition, of which it takes the first channels."""

    def __init__(self, channels: int, joined: int) -> None:
        super().__init__(
            sample_size=16,
            in_channels=channels + joined,
            out_channels=channels,
            block_out_channels=(4, 4),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=2,
        )
        self.channels, self.seen = channels, torch.empty(0)

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = False) -> Any:
        self.seen = sample[:, self.channels :]
        return (self.seen[:, : self.channels],)


def echo(condition: str, channels: int = 3, joined: int = 3, scheduler: Any = None, **settings: Any) -> Any:
    """A pipeline whose images are what the network is given."""
    kind = SuperResolutionPipeline if condition.startswith("lowres") else ImageToImagePipeline
    parts: Any = (Echo(channels, joined), scheduler or DDPMScheduler(timestep_spacing="trailing"))
    return quiet(kind(*parts, condition, joined, prediction_type="sample", **settings))


def pictures(n: int = 2, side: int = 16, channels: int = 3) -> Tensor:
    """(n, channels, side, side) of whole numbers over 255."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, side, side), generator=generator) / 255


def unet(channels: int, joined: int, num_class_embeds: int | None = None) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=16,
        in_channels=channels + joined,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
        num_class_embeds=num_class_embeds,
    ).eval()


# What a clean image is degraded to


def test_low_resolution_of_smooth_images() -> None:
    """A slope stays one, down and up again, but for its ends."""
    condition, slope = make_condition("lowres:4"), torch.linspace(-0.5, 0.5, 32).expand(1, 3, 32, 32)
    small = condition.degrade(slope, torch.Generator())
    assert small.shape == (1, 3, 8, 8)
    means = slope.unfold(3, 4, 4).mean(-1)[:, :, ::4]
    torch.testing.assert_close(small[..., 1:-1], means[..., 1:-1], atol=4e-3, rtol=0)
    assert (condition.resized(small) - slope)[..., 8:-8].abs().max() < 8e-3


def test_gray_is_pillows() -> None:
    image = pictures(1)
    gray = make_condition("gray").degrade(2 * image - 1, torch.Generator()) / 2 + 0.5
    pillow = PIL.Image.fromarray((255 * image[0]).round().byte().permute(1, 2, 0).numpy()).convert("L")
    assert (255 * gray[0, 0] - torch.from_numpy(np.array(pillow)).float()).abs().max() <= 1


def test_edges_are_where_values_change() -> None:
    """A step from black to white is an edge of 2 pixels; what is flat has none, whatever its value."""
    image = torch.full((1, 3, 8, 8), 0.3)
    image[:, 0, :, :4], image[:, 0, :, 4:] = -1, 1
    edges = make_condition("edges").degrade(image, torch.Generator())
    assert edges.shape == (1, 1, 8, 8)
    expected = torch.full((8, 8), -1.0)
    expected[:, 3:5] = 1  # (1 + 2 + 1) / 8 of a difference of 2
    torch.testing.assert_close(edges[0, 0], expected)


def test_noise_has_its_standard_deviation() -> None:
    noisy = make_condition("noise:0.1").degrade(torch.zeros(4, 3, 64, 64), torch.Generator().manual_seed(0))
    assert abs(noisy.std().item() / 2 - 0.1) < 0.002
    assert make_condition("noise:1").degrade(torch.zeros(1, 1, 64, 64), torch.Generator()).abs().max() == 1


def test_masks_hide_and_say_so() -> None:
    images = pictures(200) * 0.8 + 0.1
    given = make_condition("mask").degrade(images, torch.Generator().manual_seed(0))
    assert given.shape == (200, 4, 16, 16)
    unknown = given[:, 3:] == 1
    assert torch.equal(given[:, 3:] == -1, ~unknown)
    assert torch.equal(given[:, :3], images.masked_fill(unknown, 0))
    fraction = unknown.float().mean((1, 2, 3))
    assert 0.2 < fraction.mean() < 0.6
    assert fraction.max() > 0.8
    assert fraction.min() < 0.1
    assert unknown.any((1, 2, 3)).all()
    assert (unknown[:, 0, 0].any(1) & ~unknown.all((1, 2, 3))).any()  # some reach the edge


def test_masks_of_sides_that_blocks_do_not_divide() -> None:
    assert random_masks(torch.zeros(3, 1, 7, 9), torch.Generator()).shape == (3, 1, 7, 9)


def test_noise_of_the_condition_keeps_its_variance() -> None:
    condition, generator = make_condition("column:depth"), torch.Generator().manual_seed(0)
    images, levels = torch.randn(2, 1, 128, 128, generator=generator), torch.tensor([0.0, 0.6])

    def noise(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator)

    given = network_condition(condition, images, lambda x: x, levels, noise)
    assert torch.equal(given[:, 1], levels.view(2, 1, 1).expand(2, 128, 128))
    assert torch.equal(given[0, 0], images[0, 0])
    assert abs(given[1, 0].std() - 1) < 0.03
    assert abs((given[1, 0] * images[1, 0]).mean() - 0.8) < 0.03  # sqrt(1 - 0.6^2)


# What pipelines make of it


@pytest.mark.parametrize("spec", ["gray", "noise:0.2", "edges", "column:map"])
def test_the_network_is_given_the_image(spec: str) -> None:
    channels = 3 if spec == "column:map" else 1
    image = pictures(channels=channels)
    pipeline = echo(spec, channels=1, joined=channels)
    output = pipeline(image, num_inference_steps=2, output_type="pt").images
    assert torch.allclose(pipeline.unet.seen, 2 * image - 1)
    assert torch.allclose(output, image[:, :1], atol=1e-5)


@pytest.mark.parametrize("scheduler", [DDPMScheduler(), FlowMatchEulerDiscreteScheduler(), EDMEulerScheduler()])
def test_every_sampler_comes_to_what_the_network_says(scheduler: Any) -> None:
    image = pictures(1)
    for name in fitting_schedulers(scheduler):
        pipeline = echo("column:map", scheduler=make_scheduler(name, scheduler))
        output = pipeline(image, num_inference_steps=20, generator=image_generators(0, [0]), output_type="pt").images
        assert (output - image).abs().max() < 0.02, name


def test_super_resolution_of_any_size() -> None:
    pipeline = echo("lowres:4")
    assert pipeline.scale == 4
    for size in ((4, 4), (6, 10)):
        flat = torch.full((1, 3, *size), 0.25)
        output = pipeline(flat, **STEPS).images
        assert output.shape == (1, 4 * size[0], 4 * size[1], 3)
        assert np.allclose(output, 0.25, atol=1e-5)
    (image,) = pipeline(PIL.Image.new("L", (5, 3), 51), num_inference_steps=2).images
    assert image.size == (20, 12)
    assert image.getpixel((7, 7)) == (51, 51, 51)


def test_known_pixels_come_back_exactly() -> None:
    pipeline = quiet(ImageToImagePipeline(unet(3, 4), DDPMScheduler(), "mask", 4))
    image, mask = pictures(), torch.zeros(1, 16, 16)
    mask[:, 5:, 3:] = 1
    output = torch.from_numpy(pipeline(image, mask, **STEPS).images).movedim(-1, 1)
    unknown = mask.bool().expand(2, 3, 16, 16)
    assert torch.equal((255 * output).round()[~unknown], (255 * image).round()[~unknown])
    assert not torch.equal(output[unknown], image[unknown])
    hidden = image.clone()
    hidden[unknown] = 1 - hidden[unknown]  # what is missing changes nothing
    again = pipeline(hidden, mask, generator=image_generators(0, [0, 1]), **STEPS).images
    first = pipeline(image, mask, generator=image_generators(0, [0, 1]), **STEPS).images
    assert np.array_equal(first, again)


def test_images_depend_on_their_own_generator_and_image() -> None:
    pipeline = quiet(ImageToImagePipeline(unet(3, 2, 3), DDPMScheduler(), "gray", 2, max_noise_level=0.5))
    image = pictures(channels=1)
    call = {**STEPS, "class_labels": [0, 1], "guidance_scale": 2.0, "noise_level": 0.3}
    both = pipeline(image, generator=image_generators(0, [0, 1]), **call).images
    one = pipeline(image[1:], generator=image_generators(0, [1]), **(call | {"class_labels": 1})).images
    assert np.allclose(both[1:], one, atol=1e-5)
    several = pipeline(image[:1], batch_size=2, generator=image_generators(0, [0, 1]), **call).images
    assert np.allclose(several[0], both[0], atol=1e-5)
    assert not np.allclose(several[0], several[1], atol=1e-2)


def test_one_image_and_several_masks() -> None:
    pipeline = quiet(ImageToImagePipeline(unet(3, 4), DDPMScheduler(), "mask", 4))
    image, masks = pictures(1), torch.zeros(2, 1, 16, 16)
    masks[0, :, :8], masks[1, :, 8:] = 1, 1
    made = torch.from_numpy(pipeline(image, masks, batch_size=2, **STEPS).images).movedim(-1, 1)
    for i in range(2):
        known = ~masks[i].bool().expand(3, 16, 16)
        assert torch.equal((255 * made[i]).round()[known], (255 * image[0]).round()[known])


def test_image_guidance_leads_away_from_no_image() -> None:
    """Without an image the echo says 0, so that a scale of 2 doubles what is said with it."""
    pipeline = echo("column:map", image_guidance=True)
    image = pictures() / 4 + 0.375
    output = pipeline(image, image_guidance_scale=2.0, num_inference_steps=4, output_type="pt").images
    assert torch.allclose(output - 0.5, 2 * (image - 0.5), atol=1e-4)
    assert len(pipeline.unet.seen) == 4
    pipeline(image, num_inference_steps=2)
    assert len(pipeline.unet.seen) == 2


def test_latents_are_given_latents() -> None:
    """Gray images too; of a mask, what any unknown pixel is part of is unknown."""
    vae = tiny_vae("sd", 3)
    latent, factor = vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1)
    side = 16 * factor
    pipeline = quiet(ImageToImagePipeline(Echo(latent, latent + 1), DDPMScheduler(), "mask", latent + 1, vae=vae))  # type: ignore[arg-type]
    image, mask = pictures(side=side), torch.zeros(1, side, side)
    mask[:, 0, 0] = 1
    pipeline(image, mask, num_inference_steps=2)
    seen = pipeline.unet.seen
    assert seen.shape == (2, latent + 1, 16, 16)
    assert seen[:, -1].sum() == 2 - 2 * 255
    hidden = (2 * image - 1).masked_fill(mask.bool(), 0)
    assert torch.allclose(seen[:, :-1], pipeline.encode(hidden), atol=1e-5)
    gray = quiet(ImageToImagePipeline(Echo(latent, latent), DDPMScheduler(), "gray", latent, vae=vae))  # type: ignore[arg-type]
    given = pictures(channels=1, side=side)
    gray(given, num_inference_steps=2)
    assert torch.allclose(gray.unet.seen, gray.encode((2 * given - 1).expand(-1, 3, -1, -1)), atol=1e-5)


@pytest.mark.parametrize("in_latents", [False, True])
def test_saved_and_loaded_by_diffusers(in_latents: bool, tmp_path: Path) -> None:
    vae = tiny_vae("sd", 3) if in_latents else None
    channels = vae.config.latent_channels if vae else 3
    settings = {"vae": vae, "max_noise_level": 0.5, "image_guidance": True}
    pipeline = SuperResolutionPipeline(
        unet(channels, channels + 1), FlowMatchEulerDiscreteScheduler(), "lowres:2", channels + 1, **settings
    )
    pipeline.save_pretrained(tmp_path)
    loaded = [
        SuperResolutionPipeline.from_pretrained(tmp_path),
        DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True),
    ]
    assert type(loaded[1]).__name__ == "SuperResolutionPipeline"
    assert type(loaded[1]) is not SuperResolutionPipeline
    call = {"noise_level": 0.2, "image_guidance_scale": 1.5, **STEPS}
    image = pictures(1, side=32)
    images = [quiet(p)(image, generator=torch.Generator().manual_seed(0), **call).images for p in (pipeline, *loaded)]
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("blur", "condition: 'blur' is not one of lowres:4, gray, mask, noise:0.3, edges or column:NAME"),
        ("lowres", "condition: 'lowres' can't be read; give lowres:4,"),
        ("lowres:1", "condition: 'lowres:1' can't be read"),
        ("lowres:2.5", "condition: 'lowres:2.5' can't be read"),
        ("gray:2", "condition: 'gray:2' can't be read"),
        ("noise:0", "condition: 'noise:0' can't be read"),
        ("noise:nan", "condition: 'noise:nan' can't be read"),
        ("column:", "condition: 'column:' can't be read"),
        ("noise:0.1_5", "condition: 'noise:0.1_5' can't be read"),
        ("", "condition: '' is not one of"),
    ],
)
def test_conditions_that_there_are_not(spec: str, error: str) -> None:
    with pytest.raises(ValueError, match="^" + error.replace("(", r"\(")):
        make_condition(spec)


def test_bad_calls() -> None:
    gray, masked, low = echo("gray", 3, 1), echo("mask", joined=4), echo("lowres:4")
    sizes = [PIL.Image.new("RGB", size) for size in ((4, 8), (8, 4))]
    mask = torch.ones(16, 16)
    cases: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
        (gray, (pictures(),), {}, "image: has 3 channels, and the model takes 1"),
        (gray, (pictures(channels=1),), {"batch_size": 3}, "image: 2 given for 3 images"),
        (gray, (pictures(channels=1, side=15),), {}, "image: of 15 x 15 pixels; its sides must be multiples of 2"),
        (gray, (2 * pictures(channels=1),), {}, r"image: holds values outside \[0, 1\]"),
        (gray, (pictures(channels=1), mask), {}, "mask_image: this model is conditioned on gray; leave it out"),
        (masked, (pictures(),), {}, "mask_image: needed by this model"),
        (masked, (pictures(), mask[:8]), {}, "mask_image: of 8 x 16 pixels, and the image of 16 x 16"),
        (low, (sizes,), {}, "image: of different sizes, 4 x 8 and 8 x 4; make them one"),
        (
            gray,
            (PIL.Image.fromarray(np.zeros((16, 16), np.uint16)),),
            {},
            "image: a PIL image of mode I;16, which",
        ),
        (low, (pictures(),), {"noise_level": 0.1}, "noise_level: must be"),
        (low, (pictures(),), {"image_guidance_scale": 2.0}, "image_guidance_scale: must be 1 for this model"),
        (low, (pictures(),), {"guidance_scale": 2.0}, "guidance_scale: must be 1"),
    ]
    for pipeline, given, call, error in cases:
        with pytest.raises(ValueError, match="^" + error):
            pipeline(*given, num_inference_steps=2, **call)
    with pytest.raises(TypeError, match="^image: must be a PIL image"):
        gray(None)
    with pytest.raises(ValueError, match="^invert: not for a model of given images"):
        gray.invert(pictures())


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="^condition_channels: must be"):
        ImageToImagePipeline(unet(3, 1), DDPMScheduler(), "gray", 9)
    with pytest.raises(ValueError, match="^condition: 'gray' isn't of low resolution"):
        SuperResolutionPipeline(unet(3, 1), DDPMScheduler(), "gray", 1)
    pipeline = quiet(ImageToImagePipeline(unet(3, 2), DDPMScheduler(), "gray", 2))
    with pytest.raises(ValueError, match="^condition_channels: the network takes 2 of an image, and gray makes 1"):
        pipeline(pictures(channels=1), num_inference_steps=2)
