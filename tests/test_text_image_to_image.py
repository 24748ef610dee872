"""Models of a text and an image: the pipeline, and train_text2img.py --condition."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

import evaluate
import generate
from pipelines import TextImageToImagePipeline
from snowmelt.errors import UserError
from snowmelt.loading import load_pipeline
from tests.autoencoders import tiny_vae
from tests.conftest import trained
from tests.pipelines import test_text2img
from tests.pipelines.models import quiet
from tests.test_resume import interrupted
from tests.test_train_text2img import config, fit, photos  # noqa: F401 (fixtures)

STEPS = {"num_inference_steps": 3, "output_type": "np"}


def make(condition: str, joined: int, **settings: Any) -> TextImageToImagePipeline:
    """Of 16 x 16 RGB images."""
    plain = test_text2img.make(FlowMatchEulerDiscreteScheduler())
    torch.manual_seed(0)
    wider = UNet2DConditionModel.from_config({**plain.unet.config, "in_channels": 3 + joined})
    parts = wider.eval(), plain.scheduler, plain.text_encoder, plain.tokenizer
    made: TextImageToImagePipeline = quiet(TextImageToImagePipeline(*parts, None, None, condition, joined, **settings))
    return made


def pictures(channels: int = 1) -> torch.Tensor:
    return torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))


def test_prompt_and_image_have_scales_of_their_own() -> None:
    """Outputs of a step are nothing + s_image (image - nothing) + s_text (both - image), of the network by itself."""
    pipeline = make("gray", 1, image_guidance=True)
    image = pictures()
    seen: list[torch.Tensor] = []
    handle = pipeline.unet.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    call = {"num_inference_steps": 1, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    guided = pipeline(["a", "b"], image, guidance_scale=3.0, image_guidance_scale=2.0, **call).images
    nothing, with_image, both = seen.pop().chunk(3)
    handle.remove()
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    velocity = nothing + 2 * (with_image - nothing) + 3 * (both - with_image)
    torch.testing.assert_close(guided, ((noise - velocity) / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        x, t = torch.cat([noise, 2 * image - 1], 1), torch.full((2,), 1000.0)
        embeds, mask = pipeline.encode_prompt(["a", "b"])
        own = pipeline.unet(x, t, **pipeline._repeated(embeds, mask, 1)).sample
        torch.testing.assert_close(both, own, atol=1e-4, rtol=1e-3)
        x = torch.cat([noise, torch.zeros(2, 1, 16, 16)], 1)
        embeds, mask = pipeline.encode_prompt(["", ""])
        torch.testing.assert_close(
            nothing, pipeline.unet(x, t, **pipeline._repeated(embeds, mask, 1)).sample, atol=1e-4, rtol=1e-3
        )


def test_no_guidance_by_prompts_is_a_scale_like_others() -> None:
    """With guidance by images nothing jumps at 1, and the negative prompt counts."""
    pipeline = make("gray", 1, image_guidance=True)
    call = {"image_guidance_scale": 3.0, "num_inference_steps": 2, "output_type": "pt"}
    images = [
        pipeline("a", pictures()[:1], guidance_scale=s, generator=torch.Generator().manual_seed(0), **call).images
        for s in (1.0, 1.0001)
    ]
    assert (images[0] - images[1]).abs().max() < 1e-3


def test_images_of_prompts_and_images() -> None:
    """An image per prompt, several images of each; what a mask doesn't have stays."""
    pipeline = make("mask", 4)
    image, mask = pictures(3), torch.zeros(2, 1, 16, 16)
    mask[0, :, :8], mask[1, :, 8:] = 1, 1
    output = pipeline(["a", "b"], image, mask, num_images_per_prompt=2, **STEPS).images
    made = torch.from_numpy(output).movedim(-1, 1)
    assert made.shape == (4, 3, 16, 16)
    for i in range(4):
        known = ~mask[i // 2].bool().expand(3, 16, 16)
        assert torch.equal((255 * made[i]).round()[known], (255 * image[i // 2]).round()[known])
    assert not torch.equal(made[0], made[1])
    with pytest.raises(ValueError, match="^image: 2 given for 3 prompts"):
        pipeline(["a", "b", "c"], image, mask[:1], **STEPS)
    with pytest.raises(TypeError, match="^image: must be a PIL image"):
        pipeline("a", **STEPS)


@pytest.mark.parametrize("latent", [False, True])
def test_trained_resumed_sampled_and_evaluated(latent, fit, photos, tmp_path, monkeypatch):  # noqa: F811
    options: dict[str, Any] = {"condition": "lowres:2", "conditioning_dropout_prob": 0.2, "max_noise_level": 0.5}
    options |= {"max_train_steps": 3, "checkpointing_steps": 1, "random_flip": True, "objective": "flow"}
    side = 16 if latent else 8
    if latent:
        tiny_vae("vq").save_pretrained(tmp_path / "vae")
        options |= {"autoencoder": tmp_path / "vae", "resolution": side}
    run = fit(tmp_path / "run", **options)
    resumed = interrupted(run, 1, tmp_path / "resumed")
    fit(resumed, **options, resume_from_checkpoint="latest")
    assert trained(resumed, since=1) == trained(run, since=1)
    pipeline = load_pipeline(str(run))
    assert type(pipeline) is TextImageToImagePipeline
    small = tmp_path / "small.png"
    PIL.Image.new("RGB", (side // 2, side // 2), "red").save(small)
    words = ["--model", run, "--image", small, "--prompt", "a red picture", "--num_images", 2]
    words += ["--num_inference_steps", 2, "--image_guidance_scale", 1.5, "--output_dir", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, words)])
    generate.main()
    assert PIL.Image.open(tmp_path / "out" / "000001.png").size == (side, side)
    words = ["--model", run, "--dataset_name", photos, "--metrics", "psnr", "--num_images", 4, "--batch_size", 2]
    words += ["--num_inference_steps", 2, "--caption_column", "captions", "--output", tmp_path / "report"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
    evaluate.main()
    assert "PSNR" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"condition": "blur"}, "--condition: 'blur' is not one of"),
        ({"condition": "gray", "backbone": "pixart", "model_config_name_or_path": None}, "--backbone pixart: takes no"),
        ({"condition": "column:image", "max_train_samples": 3}, "--condition: isn't for --max_train_samples"),
    ],
)
def test_what_can_not_be_trained(more: dict[str, Any], error: str, fit: Callable[..., Path], tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match="^" + error):
        fit(tmp_path / "run", **more)
