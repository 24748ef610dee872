"""The network's data are latents; what goes in and comes out are images, unless latents are asked for."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch.testing import assert_close

import pipelines.vae as vae_module
from pipelines import LatentDiffusionPipeline, PixelDiffusionPipeline, image_generators, make_scheduler, save_strip
from pipelines.vae import shift_and_scale
from tests.autoencoders import KINDS, tiny_vae
from tests.pipelines.models import quiet, tiny_unet
from tests.publishing.test_self_contained import ours, stranger

FAST: dict[str, Any] = {"num_inference_steps": 2}
NAMES = {0: "ant", 1: "bee", 2: "cat"}
LATENT_CHANNELS = {"sd": 4, "sd3": 16, "sdxl-like": 4, "vq": 3, "tiny": 4, "dc": 8}


def pipeline_of(
    kind: str = "sd", channels: int = 3, scheduler: Any = None, num_class_embeds: int | None = None, **arguments: Any
) -> LatentDiffusionPipeline:
    """A tiny one, whose network is made for latents of 16 x 16."""
    unet = tiny_unet(LATENT_CHANNELS[kind], num_class_embeds)
    scheduler = scheduler or DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    return quiet(LatentDiffusionPipeline(tiny_vae(kind, channels), unet, scheduler, **arguments))


def generators(count: int = 2) -> list[torch.Generator]:
    return image_generators(0, range(count))


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_the_decoded_latents(kind: str) -> None:
    pipeline = pipeline_of(kind)
    cell = 2 if kind in ("sd3", "vq") else 4
    images = pipeline(2, generator=generators(), output_type="pt", **FAST).images
    assert images.shape == (2, 3, 16 * cell, 16 * cell)
    latents = pipeline(2, generator=generators(), output_type="latent", **FAST).images
    assert latents.shape == (2, LATENT_CHANNELS[kind], 16, 16)
    shift, scale = shift_and_scale(pipeline.vae)
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents / scale + shift).sample
    assert_close(images, (decoded / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("kind", ["sd", "vq", "tiny", "dc"])
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_images_of_each_kind(kind: str, channels: int, mode: str) -> None:
    pipeline = pipeline_of(kind, channels)
    assert pipeline.channels == channels
    (image,) = pipeline(**FAST).images
    assert image.mode == mode


def test_other_channels_come_as_arrays() -> None:
    pipeline = pipeline_of(channels=2)
    assert pipeline(output_type="np", **FAST).images.shape == (1, 64, 64, 2)
    with pytest.raises(ValueError, match="no PIL image has 2 channels; use output_type='np' or 'pt'"):
        pipeline(**FAST)
    with pytest.raises(ValueError, match="output_type: 'jpg' is not one of pil, np, pt, latent"):
        pipeline(output_type="jpg")


def test_latents_in() -> None:
    pipeline = pipeline_of(scheduler=FlowMatchEulerDiscreteScheduler())
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    given = pipeline(2, latents=noise, output_type="latent", **FAST).images
    drawn = pipeline(2, generator=torch.Generator().manual_seed(7), output_type="latent", **FAST).images
    assert torch.equal(given, drawn)
    with pytest.raises(ValueError, match=r"latents: of shape \(2, 4, 16, 16\), but \(1, 4, 4, 8\)"):
        pipeline(latents=noise, height=16, width=32, **FAST)


def test_size_is_in_pixels() -> None:
    pipeline = pipeline_of()
    assert pipeline(height=32, output_type="pt", **FAST).images.shape == (1, 3, 32, 64)
    assert pipeline(height=32, width=48, output_type="latent", **FAST).images.shape == (1, 4, 8, 12)
    with pytest.raises(ValueError, match="width: 36 is not a multiple of 8"):
        pipeline(width=36, **FAST)


def test_labels_guidance_and_callbacks() -> None:
    """In latent space they are what the pixel pipeline does with the same network."""
    latent = pipeline_of(scheduler=EDMEulerScheduler(), num_class_embeds=4, id2label=NAMES)
    pixel = quiet(PixelDiffusionPipeline(latent.unet, EDMEulerScheduler(), id2label=NAMES))
    seen: dict[Any, list[torch.Tensor]] = {latent: [], pixel: []}

    def halve(pipe: Any, i: int, t: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen[pipe].append(tensors["latents"])
        return {"latents": tensors["latents"] / 2}

    options = {"class_labels": ["bee", "cat"], "guidance_scale": 3.0, "guidance_interval": (0.1, 5.0)}
    for pipe in (latent, pixel):
        pipe(2, generator=generators(), callback_on_step_end=halve, output_type="pt", **options, num_inference_steps=4)
    assert all(torch.equal(a, b) for a, b in zip(seen[latent], seen[pixel], strict=True))
    assert len(seen[latent]) == 4
    assert latent.num_classes == 3
    with pytest.raises(ValueError, match="class_labels: 'dog' is not among 0 to 2"):
        latent(class_labels="dog")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, to the schedulers
@pytest.mark.parametrize("name", ["ddpm", "dpmsolver++", "heun", "flow-heun", "edm-dpmsolver++"])
def test_any_scheduler(name: str) -> None:
    discrete = DDPMScheduler(timestep_spacing="trailing", clip_sample=False)
    trained = {"flow-heun": FlowMatchEulerDiscreteScheduler(), "edm-dpmsolver++": EDMEulerScheduler()}.get(
        name, discrete
    )
    scheduler = make_scheduler(name, trained)
    assert not scheduler.config.get("clip_sample"), "latents aren't within [-1, 1]"
    assert pipeline_of(scheduler=scheduler)(output_type="np", num_inference_steps=3).images.std() > 0


def test_trajectory_shows_images_unless_latents_are_asked_for(tmp_path: Path) -> None:
    pipeline = pipeline_of(scheduler=FlowMatchEulerDiscreteScheduler())
    options: dict[str, Any] = {"num_inference_steps": 3, "return_trajectory": True, "generator": generators()}
    output = pipeline(2, output_type="pt", **options)
    assert output.trajectory.noisy.shape == output.trajectory.denoised.shape == (3, 2, 3, 64, 64)
    # A flow's last step goes to the x0 that was predicted.
    assert_close((output.trajectory.denoised[-1] / 2 + 0.5).clamp(0, 1), output.images, atol=1e-4, rtol=0)
    latent = pipeline(2, output_type="latent", **options | {"generator": generators()})
    assert latent.trajectory.denoised.shape == (3, 2, 4, 16, 16)
    assert_close(pipeline.decode(latent.trajectory.denoised[1]), output.trajectory.denoised[1])
    save_strip(output.trajectory, tmp_path / "strip.png", columns=3)
    assert PIL.Image.open(tmp_path / "strip.png").size == (3 * 64, 4 * 64)


@pytest.mark.parametrize("kind", ["sd", "tiny", "dc"])
def test_slices_and_tiles(kind: str) -> None:
    pipeline = pipeline_of(kind)
    latents = torch.randn(3, LATENT_CHANNELS[kind], 16, 16)
    whole = pipeline.decode(latents)
    shapes: list[tuple[int, ...]] = []
    pipeline.vae.decoder.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    pipeline.vae.enable_slicing()
    assert_close(pipeline.decode(latents), whole, atol=1e-4, rtol=1e-4)
    assert [shape[0] for shape in shapes] == [1, 1, 1]
    if kind == "sd":  # whose tiles are as large as its sample_size, 16; the others' are 512
        shapes.clear()
        pipeline.vae.enable_tiling()
        assert pipeline.decode(latents).shape == whole.shape
        assert max(shape[-1] for shape in shapes) == 4


def overflowing(force_upcast: bool) -> LatentDiffusionPipeline:
    """One whose decoder's activations pass 65504, the most that float16 holds, though its images don't."""
    pipeline = pipeline_of()
    pipeline.vae.register_to_config(force_upcast=force_upcast)
    decoder = pipeline.vae.decoder
    decoder.conv_in.weight.data.mul_(1e5)
    return pipeline


@pytest.mark.parametrize("force_upcast", [True, False])
def test_half_precision_that_overflows_is_decoded_in_float32(force_upcast: bool) -> None:
    pipeline = overflowing(force_upcast)
    expected = pipeline(2, generator=generators(), output_type="pt", **FAST).images
    pipeline.vae.half()
    weights = pipeline.vae.state_dict()
    z = torch.randn(1, 4, 16, 16)
    assert not pipeline.vae.decode(z.half()).sample.isfinite().all(), "the test's autoencoder overflows"
    images = pipeline(2, generator=generators(), output_type="pt", **FAST).images
    assert_close(images, expected, atol=0.02, rtol=0)
    assert pipeline.vae.dtype == torch.float16
    assert all(torch.equal(a, weights[name]) for name, a in pipeline.vae.state_dict().items())


def test_images_are_encoded_in_float32_where_half_precision_overflows() -> None:
    pipeline = pipeline_of()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pipeline.vae.encoder.conv_in.weight.data.mul_(1e5)
    expected = pipeline.encode(images)
    pipeline.vae.half()
    assert not pipeline.vae.encode(images.half()).latent_dist.mean.isfinite().all(), "the test's autoencoder overflows"
    assert_close(pipeline.encode(images), expected, atol=0.02, rtol=0.01)
    assert pipeline.vae.dtype == torch.float16


@pytest.mark.parametrize("kind", KINDS)
def test_passes_give_what_one_gives(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many images go through the autoencoder a few at a time."""
    pipeline = pipeline_of(kind)
    latents = torch.randn(5, LATENT_CHANNELS[kind], 8, 8, generator=torch.Generator().manual_seed(0))
    images = pipeline.decode(latents)
    known = pipeline.encode(images)
    sizes: list[int] = []
    pipeline.vae.decoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    monkeypatch.setattr(vae_module, "PIXELS_PER_PASS", 2 * images.shape[2] ** 2)
    assert_close(pipeline.decode(latents), images, atol=1e-4, rtol=1e-4)
    assert sizes == [2, 2, 1]
    assert_close(pipeline.encode(images), known, atol=1e-4, rtol=1e-4)


