"""A ControlNet beside a text-to-image network; diffusers' own pipeline for the same parts as the reference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    UNet2DModel,
)

from pipelines import TextToImageControlNetPipeline, TextToImagePipeline, make_condition
from pipelines.controlnet import ControlledUNet, control_image
from tests.pipelines import test_text2img
from tests.pipelines.models import quiet
from tests.publishing.test_self_contained import stranger
from tests.test_train_controlnet import POOLED

CALL: dict[str, Any] = {"num_inference_steps": 3, "output_type": "pt", "guidance_scale": 2.0}


def controlnet(base: TextToImagePipeline, channels: int, trained: bool = True) -> ControlNetModel:
    """One that adds something, or one that is new."""
    layers = (16, 32) if base.vae is not None else (16,)
    torch.manual_seed(5)
    made = ControlNetModel.from_unet(
        base.unet, conditioning_embedding_out_channels=layers, conditioning_channels=channels
    )
    for parameter in made.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1 if trained else 0)
    return made.eval()


def make(
    base: TextToImagePipeline, condition: str, channels: int, trained: bool = True, **settings: Any
) -> TextToImageControlNetPipeline:
    beside = controlnet(base, channels, trained)
    return quiet(TextToImageControlNetPipeline(**base.components, controlnet=beside, condition=condition, **settings))


def pictures(channels: int = 3, side: int = 16) -> torch.Tensor:
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("scheduler", "latent"), [(FlowMatchEulerDiscreteScheduler, False), (DDIMScheduler, True)])
def test_a_new_one_changes_nothing(scheduler: Any, latent: bool) -> None:
    """Nor does a trained one at a scale of 0: images are those of the network by itself, to the bit."""
    base = test_text2img.make(scheduler(), latent)
    base.register_modules(unet=test_text2img.unet(4 if latent else 3, **POOLED))
    image = pictures(1, 32 if latent else 16)
    plain = base(["a cat", "a dog"], **CALL, generator=seeded()).images
    new, trained = (make(base, "edges", 1, is_trained) for is_trained in (False, True))
    given: dict[str, Any] = {"prompt": ["a cat", "a dog"], "image": image, **CALL}
    assert torch.equal(new(**given, generator=seeded()).images, plain)
    assert torch.equal(trained(**given, generator=seeded(), controlnet_conditioning_scale=0.0).images, plain)
    half, whole = (
        trained(**given, generator=seeded(), controlnet_conditioning_scale=scale).images for scale in (0.5, 1.0)
    )
    assert (half - plain).abs().max() > 1e-3
    assert (half - whole).abs().max() > 1e-3
    assert torch.equal(trained(**given, generator=seeded()).images, whole)


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_stable_diffusion_pipeline_agrees(scale: float) -> None:
    """The same parts, embeddings, noise and images give the same images."""
    ours = make(test_text2img.make(latent=True), "column:map", 3)
    theirs = quiet(
        StableDiffusionControlNetPipeline(
            **ours.components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    )
    options = {
        "image": pictures(3, 32),
        "prompt_embeds": torch.randn(2, test_text2img.LENGTH, 32),
        "negative_prompt_embeds": torch.randn(2, test_text2img.LENGTH, 32),
        "latents": torch.randn(4, 4, 16, 16),
        "num_images_per_prompt": 2,
        "guidance_scale": 4.0,
        "controlnet_conditioning_scale": scale,
        "num_inference_steps": 4,
        "output_type": "pt",
    }
    assert torch.allclose(ours(**options).images, theirs(**options).images, atol=1e-5)


def test_both_networks_are_given_the_same() -> None:
    """Text, pooled text and time; the image with the prompt and with that which is guided away from."""
    base = test_text2img.make(FlowMatchEulerDiscreteScheduler())
    base.register_modules(unet=test_text2img.unet(**POOLED))
    pipeline = make(base, "gray", 1)
    seen: dict[str, Any] = {}
    for name in ("unet", "controlnet"):
        getattr(pipeline, name).register_forward_pre_hook(
            lambda module, args, kwargs, name=name: seen.update({name: (args, kwargs)}), with_kwargs=True
        )
    image = pictures(1)
    pipeline(["a cat", "a dog"], image, **CALL | {"num_inference_steps": 1}, generator=seeded())
    (args, kwargs), (own_args, own) = seen["controlnet"], seen["unet"]
    assert all(torch.equal(a, b) for a, b in zip(args, own_args, strict=True))
    for name in ("encoder_hidden_states", "class_labels"):
        assert torch.equal(kwargs[name], own[name])
    assert own["encoder_attention_mask"].shape == (4, test_text2img.LENGTH)
    torch.testing.assert_close(kwargs["controlnet_cond"], torch.cat([image, image]))


def test_what_a_controlnet_is_shown() -> None:
    """Images in [0, 1] of the size of those that are made."""
    image = pictures()
    gray = make_condition("gray").degrade(2 * image - 1, seeded())
    shown = control_image(make_condition("gray"), gray, 3)
    torch.testing.assert_close(
        shown, (image * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, True).expand(2, 3, 16, 16)
    )
    lowres = make_condition("lowres:4")
    half = torch.full((1, 3, 16, 16), 0.5)
    shown = control_image(lowres, lowres.degrade(half, seeded()), 3)
    torch.testing.assert_close(shown, torch.full((1, 3, 16, 16), 0.75))
    mask = make_condition("mask")
    inputs = mask.degrade(torch.ones(1, 3, 16, 16), seeded())
    shown = control_image(mask, inputs, 4)
    missing = shown[:, 3:] == 1
    assert set(shown[:, 3:].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(shown[:, :3], torch.where(missing, 0.5, 1.0).expand(-1, 3, -1, -1))


def test_masks_and_sizes() -> None:
    """What a mask doesn't have stays, for each image of a prompt; a small image makes a large one."""
    pipeline = make(test_text2img.make(FlowMatchEulerDiscreteScheduler()), "mask", 4)
    image, mask = pictures(), torch.zeros(2, 1, 16, 16)
    mask[0, :, :8], mask[1, :, 8:] = 1, 1
    made = pipeline(["a", "b"], image, mask, num_images_per_prompt=2, **CALL).images
    assert made.shape == (4, 3, 16, 16)
    for i in range(4):
        known = ~mask[i // 2].bool().expand(3, 16, 16)
        torch.testing.assert_close(made[i][known], image[i // 2][known])
    assert not torch.equal(made[0], made[1])
    larger = make(test_text2img.make(latent=True), "lowres:4", 3)
    assert larger("a", pictures(3, 8)[:1], **CALL).images.shape == (1, 3, 32, 32)
    assert larger("a", pictures(3, 12)[:1], **CALL).images.shape == (1, 3, 48, 48)


@pytest.mark.slow
def test_it_loads_with_diffusers_alone(tmp_path: Path) -> None:
    pipeline = make(test_text2img.make(FlowMatchEulerDiscreteScheduler()), "edges", 1)
    pipeline.save_pretrained(tmp_path / "model")
    code = (
        "pipeline = load(sys.argv[1], trust_remote_code=True)\n"
        "image = torch.linspace(0, 1, 256).view(1, 1, 16, 16)\n"
        "output = pipeline('a cat', image, num_inference_steps=2, output_type='np',\n"
        "                  generator=torch.Generator().manual_seed(0))\n"
        "np.save('out.npy', output.images)\n"
    )
    done = stranger(code, tmp_path / "model")
    assert done.returncode == 0, done.stderr
    image = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
    again = quiet(TextToImageControlNetPipeline.from_pretrained(tmp_path / "model"))
    ours = again("a cat", image, num_inference_steps=2, output_type="np", generator=seeded()).images
    assert np.array_equal(np.load(tmp_path / "out.npy"), ours)


def test_only_the_controlnet_is_ever_in_training_mode() -> None:
    base = test_text2img.make()
    module = ControlledUNet(base.unet, controlnet(base, 1)).train()
    assert (module.training, module.controlnet.training, base.unet.training) == (True, True, False)


def test_parts_that_do_not_fit() -> None:
    base, latent = test_text2img.make(), test_text2img.make(latent=True)

    def refused(beside: Any, message: str, **settings: Any) -> None:
        with pytest.raises((TypeError, ValueError), match="^" + message):
            TextToImageControlNetPipeline(**base.components, controlnet=beside, **{"condition": "edges"} | settings)

    refused(UNet2DModel(), "controlnet: must be a ControlNetModel, got UNet2DModel")
    refused(controlnet(latent, 1), "controlnet: its in_channels is 4, and the unet's 3; it is another's")
    wider = test_text2img.make()
    wider.register_modules(unet=test_text2img.unet(block_out_channels=(16, 64)))
    refused(controlnet(wider, 1), r"controlnet: its block_out_channels is \(16, 64\), and")
    wider.register_modules(unet=test_text2img.unet(cross_attention_dim=64))
    refused(controlnet(wider, 1), "controlnet: its cross_attention_dim is 64, and the unet's 32")
    deeper = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(16, 32))
    refused(deeper, "controlnet: divides the sides of its image by 2, and the network's data have 1 / 1 of them")
    refused(controlnet(base, 1), "condition: 'blur' is not one of", condition="blur")
    base.register_modules(unet=test_text2img.unet(encoder_hid_dim=32, encoder_hid_dim_type="text_proj"))
    refused(controlnet(wider, 1), "controlnet: none knows what to do with a unet that projects text embeddings")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": None}, "image: must be a PIL image"),
        ({"image": pictures(4)}, "image: has 4 channels, and the model takes 1"),
        ({"image": pictures(1, 17)}, "image: of 17 x 17 pixels; its sides must be multiples of 2"),
        ({"image": pictures(1), "prompt": ["a"] * 3}, "image: 2 given for 3 prompts"),
        ({"mask_image": torch.ones(1, 1, 16, 16)}, "mask_image: this model is conditioned on edges; leave it out"),
        ({"controlnet_conditioning_scale": "a"}, "controlnet_conditioning_scale: must be a number"),
        ({"controlnet_conditioning_scale": float("nan")}, "controlnet_conditioning_scale: must be a finite number"),
        ({"prompt": None}, "prompt: give it or prompt_embeds"),
    ],
)
def test_calls_that_are_refused(given: dict[str, Any], message: str) -> None:
    pipeline = make(test_text2img.make(), "edges", 1)
    with pytest.raises((TypeError, ValueError), match="^" + message):
        pipeline(**{"prompt": ["a", "b"], "image": pictures(1)} | given, num_inference_steps=1)