def test_half_precision_that_does_not_overflow_is_kept() -> None:
    pipeline = pipeline_of("tiny")
    seen: list[torch.dtype] = []
    pipeline.vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    latents = torch.randn(1, 4, 16, 16)
    expected = pipeline.decode(latents)
    pipeline.vae.bfloat16()
    images = pipeline.decode(latents)
    assert seen == [torch.float32, torch.bfloat16]
    assert images.dtype == torch.float32
    assert_close(images, expected, atol=0.1, rtol=0.1)


def test_images_that_are_not_finite_are_not_passed_off_as_black() -> None:
    pipeline = pipeline_of()
    pipeline.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="images: not finite when AutoencoderKL makes them"):
        pipeline(**FAST)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(tmp_path: Path, kind: str) -> None:
    pipeline = pipeline_of(
        kind,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        num_class_embeds=4,
        id2label=NAMES,
        prediction_type="epsilon",
        value_range=(-2.0, 6.0),
    )
    pipeline.save_pretrained(tmp_path)
    loaded = quiet(LatentDiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True))
    assert loaded.id2label == NAMES
    assert tuple(loaded.config.value_range) == (-2.0, 6.0)
    options = {"class_labels": "bee", "guidance_scale": 2.0, "output_type": "np", **FAST}
    images, again = (p(2, generator=generators(), **options).images for p in (pipeline, loaded))
    np.testing.assert_allclose(images, again, atol=1e-5)  # where weights lie in memory can change the last bits


def test_published_folder_loads_where_diffusers_is_all_there_is(tmp_path: Path) -> None:
    pipeline = pipeline_of(num_class_embeds=3, id2label={0: "cat", 1: "dog"})
    pipeline.save_pretrained(tmp_path / "published")
    pipeline.complete(tmp_path / "published")
    index = json.loads((tmp_path / "published/model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "LatentDiffusionPipeline"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    source = (tmp_path / "published/pipeline.py").read_text()
    assert "from pipelines" not in source
    code = """
pipeline = load(sys.argv[1], trust_remote_code=True)
np.save(sys.argv[2], sample(pipeline))
pipeline.save_pretrained(sys.argv[3])
"""
    done = stranger(code, tmp_path / "published", tmp_path / "images.npy", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    expected = ours(tmp_path / "published", kind=LatentDiffusionPipeline)
    assert np.array_equal(np.load(tmp_path / "images.npy"), expected)
    assert (tmp_path / "again/pipeline.py").read_text() == source


@pytest.mark.slow
def test_a_published_pixel_pipeline_beside_a_latent_one_stays_what_it_is(tmp_path: Path) -> None:
    """Both are modules of one name in a stranger's process."""
    latent = pipeline_of(num_class_embeds=3)
    pixel = quiet(PixelDiffusionPipeline(tiny_unet(3, 3), DDIMScheduler()))
    for name, pipeline in {"latent": latent, "pixel": pixel}.items():
        pipeline.save_pretrained(tmp_path / name)
        pipeline.complete(tmp_path / name)
    code = """
first = load(sys.argv[1], trust_remote_code=True)
alone = sample(first)
second = load(sys.argv[2], trust_remote_code=True)
assert sample(second).shape == (1, 16, 16, 3)
assert (sample(first) == alone).all() and alone.shape == (1, 64, 64, 3)
"""
    done: subprocess.CompletedProcess = stranger(code, tmp_path / "latent", tmp_path / "pixel")
    assert done.returncode == 0, done.stderr
